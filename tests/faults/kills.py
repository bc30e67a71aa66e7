"""Kill short real runs in every way, resume them, and compare with runs that nobody disturbed.

    python tests/faults/kills.py --kills 200 --out experiments/faults

Each trial starts a run, ends it by a few signals one after another, each at a moment of its own (the trial's number
decides all of them), resumes it after each with nothing but ``--resume``, and lets it finish. It checks that

- after each death every checkpoint with a name is whole and every JSON file can be read;
- the resumed run begins at the newest checkpoint, so no more than the work since then is repeated;
- in the end metrics.jsonl has every epoch exactly once, and results, metrics and the last checkpoint's arrays are the
  undisturbed run's to the bit (times and memory aside).

Finished trials are kept in ``kills.jsonl``: the same command goes on where it was stopped. ``kills.md`` is the summary
of what there is.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import child  # noqa: E402
from outcomes import newest, outcome  # noqa: E402

PATIENCE = 180.0  # seconds after which a run hangs
COMMON = ["--batch-size", "32", "--epochs", "3", "--save-every", "5", "--head-dims", "16,8"]
IMAGES = ["--dataset", "digits", "--limit-train", "320", "--limit-test", "150", "--width", "0.05", *COMMON]


@dataclasses.dataclass(frozen=True)
class Case:
    """A run to be disturbed: its module, options and number of processes."""

    module: str
    options: list[str]
    processes: int = 1

    def command(self, folder: Path, cache: Path, run: Path, *, resume: bool) -> list[str]:
        given = ["--resume"] if resume else self.options
        inner = [sys.executable, str(HERE / "child.py"), str(folder), f"scpl_jax.experiments.{self.module}", *given]
        inner += ["--cache-dir", str(cache), "--out-dir", str(run)]
        launch = [sys.executable, "-m", "scpl_jax.launch", "--processes", str(self.processes), "--"]
        return inner if self.processes == 1 else [*launch, *inner]


CASES = {
    "scpl, two seeds": Case("cifar", [*IMAGES, "--stages", "3", "--runs", "2", "--probe-examples", "100"]),
    "early-exit, strong augmentation": Case(
        "cifar", [*IMAGES, "--stages", "3", "--method", "early-exit", "--augment", "strong"]
    ),
    "gpipe": Case("cifar", [*IMAGES, "--stages", "2", "--method", "gpipe", "--micro-batches", "2"]),
    "dascpl": Case("cifar", [*IMAGES, "--stages", "2", "--method", "dascpl", "--join-epochs", "1,2"]),
    "LSTM on sentences": Case(
        "text",
        ["--dataset", "generated", "--limit-train", "320", "--limit-test", "150", "--model", "lstm", "--stages", "2",
         "--layers", "2", "--width", "0.03", "--embedding-size", "8", "--dropout", "0.1", *COMMON],
    ),
    "scpl, two processes": Case("cifar", [*IMAGES, "--stages", "2"], processes=2),
}  # fmt: skip

# How a run is ended: what the moment waits for, and by what. Of the first two columns each trial draws several.
ENDS = {
    "SIGKILL at any moment": ("any", "kill"),
    "SIGKILL at start-up": ("start", "kill"),
    "SIGKILL in a step": ("step", "kill"),
    "SIGKILL while a checkpoint is written": ("saving", "kill"),
    "SIGKILL in an evaluation": ("evaluation", "kill"),
    "SIGTERM": ("any", "term"),
    "SIGINT": ("step", "int"),
    "SIGINT twice": ("step", "int int"),
    "closed terminal": ("step", "hang up"),
}
# Of a run of several processes; the rest of a launcher's children die with it.
ENDS_OF_SEVERAL = {
    "SIGKILL of one process of two": ("any", "kill one"),
    "SIGKILL of one process of two in a step": ("step", "kill one"),
    "SIGKILL of the launcher": ("any", "kill"),
    "SIGTERM of the launcher": ("step", "term"),
}


class ProblemError(Exception):
    """What a trial found."""


class Session:
    """One process, or one launcher with its processes, in a terminal of its own where it is to be closed."""

    def __init__(self, command: list[str], folder: Path, log: Path, *, terminal: bool):
        self._folder, self._terminal = folder, None
        for old in folder.glob("state-*"):
            old.unlink()
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": "cpu"}
        environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
        self.began = time.monotonic()
        inside = output = log.open("ab")
        if terminal:
            self._terminal, slave = os.openpty()
            # as a session's first process it gets the terminal that it opens first as its own
            own = "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR)); os.execv(sys.argv[1], sys.argv[1:])"
            command, inside = [sys.executable, "-I", "-S", "-c", own, *command], slave
        streams = {"stdin": inside if terminal else subprocess.DEVNULL, "stdout": inside, "stderr": inside}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        output.close()
        if terminal:
            os.close(inside)

    def states(self) -> list[tuple[int, int, int]]:
        """(phase, whether a checkpoint is being written, steps) of each process."""
        found = []
        for path in sorted(self._folder.glob("state-*")):
            content = path.read_bytes()
            if len(content) == child.RECORD.size:
                found.append(child.RECORD.unpack(content))
        return found

    def wait_for(self, reached: Callable[[], bool]) -> bool:
        """Wait for a moment; False if the run ended before it."""
        while self.process.poll() is None:
            if reached():
                return True
            self._drain()
            if time.monotonic() - self.began > PATIENCE:
                self.process.kill()
                raise ProblemError(f"it hung: no end and no such moment within {PATIENCE:g} s")
            time.sleep(0.0005)
        return False

    def _drain(self) -> None:
        if self._terminal is not None:
            os.set_blocking(self._terminal, False)
            with contextlib.suppress(OSError):
                os.read(self._terminal, 65536)

    def end(self, way: str, chance: random.Random) -> None:
        if way == "kill":
            self.process.kill()
        elif way == "kill one":
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            if children:
                os.kill(int(chance.choice(children)), signal.SIGKILL)
        elif way == "term":
            self.process.terminate()
        elif way == "hang up":
            self.close_terminal()
        else:
            for number, _ in enumerate(way.split()):
                if number:
                    time.sleep(chance.uniform(0, 0.3))
                if self.process.poll() is None:
                    self.process.send_signal(signal.SIGINT)

    def close_terminal(self) -> None:
        if self._terminal is not None:
            os.close(self._terminal)
        self._terminal = None

    def wait(self) -> int:
        self.wait_for(lambda: False)
        self.close_terminal()
        return self.process.returncode


def moment(session: Session, kind: str, chance: random.Random, usual_seconds: float) -> Callable[[], bool]:
    """When a run is to be ended."""
    if kind == "any":
        due = chance.uniform(0, usual_seconds)
        return lambda: time.monotonic() - session.began > due
    if kind == "start":
        due = chance.uniform(0, usual_seconds / 2)
        return lambda: time.monotonic() - session.began > due or any(done for _, _, done in session.states())
    steps, later = chance.randrange(1, 16), chance.uniform(0, 0.02)

    def reached() -> bool:
        for phase, saving, done in session.states():
            if done >= steps and (
                kind == "step" or (kind == "saving" and saving) or (kind == "evaluation" and phase == child.EVALUATION)
            ):
                time.sleep(later)
                return True
        return False

    return reached


# What a run left, and what it should have


def expected_start(run: Path, total: int) -> tuple[int, int] | None:
    """(seed, step) at which a resumed run must begin; None if no step is left to do."""
    config = run / "config.json"
    runs = json.loads(config.read_text())["options"]["runs"] if config.exists() else 1
    for seed in range(runs):
        if not (run / "results" / f"seed-{seed}.json").exists():
            step = newest(run / "checkpoints" / f"seed-{seed}")
            if step < total:
                return seed, step
    return None


def check_files(run: Path) -> None:
    """Whatever has its name is whole."""
    from scpl_jax.training.writing import damage

    for checkpoint in run.glob("checkpoints/seed-*/*"):
        if checkpoint.suffix != ".partial" and (what := damage(checkpoint)) is not None:
            raise ProblemError(f"{checkpoint.name} has its name but is not whole: {what}")
    for path in [*run.glob("*.json"), *run.glob("results/*.json")]:
        try:
            json.loads(path.read_text())
        except ValueError as error:
            raise ProblemError(f"{path.name} is not whole: {error}") from None


def compare(found: tuple[Any, Any, dict[str, bytes]], expected: tuple[Any, Any, dict[str, bytes]]) -> None:
    epochs = collections.Counter((line["seed"], line["epoch"]) for line in found[1])
    if set(epochs.values()) != {1}:
        raise ProblemError(f"metrics.jsonl has an epoch more than once: {epochs}")
    for what, one, other in zip(("results.json", "metrics.jsonl", "last checkpoint"), found, expected, strict=True):
        if one != other:
            raise ProblemError(f"{what} is not that of the undisturbed run")


# Trials


def steps_done(folder: Path) -> list[tuple[int, int]]:
    """The first and the last step of each process in the last session; clears the record."""
    found = []
    for path in sorted(folder.glob("steps-*")):
        if numbers := path.read_text().split()[1::2]:  # else it was killed before its first step
            found.append((int(numbers[0]), int(numbers[-1])))
        path.unlink()
    return found


def lost(before: tuple[int, int] | None, last: int, after: tuple[int, int] | None) -> int:
    """How many steps have to be done again."""
    if before is None or after is None or (after[0] > before[0] and not after[1]):
        return 0  # nothing was left to do, or a seed was just finished
    return max(last + 1 - after[1], 0)


def trial(number: int, name: str, cache: Path, references: dict[str, Any], place: Path) -> dict[str, Any]:
    """One run that is ended some times and resumed."""
    case, (expected, seconds, total) = CASES[name], references[name]
    chance = random.Random(number)
    ends = ENDS if case.processes == 1 else ENDS_OF_SEVERAL
    run, kills = place / "run", []
    for attempt in range(chance.randrange(2, 6)):
        end = chance.choice(list(ends))
        kind, way = ends[end]
        start = expected_start(run, total)
        command = case.command(place, cache, run, resume=attempt > 0 and (run / "config.json").exists())
        session = Session(command, place, place / "log", terminal=way == "hang up")
        hit = session.wait_for(moment(session, kind, chance, seconds))
        states = session.states()
        if hit:
            session.end(way, chance)
        status = session.wait()
        steps = steps_done(place)
        if any(first != (start or [None])[-1] for first, _ in steps):
            raise ProblemError(f"began at steps {steps} where the newest checkpoint was at {start}")
        if not hit:
            if status:
                raise ProblemError(f"ended by itself with status {status}")
            break  # the run was over before the moment came
        if status == 2:
            raise ProblemError("ended with status 2")
        check_files(run)
        phase = max((state[0] for state in states), default=child.START)
        saving = any(state[1] for state in states)
        again = lost(start, max((last for _, last in steps), default=-1), expected_start(run, total))
        kills.append({"end": end, "in": child.PHASES[phase], "saving": saving, "status": status, "lost_steps": again})
    resume = (run / "config.json").exists()
    session = Session(case.command(place, cache, run, resume=resume), place, place / "log", terminal=False)
    if (status := session.wait()) != 0:
        raise ProblemError(f"the last session ended with status {status}")
    check_files(run)
    compare(outcome(run), expected)
    return {"kills": kills}


def reference(name: str, cache: Path) -> tuple[Any, float, int]:
    """An undisturbed run: (outcome, seconds with compiled programs at hand, steps of a seed)."""
    for _ in range(2):  # the first one compiles
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder)
            session = Session(CASES[name].command(place, cache, place / "run", resume=False), place, place / "log",
                              terminal=False)  # fmt: skip
            if session.wait():
                raise SystemExit(f"{name}: the undisturbed run failed:\n{(place / 'log').read_text()}")
            seconds = time.monotonic() - session.began
            found = outcome(place / "run")
            total = max(line["step"] for line in found[1])
    return found, seconds, total


def summary(lines: list[dict[str, Any]]) -> str:
    kills = [kill for line in lines for kill in line["kills"]]
    rows = collections.Counter((kill["end"], kill["in"] + (", saving" if kill["saving"] else "")) for kill in kills)
    failed = [line for line in lines if line["problem"]]
    text = [
        f"{len(kills)} kills of {len(lines)} runs; {len(failed)} runs with a problem.",
        "",
        "| ended by | while | times |",
        "|---|---|---|",
        *(f"| {end} | {phase} | {count} |" for (end, phase), count in sorted(rows.items())),
        "",
        f"Steps done again because they came after the last checkpoint: at most {max(k['lost_steps'] for k in kills)}, "
        f"where one is written every 5 steps, up to 8 steps are under way and the host may be ahead of its writing.",
        *(f"\nTrial {line['trial']} ({line['case']}): {line['problem']}" for line in failed),
    ]
    return "\n".join(text) + "\n"


def enough(lines: list[dict[str, Any]], kills: int) -> bool:
    return sum(len(line["kills"]) for line in lines) >= kills


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many to get to, those of earlier calls included")
    parser.add_argument("--out", type=Path, default=Path("experiments/faults"), help="where results are kept")
    parser.add_argument("--jobs", type=int, default=2, help="trials at a time; most of one is start-up on one core")
    parser.add_argument("--keep", type=Path, help="keep the folders of runs with a problem here")
    options = parser.parse_args()
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    record = options.out / "kills.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(text) for text in record.read_text().splitlines()] if record.exists() else []
    wanted = [] if enough(lines, options.kills) else CASES
    made = {line["trial"] for line in lines}
    numbers = (number for number in itertools.count() if number not in made)
    lock, stop = threading.Lock(), threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"

        def work() -> None:
            """One trial after the other, until all workers together have made enough kills."""
            while True:
                with lock:
                    if stop.is_set() or enough(lines, options.kills):
                        return
                    number = next(numbers)
                name = list(CASES)[number % len(CASES)]
                place = Path(folder) / f"trial-{number}"
                place.mkdir()
                line = {"trial": number, "case": name, "kills": [], "problem": None}
                try:
                    line |= trial(number, name, cache, references, place)
                except ProblemError as problem:
                    line["problem"] = str(problem)
                    if options.keep is not None:
                        shutil.copytree(place, options.keep / place.name)
                shutil.rmtree(place)
                with lock:
                    lines.append(line)
                    with record.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                said = line["problem"] or "all well"
                print(f"trial {number}, {name}: {len(line['kills'])} kills, {said}", flush=True)

        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            references = dict(zip(wanted, pool.map(lambda name: reference(name, cache), wanted), strict=True))
            try:
                for future in [pool.submit(work) for _ in range(options.jobs)]:
                    future.result()
            except KeyboardInterrupt:
                print("stops when the trials under way have ended; the same command goes on from there", flush=True)
            finally:
                stop.set()  # after an error, too, the other workers begin no further trial
    (options.out / "kills.md").write_text(summary(lines))
    print(summary(lines), end="")
    return any(line["problem"] for line in lines)


if __name__ == "__main__":
    sys.exit(main())
