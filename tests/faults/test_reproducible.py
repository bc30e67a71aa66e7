"""Same seed, same machine: the same results, metrics and final arrays to the bit, for every method."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scpl_jax.cli.methods import RULES

sys.path.insert(0, str(Path(__file__).parent))
from outcomes import outcome

# Two devices, so that stages run at the same time, in an order that differs from run to run; random views of the
# images, noise on the labels and random initial values are the seed's.
COMMON = ["--epochs", "2", "--batch-size", "32", "--devices", "2", "--head-dims", "8,8", "--no-tensorboard"]
IMAGES = ["--dataset", "synthetic", "--limit-train", "128", "--limit-test", "40", "--width", "0.1", "--stages", "3"]
IMAGES += [
    *COMMON,
    "--model",
    "cnn",
    "--image-size",
    "16",
    "--probe-examples",
    "64",
    "--augment",
    "strong",
    "--label-noise",
    "0.2",
]
TEXTS = ["--dataset", "generated", "--limit-train", "128", "--limit-test", "40", "--max-length", "12", *COMMON]
TEXTS += ["--embedding-size", "8", "--stages", "2", "--dropout", "0.1"]
# Rules that are one term alone have their part in the mixture.
MIXTURE = "supcon+recon,predsim+recon,inforeg+0.5*ce+recon"
METHODS = (*(name for name in RULES if name not in ("predsim", "inforeg", "recon")), MIXTURE)
RUNS = {
    **{method: ["cifar", *IMAGES, "--method", method] for method in METHODS},
    "al released": ["cifar", *IMAGES, "--method", "al", "--al-codes", "released"],
    "scpl on texts": ["text", *TEXTS, "--method", "scpl"],
    "bp on texts": ["text", *TEXTS, "--method", "bp", "--model", "transformer", "--heads", "2"],
}
# Runs one after the other in a process.
CHILD = """
import json, sys
from scpl_jax.experiments import cifar, text
from scpl_jax.cli.command_line import run
place, cache, runs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for number, (task, *arguments) in runs:
    places = ["--out-dir", f"{place}/{number}", "--cache-dir", cache]
    status = run({"cifar": cifar, "text": text}[task].main, [*arguments, *places])
    if status:
        sys.exit(f"run {number} ended with status {status}")
"""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Directories of the same runs, made by two processes side by side.

    The second one begins with the second half: each compiles one half and takes the programs of the other half from
    the cache.
    """
    places = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    started, runs = [], list(enumerate(RUNS.values()))
    half = len(runs) // 2
    for hash_seed, place, order in zip((1, 2), places, (runs, runs[half:] + runs[:half]), strict=True):
        # The order of sets, which differs from process to process, may play no part.
        environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
        command = [sys.executable, "-c", CHILD, str(place), os.environ["SCPL_JAX_TEST_CACHE"], json.dumps(order)]
        with (place / "log").open("w") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    for process, place in zip(started, places, strict=True):
        assert process.wait(600) == 0, (place / "log").read_text()[-2000:]
    return places


@pytest.mark.processes
@pytest.mark.parametrize("name", RUNS)
def test_the_same_seed_gives_the_same_bits_twice(both, name):
    number = list(RUNS).index(name)
    first, second = (outcome(place / str(number)) for place in both)
    assert first[0] == second[0]
    assert first[1] == second[1]
    assert first[2].keys() == second[2].keys()
    assert len(first[2]) > 10
    assert [key for key in first[2] if first[2][key] != second[2][key]] == []


@pytest.mark.processes
def test_another_seed_gives_other_bits(both, tmp_path):
    """What is compared above does depend on the seed."""
    arguments = [[0, [*RUNS["scpl"], "--seed", "1"]]]
    command = [sys.executable, "-c", CHILD, str(tmp_path), os.environ["SCPL_JAX_TEST_CACHE"], json.dumps(arguments)]
    subprocess.run(command, check=True, capture_output=True)
    (_, lines, arrays), (_, other_lines, other_arrays) = outcome(tmp_path / "0"), outcome(both[0] / "0")
    assert lines[0]["train_loss"] != other_lines[0]["train_loss"]
    seed_1 = {key.replace("seed-1", "seed-0"): value for key, value in arrays.items()}
    assert seed_1.keys() == other_arrays.keys()
    assert any(seed_1[key] != other_arrays[key] for key in seed_1)
