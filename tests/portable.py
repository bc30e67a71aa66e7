"""The tests of numbers on the processors that users have: make test-portable.

Eight settings: with AVX-512 and with it hidden, by XLA and by oneDNN, on one core and on several. In all of them the
code is the one that users get, unlike that of most tests, which is compiled without optimisation. Each setting has a
compilation cache of its own. Further arguments are pytest's.
"""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
HIDDEN = {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
TESTS = ["-m", "numeric and not processes and not runs", "tests"]

# Of a setting: name, what the environment gets, and how many cores there are.
Setting = tuple[str, dict[str, str], int]


def settings(cores: int, avx512: bool, onednn: bool, say=print) -> Iterator[Setting]:
    """The settings that differ on this machine; those that it does not have are named."""
    if not avx512:
        say("AVX-512 is not here or hidden already: the settings with it hidden are those without, left out")
    if not onednn:
        say("oneDNN is not in this jaxlib: the settings by oneDNN are left out")
    if cores < 2:
        say("there is one core to be used: the settings on several are those on one, left out")
    widths = {"AVX-512": {}, "AVX-512 hidden": HIDDEN} if avx512 else {"as it is": {}}
    libraries = ["xla", "onednn"] if onednn else ["xla"]
    numbers = {"one core": 1, f"{cores} cores": cores} if cores > 1 else {"one core": 1}
    for width, library, number in itertools.product(widths, libraries, numbers):
        environment = {**widths[width], "SCPL_JAX_TEST_LIBRARY": library}
        yield f"{width}, {library}, {number}", environment, numbers[number]


def run(environment: dict[str, str], cores: list[int], arguments: list[str]) -> tuple[int, str]:
    """Exit status and output of the tests on these cores."""
    flags = " ".join(flags for flags in (os.environ.get("XLA_FLAGS"), environment.get("XLA_FLAGS")) if flags)
    command = [sys.executable, "-m", "pytest", "-n", str(len(cores)), "--dist", "worksteal", "-q", *arguments]
    before = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="scpl-jax-portable-") as cache:
        changed = {**os.environ, **environment, "XLA_FLAGS": flags, "SCPL_JAX_TEST_CACHE": cache}
        os.sched_setaffinity(0, cores)  # what starts here inherits them
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=changed, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        finally:
            os.sched_setaffinity(0, before)
    return done.returncode, done.stdout


def main(arguments: list[str]) -> int:
    """Exit status: 0 if all tests passed in all settings."""
    if not hasattr(os, "sched_setaffinity"):
        print("the cores that tests run on can't be chosen on this system: make test-portable needs Linux")
        return 2
    sys.path.insert(0, str(ROOT))
    from scpl_jax.models import onednn

    cores = sorted(os.sched_getaffinity(0))
    failed = []
    for name, environment, number in settings(len(cores), onednn.has_avx512(), onednn.available()):
        began = time.perf_counter()
        status, output = run(environment, cores[:number], [*TESTS, *arguments])
        last = output.rstrip().rpartition("\n")[2].strip("= ")
        print(
            f"{name}: {'passed' if status == 0 else 'FAILED'} in {time.perf_counter() - began:.0f} s: {last}",
            flush=True,
        )
        if status != 0:
            failed.append((name, output))
    for name, output in failed:
        print(f"\n{name}:\n{output.rstrip()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
