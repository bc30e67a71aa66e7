"""Which device runs which stage."""

from collections.abc import Sequence

import jax

from scpl_jax.stages.cuts import balanced_cut


def place(costs: Sequence[float], devices: Sequence[jax.Device]) -> tuple[jax.Device, ...]:
    """Give every stage a device, so that the busiest device has as little to do as possible.

    Neighbouring stages share a device where there are more stages than devices; devices that are left over stay idle.

    Args:
      costs: cost of each stage, in any unit.
      devices: the devices to use, at least one.

    Returns:
      The device of each stage, in order.

    Raises:
      ValueError: no device.

    Example:
      >>> import jax
      >>> place([1.0, 2.0], jax.devices()[:1]) == (jax.devices()[0],) * 2
      True
    """
    if not devices:
        raise ValueError("a pipeline needs at least one device, got none")
    used = min(len(costs), len(devices))
    cut = balanced_cut(lambda start, stop: sum(costs[start:stop]), len(costs), used)
    bounds = (0, *cut, len(costs))
    groups = zip(bounds[:-1], bounds[1:], devices, strict=False)
    return tuple(device for start, stop, device in groups for _ in range(start, stop))
