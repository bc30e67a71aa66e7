"""A file system that is really full: training goes on, and nothing that was saved is lost."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from scpl_jax.training.checksums import damage

RUN = [sys.executable, "-m", "scpl_jax.experiments.cifar", "--dataset", "digits", "--limit-train", "128"]
RUN += ["--limit-test", "40", "--width", "0.05", "--batch-size", "32", "--epochs", "3", "--stages", "2"]
RUN += ["--head-dims", "8,8", "--probe-examples", "0"]
# A small file system that only this shell and its children see; $1 is where, $2 a folder that the run is copied to.
SHELL = """
mount -t tmpfs -o size=3000k tmpfs "$1" || exit 99
where=$1 kept=$2
shift 2
"$@" --out-dir "$where/run"
status=$?
cp -r "$where/run" "$kept"
exit $status
"""


@pytest.mark.processes
def test_a_run_outlives_a_full_file_system(tmp_path):
    own = ["unshare", "--map-root-user", "--mount"]
    (tmp_path / "disk").mkdir()
    try_it = [*own, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")]
    if shutil.which("unshare") is None or subprocess.run(try_it, capture_output=True).returncode:
        pytest.skip("a file system of one's own can't be had on this machine")
    run = [*RUN, "--cache-dir", os.environ["SCPL_JAX_TEST_CACHE"]]
    shell = [*own, "sh", "-c", SHELL, "sh", str(tmp_path / "disk"), str(tmp_path / "kept"), *run]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=300)
    said = done.stderr.splitlines()
    assert done.returncode == 1, done.stderr
    assert all("a checkpoint could not be saved (no space left on the disk: " in line for line in said), done.stderr
    assert said[-1].endswith("MB are free); the results are whole")
    kept = tmp_path / "kept"
    assert 0 <= json.loads((kept / "results.json").read_text())["test_accuracy"] <= 1
    assert [json.loads(line)["epoch"] for line in (kept / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    # What fitted is there, whole, and what did not fit left nothing behind.
    checkpoints = sorted(path.name for path in (kept / "checkpoints" / "seed-0").iterdir())
    assert checkpoints == ["4"]
    assert damage(kept / "checkpoints" / "seed-0" / "4") is None
