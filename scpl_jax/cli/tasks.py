"""What an experiment is: which data, which network, how its batches are prepared."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic

from flax import nnx

from scpl_jax.cli.run_options import AnyOptions, AnyResolved


@dataclasses.dataclass(frozen=True)
class Task(Generic[AnyOptions, AnyResolved]):
    """One kind of experiment; everything else of a training run is common to all kinds.

    Attributes:
      name: of its module in ``scpl_jax.experiments``.
      options: the dataclass of its command line; what follows ``resolve`` gets resolved options.
      load: options as asked for to the data set, without limits and label noise.
      resolve: (options, data set) to the options as they hold in the run.
      blocks: (options, data set, rngs) to the network.
      example: (options, data set) to a batch for the network, shapes and dtypes only.
      paper_cut: options to the paper's four stages.
      prepare: (options, data set) to what is done with a batch on the device, in training and in evaluation; see
        :class:`scpl_jax.Pipeline`. None where it is for the network as it is.
      title: (options, data set) to the first line of a run.
      associated: options of :class:`scpl_jax.Associated` with which it is what its authors released for such data.
      measured: (data set, examples per second) to more numbers for the results.
    """

    name: str
    options: type[AnyOptions]
    load: Callable[[AnyOptions], Any]
    resolve: Callable[[AnyOptions, Any], AnyResolved]
    blocks: Callable[[AnyResolved, Any, nnx.Rngs], list[nnx.Module]]
    example: Callable[[AnyResolved, Any], Any]
    paper_cut: Callable[[AnyResolved], Sequence[int]]
    prepare: Callable[[AnyResolved, Any], tuple[Callable[..., Any] | None, Callable[..., Any] | None]]
    title: Callable[[AnyResolved, Any], str]
    associated: dict[str, Any] = dataclasses.field(default_factory=dict)
    measured: Callable[[Any, float], dict[str, float]] = lambda dataset, rate: {}
