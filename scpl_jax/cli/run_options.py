"""The options that training runs of all kinds have, as asked for and as resolved; each field is an option."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from scpl_jax.cli.methods import RuleOptions, check_rule
from scpl_jax.cli.option_groups import DataOptions, DeviceOptions, NetworkOptions, OutputOptions, TrainingOptions
from scpl_jax.cli.option_types import Count, Positive, check_values, flag, hints_of, integers, is_of_type, members
from scpl_jax.data.paths import expand
from scpl_jax.training.run_error import RunError

# Options that change nothing in the numbers, or only where files lie: a resumed run may have other values.
FREE_ON_RESUME = frozenset(
    {
        "out_dir",
        "resume",
        "data_dir",
        "data_file",
        "test_file",
        "cache_dir",
        "max_in_flight",
        "devices",
        "data_parallel",
        "across_hosts",
        "fuse",
        "coordinator_address",
        "num_processes",
        "process_id",
        "cluster",
        "timeline",
        "save_every",
        "keep",
        "profile",
        "tensorboard",
        "norms_every",
        "max_skipped",
    }
)


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
    for name, hint in hints_of(kind).items():
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
    hints = {field.name: hints_of(kind)[field.name] for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise RunError(f"config.json has the unknown option {unknown[0]!r}; it was written by another version")
    loaded: dict[str, Any] = {}
    for name, value in values.items():
        if Path in members(hints[name]) and isinstance(value, str):
            value = expand(value, flag(name))
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
                f"{flag(field.name)} {new} contradicts the run to be resumed, which has {old}; "
                "leave the option out, or start in a new --out-dir"
            )
    return None
