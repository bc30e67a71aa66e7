"""What a run directory tells, for people and figures."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from scpl_jax.training.errors import RunError
from scpl_jax.training.files import read_json
from scpl_jax.training.run_dir import RunDirectory


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
      RunError: it holds no run, or files that can't be read.
    """
    config = RunDirectory.config_of(path)
    if config is None:
        raise RunError(f"{path} holds no run: there is no config.json; give a run directory")
    lines = []
    metrics = path / "metrics.jsonl"
    texts = metrics.read_text().splitlines() if metrics.exists() else []
    for number, text in enumerate(texts, start=1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            # The last line of a run that goes on may be half written.
            if number < len(texts):
                raise RunError(f"line {number} of {metrics} is no JSON; remove the line") from None
    results = path / "results.json"
    return Run(name or path.name, path, config, lines, read_json(results) if results.exists() else None)


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
