"""The options that training runs of all kinds have, by group, as asked for and as resolved; each field is an option.

A field without a sentence gets it, and its default, from each kind of run.
"""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from scpl_jax.cli.methods import RuleOptions, check_rule
from scpl_jax.cli.option_types import (
    Count,
    Fraction,
    Natural,
    NotNegativeEach,
    OneOf,
    Positive,
    PositiveEach,
    Share,
    Switch,
    Unset,
    check_one_each,
    check_values,
    default,
    flag,
    integers,
    is_of_type,
    members,
    shown,
)
from scpl_jax.cli.parsing import Group
from scpl_jax.data.paths import expand
from scpl_jax.models import INITIALISERS, LIBRARIES
from scpl_jax.training.run_error import RunError

# What --precision means for matrix products of float32; float32 is float32 on a GPU too.
PRECISIONS = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}
# Options that change nothing in the numbers, or only where files lie: a resumed run may have other values.
FREE_ON_RESUME = {
    *("out_dir", "resume", "data_dir", "data_file", "test_file", "cache_dir", "save_every", "keep", "max_skipped"),
    *("devices", "data_parallel", "across_hosts", "fuse", "max_in_flight", "cluster", "coordinator_address"),
    *("num_processes", "process_id", "timeline", "profile", "tensorboard", "norms_every"),
}


@dataclasses.dataclass(frozen=True)
class NetworkOptions(Group, title="network"):
    """What is trained, and how it is cut into stages."""

    model: str = ""
    width: Positive | None = None
    init: Annotated[str, OneOf(INITIALISERS)] = "torch"
    """Initial distributions."""
    stages: Count = 4
    """Number of stages, from 1 to the number of blocks."""
    cut: str = "auto"
    """auto (the most expensive stage as cheap as possible), even, paper, or the blocks where stages begin, as 2,4,5."""
    costs: Literal["estimate", "measured"] = "estimate"
    """What cut and placement rest on: the compiler's estimate, or measured times of each block on this machine."""


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Group, title="training"):
    """How long and how fast it is trained."""

    epochs: Count | None = None
    batch_size: Count | None = None
    lr: PositiveEach = 1e-3
    """Learning rate at the start, or after the warm-up; one for all stages, or one for each, as 1e-3,1e-3,3e-4,1e-4."""
    end_lr: NotNegativeEach = 1e-5
    """Learning rate at the end of the cosine schedule, one or one for each stage."""
    lr_every: Literal["step", "epoch"] = "step"
    """When the learning rate changes; every epoch as in the released PyTorch code."""
    warmup_steps: Natural = 0
    """Steps in which the learning rate first rises linearly, with every step whatever --lr-every says; the cosine takes
    the steps that remain."""
    optimizer: str = "adam"
    """Any Optax optimizer that needs only a learning rate, by name."""
    precision: Annotated[str, OneOf(tuple(PRECISIONS))] = "float32"
    """Of matrix products, and with bfloat16 of activations; parameters and losses are always float32."""
    seed: Natural = 0
    """Seed of initial values, order and augmentation."""
    runs: Count = 1
    """Number of runs with seeds SEED, SEED + 1, ...; the results give mean and standard deviation."""
    skip_non_finite: bool = True
    """Leave out a stage's update where its loss or gradient is NaN or infinite; the other stages are not affected."""
    max_skipped: Natural = 10
    """End the run, saved, when a stage has left out this many updates in a row; 0: never."""


@dataclasses.dataclass(frozen=True)
class DataOptions(Group, title="data"):
    """What it is trained and tested on."""

    dataset: str = "auto"
    data_dir: Unset[Path] = None
    """Where the data set's files lie; read only."""
    label_noise: Share = 0.0
    """Share of the training labels drawn again from all classes, from 0 to 1."""
    limit_train: Unset[Count] = None
    """Train on the first N examples only."""
    limit_test: Unset[Count] = None
    """Test on the first N examples only."""
    validation: Fraction = 0.0
    """Share of the training examples of each class that is held out, the same ones for every seed and method: accuracy
    on them is measured after each epoch, and the best checkpoint is the best by it; 0: none."""
    cache_dir: Annotated[Path | None, default("~/.cache/scpl_jax")] = None
    """Where prepared data and compiled programs are kept."""


@dataclasses.dataclass(frozen=True)
class DeviceOptions(Group, title="device"):
    """Where it is computed; a run may be spread over several processes."""

    library: Annotated[
        str | None,
        OneOf(LIBRARIES),
        default("onednn where it can be had, one device computes a stage and the data did not come with this package"),
    ] = None
    """What computes convolutions and matrix products on a CPU; onednn (on x86-64 under Linux) has faster steps, but its
    programs are compiled at every start."""
    devices: Annotated[Count | None, default("all")] = None
    """Number of devices to use, over all processes."""
    data_parallel: Count = 1
    """Devices a stage, over which its batch is split."""
    across_hosts: Literal["stages", "data"] = "stages"
    """What is spread over the processes of a run: stages (each in one process) or data (each over all of them)."""
    fuse: Switch = None
    """Compile stages that share devices into one program: yes (also --fuse alone), no or auto, which is on CPUs for up
    to four stages that hand on at most 12 MiB a batch to one another, but not with --timeline, and not with dascpl,
    whose stages join one after another (with yes, all of a program's stages join with its first one)."""
    max_in_flight: Count = 8
    """Batches under way at a time; 1 is synchronous. The results do not depend on it."""
    coordinator_address: Unset[str] = None
    """HOST:PORT of process 0 of a run of several processes; scpl_jax.launch sets it."""
    num_processes: Unset[int] = None
    """Number of processes of the run."""
    process_id: Unset[int] = None
    """Number of this process, from 0."""
    cluster: bool = False
    """Join the processes that a cluster (SLURM, MPI, Kubernetes) has started."""


@dataclasses.dataclass(frozen=True)
class OutputOptions(Group, title="output"):
    """What is kept of it, and where."""

    out_dir: Annotated[Path | None, default("runs/EXPERIMENT/DATE-TIME")] = None
    """Run directory."""
    resume: bool = False
    """Continue the run in --out-dir from its last checkpoint, with its own options."""
    save_every: Annotated[Count | None, default("every epoch")] = None
    """Steps between checkpoints."""
    keep: Count = 2
    """How many of the newest checkpoints are kept; the best one is kept besides."""
    probe_examples: Annotated[
        Natural | None, default("2000 where stages can't tell classes themselves, otherwise 0")
    ] = None
    """Training examples to which a nearest-neighbour classifier and a linear probe of each stage's features are fitted
    when the training is over; 0: none."""
    tensorboard: bool = True
    """Write TensorBoard files."""
    norms_every: Count = 100
    """Steps between gradient norms of every layer in TensorBoard."""
    timeline: bool = False
    """Measure when each stage works, for 50 steps, and write timeline.json (for Perfetto) and timeline.svg."""
    profile: bool = False
    """Write a trace of ten steps by the JAX profiler to profile/ in the run directory."""


@dataclasses.dataclass(frozen=True)
class RunOptions(OutputOptions, DeviceOptions, DataOptions, TrainingOptions, RuleOptions, NetworkOptions):
    """What the experiments have in common, as asked for: None where nothing was given and there is no common default.

    Example:
      >>> RunOptions(epochs=3).batch_size is None
      True
    """

    def check(self) -> None:
        """Refuse values out of range, and options that contradict one another.

        Raises:
          RunError: one sentence for the first bad option.

        Example:
          >>> RunOptions(stages=0).check()
          Traceback (most recent call last):
          scpl_jax.training.run_error.RunError: --stages must be at least 1, got 0
        """
        check_values(self)
        check_one_each(self)
        check_rule(self)
        if self.cut not in ("auto", "even", "paper"):
            integers(self.cut, "--cut")


@dataclasses.dataclass(frozen=True)
class ResolvedOptions(RunOptions):
    """The same as they hold in a run, when its data set is known: what was not given has its default."""

    width: Positive = dataclasses.field(kw_only=True)
    epochs: Count = dataclasses.field(kw_only=True)
    batch_size: Count = dataclasses.field(kw_only=True)
    library: str = dataclasses.field(kw_only=True)


AnyOptions = TypeVar("AnyOptions", bound=RunOptions)
AnyResolved = TypeVar("AnyResolved", bound=ResolvedOptions)


def resolved(kind: type[AnyResolved], asked: RunOptions, defaults: Mapping[str, Any]) -> AnyResolved:
    """Options as they hold in a run.

    Args:
      kind: their dataclass.
      asked: the options as asked for.
      defaults: what holds where nothing was given: field -> value.

    Raises:
      TypeError: a field that must be filled is in neither.

    Example:
      >>> defaults = {"epochs": 20, "batch_size": 128, "width": 1.0, "library": "xla"}
      >>> resolved(ResolvedOptions, RunOptions(epochs=3), defaults).epochs
      3
    """
    values = {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
    values |= {name: value for name, value in defaults.items() if values[name] is None}
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if name in values and values[name] is None and not is_of_type(None, hint):
            raise TypeError(f"{name} is neither given nor among the defaults")
    return kind(**values)


def as_arguments(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Options as a command line: true is the option alone, false the option with ``no-``, None is left out.

    Example:
      >>> as_arguments({"batch_size": 3, "cut": None, "memory": False})
      ('--batch-size', '3', '--no-memory')
    """
    words: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif value is not None:
            words += [flag(name), str(value)]
    return tuple(words)


def to_json(options: RunOptions) -> dict[str, Any]:
    """The options as JSON values."""
    values = dataclasses.asdict(options)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def from_json(kind: type[AnyOptions], values: dict[str, Any]) -> AnyOptions:
    """The inverse of :func:`to_json`: options of the experiment that has this kind.

    Raises:
      RunError: an unknown option or a value of another type.
      DataError: a path begins with a home directory that is not known.
    """
    hints = typing.get_type_hints(kind, include_extras=True)
    if unknown := sorted(set(values) - {field.name for field in dataclasses.fields(kind)}):
        raise RunError(f"config.json has the unknown option {unknown[0]!r}; it was written by another version")
    loaded: dict[str, Any] = {}
    for name, value in values.items():
        if Path in members(hints[name]) and isinstance(value, str):
            value = expand(value, flag(name))
        if isinstance(value, list):  # JSON has no tuples
            value = tuple(value)
        if not is_of_type(value, hints[name]):
            raise RunError(f"config.json has {value!r} for {name}, which is not of the right type")
        loaded[name] = value
    return kind(**loaded)


def contradiction(asked: RunOptions, saved: RunOptions) -> str | None:
    """The first option that a resumed run can't change, as a sentence; None if there is none."""
    for field in dataclasses.fields(saved):
        old, new = getattr(saved, field.name), getattr(asked, field.name)
        if field.name not in FREE_ON_RESUME and old != new:
            return (
                f"{flag(field.name)} {shown(new)} contradicts the run to be resumed, which has {shown(old)}; "
                "leave the option out, or start in a new --out-dir"
            )
    return None
