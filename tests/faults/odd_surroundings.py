"""Cases of the campaign about what surrounds a command: environment variables, standard streams, home and cache."""

import contextlib
import errno
import io
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

NAMES = ("HOME", "COLUMNS", "LINES", "TERM", "TMPDIR", "MPLBACKEND", "MPLCONFIGDIR", "JAX_PLATFORMS", "NO_COLOR",
         "FORCE_COLOR", "TFDS_DATA_DIR", "XDG_CACHE_HOME", "JAX_PROCESS_ID", "JAX_NUM_PROCESSES", "SLURM_JOB_ID",
         "JAX_COORDINATOR_ADDRESS", "SCPL_THROUGHPUT_ANSWER", "MALLOC_ARENA_MAX", "PYTHONIOENCODING")  # fmt: skip
VALUES = ("", "0", "1", "-1", "3", "x", "nan", "9" * 30, "~", "~nobody-here/x", "/", "/nonexistent/x", "/dev/null", ".",
          "..", "a b", "é", "\udcff", "cuda", "module://no.such", "agg", "dumb", "'", "127.0.0.1:1", "\n")  # fmt: skip
WORDS = ("a line", "é", "\udcff", "\x1b[31m", "\r", "a\nb", "", "9" * 9999)


class OddStream(io.StringIO):
    """A stream that fails now and then, in one of the ways that streams have."""

    def __init__(self, chance: random.Random):
        super().__init__()
        number = chance.choice((errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF, errno.EAGAIN))
        self._error = chance.choice((OSError(number, os.strerror(number)), ValueError("I/O operation on closed file")))
        self._chance, self._often = random.Random(chance.random()), chance.choice((0.1, 0.5, 1.0))
        self._code = chance.choice(("utf-8", "ascii", "latin-1"))

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._code

    def _fail(self) -> None:
        if self._chance.random() < self._often:
            raise self._error

    def write(self, text: str) -> int:
        text.encode(self._code)
        self._fail()
        return len(text)

    def flush(self) -> None:
        self._fail()

    def isatty(self) -> bool:
        self._fail()
        return True


def a_stream(chance: random.Random) -> Any:
    """No stream, a closed one, one that may fail, or a sound one of an encoding with few letters."""
    closed = io.StringIO()
    closed.close()
    few = io.TextIOWrapper(io.BytesIO(), encoding=chance.choice(("ascii", "latin-1", "utf-8")))
    return chance.choice((None, closed, OddStream(chance), OddStream(chance), few))


@contextlib.contextmanager
def odd_surroundings(folder: Path, chance: random.Random) -> Iterator[None]:
    """Made-up variables and streams for the time of the block; no word of this program is lost by them."""
    before, streams, place = dict(os.environ), (sys.stdout, sys.stderr), os.getcwd()
    for name in chance.sample(NAMES, chance.randrange(5)):
        os.environ.pop(name, None)
        if chance.random() < 0.8:
            os.environ[name] = chance.choice((*VALUES, str(folder)))
    os.chdir(folder)
    sys.stdout, sys.stderr = a_stream(chance), a_stream(chance)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        os.chdir(place)
        for name in set(os.environ) - set(before):
            del os.environ[name]
        os.environ.update(before)


def a_path(folder: Path, chance: random.Random) -> str:
    """A path inside the folder, or one that is to be refused."""
    words = ("run", "my son's run", "~", "~/run", "~nobody-here/run", "-x", "é", "\udcff", "", ".", "a/b", "a\nb")
    word = chance.choice(words)
    return str(folder / word) if chance.random() < 0.5 and not word.startswith("~") else word


def printing(folder: Path, chance: random.Random) -> None:
    """Run a command that prints, logs, shows a bar and draws curves: it must end as it would without any of that."""
    import logging

    from scpl_jax.cli.command_line import run
    from scpl_jax.training import Reporter

    def command(_: Any) -> int:
        for _ in range(chance.randrange(1, 6)):
            print(chance.choice(WORDS), file=chance.choice((sys.stdout, sys.stderr)), flush=chance.random() < 0.5)
        logging.getLogger("odd").warning("%s", chance.choice(WORDS))
        reporter = Reporter(chance.choice((None, folder / "curves")), progress=chance.choice((None, True)))
        reporter.start_epoch(1, 2, 4, 0, 8, 8)
        reporter.after_step(1, [], False)
        reporter.end_epoch()
        line = {"epoch": 1, "step": 4, "learning_rate": 0.1, "train_loss": [1.5], "test_accuracy": 0.2}
        reporter.after_epoch({**line, "images_per_second": 3.0}, 2)
        reporter.close()
        return 7

    level, handlers = logging.root.manager.disable, logging.root.handlers
    logging.disable(logging.NOTSET)
    logging.root.handlers = []  # so that the command logs to its own stream, and nobody else keeps odd letters
    try:
        with odd_surroundings(folder, chance):
            status = run(command, [])
    finally:
        logging.disable(level)
        logging.root.handlers = handlers
    assert status == 7, status


def parsing(folder: Path, chance: random.Random) -> None:
    """Parse a command line with paths, up to where a program would begin to work; nothing is made in a folder "~"."""
    from scpl_jax.benchmarks import memory, simulate, throughput_options
    from scpl_jax.cli.command_line import parse_options, run
    from scpl_jax.cli.task_options import Options, TextOptions

    kinds: tuple[Any, ...] = (Options, TextOptions, memory.Options, simulate.Options, throughput_options.Options)
    kind = chance.choice(kinds)
    names = ("out-dir", "data-dir", "cache-dir", "output", "figure", "timeline", "data-file", "word-vectors", "check")
    arguments = [f"--{name}={a_path(folder, chance)}" for name in chance.sample(names, chance.randrange(3))]
    arguments += chance.choice(([], [], ["--help"], ["--no-such"]))
    found: list[Any] = []

    def command(given: Any) -> int:
        found.append(parse_options(kind, given, "cifar", kind()))
        return 0

    with odd_surroundings(folder, chance):
        status = run(command, arguments)
    assert status in (0, 1, 2), status
    for options in found:
        assert not any(str(value).startswith("~") for value in vars(options).values() if isinstance(value, Path))
    assert "--no-such" not in arguments or status == 2, status


def keeping(folder: Path, chance: random.Random) -> None:
    """Load data and keep programs with a cache that may not be there; a command that is printed gives the path back."""
    import shlex

    import jax

    from scpl_jax.cli.command_line import expand
    from scpl_jax.cli.environment import keep_compiled, shell_line
    from scpl_jax.data import load

    (folder / "file").write_text("")
    (folder / "closed").mkdir(mode=0o500)
    places = (None, "file", "closed/x", "sound", "~", "~/x", "~nobody-here/x", "\udcff")
    given = chance.choice(places)
    cache = None if given is None else Path(given) if given.startswith("~") else folder / given
    before = jax.config.jax_compilation_cache_dir, jax.config.jax_persistent_cache_min_compile_time_secs
    with odd_surroundings(folder, chance):
        os.environ["HOME"] = str(folder)  # a case writes nowhere else
        try:
            assert load("synthetic", cache_dir=cache).num_classes > 1
            assert load("digits", cache_dir=cache).num_classes == 10
            keep_compiled(cache)
            path = expand(a_path(folder, chance), "--out-dir")
            *_, last = shlex.split(shell_line("scpl_jax.report", path))
            assert Path(last) == path
        finally:
            jax.config.update("jax_compilation_cache_dir", before[0])
            jax.config.update("jax_persistent_cache_min_compile_time_secs", before[1])


def drawing(folder: Path, chance: random.Random) -> None:
    """Draw, and write a file that a reader finds whole, whatever the environment is."""
    from scpl_jax.analysis.figures import attempt
    from scpl_jax.analysis.report_figures import draw_exits
    from scpl_jax.training.writing import write_json

    exits = [{"stage": stage, "accuracy": chance.random(), "share": chance.random()} for stage in range(2)]
    file = folder / chance.choice(("a.svg", "a.png", "é.svg", "no/a.svg", "a.foo", "-x.svg", "my son's.svg"))
    with odd_surroundings(folder, chance):
        drawn = attempt(str(file), draw_exits, exits, [], file)
        write_json(folder / "results.json", exits)
    assert drawn == file.exists()
    assert drawn or file.suffix == ".foo" or file.parent.name == "no"
    shutil.rmtree(folder / "no", ignore_errors=True)


TARGETS: dict[str, tuple[int, Callable[[Path, random.Random], None]]] = {  # share of the cases, function
    "surroundings of what is printed": (4, printing),
    "surroundings of a command line": (4, parsing),
    "surroundings of a cache": (2, keeping),
    "surroundings of a figure": (1, drawing),
}
