"""What a run directory tells, for people and figures."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from scpl_jax.training.run_dir import RunDirectory
from scpl_jax.training.run_error import RunError
from scpl_jax.training.writing import read_json, reason_of

NUMBER = float  # a finite one, for _mismatch
_OPTIONAL = (NUMBER, None)
_STAGE = {"blocks": [int], "devices": [str], "parameters": int, "share_of_cost": NUMBER, "share_of_local_loss": NUMBER}
_CONFIG = {"options": {"width?": _OPTIONAL}, "stages?": [_STAGE]}
_ACCURACIES = {"test_accuracy": NUMBER, "validation_accuracy?": NUMBER}
_LINE = {"seed": int, "epoch": NUMBER, "train_seconds": NUMBER, "train_loss": [_OPTIONAL], **_ACCURACIES}
_AT_STAGE = {"stage": int, "accuracy": NUMBER, "joint_accuracy?": NUMBER, "share": NUMBER}
_STOP = {"confidence": _OPTIONAL, "patience": _OPTIONAL, "accuracy": NUMBER, "share": NUMBER}
_RESULTS = {
    **_ACCURACIES,
    "test_accuracy_std?": NUMBER,
    "validation_accuracy_std?": NUMBER,
    "seconds": NUMBER,
    "width?": _OPTIONAL,
    "devices": [str],
    "device_kind": str,
    "versions": dict,
    "images_per_second?": NUMBER,
    "texts_per_second?": NUMBER,
    "peak_memory_bytes_per_process?": [NUMBER],
    "exits?": [_AT_STAGE],
    "early_stops?": [_STOP],
    "probes?": [{"stage": int, "neighbours_accuracy": NUMBER, "linear_accuracy": NUMBER}],
    "class_names?": [str],
    "confusion?": [[NUMBER]],
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run directory's contents.

    Attributes:
      name: short name, different from that of the other runs of a report.
      path: the directory.
      config: ``config.json``.
      lines: of ``metrics.jsonl``, one an epoch and seed.
      results: ``results.json``; None while the run is not complete.
    """

    name: str
    path: Path
    config: dict[str, Any]
    lines: list[dict[str, Any]]
    results: dict[str, Any] | None

    @property
    def options(self) -> dict[str, Any]:
        """The options of its command line."""
        found: dict[str, Any] = self.config["options"]
        return found

    @property
    def unit(self) -> str:
        """What its examples are, in the plural."""
        return "texts" if any("texts_per_second" in line for line in self.lines) else "images"

    def seeds(self) -> list[list[dict[str, Any]]]:
        """The lines of each seed, by epoch."""
        numbers = sorted({line["seed"] for line in self.lines})
        return [sorted((x for x in self.lines if x["seed"] == n), key=lambda x: int(x["epoch"])) for n in numbers]

    def curve(self, name: str = "test_accuracy") -> list[tuple[int, float, float]]:
        """(epoch, seconds of training, value), means over the seeds, as far as all seeds have come."""
        seeds = self.seeds()
        found = []
        seconds = [0.0] * len(seeds)
        for same in zip(*seeds, strict=False):
            seconds = [s + line["train_seconds"] for s, line in zip(seconds, same, strict=True)]
            values = [line.get(name) for line in same]
            if None not in values:
                found.append((int(same[0]["epoch"]), sum(seconds) / len(seeds), sum(values) / len(seeds)))
        return found


def read_run(path: Path, name: str | None = None) -> Run:
    """Read a run directory; the run may still be going on.

    Args:
      path: the directory.
      name: its name in the report; None for that of the directory.

    Raises:
      RunError: it holds no run, or files that can't be read or are not what a run writes.
    """
    config = RunDirectory.config_of(path)
    if config is None:
        raise RunError(f"{path} holds no run: there is no config.json; give a run directory")
    _check(path / "config.json", _mismatch(config, _CONFIG) or _odd_stages(config))
    file = path / "results.json"
    results = read_json(file) if file.exists() else None
    if results is not None:
        _check(file, _mismatch(results, _RESULTS) or _odd_confusion(results))
    return Run(name or path.name, path, config, _read_lines(path / "metrics.jsonl"), results)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        texts = path.read_text(errors="replace").splitlines() if path.exists() else []
    except OSError as error:
        raise RunError(f"{path} can't be read ({reason_of(error)})") from error
    lines = []
    for number, text in enumerate(texts, start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            # The last line of a run that goes on may be half written.
            if number < len(texts):
                raise RunError(f"line {number} of {path} is no JSON; remove the line") from None
            continue
        _check(path, _mismatch(line, _LINE), f"line {number} of ")
        lines.append(line)
    return lines


def _check(path: Path, problem: str | None, place: str = "") -> None:
    if problem is not None:
        raise RunError(f"{place}{path} is not what a run of this version writes: {problem}")


def _mismatch(value: Any, shape: Any, name: str = "") -> str | None:
    """Where a value differs from a shape, in a few words, as "losses[1] is 'x'"; None if it does not.

    A shape is a type (``float`` takes whole numbers too, and none that is not finite); None; a tuple of shapes, any of
    which will do; a list of one shape for a list of any length; or a dict of shapes by name, where a name with a
    question mark may be missing. Other names are not looked at.
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _wrong(value, name)
        for key, inner in shape.items():
            plain = key.removesuffix("?")
            inside = f"{name}.{plain}" if name else plain
            if plain not in value:
                if plain == key:
                    return f"{inside} is missing"
            elif (found := _mismatch(value[plain], inner, inside)) is not None:
                return found
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _wrong(value, name)
        pairs = ((one, f"{name}[{index}]") for index, one in enumerate(value))
        return next((found for one, inside in pairs if (found := _mismatch(one, shape[0], inside)) is not None), None)
    if isinstance(shape, tuple):
        fits = any(_mismatch(value, one) is None for one in shape)
    elif isinstance(value, bool):
        fits = shape is bool
    elif shape is None:
        fits = value is None
    elif shape is float:
        fits = isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    else:
        fits = isinstance(value, shape)
    return None if fits else _wrong(value, name)


def _wrong(value: Any, name: str) -> str:
    shown = repr(value)
    return f"{name or 'it'} is {shown if len(shown) < 40 else shown[:36] + ' ...'}"


def _odd_stages(config: dict[str, Any]) -> str | None:
    spans = [stage["blocks"] for stage in config.get("stages", [])]
    return next((f"blocks is {span}" for span in spans if len(span) != 2), None)


def _odd_confusion(results: dict[str, Any]) -> str | None:
    if "confusion" not in results:
        return None
    classes = len(results.get("class_names", []))
    square = len(results["confusion"]) == classes and all(len(row) == classes for row in results["confusion"])
    return None if square and classes else f"confusion is no table of {classes} classes"


def name_runs(paths: list[Path]) -> list[str]:
    """The shortest names that tell directories apart: so many of their last parts.

    Example:
      >>> name_runs([Path("runs/bp/seed-0"), Path("runs/scpl/seed-0")])
      ['bp/seed-0', 'scpl/seed-0']
    """
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]
