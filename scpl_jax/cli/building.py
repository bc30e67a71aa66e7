"""From options to the objects of the library: what computes, network, stages, optimizer, pipeline."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.cli.methods import row_of, rule_of
from scpl_jax.cli.option_types import integers, of_stage
from scpl_jax.cli.run_options import AnyOptions, AnyResolved, ResolvedOptions, RunOptions
from scpl_jax.data import Examples
from scpl_jax.kernels import onednn
from scpl_jax.models import LIBRARIES
from scpl_jax.pipeline import Pipeline, processes
from scpl_jax.pipeline.exits import StopRule
from scpl_jax.pipeline.placement import by_process
from scpl_jax.stages import Stage, decouple
from scpl_jax.training import RunError, build_optimizer, cosine_schedule

# Confidences for which accuracy against cost is always reported.
CURVE = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
# Data that comes with the package: runs of a minute or two, where compiling again would take longer than it saves.
_SHORT_RUNS = {"digits", "synthetic", "generated"}


@dataclasses.dataclass(frozen=True)
class Task(Generic[AnyOptions, AnyResolved]):
    """One kind of experiment: which data, which network, how its batches are prepared; all else is common to all kinds.

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


def cut_of(cut: str, stages: int, paper: Callable[[], Sequence[int]]) -> str | Sequence[int]:
    """``--cut`` as :func:`scpl_jax.decouple` takes it; ``paper`` gives the paper's four stages.

    Raises:
      RunError: it can't be read, or the number of stages is not that of the paper.
    """
    if cut == "paper":
        if stages != 4:
            raise RunError(f"--cut paper is defined for 4 stages, got --stages {stages}; use auto or even")
        return paper()
    return cut if cut in ("auto", "even") else integers(cut, "--cut")


def _build_stages(
    task: Task[Any, AnyResolved], options: AnyResolved, dataset: Any, seed: int, plan: dict[str, Any] | None = None
) -> tuple[Stage, ...]:
    """The network's stages with the initial values of one seed; ``plan``: cut and costs found at the run's start."""
    key = jax.random.key(seed)
    blocks = task.blocks(options, dataset, nnx.Rngs(jax.random.fold_in(key, 0)))
    if options.stages > len(blocks) - 1:
        raise RunError(
            f"--stages {options.stages} is too many: {options.model} has {len(blocks) - 1} blocks that can be cut"
        )
    cut = cut_of(options.cut, options.stages, lambda: task.paper_cut(options))
    example = task.example(options, dataset)
    rule = rule_of(options, dataset.num_classes, dtype_of(options.precision), task.associated)
    used = blocks if rule.classifier else blocks[:-1]

    def stages(cut: str | Sequence[int], costs: str = "estimate") -> tuple[Stage, ...]:
        rngs = nnx.Rngs(jax.random.fold_in(key, 1))
        objectives, classifier = rule.objectives, rule.classifier
        return decouple(used, options.stages, objectives, example, rngs, cut=cut, costs=costs, classifier=classifier)

    if plan is None and options.costs == "estimate":
        return stages(cut)
    if plan is None:  # times differ from one process to the next
        plan = processes.decided_by_first(lambda: plan_of(stages(cut, "measured")))
    positions, costs, loss_costs = plan["cut"], plan["costs"], plan["loss_costs"]
    return tuple(
        dataclasses.replace(stage, cost=cost, loss_cost=loss_cost)
        for stage, cost, loss_cost in zip(stages(positions), costs, loss_costs, strict=True)
    )


def plan_of(stages: Sequence[Stage]) -> dict[str, Any]:
    """The cut and the costs on which the placement rests."""
    return {
        "cut": [stage.blocks[0] for stage in stages[1:]],
        "costs": [stage.cost for stage in stages],
        "loss_costs": [stage.loss_cost for stage in stages],
    }


def devices_of(wanted: int | None) -> list[jax.Device]:
    """As many devices as ``--devices`` asks for, the same number of every process; None for all."""
    devices = processes.devices()
    if wanted is None:
        return devices
    if wanted > len(devices):
        raise RunError(f"--devices {wanted} is more than the {len(devices)} there are")
    each, left = divmod(wanted, jax.process_count())
    if left:
        raise RunError(f"--devices {wanted} can't be shared by {jax.process_count()} processes equally")
    return [device for group in by_process(devices).values() for device in group[:each]]


def build_pipeline(
    task: Task[Any, AnyResolved], options: AnyResolved, dataset: Any, seed: int, plan: dict[str, Any] | None = None
) -> Pipeline:
    """The stages of one seed on their devices, with optimizer and augmentation."""
    optimizers = [build_optimizer(options.optimizer, one) for one in _schedules(options, dataset)]
    prepare, prepare_eval = task.prepare(options, dataset)
    rule = row_of(options.method)
    apart = options.fuse is None and (options.timeline or bool(rule.joins(options)))
    return Pipeline(
        _build_stages(task, options, dataset, seed, plan),
        optimizers,
        devices_of(options.devices),
        data_parallel=options.data_parallel,
        across_hosts=options.across_hosts,
        fuse=False if apart else options.fuse,
        prepare=prepare,
        prepare_eval=prepare_eval,
        joint_answer=options.joint_answer,
        key=jax.random.fold_in(jax.random.key(seed), 2),
        skip_non_finite=options.skip_non_finite,
        max_in_flight=options.max_in_flight,
        **rule.pipeline(options),
    )


def stop_rules(options: RunOptions) -> list[StopRule]:
    """When an example stops at an early exit: a range of confidences for a curve, then what the options ask for."""
    rules = [StopRule(confidence=confidence) for confidence in CURVE]
    if options.exit_threshold is not None:
        rules.append(StopRule(confidence=options.exit_threshold))
    if options.exit_patience is not None:
        rules.append(StopRule(patience=options.exit_patience, similarity=options.exit_similarity))
    return rules


def schedule_of(options: ResolvedOptions, dataset: Examples) -> Any:
    """The learning rate by step, a scalar; of each stage, shape (stages,), where they differ."""
    each = _schedules(options, dataset)
    same = not isinstance(options.lr, tuple) and not isinstance(options.end_lr, tuple)
    return each[0] if same else lambda step: jnp.stack([one(step) for one in each])


def _schedules(options: ResolvedOptions, dataset: Examples) -> list[Any]:
    """The learning rate of each stage by step."""
    epoch = len(dataset.train_labels) // options.batch_size
    every = epoch if options.lr_every == "epoch" else 1
    length = (options.epochs * epoch, every, options.warmup_steps)
    return [
        cosine_schedule(of_stage(options.lr, index), of_stage(options.end_lr, index), *length)
        for index in range(options.stages)
    ]


def dtype_of(precision: str) -> Any:
    """The dtype of the computation with this ``--precision``; None for float32, that of the images."""
    return jnp.bfloat16 if precision == "bfloat16" else None


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
