"""A table of many training runs: ``python -m scpl_jax.experiments.reproduce --table rules --data-dir FOLDER``.

A table is ``experiments/NAME/table.toml``. Each cell is a run of the cifar experiment in a process of its own. What is
finished is kept, so the same command goes on where it was stopped, also in the middle of a cell.
"""

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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import scpl_jax
from scpl_jax.analysis.results import Row, comma_separated, draw_accuracy, markdown
from scpl_jax.experiments.command_line import parse_options, run
from scpl_jax.experiments.machine import versions
from scpl_jax.experiments.tables import SCALES, Cell, Speed, Table, find, read_table
from scpl_jax.training.errors import RunError
from scpl_jax.training.interrupt import Interrupt
from scpl_jax.training.run_dir import RunDirectory, read_json, write_json


@dataclasses.dataclass
class Options:
    """Make a table of many training runs; finished ones are kept, so the same command continues."""

    table: str = "rules"
    """Name of a folder in experiments/ with a table.toml, or such a file."""
    scale: str = "small"
    """small (two CPU cores) or paper (the paper's sizes and epochs, for a GPU)."""
    data_dir: Path | None = None
    """Where the data set's files lie; read only."""
    dataset: str | None = None
    """Another data set than the table's, such as cifar10. Default: the table's."""
    seeds: int | None = None
    """How many of the table's seeds to run. Default: all."""
    only: str | None = None
    """Run only cells whose part or row contains this text."""
    jobs: int = 1
    """Runs at a time, each with cores of its own."""
    speed: bool = True
    """Measure speed and memory, when the runs are done: nothing else should run then."""
    collect: bool = False
    """Run nothing, only write the table of what is there."""
    out_dir: Path | None = None
    """Where the table, its figure and the numbers of the cells go. Default: runs/reproduce/TABLE-SCALE."""
    runs_dir: Path | None = None
    """Where the runs themselves go, with their checkpoints. Default: runs/ in --out-dir."""
    cache_dir: Path | None = None
    """Where decoded images and compiled programs are kept. Default: ~/.cache/scpl_jax."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
          RunError: one sentence for the first bad option.
        """
        if self.scale not in SCALES:
            raise RunError(f"--scale {self.scale} is unknown; choose {' or '.join(SCALES)}")
        cores = len(_cores()) or os.cpu_count() or 1
        if not 1 <= self.jobs <= cores:
            raise RunError(f"--jobs must lie between 1 and the {cores} cores there are, got {self.jobs}")
        if self.seeds is not None and self.seeds < 1:
            raise RunError(f"--seeds must be at least 1, got {self.seeds}")


class Ledger:
    """The numbers of finished cells: ``cells.jsonl``, a line each.

    Args:
      path: the file.
    """

    def __init__(self, path: Path):
        self._path, self._lock = path, threading.Lock()
        self._found: dict[tuple[str, ...], dict[str, Any]] = {}
        for text in path.read_text().splitlines() if path.exists() else []:
            with contextlib.suppress(ValueError):  # a line that was being written when the machine stopped
                line = json.loads(text)
                self._found[self._key(line["part"], line["row"], line["arguments"])] = line

    @staticmethod
    def _key(part: str, row: str, arguments: Sequence[str]) -> tuple[str, ...]:
        return (part, row, *arguments)

    def get(self, cell: Cell) -> dict[str, Any] | None:
        """The numbers of a cell, if it was run with the same options."""
        return self._found.get(self._key(cell.part, cell.row, cell.arguments))

    def add(self, cell: Cell, numbers: dict[str, Any]) -> None:
        """Keep the numbers of a cell."""
        line = {**dataclasses.asdict(cell), "arguments": list(cell.arguments), **numbers}
        with self._lock:
            self._found[self._key(cell.part, cell.row, cell.arguments)] = line
            with self._path.open("a") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")


# What a run does before it becomes the command: its own cores, before JAX counts them.
_STUB = """
import os, sys
cores = [int(core) for core in sys.argv[1].split(",") if core]
if cores:
    os.sched_setaffinity(0, cores)
os.execv(sys.argv[2], sys.argv[2:])
"""


def _cores() -> list[int]:
    """The cores that this process may use; none where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


class Runner:
    """Runs cells, each in a process with cores of its own.

    Args:
      options: of the command line.
      out_dir: where the table goes.
      ledger: the finished cells.
      count: number of cells to run.
      interrupt: tells when to stop.

    Attributes:
      broken: cells whose run failed.
    """

    def __init__(self, options: Options, out_dir: Path, ledger: Ledger, count: int, interrupt: Interrupt):
        self._options, self._ledger, self._count, self._interrupt = options, ledger, count, interrupt
        self._runs = options.runs_dir or out_dir / "runs"
        self._cores = [_cores()[index :: options.jobs] for index in range(options.jobs)]
        self._lock = threading.Lock()
        self._started = 0
        self.broken: list[Cell] = []

    def run(self, cell: Cell) -> None:
        """Run or continue one cell and keep its numbers."""
        if self._interrupt.received is not None:
            return
        name = f"{cell.part} | {cell.row} | seed {cell.seed}"
        with self._lock:
            self._started += 1
            cores = self._cores.pop()
            now = datetime.datetime.now().strftime("%H:%M:%S")
            print(f"{now} [{self._started}/{self._count}] {name}", flush=True)
        folder = self._runs / cell.folder
        status = self._wait(cell, folder, cores)
        with self._lock:
            self._cores.append(cores)
            if status == 0:
                numbers = _numbers(folder, len(cores))
                self._ledger.add(cell, numbers)
                print(f"  {name}: {numbers['test_accuracy']:.4f}", flush=True)
            elif self._interrupt.received is None:
                self.broken.append(cell)
                last = (folder / "log.txt").read_text(errors="replace").strip().splitlines()[-1:]
                print(f"  {name} failed with status {status}: {''.join(last)} ({folder}/log.txt)", flush=True)

    def _wait(self, cell: Cell, folder: Path, cores: Sequence[int]) -> int:
        """Run the cell to its end, or until it has saved after an interruption; its exit status."""
        started = _prepare(folder, cell)
        places = ["--out-dir", str(folder), "--no-tensorboard", "--keep", "1"]
        if self._options.data_dir is not None and "digits" not in cell.arguments:
            places += ["--data-dir", str(self._options.data_dir)]
        if self._options.cache_dir is not None:
            places += ["--cache-dir", str(self._options.cache_dir)]
        if started:
            places.append("--resume")
        command = [sys.executable, "-m", "scpl_jax.experiments.cifar", *cell.arguments, *places]
        with (folder / "log.txt").open("a") as log:
            status = _call(command, self._interrupt, log, cores)
        if status > 0 and self._interrupt.received is None:
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


def _call(command: Sequence[str], interrupt: Interrupt, output: Any, cores: Sequence[int] = ()) -> int:
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


def _numbers(folder: Path, cores: int) -> dict[str, Any]:
    """What is kept of a finished run."""
    results = read_json(folder / "results.json")
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    seconds = 0.0
    curve = []
    for line in lines:
        seconds += line["train_seconds"]
        curve.append([round(seconds, 2), line["test_accuracy"]])
    kept = ("test_accuracy", "images_per_second", "peak_memory_bytes", "exits", "early_stops", "probes", "device_kind")
    return {
        **{name: results[name] for name in kept if name in results},
        "curve": curve,
        "images_per_epoch": round(lines[0]["images_per_second"] * lines[0]["train_seconds"]),
        "train_loss": lines[-1]["train_loss"],
        "cores": cores,
        "date": datetime.date.today().isoformat(),
        "versions": results["versions"],
    }


def _measure(speed: Speed, out_dir: Path, interrupt: Interrupt) -> bool:
    """One measurement of speed; whether it was made."""
    if interrupt.received is not None:
        return False
    print(f"measuring {speed.part}: {', '.join(speed.methods)}", flush=True)
    temporary = out_dir / f".{speed.file}"
    command = [sys.executable, "-m", "scpl_jax.experiments.throughput", *speed.arguments, "--output", str(temporary)]
    with (out_dir / f"{speed.file}.log").open("w") as log:
        status = _call(command, interrupt, log)
    if status:
        if interrupt.received is None:
            print(f"  failed with status {status} ({log.name})", flush=True)
        return False
    Path(log.name).unlink()
    kept = read_json(temporary)
    for method in kept["methods"].values():
        method.pop("task_seconds", None)
    write_json(out_dir / speed.file, {"arguments": list(speed.arguments), **kept})
    temporary.unlink()
    return True


def _speed_of(speed: Speed, out_dir: Path) -> dict[str, Any]:
    """Kept numbers of a measurement: row -> its line; empty if it was not made with the same options."""
    file = out_dir / speed.file
    found = read_json(file) if file.exists() else {}
    if found.get("arguments") != list(speed.arguments):
        return {}
    return {
        row: {**found["methods"][method], "batch": found["options"]["batch_size"]}
        for row, method in speed.methods.items()
    }


def _curve(cell: dict[str, Any], speed: float | None) -> tuple[tuple[float, float], ...]:
    """(seconds, accuracy) after each epoch; seconds at the measured speed, if there is one, not at that of the run."""
    epoch = None if speed is None else cell["images_per_epoch"] / speed
    return tuple((s if epoch is None else i * epoch, a) for i, (s, a) in enumerate(cell["curve"], start=1))


def write_table(table: Table, ledger: Ledger, out_dir: Path, command: Sequence[str]) -> list[Row]:
    """Write ``table.md``, ``table.csv``, ``table.json`` and ``accuracy.svg`` of what is there; its rows.

    Where speed was measured the figure's times are at that speed, so that a run that shared the machine with something
    else counts the same as the others.
    """
    speeds = {(speed.part, row): found for speed in table.speeds for row, found in _speed_of(speed, out_dir).items()}
    rows = []
    for part in table.parts:
        for name in table.rows[part]:
            done = [ledger.get(cell) for cell in table.cells if (cell.part, cell.row) == (part, name)]
            cells = [one for one in done if one is not None]
            if not cells:
                continue
            found: dict[str, Any] = {}
            if (speed := speeds.get((part, name))) is not None:
                seconds = speed["seconds_a_step"]
                found["images_per_second"] = speed["images_per_second"]
                found["spread"] = (speed["batch"] / seconds["slowest"], speed["batch"] / seconds["fastest"])
                if "peak_memory_bytes" in speed:
                    found["peak_memory_bytes"] = tuple(speed["peak_memory_bytes"])
            accuracies = tuple(cell["test_accuracy"] for cell in cells)
            curves = tuple(_curve(cell, found.get("images_per_second")) for cell in cells)
            rows.append(Row(part, name, accuracies, curves, **found))
    if not rows:
        return rows
    missing = sum(ledger.get(cell) is None for cell in table.cells)
    note = f"\n\n{missing} of {len(table.cells)} runs are still missing." if missing else ""
    (out_dir / "table.md").write_text(f"{markdown(rows)}{note}\n")
    (out_dir / "table.csv").write_text(comma_separated(rows))
    summary = [
        {**{k: v for k, v in dataclasses.asdict(row).items() if k != "curves"}, "mean": row.mean, "std": row.deviation}
        for row in rows
    ]
    write_json(out_dir / "table.json", {"command": list(command), "rows": summary, "versions": versions()})
    draw_accuracy(rows, out_dir / "accuracy.svg")
    return rows


def main(arguments: Sequence[str]) -> int:
    """Make the table; returns the exit status."""
    options = parse_options(Options, arguments, "reproduce", Options())
    options.check()
    folders = [Path("experiments"), Path(scpl_jax.__file__).parent.parent / "experiments"]
    path = find(options.table, folders)
    table = read_table(path, options.scale, options.seeds, options.dataset)
    name = path.parent.name if options.table.endswith(".toml") else options.table
    out_dir = options.out_dir or Path("runs") / "reproduce" / f"{name}-{options.scale}"
    RunDirectory(out_dir)  # refuses one that can't be written
    ledger = Ledger(out_dir / "cells.jsonl")
    wanted = [c for c in table.cells if options.only is None or options.only in c.part or options.only in c.row]
    if not wanted:
        raise RunError(f"--only {options.only} fits no cell of the table")
    todo = [] if options.collect else [cell for cell in wanted if ledger.get(cell) is None]
    print(f"{table.title}: {len(wanted) - len(todo)} runs are there, {len(todo)} to be made", flush=True)
    status = 0
    with Interrupt() as interrupt:
        runner = Runner(options, out_dir, ledger, len(todo), interrupt)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(runner.run, todo))
        unmeasured = [speed for speed in table.speeds if not _speed_of(speed, out_dir)]
        if options.speed and not options.collect and not runner.broken and options.only is None:
            measured = [_measure(speed, out_dir, interrupt) for speed in unmeasured]
            status = 0 if all(measured) else 1
        command = ["python", "-m", "scpl_jax.experiments.reproduce", *arguments]
        rows = write_table(table, ledger, out_dir, command)
        if rows:
            print(f"\n{markdown(rows)}\n\n{out_dir}/table.md", flush=True)
        if interrupt.received is not None:
            print("stopped; the same command continues", flush=True)
            return interrupt.exit_status
    if runner.broken:
        print(f"error: {len(runner.broken)} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if runner.broken or status else 0


if __name__ == "__main__":
    sys.exit(run(main))
