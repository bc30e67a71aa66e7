"""Which library computes convolutions and matrix products on a CPU: what ``--library`` comes to."""

import dataclasses
from typing import Any

import jax

from scpl_jax.cli.run_options import AnyOptions
from scpl_jax.kernels import onednn
from scpl_jax.models import LIBRARIES
from scpl_jax.training.run_error import RunError

# Data that comes with the package: runs of a minute or two, where compiling again would take longer than it saves.
_SHORT_RUNS = {"digits", "synthetic", "generated"}


def resolve_library(asked: str | None, *, dataset: str = "", split: bool = False, precision: str = "float32") -> str:
    """The library, by default oneDNN where it can be had and pays.

    Args:
      asked: the value of ``--library``, or None.
      dataset: name of the data set of a training run.
      split: whether batches of a stage are split over devices.
      precision: as for ``--precision``.

    Raises:
      RunError: it is unknown, or oneDNN is asked for and can't be had.

    Example:
      >>> resolve_library(None, dataset="digits")
      'xla'
    """
    if asked not in (None, *LIBRARIES):
        raise RunError(f"--library {asked} is unknown; choose {' or '.join(LIBRARIES)}")
    hindrance = None
    if jax.default_backend() != "cpu":
        hindrance = f"--library onednn is for CPUs, the devices here are of the kind {jax.default_backend()}"
    elif split:
        hindrance = "--library onednn needs one device a stage, as XLA does not split its calls over devices"
    elif precision == "bfloat16":
        hindrance = "--library onednn is for float32, got --precision bfloat16"
    elif not onednn.available():
        hindrance = f"--library onednn: {onednn.requirement()}"
    if asked == "onednn" and hindrance is not None:
        raise RunError(f"{hindrance}; choose xla")
    if asked is not None:
        return asked
    return "onednn" if hindrance is None and dataset not in _SHORT_RUNS else "xla"


def with_library(options: AnyOptions, dataset: str, config: dict[str, Any] | None) -> AnyOptions:
    """A training run's options with the library to compute with.

    Args:
      options: of the run.
      dataset: name of its data set.
      config: that of the run to be resumed, which keeps the library that it began with; or None.

    Raises:
      RunError: as for :func:`resolve_library`.
    """
    asked = options.library
    if config is not None:
        asked = config["resolved"].get("library", "xla")  # before there was a choice it was XLA
    split = options.data_parallel > 1 or options.across_hosts == "data"
    library = resolve_library(asked, dataset=dataset, split=split, precision=options.precision)
    return dataclasses.replace(options, library=library)
