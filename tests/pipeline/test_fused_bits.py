"""Stages of one program have the bits that they have apart, in code that XLA optimises, unlike that of most tests."""

import os
import subprocess
import sys

import pytest


def bits(devices: int, fuse: bool) -> str:
    """Metrics and parameters of three stages after some steps, as text without loss."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    import scpl_jax as scpl

    class Scaled(nnx.Module):
        """Begins with a sum and ends with a product: computed as one, two of them would be rounded once less."""

        def __init__(self, rngs: nnx.Rngs):
            self.shift, self.scale = (nnx.Param(jax.random.normal(rngs.params(), (24,))) for _ in range(2))

        def __call__(self, x: jax.Array) -> jax.Array:
            return (x + self.shift[...]) * self.scale[...]

    rngs, rng = nnx.Rngs(0), np.random.default_rng(0)
    x, y = rng.normal(size=(16, 24)).astype(np.float32), np.arange(16) % 3
    blocks = [*(Scaled(rngs) for _ in range(3)), nnx.Linear(24, 3, rngs=rngs)]
    stages = scpl.decouple(blocks, 3, scpl.SupCon(head="linear", head_dims=(8,)), x, nnx.Rngs(1))
    placement = {"data_parallel": devices, "devices": jax.devices()[:devices]}
    pipeline = scpl.Pipeline(stages, optax.adam(1e-2), fuse=fuse, **placement)
    assert len(pipeline.groups) == (1 if fuse else 3)
    metrics = [pipeline.train_step(x, y) for _ in range(4)]
    found = jax.device_get((metrics, [state.params for state in pipeline.states]))
    return repr(jax.tree.map(lambda value: np.asarray(value, np.float64).tolist(), found))


@pytest.mark.runs
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("emitters", ["", "--xla_cpu_use_fusion_emitters=false"], ids=["emitters", "as the commands"])
def test_code_is_not_made_of_two_stages(emitters, devices):
    flags = f"--xla_force_host_platform_device_count={devices} {emitters}"
    command = [sys.executable, __file__, str(devices)]
    subprocess.run(command, env={**os.environ, "XLA_FLAGS": flags}, check=True, timeout=200)


if __name__ == "__main__":
    number = int(sys.argv[1])
    assert bits(number, True) == bits(number, False)
