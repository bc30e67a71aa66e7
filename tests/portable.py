"""The tests of numbers on the processors that users have: make test-portable.

Eight settings: with AVX-512 and with it hidden, by XLA and by oneDNN, on one core and on all. In each of them the code
is the one that users get, unlike that of most tests, which is compiled without optimisation, and the compilation cache
begins empty. Further arguments are pytest's.
"""

import concurrent.futures
import itertools
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HIDDEN = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
TESTS = ["-m", "numeric and not processes and not runs", "tests"]
# Whether the cores that a process runs on can be chosen.
PINS = hasattr(os, "sched_setaffinity")
_WORKERS = 8  # at most


def settings(
    cores: int, avx512: bool, onednn: bool, pins: bool = PINS, say: Callable[[str], None] = print
) -> Iterator[tuple[str, dict[str, str], int]]:
    """Name, environment and cores of every setting of this machine; those that it does not have are said."""
    if not avx512:
        say("AVX-512 is not here or hidden already: the settings with it hidden are those without, left out")
    if not onednn:
        say("oneDNN is not in this jaxlib: the settings by oneDNN are left out")
    if not pins:
        say("cores can't be chosen on this system: the settings on one core are left out")
    elif cores == 1:
        say("there is one core: the settings on all cores are those on one, left out")
    widths = {"AVX-512": {}, "AVX-512 hidden": HIDDEN} if avx512 else {"as it is": {}}
    libraries = ["xla", "onednn"] if onednn else ["xla"]
    numbers = sorted({1, cores}) if pins else [cores]
    for width, library, number in itertools.product(widths, libraries, numbers):
        environment = {**widths[width], "SCPL_JAX_TEST_LIBRARY": library}
        yield f"{width}, {library}, {number} core{'s' * (number > 1)}", environment, number


def run(environment: dict[str, str], cores: list[int], arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of the tests on these cores."""
    flags = " ".join(flags for flags in (os.environ.get("XLA_FLAGS"), environment.get("XLA_FLAGS")) if flags)
    workers = str(min(len(cores), _WORKERS))
    command = [sys.executable, "-m", "pytest", "-n", workers, "--dist", "worksteal", "-q", *arguments]
    if PINS:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # of this thread; what it starts inherits them
    try:
        with tempfile.TemporaryDirectory(prefix="scpl-jax-portable-") as cache:
            changed = {**os.environ, **environment, "XLA_FLAGS": flags, "SCPL_JAX_TEST_CACHE": cache}
            done = subprocess.run(
                command, cwd=ROOT, env=changed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
    finally:
        if PINS:
            os.sched_setaffinity(0, before)
    return done.returncode, done.stdout


def main(arguments: list[str]) -> int:
    """Exit status: 0 if all tests passed in all settings."""
    sys.path.insert(0, str(ROOT))
    from scpl_jax.kernels import onednn

    cores = sorted(os.sched_getaffinity(0)) if PINS else list(range(os.cpu_count() or 1))
    found = list(settings(len(cores), onednn.has_avx512(), onednn.available()))
    failed: list[str] = []
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in cores:
        free.put(core)

    def one(setting: tuple[str, dict[str, str], int]) -> None:
        name, environment, number = setting
        taken = [free.get() for _ in range(number)]
        began = time.perf_counter()
        status, output = run(environment, taken, [*TESTS, *arguments])
        seconds = time.perf_counter() - began
        for core in taken:
            free.put(core)
        summary = output.rstrip().rpartition("\n")[2].strip("= ")
        print(f"{name}: {'FAILED' if status else 'passed'} in {seconds:.0f} s: {summary}", flush=True)
        if status:
            failed.append(f"\n{name}:\n{output.rstrip()}\n")

    # First those on all cores, one after the other, then those on one, as many at a time as there are.
    for some, at_a_time in ((1, 1), (0, len(cores))):
        with concurrent.futures.ThreadPoolExecutor(at_a_time) as pool:
            list(pool.map(one, [setting for setting in found if (setting[2] > 1) == some]))
    print("".join(failed), end="")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
