"""The run directory: config.json, metrics.jsonl, results.json and what lies beside them."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scpl_jax.training.errors import RunError


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader finds the old one or the new one, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(value, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
      RunError: it can't be read or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path} can't be read as JSON ({_reason(error)}); start in a new --out-dir") from error


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).splitlines()[0]


class RunDirectory:
    """One run's files.

    Args:
      path: the directory; created if need be.
      writes: whether this process writes into it; of several that train together only one does.

    Raises:
      RunError: it can't be created or written.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self.path, self._writes = path, writes
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise RunError(
                f"--out-dir {path} can't be written ({_reason(error)}); give a directory that can"
            ) from error

    @staticmethod
    def config_of(path: Path) -> dict[str, Any] | None:
        """The ``config.json`` of the run in a directory, or None if no run was started there.

        Raises:
          RunError: there is one that can't be read.
        """
        file = path / "config.json"
        if not file.exists():
            return None
        config = read_json(file)
        if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
            raise RunError(f"{file} is not the configuration of a run; start in a new --out-dir")
        return config

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie, one folder a seed."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """The metrics file, one JSON object a line."""
        return self.path / "metrics.jsonl"

    def write_config(self, config: dict[str, Any]) -> None:
        """Write ``config.json``."""
        if self._writes:
            write_json(self.path / "config.json", config)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write ``results.json``, which marks the run as complete."""
        if self._writes:
            write_json(self.path / "results.json", results)

    @property
    def complete(self) -> bool:
        """Whether the run has its results."""
        return (self.path / "results.json").exists()

    def finished_run(self, seed: int) -> dict[str, Any] | None:
        """The result of one seed of the run, if it has ended."""
        path = self.path / "results" / f"seed-{seed}.json"
        return read_json(path) if path.exists() else None

    def finish_run(self, seed: int, result: dict[str, Any]) -> None:
        """Keep the result of one seed, so that it is not trained again."""
        if not self._writes:
            return
        (self.path / "results").mkdir(exist_ok=True)
        write_json(self.path / "results" / f"seed-{seed}.json", result)

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        if not self._writes:
            return
        with self.metrics.open("a") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def last_metrics(self, seed: int) -> dict[str, Any]:
        """The newest line of ``metrics.jsonl`` for a seed; empty if there is none, or if another process writes it."""
        if not self._writes or not self.metrics.exists():
            return {}
        lines = [json.loads(text) for text in self.metrics.read_text().splitlines()]
        return next((line for line in reversed(lines) if line["seed"] == seed), {})

    def keep_metrics(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines that a resumed run will write again, and an unfinished last line."""
        if not self._writes or not self.metrics.exists():
            return
        kept = []
        for text in self.metrics.read_text().splitlines(keepends=True):
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the line that was being written when the run was ended
            if text.endswith("\n") and keep(line):
                kept.append(text)
        handle, temporary = tempfile.mkstemp(dir=self.path, prefix=".metrics.")
        with os.fdopen(handle, "w") as file:
            file.writelines(kept)
        os.chmod(temporary, 0o644)
        os.replace(temporary, self.metrics)
