"""A file system that is really full: training goes on, and nothing that was saved is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scpl_jax.training.writing import damage

RUN = [sys.executable, "-m", "scpl_jax.experiments.cifar", "--dataset", "digits", "--limit-train", "128"]
RUN += ["--limit-test", "40", "--width", "0.05", "--batch-size", "32", "--epochs", "3", "--stages", "2"]
RUN += ["--head-dims", "8,8", "--probe-examples", "0"]
# A small file system that only this shell and its children see; $1 is where, $2 a folder that the run is copied to.
# The run is made while there is little room, resumed while there is none, and once more when there is plenty.
SHELL = """
mount -t tmpfs -o size=3000k tmpfs "$1" || exit 99
where=$1 kept=$2
shift 2
keep() { echo $1 > "$kept/$2.status"; cp -r "$where/run" "$kept/$2"; }
"$@" --out-dir "$where/run" 2> "$kept/little.said"
keep $? little
rm -r "$where/run/results" "$where/run/results.json" # as if it had been killed before its end
cat /dev/zero > "$where/filler" 2> /dev/null
"$@" --out-dir "$where/run" --resume 2> "$kept/none.said"
keep $? none
rm "$where/filler"
mount -o remount,size=50m "$where"
"$@" --out-dir "$where/run" --resume 2> "$kept/plenty.said"
keep $? plenty
"""


@pytest.mark.processes
def test_a_run_outlives_a_full_file_system(tmp_path):
    own = ["unshare", "--map-root-user", "--mount"]
    (tmp_path / "disk").mkdir()
    try_it = [*own, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "disk")]
    if shutil.which("unshare") is None or subprocess.run(try_it, capture_output=True).returncode:
        pytest.skip("a file system of one's own can't be had on this machine")
    run = [*RUN, "--cache-dir", os.environ["SCPL_JAX_TEST_CACHE"]]
    kept = tmp_path / "kept"
    kept.mkdir()
    shell = [*own, "sh", "-c", SHELL, "sh", str(tmp_path / "disk"), str(kept), *run]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    status = {name: int((kept / f"{name}.status").read_text()) for name in ("little", "none", "plenty")}
    said = {name: (kept / f"{name}.said").read_text() for name in status}
    failed = "a checkpoint could not be saved (no space left on the disk: "

    # What fitted is there, whole, and what did not fit left nothing behind.
    assert status["little"] == 1, said["little"]
    assert all(failed in line for line in said["little"].splitlines()), said["little"]
    assert said["little"].splitlines()[-1].endswith("MB are free); the results are whole")
    assert 0 <= json.loads((kept / "little" / "results.json").read_text())["test_accuracy"] <= 1
    assert epochs(kept / "little") == [1, 2, 3]
    assert checkpoints(kept / "little") == ["4"]

    # Without any room the run says so, and takes nothing away from what is there.
    assert status["none"] == 2
    *_, last = said["none"].splitlines()
    assert last.startswith("error: ")
    assert "metrics.jsonl could not be written (No space left on device)" in last
    assert "Traceback" not in said["none"]
    assert epochs(kept / "none") == [1, 2, 3]
    assert checkpoints(kept / "none") == ["4"]

    # With room again the same command ends as if nothing had been.
    assert (status["plenty"], said["plenty"]) == (0, "")
    assert epochs(kept / "plenty") == [1, 2, 3]
    assert checkpoints(kept / "plenty")[-1] == "12"


def epochs(run: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def checkpoints(run: Path) -> list[str]:
    """Names of the checkpoints, every one of them whole."""
    folders = sorted((run / "checkpoints" / "seed-0").iterdir(), key=lambda folder: (len(folder.name), folder.name))
    assert [damage(folder) for folder in folders] == [None] * len(folders)
    return [folder.name for folder in folders]
