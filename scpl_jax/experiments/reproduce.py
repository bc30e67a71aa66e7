"""A table of many training runs: ``python -m scpl_jax.experiments.reproduce --table rules --data-dir FOLDER``.

A table is ``experiments/NAME/table.toml``. Each cell is a run of the cifar or text experiment in a process of its own.
What is finished is kept, so the same command goes on where it was stopped, also in the middle of a cell. Where a table
searches for learning rates, short runs come first, and what they say decides about the others.
"""

import dataclasses
import os
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import scpl_jax
from scpl_jax.analysis.figures import attempt
from scpl_jax.analysis.results import Row, comma_separated, draw_accuracy, draw_rows, markdown
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import versions
from scpl_jax.cli.option_types import Count, OneOf, Unset, check_values, default, listed
from scpl_jax.experiments.cells import Ledger, Runner, call, cores_here, shared_runs
from scpl_jax.experiments.rates import Choice, choose, decided
from scpl_jax.experiments.tables import SCALES, Cell, Speed, Table, find, read_table
from scpl_jax.training.interrupt import Interrupt
from scpl_jax.training.run_dir import RunDirectory
from scpl_jax.training.run_error import RunError
from scpl_jax.training.writing import read_json, write_json


@dataclasses.dataclass
class Options:
    """Make a table of many training runs; finished ones are kept, so the same command continues."""

    table: str = "rules"
    """Name of a folder in experiments/ with a table.toml, or such a file."""
    scale: Annotated[str, OneOf(SCALES)] = "small"
    """small is for two CPU cores, paper has the paper's sizes and epochs, for a GPU."""
    data_dir: Unset[Path] = None
    """Where the data set's files lie; read only."""
    dataset: Annotated[str | None, default("the table's")] = None
    """Another data set than the table's, such as cifar10."""
    seeds: Annotated[Count | None, default("all")] = None
    """How many of the table's seeds to run."""
    only: Unset[str] = None
    """Run only cells whose part or row contains this text; of a table without runs, measure only such parts."""
    jobs: int = 1
    """Runs at a time, each with cores of its own."""
    speed: bool = True
    """Measure speed and memory, when the runs are done: nothing else should run then."""
    reuse: Unset[Path] = None
    """Take runs of the same options, versions and cores from the tables in this folder, such as experiments."""
    collect: bool = False
    """Run nothing, only write the table of what is there, and of what --reuse finds."""
    out_dir: Annotated[Path | None, default("runs/reproduce/TABLE-SCALE")] = None
    """Where the table, its figure and the numbers of the cells go."""
    runs_dir: Annotated[Path | None, default("runs/ in --out-dir")] = None
    """Where the runs themselves go, with their checkpoints."""
    cache_dir: Annotated[Path | None, default("~/.cache/scpl_jax")] = None
    """Where decoded images and compiled programs are kept."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
          RunError: one sentence for the first bad option.
        """
        check_values(self)
        cores = len(cores_here()) or os.cpu_count() or 1
        if not 1 <= self.jobs <= cores:
            raise RunError(f"--jobs must lie between 1 and the {cores} cores there are, got {self.jobs}")


def _measure(speed: Speed, out_dir: Path, interrupt: Interrupt) -> bool:
    """One measurement of speed; whether it was made."""
    if interrupt.received is not None:
        return False
    print(f"measuring {speed.parts[0]}: {', '.join(speed.methods)}", flush=True)
    kept_in = out_dir / speed.file
    kept_in.parent.mkdir(exist_ok=True)
    temporary = kept_in.with_name(f".{kept_in.name}")
    command = [sys.executable, "-m", "scpl_jax.benchmarks.throughput", *speed.arguments, "--output", str(temporary)]
    with kept_in.with_suffix(".log").open("w") as log:
        status = call(command, interrupt, log)
    if status:
        if interrupt.received is None:
            print(f"  failed with status {status} ({log.name})", flush=True)
        return False
    Path(log.name).unlink()
    kept = read_json(temporary)
    for method in kept["methods"].values():
        method.pop("task_seconds", None)
    write_json(kept_in, {"arguments": list(speed.arguments), **kept})
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


def _curve(cell: dict[str, Any], unit: str, speed: float | None) -> tuple[tuple[float, float], ...]:
    """(seconds, accuracy) after each epoch; seconds at the measured speed, if there is one, not at that of the run."""
    epoch = None if speed is None else cell[f"{unit}_per_epoch"] / speed
    return tuple((s if epoch is None else i * epoch, a) for i, (s, a) in enumerate(cell["curve"], start=1))


def write_table(
    table: Table, ledger: Ledger, out_dir: Path, command: Sequence[str], choices: Sequence[Choice] = ()
) -> list[Row]:
    """Write ``table.md``, ``table.csv``, ``table.json``, ``rows.svg`` and ``accuracy.svg`` of what is there; its rows.

    Where speed was measured the figure's times are at that speed, so that a run that shared the machine with something
    else counts the same as the others. A table that measures none shows the median speed of the runs.
    """
    rate = f"{table.unit}_per_second"
    speeds = {
        (part, row): found
        for speed in table.speeds
        for row, found in _speed_of(speed, out_dir).items()
        for part in speed.parts
    }
    choice_of = {(choice.part, choice.row): choice for choice in choices}
    rows = []
    for part in table.parts:
        for name in table.rows[part]:
            done = [ledger.get(cell) for cell in table.cells if (cell.part, cell.row) == (part, name)]
            cells = [one for one in done if one is not None]
            found: dict[str, Any] = {}
            if (speed := speeds.get((part, name))) is not None:
                seconds = speed["seconds_a_step"]
                found["speed"] = speed[rate]
                found["spread"] = (speed["batch"] / seconds["slowest"], speed["batch"] / seconds["fastest"])
                if "peak_memory_bytes" in speed:
                    found["peak_memory_bytes"] = tuple(speed["peak_memory_bytes"])
            elif not cells and ((part, name) not in choice_of or not choice_of[part, name].accuracies):
                continue
            elif cells and not table.speeds:
                rates = [cell[rate] for cell in cells]
                found |= {"speed": statistics.median(rates), "spread": (min(rates), max(rates))}
            accuracies = tuple(cell["test_accuracy"] for cell in cells)
            at = found.get("speed") if table.speeds else None
            curves = tuple(_curve(cell, table.unit, at) for cell in cells)
            if (choice := choice_of.get((part, name))) is not None:
                found |= {"rate": choice.rate, "searched": choice.accuracies}
            rows.append(Row(part, name, accuracies, curves, **found))
    if not rows:
        return rows
    missing = sum(ledger.get(cell) is None for cell in table.cells) + len(table.undecided)
    of_all = len(table.cells) + len(table.undecided)
    note = f"\n\n{missing} of {of_all} runs are still missing." if missing else ""
    (out_dir / "table.md").write_text(f"{markdown(rows, table.unit, target=table.target)}{note}\n", encoding="utf-8")
    (out_dir / "table.csv").write_text(comma_separated(rows, table.unit, table.target), encoding="utf-8")
    hidden = {"curves"} if choices else {"curves", "rate", "searched"}
    summary = [
        {
            **{k: v for k, v in dataclasses.asdict(row).items() if k not in hidden},
            "mean": row.mean,
            "std": row.deviation,
        }
        for row in rows
    ]
    write_json(out_dir / "table.json", {"command": list(command), "rows": summary, "versions": versions()})
    if any(row.accuracies or row.speed for row in rows):
        attempt("rows.svg", draw_rows, rows, out_dir / "rows.svg", table.unit)
    if any(row.curves for row in rows):
        attempt("accuracy.svg", draw_accuracy, rows, out_dir / "accuracy.svg")
    return rows


def _run_all(runner: Runner, cells: Sequence[Cell], asked: Options, what: str) -> None:
    """Take from other tables, or run, what is missing of some cells."""
    missing = [cell for cell in cells if runner.ledger.get(cell) is None]
    if asked.reuse is not None:
        cores = len(cores_here()[:: asked.jobs])
        shared = shared_runs(missing, runner.table.task, asked.reuse, versions(), cores)
        for cell, numbers in shared.items():
            runner.ledger.add(cell, numbers)
            print(f"{cell.name}: taken from {numbers['taken_from']}", flush=True)
        missing = [cell for cell in missing if cell not in shared]
    todo = [] if asked.collect else missing
    print(f"{what}: {len(cells) - len(missing)} runs are there, {len(todo)} to be made", flush=True)
    runner.count = len(todo)
    with ThreadPoolExecutor(asked.jobs) as pool:
        list(pool.map(runner.run, todo))


def main(arguments: Sequence[str]) -> int:
    """Make the table; returns the exit status."""
    options = parse_options(Options, arguments, "scpl_jax.experiments.reproduce", Options())
    options.check()
    folders = [Path("experiments"), Path(scpl_jax.__file__).parent.parent / "experiments"]
    path = find(options.table, folders)
    table = read_table(path, options.scale, options.seeds, options.dataset)
    name = path.parent.name if options.table.endswith(".toml") else options.table
    out_dir = options.out_dir or Path("runs") / "reproduce" / f"{name}-{options.scale}"
    RunDirectory(out_dir)  # refuses one that can't be written
    only = options.only or ""

    def fits(cell: Cell) -> bool:
        return only in cell.part or only in cell.row

    # Speed belongs to whole parts: a table of runs gets it when they are done, one of speeds alone part by part.
    speeds = [speed for speed in table.speeds if only in speed.parts[0] and not (only and table.cells)]
    if not any(map(fits, table.cells)) and not speeds:
        raise RunError(f"--only {options.only} fits no cell of the table")
    status = 0
    with Interrupt() as interrupt:
        runs_dir = options.runs_dir or out_dir / "runs"
        asked: dict[str, Any] = {"jobs": options.jobs, "data_dir": options.data_dir, "cache_dir": options.cache_dir}
        searcher = Runner(table, runs_dir, Ledger(out_dir / "searches.jsonl"), interrupt, **asked)
        if table.trials:
            _run_all(searcher, list(filter(fits, table.trials)), options, f"{table.title}, search for learning rates")
        choices = choose(table, searcher.ledger)
        table = decided(table, choices)
        runner = Runner(table, runs_dir, Ledger(out_dir / "cells.jsonl"), interrupt, **asked)
        _run_all(runner, list(filter(fits, table.cells)), options, table.title)
        broken = len(searcher.broken) + len(runner.broken)
        unmeasured = [speed for speed in speeds if not _speed_of(speed, out_dir)]
        if options.speed and not options.collect and not broken:
            measured = [_measure(speed, out_dir, interrupt) for speed in unmeasured]
            status = 0 if all(measured) else 1
        command = ["python", "-m", "scpl_jax.experiments.reproduce", *arguments]
        rows = write_table(table, runner.ledger, out_dir, command, choices)
        if rows:
            print(f"\n{markdown(rows, table.unit, target=table.target)}\n\n{out_dir}/table.md", flush=True)
        if interrupt.received is not None:
            print("stopped; the same command continues", flush=True)
            return interrupt.exit_status
    for choice in choices:
        if choice.wanted and choice.complete and choice.rate is None:
            status = 1
            what = f"{choice.part} | {choice.row} has no learning rate: bad numbers ended its run with each of"
            print(f"error: {what} {listed([str(one) for one in choice.wanted])}; add a smaller one", file=sys.stderr)
    if broken:
        print(f"error: {broken} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if broken or status else 0


if __name__ == "__main__":
    sys.exit(run(main))
