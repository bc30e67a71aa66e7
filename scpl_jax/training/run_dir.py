"""The run directory: config.json, metrics.jsonl, results.json and what lies beside them."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from scpl_jax.training.run_error import RunError
from scpl_jax.training.writing import Lock, hindrance, read_json, reason_of, sync_folder, whole_file, write_json


class RunDirectory:
    """One run's files.

    Args:
      path: the directory; created if need be.
      writes: whether this process writes into it; of several that train together only one does.

    Attributes:
      path: the directory.
      unwritten: lines for ``metrics.jsonl`` that could not be written yet; they are tried again with the next one.
      failed: why they could not; None if there are none.

    Raises:
      RunError: it can't be created or written.
    """

    def __init__(self, path: Path, *, writes: bool = True):
        self.path, self._writes = path, writes
        self.unwritten: list[str] = []
        self.failed: str | None = None
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise RunError(f"`out_dir` {str(path)!a} is no UTF-8, and checkpoints need that; rename it") from None
        if (why := hindrance(path)) is not None:
            raise RunError(f"`out_dir` {path} can't be written ({why}); give a directory that can")

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
            raise RunError(f"{file} is not the configuration of a run; start in a new `out_dir`")
        return config

    @staticmethod
    def check_free(path: Path) -> None:
        """Refuse a directory that another process is writing; one that does not exist is free.

        Raises:
          RunError: it is in use.
        """
        if path.is_dir() and os.access(path, os.W_OK):
            Lock(path / ".lock").release()

    def lock(self) -> Lock:
        """Keep other runs out until the lock is released.

        Raises:
          RunError: another process writes into the directory.
        """
        return Lock(self.path / ".lock")

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
        """Add a line to ``metrics.jsonl``; where that fails it is kept in ``unwritten``, and ``failed`` says why."""
        if not self._writes:
            return
        self.unwritten.append(json.dumps(line, allow_nan=False) + "\n")
        self.flush_metrics()

    def flush_metrics(self) -> None:
        """Try once more to write what could not be written."""
        if not self.unwritten:
            return
        try:
            self._append("".join(self.unwritten).encode())
        except OSError as error:
            self.failed = f"metrics.jsonl: {reason_of(error)}"
        else:
            self.unwritten, self.failed = [], None

    def _append(self, content: bytes) -> None:
        """All of it or, where the disk is full, none."""
        handle = os.open(self.metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(handle).st_size
            try:
                written = 0
                while written < len(content):
                    written += os.write(handle, content[written:])
                os.fsync(handle)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(handle, before)
                raise
        finally:
            os.close(handle)
        if not before:
            sync_folder(self.path)

    def last_metrics(self, seed: int) -> dict[str, Any]:
        """The newest line of metrics for a seed; empty if there is none, or if another process writes them."""
        if not self._writes:
            return {}
        there = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        lines = [json.loads(text) for text in [*there, *self.unwritten]]
        return next((line for line in reversed(lines) if line["seed"] == seed), {})

    def keep_metrics(self, seed: int, until: int) -> None:
        """Drop what a resumed run will write again, a seed's lines after a step, and what is no line of metrics.

        Raises:
          RunError: the file can't be written; it stays as it is.
        """
        if not self._writes or not self.metrics.exists():
            return
        kept = []
        for text in self.metrics.read_text(errors="replace").splitlines(keepends=True):
            try:
                line = json.loads(text)
            except ValueError:
                continue  # the line that was being written when the run was ended
            if not isinstance(line, dict) or not text.endswith("\n"):
                continue
            of, step = line.get("seed"), line.get("step")
            if isinstance(of, int) and isinstance(step, int) and (of != seed or step <= until):
                kept.append(text)
        try:
            with whole_file(self.metrics, "w") as file:
                file.writelines(kept)
        except OSError as error:
            raise RunError(
                f"{self.metrics} could not be written ({reason_of(error)}), and nothing was changed; free some space "
                "or make it writable, then run the same command again"
            ) from error
