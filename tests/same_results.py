"""Train with two checkouts of the project and compare what they leave, to the bit.

    git worktree add ../before COMMIT
    python tests/same_results.py ../before . --data-dir data

For changes that move code and must move no number. Each run is made by both checkouts, one behind the other, with this
Python and its packages, on the same machine: results, metrics and the arrays of the last checkpoints must be equal,
times and memory aside. The run on images of ``--data-dir`` (CIFAR-10 as folders of JPEG files) and that on SST-2 are
left out, and named, where that folder is not given. Exit status 1: at least one run differs.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "faults"))
from outcomes import outcome

# 20 steps of a batch of 64.
_STEPS = "cifar --dataset digits --stages 4 --epochs 1 --batch-size 64 --limit-train 1280"
RUNS = {
    "digits, 3 epochs": "cifar --dataset digits --stages 4 --epochs 3",
    "scpl, 20 steps": f"{_STEPS} --method scpl",
    "scpl in one program, oneDNN, 20 steps": f"{_STEPS} --fuse yes --library onednn",
    "bp, 20 steps": f"{_STEPS} --method bp",
    "gpipe, 20 steps": f"{_STEPS} --method gpipe",
    "al, 20 steps": f"{_STEPS} --method al",
    "al with the released codes, 20 steps": f"{_STEPS} --method al --al-codes released",
    "dascpl, 20 steps": f"{_STEPS} --method dascpl",
    "early-exit, 20 steps": f"{_STEPS} --method early-exit --exit-patience 1",
    "al of generated texts": "text --dataset generated --stages 3 --method al --epochs 1",
}
ON_DATA = {
    "CIFAR-10 as JPEG, VGG8, 2 epochs of 2,000 images": (
        "cifar --dataset imagefolder --data-dir {}/cifar10 --model vgg8 --width 0.25 --stages 4 --epochs 2 "
        "--limit-train 2000 --limit-test 500 --batch-size 100"
    ),
    "SST-2, LSTM, 2 epochs of 2,000 texts": (
        "text --dataset sst2 --data-dir {}/sst2 --width 0.1 --stages 4 --epochs 2 --limit-train 2000 --batch-size 100"
    ),
}


def run(checkout: Path, arguments: list[str], folder: Path) -> None:
    """One training run of a checkout's code."""
    module = f"scpl_jax.experiments.{arguments[0]}"
    command = [sys.executable, "-m", module, *arguments[1:], "--out-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(command, env=environment, cwd=folder.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{checkout}: {' '.join(arguments)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}")


def comparable(run: Path) -> tuple[Any, Any, dict[str, bytes]]:
    """What a run left, arrays by the names of today: local loss and classifier were in lists of none or one before."""
    results, metrics, arrays = outcome(run)
    return results, metrics, {re.sub(r"/(loss|classifier)/0/", r"/\1/", name): x for name, x in arrays.items()}


def differences(one: Path, other: Path) -> list[str]:
    """What two runs' results, metrics and arrays differ in."""
    found = []
    names = ("results.json", "metrics.jsonl", "arrays of the last checkpoints")
    for name, a, b in zip(names, comparable(one), comparable(other), strict=True):
        if isinstance(a, dict) and isinstance(b, dict):
            found += [f"{name}: {key}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        elif a != b:
            found.append(name)
    return found


def main() -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs=2, type=Path, help="folders with the package scpl_jax in them")
    parser.add_argument("--data-dir", type=Path, help="folder with cifar10/train, cifar10/test and sst2")
    parser.add_argument("--only", default="", help="runs whose name has this in it")
    options = parser.parse_args()
    runs = {**RUNS, **ON_DATA}
    if options.data_dir is None:
        runs = RUNS
        print(f"left out without --data-dir: {'; '.join(ON_DATA)}")
    wrong = 0
    for name, words in runs.items():
        if options.only not in name:
            continue
        arguments = [word.format(options.data_dir and options.data_dir.resolve()) for word in words.split()]
        with tempfile.TemporaryDirectory(prefix="scpl-jax-same-") as folder:
            places = [Path(folder) / which for which in ("before", "after")]
            for checkout, place in zip(options.checkouts, places, strict=True):
                run(checkout.resolve(), arguments, place)
            found = differences(*places)
        wrong += bool(found)
        print(f"{name}: {'DIFFERENT in ' + ', '.join(found[:10]) if found else 'the same'}", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
