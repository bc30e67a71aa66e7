"""Commands that have moved to :mod:`scpl_jax.benchmarks` still run under their old names, for one release."""

import runpy
import sys


def run_moved(name: str) -> None:
    """Run a benchmark by its old name, after one line of warning on standard error."""
    old, new = (f"python -m scpl_jax.{room}.{name}" for room in ("experiments", "benchmarks"))
    print(f"warning: {old} is now {new}; the old name goes with the next release", file=sys.stderr)
    runpy.run_module(f"scpl_jax.benchmarks.{name}", run_name="__main__", alter_sys=True)
