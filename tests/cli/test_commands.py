"""Commands that the pages quote are there, and those that have moved still run under their old names."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("experiments/**/*.md"),
    *ROOT.glob("notebooks/*.py"),
]
# Not what has a placeholder, as scpl_jax.benchmarks.NAME.
COMMAND = re.compile(r"python -m (scpl_jax\.[a-z_.]*[a-z])\b(?!\.[A-Z])")
QUOTED = {name for page in PAGES for name in COMMAND.findall(page.read_text())}
# One for all that have moved: tests/test_imports.py goes through the table of their names.
MOVED = {"scpl_jax.experiments.throughput": "scpl_jax.benchmarks.throughput"}


@pytest.mark.runs
def test_quoted_and_moved_commands_give_help_under_their_own_names():
    assert len(QUOTED) >= 10

    def help_of(name):
        command = [sys.executable, "-m", name, "--help"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    names = sorted({*QUOTED, *MOVED})
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(names, pool.map(help_of, names), strict=True))
    for name, done in found.items():
        assert done.returncode == 0, (name, done.stderr)
        assert f"usage: python -m {MOVED.get(name, name)} " in done.stdout, (name, done.stdout)
        warned = f"warning: {name} is now {MOVED.get(name)}; the old name goes with the next release\n"
        assert done.stderr == (warned if name in MOVED else ""), name
