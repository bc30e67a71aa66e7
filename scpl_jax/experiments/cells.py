"""The runs of a table: each in a process of its own, what is kept of the finished ones, and what tables share."""

import contextlib
import dataclasses
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scpl_jax.analysis.runs import read_run
from scpl_jax.cli.command_line import parse_options
from scpl_jax.cli.task_options import Options, TextOptions
from scpl_jax.experiments.tables import Cell, Table, Trial
from scpl_jax.training.interrupt import Interrupt
from scpl_jax.training.run_dir import RunDirectory
from scpl_jax.training.run_error import RunError
from scpl_jax.training.writing import read_json, write_json

# They bring their own data.
_WITHOUT_FILES = {"digits", "synthetic", "generated"}
_KINDS: Mapping[str, type[Any]] = {"cifar": Options, "text": TextOptions}
# What a line of a ledger says of its own table.
_PLACE = {"part", "row", "seed", "arguments", "rate"}


class Ledger:
    """The numbers of finished cells: ``cells.jsonl``, of trials ``searches.jsonl``, a line each.

    Args:
      path: the file.
    """

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._found: dict[tuple[str, ...], dict[str, Any]] = {}
        kept = path.read_text() if path.exists() else ""
        # A line that was being written when the machine stopped is ended before the next one.
        self._before_next = "" if kept.endswith("\n") or not kept else "\n"
        for text in kept.splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                self._found[line["part"], line["row"], *line["arguments"]] = line

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The numbers of a cell, if it was run with the same options."""
        return self._found.get((cell.part, cell.row, *cell.arguments))

    def add(self, cell: Cell, numbers: dict[str, Any]) -> None:
        """Keep the numbers of a cell."""
        line = {**dataclasses.asdict(cell), "arguments": list(cell.arguments), **numbers}
        with self._lock:
            self._found[cell.part, cell.row, *cell.arguments] = line
            with self._path.open("a") as file:
                file.write(f"{self._before_next}{json.dumps(line, allow_nan=False)}\n")
            self._before_next = ""


# What a run does before it becomes the command: its own cores, before JAX counts them.
_STUB = """
import os, sys
cores = [int(core) for core in sys.argv[1].split(",") if core]
if cores:
    os.sched_setaffinity(0, cores)
os.execv(sys.argv[2], sys.argv[2:])
"""


def cores_here() -> list[int]:
    """The cores that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


@dataclasses.dataclass
class Runner:
    """Runs cells, each in a process with cores of its own.

    Attributes:
      table: what is run.
      runs_dir: where the runs go.
      ledger: the finished cells.
      interrupt: tells when to stop.
      jobs: runs at a time.
      data_dir: where the data set's files lie; None for none.
      cache_dir: where prepared data and compiled programs are kept; None for the default.
      count: number of cells to run.
      broken: cells whose run failed.
    """

    table: Table
    runs_dir: Path
    ledger: Ledger
    interrupt: Interrupt
    _: dataclasses.KW_ONLY
    jobs: int = 1
    data_dir: Path | None = None
    cache_dir: Path | None = None
    count: int = dataclasses.field(default=0, init=False)
    broken: list[Cell] = dataclasses.field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._cores = [cores_here()[index :: self.jobs] for index in range(self.jobs)]
        self._lock = threading.Lock()
        self._started = 0

    def run(self, cell: Cell) -> None:
        """Run or continue one cell and keep its numbers."""
        if self.interrupt.received is not None:
            return
        with self._lock:
            self._started += 1
            cores = self._cores.pop()
            now = datetime.datetime.now().strftime("%H:%M:%S")
            print(f"{now} [{self._started}/{self.count}] {cell.name}", flush=True)
        folder = self.runs_dir / cell.folder
        status = self._wait(cell, folder, cores)
        with self._lock:
            self._cores.append(cores)
            if status == 0:
                numbers = _numbers(folder, self.table.unit, len(cores))
                self.ledger.add(cell, numbers)
                judged_by = "validation_accuracy" if isinstance(cell, Trial) else "test_accuracy"
                print(f"  {cell.name}: {numbers[judged_by]:.4f}", flush=True)
            elif self.interrupt.received is None:
                last = "".join((folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:])
                if isinstance(cell, Trial) and any(folder.glob("bad_batches/*")):  # an answer, too: the rate is no good
                    self.ledger.add(cell, {"validation_accuracy": None, "ended": last})
                else:
                    self.broken.append(cell)
                print(f"  {cell.name} failed with status {status}: {last} ({folder}/log.txt)", flush=True)

    def _wait(self, cell: Cell, folder: Path, cores: Sequence[int]) -> int:
        """Run the cell to its end, or until it has saved after an interruption; its exit status."""
        started = _prepare(folder, cell)
        places = ["--out-dir", str(folder), "--no-tensorboard", "--keep", "1"]
        if self.data_dir is not None and not _WITHOUT_FILES & set(cell.arguments):
            places += ["--data-dir", str(self.data_dir)]
        if self.cache_dir is not None:
            places += ["--cache-dir", str(self.cache_dir)]
        if started:
            places.append("--resume")
        command = [sys.executable, "-m", f"scpl_jax.experiments.{self.table.task}", *cell.arguments, *places]
        with (folder / "log.txt").open("a") as log:
            status = call(command, self.interrupt, log, cores)
        if status > 0 and self.interrupt.received is None:
            (folder / "cell.json").unlink()  # what is there can't be trusted
        return status


def _prepare(folder: Path, cell: Cell) -> bool:
    """Whether the folder holds a run of this cell that can be continued; otherwise it is emptied."""
    marker = folder / "cell.json"
    with contextlib.suppress(RunError):
        if marker.exists() and read_json(marker) == list(cell.arguments):
            return RunDirectory.config_of(folder) is not None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(marker, list(cell.arguments))
    return False


def call(command: Sequence[str], interrupt: Interrupt, output: Any, cores: Sequence[int] = ()) -> int:
    """Run a command to its end and pass an interruption on; its exit status.

    It has a process group of its own: Ctrl-C in a terminal reaches this process only, which tells the command once.
    """
    stub = [sys.executable, "-c", _STUB, ",".join(map(str, cores))]
    process = subprocess.Popen([*stub, *command], stdout=output, stderr=subprocess.STDOUT, process_group=0)
    told = False
    while True:
        try:
            return process.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            if interrupt.received is not None and not told:
                told = True
                process.send_signal(signal.SIGTERM)


def _numbers(folder: Path, unit: str, cores: int) -> dict[str, Any]:
    """What is kept of a finished run."""
    run = read_run(folder)
    results, lines = run.results, run.lines
    assert results is not None
    speeds = (f"{unit}_per_second", "tokens_per_second")
    kept = (
        "test_accuracy",
        "validation_accuracy",
        *speeds,
        "peak_memory_bytes",
        "exits",
        "early_stops",
        "probes",
        "device_kind",
    )
    return {
        **{name: results[name] for name in kept if name in results},
        "curve": [[round(seconds, 2), accuracy] for _, seconds, accuracy in run.curve()],
        f"{unit}_per_epoch": round(lines[0][f"{unit}_per_second"] * lines[0]["train_seconds"]),
        "train_loss": lines[-1]["train_loss"],
        "cores": cores,
        "date": datetime.date.today().isoformat(),
        "versions": results["versions"],
    }


def _meaning(task: str, arguments: Sequence[str]) -> str:
    """What the arguments of a run come to: every option with its value."""
    found = parse_options(_KINDS[task], arguments, f"scpl_jax.experiments.{task}", _KINDS[task]())
    return json.dumps([task, dataclasses.asdict(found)], sort_keys=True, default=str)


def shared_runs(
    cells: Sequence[Cell], task: str, folder: Path, versions: Mapping[str, str], cores: int
) -> dict[Cell, dict[str, Any]]:
    """Numbers of those cells that another table has run.

    Two cells are the same run if their options mean the same, whatever their order and whether a default is spelt out;
    and a run is taken only if it was made with the same versions and number of cores. That it was made on the same
    machine can't be seen, and is for the caller to know.

    Args:
      cells: what is to be run.
      task: the experiment they are of.
      folder: in which other tables' ``cells.jsonl`` and ``searches.jsonl`` are looked for, at any depth.
      versions: that a run must have been made with.
      cores: that a run must have been made on.

    Returns:
      Cell -> its numbers, with the table that they are of as ``taken_from``.

    Raises:
      RunError: the folder is not there.
    """
    if not folder.is_dir():
        raise RunError(f"--reuse {folder} is no folder; give one that holds tables, such as experiments")
    wanted: dict[str, list[Cell]] = {}
    for cell in cells:
        with contextlib.suppress(RunError):  # its run will say so
            wanted.setdefault(_meaning(task, cell.arguments), []).append(cell)
    found: dict[Cell, dict[str, Any]] = {}
    for path in sorted([*folder.rglob("cells.jsonl"), *folder.rglob("searches.jsonl")]):
        for text in path.read_text(errors="replace").splitlines():
            # Half a line, or options that are no longer there.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                line = json.loads(text)
                if line["versions"] != versions or line["cores"] != cores:
                    continue
                numbers = {name: value for name, value in line.items() if name not in _PLACE}
                for cell in wanted.get(_meaning(task, line["arguments"]), ()):
                    found[cell] = {"taken_from": path.parent.name, **numbers}
    return found
