"""What a table consists of, as read from ``experiments/NAME/table.toml``: parts, rows, and a run for each seed."""

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from scpl_jax.cli.run_options import as_arguments
from scpl_jax.data.paths import expand
from scpl_jax.training.run_error import RunError

SCALES = ("small", "paper")
_TOP = {"title", "task", "seeds", "target", "rates", "validation", "options", "speed", "rows", "parts", *SCALES}
# More learning rates than this are no cheap search.
_MOST_RATES = 5
# What an example is in each experiment that a table may be of.
_UNITS = {"cifar": "images", "text": "texts"}
# Options of which the speed depends, besides the method's; the throughput experiment has them, too.
_NETWORK = (
    *("model", "width", "batch-size", "stages", "cut", "head", "head-dims", "head-pool"),
    *("layers", "embedding-size", "heads"),
)
# Options of which it depends, too, and which the throughput experiment lacks; recipes it has as a whole.
_UNMEASURED = (
    *("aux", "aux-side", "aux-depth", "aux-width", "queue", "classifier-gradient", "exit-hidden", "al-codes"),
    *("remat", "optimizer", "skip-non-finite", "norms-every"),
)
_PART = {"name", "options", "rows", "own"}


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of a table.

    Attributes:
      part: name of the part of the table.
      row: name of the row.
      seed: its seed.
      arguments: of ``python -m scpl_jax.experiments.cifar`` or ``text``, without the places of files.
    """

    part: str
    row: str
    seed: int
    arguments: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where its run directory lies below that of the table."""
        return Path(_slug(self.part), _slug(self.row), f"seed-{self.seed}")

    @property
    def name(self) -> str:
        """What it is called where people read it."""
        return f"{self.part} | {self.row} | seed {self.seed}"


@dataclasses.dataclass(frozen=True)
class Trial(Cell):
    """A short run with one of the learning rates of a search.

    Attributes:
      rate: the learning rate, also among the arguments.
    """

    rate: float

    @property
    def folder(self) -> Path:
        """Where its run directory lies below that of the table."""
        return Path(_slug(self.part), _slug(self.row), f"rate-{_slug(str(self.rate))}")

    @property
    def name(self) -> str:
        """What it is called where people read it."""
        return f"{self.part} | {self.row} | rate {self.rate:g}"


@dataclasses.dataclass(frozen=True)
class Speed:
    """One measurement of speed and memory: some rows of a part, in turn in one run.

    Attributes:
      parts: names of the part, and of others to which it applies as well.
      methods: the method, as the throughput experiment calls it, of each row.
      arguments: of ``python -m scpl_jax.benchmarks.throughput``.
    """

    parts: tuple[str, ...]
    methods: Mapping[str, str]
    arguments: tuple[str, ...]

    @property
    def file(self) -> str:
        """Where its numbers are kept below the table's directory."""
        return f"speed/{_slug(self.parts[0])}-{_slug('-'.join(self.methods))}.json"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      title: what it shows.
      task: the experiment that its runs are of, "cifar" or "text".
      parts: names of its parts, in order.
      rows: names of the rows of each part, in order.
      cells: all runs, in the order in which they are made: the first seed of everything first.
      speeds: what is measured besides.
      target: the test accuracy up to which the seconds of training are told, or None.
      trials: the runs of the searches for learning rates; a row without any has the rate of its options.
      undecided: runs of rows of which the rate is not known yet; they are none of ``cells``.
    """

    title: str
    task: str
    parts: tuple[str, ...]
    rows: Mapping[str, tuple[str, ...]]
    cells: tuple[Cell, ...]
    speeds: tuple[Speed, ...]
    target: float | None = None
    trials: tuple[Trial, ...] = ()
    undecided: tuple[Cell, ...] = ()

    @property
    def unit(self) -> str:
        """What an example is, in the plural."""
        return _UNITS[self.task]


def _slug(name: str) -> str:
    """A name as part of a path: "vgg8-40-noise" for "VGG8, 40 % noise"."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower().replace("+", " and ")).strip("-")


def find(name: str, folders: Sequence[Path]) -> Path:
    """The configuration of a table: NAME/table.toml in one of ``folders``, or the file itself.

    Raises:
      RunError: there is none.
    """
    if name.endswith(".toml"):
        path = expand(name, "--table")
        if not path.is_file():
            raise RunError(f"--table {path} is not there")
        return path
    for folder in folders:
        if (found := folder / name / "table.toml").is_file():
            return found
    known = sorted({path.parent.name for folder in folders for path in folder.glob("*/table.toml")})
    raise RunError(f"--table {name} is unknown; choose {' or '.join(known) or 'a file table.toml'}")


def read_table(path: Path, scale: str, seeds: int | None = None, dataset: str | None = None) -> Table:
    """Read a table's configuration.

    Args:
      path: a TOML file with ``title``, ``task`` (cifar, unless it says text), ``seeds`` (none: only speed is
        measured), ``rows`` (name -> options), ``parts`` (each with ``name``, ``options``, optionally the names of its
        ``rows``, and of options of the scale that it does without, ``own``), ``options`` of all runs, those of each
        scale, ``speed``, the options of a measurement of speed, and ``target``, an accuracy. A row's options come
        before a part's, these before the scale's, and these before those of all. With ``rates``, learning rates, and
        ``validation``, the share of the training examples that all runs hold out, each row of a part gets the rate that
        :mod:`scpl_jax.experiments.rates` finds, unless its options say ``lr``.
      scale: "small" or "paper".
      seeds: how many of the seeds to use; None for all.
      dataset: a data set in place of the scale's; parts with a data set of their own keep it.

    Raises:
      RunError: it can't be read, or does not have this form.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read as TOML ({str(error).splitlines()[0]})") from error
    if (what := _malformed(found, scale)) is not None:
        raise RunError(f"{path} is no table: {what}")
    parts, rows, task = found["parts"], found["rows"], found.get("task", "cifar")

    def options(part: dict[str, Any], row: str) -> dict[str, Any]:
        at_scale = {name: value for name, value in found[scale].items() if name not in part.get("own", [])}
        asked = {} if dataset is None else {"dataset": dataset}
        held_out = {"validation": found["validation"]} if "validation" in found else {}
        return {**held_out, **found.get("options", {}), **at_scale, **asked, **part.get("options", {}), **rows[row]}

    rows_of = {part["name"]: tuple(part.get("rows", rows)) for part in parts}
    trials: list[Trial] = []
    if rates := sorted(found.get("rates", [])):
        for part in parts:
            searched = {row: asked for row in rows_of[part["name"]] if "lr" not in (asked := options(part, row))}
            for row, asked in searched.items():
                if type(asked.get("epochs")) is not int:
                    what = f"the search for a rate takes a third of the epochs, and the row {row!r} has no epochs"
                    raise RunError(f"{path} is no table: {what}; add them to its options")
                # A search is cheap: nobody reads what probes tell of its features.
                short = {
                    **asked,
                    "epochs": max(1, asked["epochs"] // 3),
                    "probe-examples": 0,
                    "seed": found["seeds"][0],
                }
                trials += [
                    at_rate(Trial(part["name"], row, short["seed"], as_arguments(short), rate), rate, task)
                    for rate in rates
                ]
        if not trials:
            raise RunError(f"{path} is no table: rates are for rows without an lr, and every row has one; remove one")
    cells = [
        Cell(part["name"], row, seed, as_arguments({**options(part, row), "seed": seed}))
        for seed in found.get("seeds", [])[:seeds]
        for part in parts
        for row in rows_of[part["name"]]
    ]
    speeds: list[Speed] = []
    if "speed" in found:
        by_part = {
            part["name"]: {row: options(part, row) for row in rows_of[part["name"]]}
            for part in parts
            if "own" not in part
        }
        clean = {name: rows for name, rows in by_part.items() if not any("label-noise" in one for one in rows.values())}
        # Other labels cost nothing: parts with noise are measured only where there are no others.
        for name, by_row in (clean or by_part).items():
            speeds += _speeds(name, by_row, found["speed"])
    merged: dict[Any, Speed] = {}
    for speed in speeds:
        same = merged.get((speed.arguments, *speed.methods))
        together = (*(same.parts if same else ()), *speed.parts)
        merged[(speed.arguments, *speed.methods)] = dataclasses.replace(speed, parts=together)
    title, target = found.get("title", path.parent.name), found.get("target")
    names = tuple(rows_of)
    return Table(title, task, names, rows_of, tuple(cells), tuple(merged.values()), target, tuple(trials))


AnyCell = TypeVar("AnyCell", bound=Cell)


def at_rate(cell: AnyCell, rate: float, task: str) -> AnyCell:
    """A run with this learning rate.

    Example:
      >>> at_rate(Cell("VGG8", "bp", 0, ("--method", "bp")), 0.003, "cifar").arguments
      ('--method', 'bp', '--lr', '0.003')
    """
    more = {"lr": rate}
    if task == "text" and "--end-lr" not in cell.arguments:
        more["end-lr"] = rate  # unless a table says otherwise, the rate of texts stays as it is
    return dataclasses.replace(cell, arguments=(*cell.arguments, *as_arguments(more)))


def _malformed(found: dict[str, Any], scale: str) -> str | None:
    """What a table's configuration must have and does not have; None if all is there."""
    parts, rows, task, target = (found.get(key) for key in ("parts", "rows", "task", "target"))
    if not parts or not rows or scale not in found or not (found.get("seeds") or "speed" in found):
        return f"it needs seeds or [speed], rows, parts and [{scale}]"
    if unknown := sorted(set(found) - _TOP):
        return f"{unknown[0]!r} is unknown"
    if task is not None and task not in list(_UNITS):
        return f"its task must be {' or '.join(_UNITS)}, got {task!r}"
    if target is not None and not (type(target) in (int, float) and 0 < target <= 1):
        return f"target must be an accuracy above 0 and at most 1, got {target!r}"
    if (what := _odd_rates(found)) is not None:
        return what
    if not _is_list_of(int, found.get("seeds", [])):
        return f"seeds must be whole numbers, got {found['seeds']!r}"
    if not _is_list_of(dict, parts) or not all(isinstance(part.get("name"), str) for part in parts):
        return "every one of [[parts]] needs a name"
    for part in parts:
        if unknown := sorted(set(part) - _PART):
            return f"{unknown[0]!r} is unknown"
        for key in ("rows", "own"):
            if not _is_list_of(str, part.get(key, [])):
                return f"{key} of {part['name']!r} must be names, got {part[key]!r}"
    tables = [*(part.get("options", {}) for part in parts), found.get("options", {}), found[scale]]
    tables += [found.get("speed", {}), *(rows.values() if isinstance(rows, dict) else ())]
    if not all(isinstance(table, dict) for table in [rows, *tables]):
        return f"rows, options, speed and [{scale}] must be names with values"
    if missing := [row for part in parts for row in part.get("rows", []) if row not in rows]:
        return f"row {missing[0]!r} is not there"
    for name, value in (option for table in tables for option in table.items()):
        if not isinstance(value, str | int | float):
            return f"{name} must be a text, a number or true or false, got {value!r}"
        if name == "stages" and type(value) is not int:
            return f"stages must be a whole number, got {value!r}"
        if name in _UNMEASURED and "speed" in found:
            return f"the speed of a row with {name} can't be measured; leave [speed] out, or use a recipe that sets it"
        if name == "validation" and "rates" in found:
            return "with rates, all runs hold out the same share, so validation must not be among options"
    return None


def _odd_rates(found: dict[str, Any]) -> str | None:
    """As :func:`_malformed`, of what a search for learning rates needs."""
    rates, share = found.get("rates"), found.get("validation")
    if (rates is None) != (share is None):
        return "rates and validation, by which one of them is chosen, must come together"
    if rates is None:
        return None
    numbers = isinstance(rates, list) and all(type(one) in (int, float) and 0 < one < math.inf for one in rates)
    if not numbers or not 2 <= len(set(rates)) == len(rates) <= _MOST_RATES:
        return f"rates must be 2 to {_MOST_RATES} different numbers greater than 0, got {rates!r}"
    if type(share) is not float or not 0 < share < 1:
        return f"validation must be a share greater than 0 and less than 1, got {share!r}"
    return None if found.get("seeds") else "rates need seeds: with the first one of them they are searched"


def _is_list_of(kind: type, value: Any) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


def _speeds(part: str, by_row: dict[str, dict[str, Any]], speed: dict[str, Any]) -> list[Speed]:
    """Measurements for the rows of a part: one for all rows with the same stages."""

    def network(row: str) -> dict[str, Any]:
        return {name: by_row[row][name] for name in _NETWORK if name in by_row[row]}

    groups: dict[Any, list[str]] = {}
    for row in sorted(by_row, key=lambda row: -network(row).get("stages", 4)):
        groups.setdefault(tuple(network(row).items()), []).append(row)
    found = []
    for options, members in groups.items():
        methods = {row: _method(by_row[row]) for row in by_row if row in members}
        asked = {**dict(options), **speed, "method": ",".join(methods.values())}
        found.append(Speed((part,), methods, as_arguments(asked)))
    return found


def _method(options: dict[str, Any]) -> str:
    name = str(options.get("recipe") or options.get("method", "scpl"))
    return f"{name} {options.get('micro-batches', 4)}" if name == "gpipe" else name
