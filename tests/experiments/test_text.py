"""The text experiment from its command line: files, methods, resuming, mistakes."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from scpl_jax.cli.command_line import run
from scpl_jax.cli.task_options import TextOptions
from scpl_jax.experiments.text import TASK, main
from scpl_jax.pipeline import Pipeline

WORDS = {0: ["dull", "bland", "stale", "poor"], 1: ["warm", "great", "lovely", "fine"]}


@pytest.fixture
def reviews(tmp_path):
    """A small file of texts that are easy to tell apart, with some that are long."""
    rng = np.random.default_rng(0)
    path = tmp_path / "reviews.csv"
    lines = ["text,label"]
    for index in range(100):
        label = index % 2
        size = 20 if index % 10 == 0 else rng.integers(2, 8)
        lines.append(" ".join(rng.choice([*WORDS[label], "film", "plot"], size)) + f" {WORDS[label][0]},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def experiment(reviews, tmp_path, cache):
    """A function that runs the experiment in this process: (status, directory)."""

    def call(*arguments, out="run"):
        return run(main, [*options(reviews, cache, tmp_path / out), *arguments]), tmp_path / out

    return call


@pytest.fixture
def optimised_experiment(reviews, tmp_path, cache):
    """The same in a process of its own, where XLA optimises as in a user's run, on four devices: the directory."""

    def call(*arguments, out="run"):
        command = [sys.executable, "-m", "scpl_jax.experiments.text", *options(reviews, cache, tmp_path / out)]
        environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
        subprocess.run([*command, *arguments], env=environment, check=True, timeout=300)
        return tmp_path / out

    return call


def options(reviews, cache, directory):
    small = ["--dataset", "file", "--data-file", str(reviews), "--layers", "3", "--stages", "2", "--buckets", "2"]
    small += ["--width", "0.03", "--embedding-size", "6", "--heads", "2", "--epochs", "2", "--batch-size", "16"]
    places = ["--no-tensorboard", "--cache-dir", str(cache), "--out-dir", str(directory)]
    return [*small, "--lr", "0.02", "--end-lr", "0.02", *places]


def results_of(directory):
    return json.loads((directory / "results.json").read_text())


def test_a_run_leaves_the_files_of_the_contract(experiment, capsys):
    status, directory = experiment("--epochs", "4")
    assert status == 0
    results = results_of(directory)
    assert results["test_accuracy"] >= 0.8
    assert results["dataset"] == "file"
    assert results["texts_per_second"] > 0
    assert results["tokens_per_second"] > 2 * results["texts_per_second"]
    assert "images_per_second" not in results
    assert [one["stage"] for one in results["probes"]] == [0, 1]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert all(len(line["train_loss"]) == 2 for line in lines)
    said = capsys.readouterr().out
    assert "80 train, 20 test, 12 words, padded to 8, 24" in said
    assert "texts/s" in said


METHODS = {"al": "lstm", "early-exit": "lstm", "predsim,inforeg": "transformer", "supcon+0.5*ce": "transformer"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.runs
def test_every_method_trains(experiment, method):
    options = ["--exit-threshold", "0.9"] if method == "early-exit" else []
    status, directory = experiment("--method", method, "--model", METHODS[method], "--label-noise", "0.1", *options)
    assert status == 0
    results = results_of(directory)
    assert 0 <= results["test_accuracy"] <= 1
    if method in ("al", "early-exit"):
        assert [one["stage"] for one in results["exits"]] == [0, 1]
    if method == "early-exit":
        assert results["early_stops"][-1]["confidence"] == 0.9


@pytest.mark.runs
def test_pipelined_over_devices_equals_one_device_and_synchronous(optimised_experiment):
    lines = []
    # On one device the stages are one program, whose code has other roundings where XLA does not optimise it.
    for index, placement in enumerate(([], ["--max-in-flight", "1", "--devices", "1"])):
        directory = optimised_experiment("--model", "transformer", "--dropout", "0", *placement, out=f"run{index}")
        lines.append([json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()])
    assert [line["train_loss"] for line in lines[0]] == [line["train_loss"] for line in lines[1]]


@pytest.mark.runs
def test_gpipe_and_two_devices_a_stage(experiment):
    status, _ = experiment("--method", "gpipe", "--micro-batches", "2", "--data-parallel", "2", "--epochs", "1")
    assert status == 0


@pytest.mark.runs
def test_a_stopped_run_goes_on_as_an_undisturbed_one(experiment, monkeypatch):
    def lines(directory):
        found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [(line["epoch"], line["train_loss"], line["test_accuracy"]) for line in found]

    status, whole = experiment(out="whole")
    assert status == 0
    # A signal in the second epoch, in the middle of the buckets.
    step = Pipeline.train_step

    def stopped_at_seven(pipeline, *batch, **options):
        if pipeline.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return step(pipeline, *batch, **options)

    monkeypatch.setattr(Pipeline, "train_step", stopped_at_seven)
    status, directory = experiment()
    assert status == 143
    assert len(lines(directory)) == 1
    monkeypatch.undo()
    assert experiment("--resume")[0] == 0
    assert lines(directory) == lines(whole)


@pytest.mark.parametrize("few", [True, False])
def test_few_words_with_vectors_are_told(reviews, cache, tmp_path, few):
    vectors = tmp_path / "vectors.txt"
    known = ["dull"] if few else [*WORDS[0], *WORDS[1]]
    vectors.write_text("".join(f"{word} 1 2\n" for word in known))
    options = TextOptions(dataset="file", data_file=reviews, word_vectors=vectors, cache_dir=cache)
    note = TASK.load(options).note
    assert f"{len(known)} of 10 words have vectors" in note
    assert ("These are few" in note) == few


@pytest.mark.runs
def test_word_vectors_are_where_the_embedding_begins(experiment, tmp_path, capsys):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("film 1 2 3 4 5 6\nwarm 1 1 1 1 1 1\nunseen 0 0 0 0 0 0\n")
    assert experiment("--word-vectors", str(vectors))[0] == 0
    assert "2 of 10 words have vectors" in capsys.readouterr().out
    vectors.write_text("film 1 2\n")
    assert experiment("--word-vectors", str(vectors), out="other")[0] == 2
    assert "has 2 values, expected 6" in capsys.readouterr().err


@pytest.mark.runs
@pytest.mark.parametrize("model", ["lstm", "transformer"])
def test_a_finished_run_is_continued_with_its_own_options(experiment, reviews, tmp_path, capsys, model):
    vectors = tmp_path / "vectors.txt"
    vectors.write_text("film 1 2 3 4 5 6\n")
    test = tmp_path / "test.csv"
    test.write_text("text,label\na warm film,1\nthe dull plot,0\n")
    options = ["--model", model, "--word-vectors", str(vectors), "--test-file", str(test), "--positions", "none"]
    options += ["--unmasked", "--dropout", "0.2", "--vocabulary", "9", "--max-length", "12", "--keep-stop-words"]
    status, directory = experiment(*options)
    assert status == 0
    first = results_of(directory)
    assert "2 test, 9 words, padded to 8, 12" in capsys.readouterr().out
    lines = (directory / "metrics.jsonl").read_text()
    # Without a word of its options, as a user would after a pause: nothing is left to do.
    assert run(main, ["--out-dir", str(directory), "--resume"]) == 0
    assert (directory / "metrics.jsonl").read_text() == lines
    assert results_of(directory)["test_accuracy"] == first["test_accuracy"]
    for changed, old in ((["--vocabulary", "8"], "9"), (["--unmasked", "--max-length", "5"], "12")):
        assert run(main, ["--out-dir", str(directory), "--resume", *changed]) == 2
        assert f"contradicts the run to be resumed, which has {old}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--label-column", "kind"], "has no column 'kind', only text, label; name one of them with --label-column"),
        (["--model", "gru"], "--model gru is unknown; choose lstm or transformer"),
        (["--model", "transformer", "--heads", "4"], "--heads 4 does not divide the 6 values of a word vector"),
        (["--stages", "4"], "--stages 4 is too many: lstm has 3 blocks"),
        (["--dropout", "1"], "dropout must be in [0, 1), got 1.0"),
        (["--batch-size", "81"], "--batch-size 81 is larger than the 80 training texts"),
        (["--layers", "1"], "--layers must be at least 2, got 1"),
        (["--vocabulary", "2"], "--vocabulary must be at least 3, got 2"),
        (["--positions", "learned"], "--positions learned is unknown; choose sinusoidal or none"),
        (["--max-length", "0"], "--max-length must be at least 1, got 0"),
        (["--embedding-size", "0"], "--embedding-size must be at least 1, got 0"),
        (["--heads", "0"], "--heads must be at least 1, got 0"),
        (["--test-file", "nowhere.csv"], "--test-file nowhere.csv does not exist"),
        (["--buckets", "0"], "--buckets must be at least 1, got 0"),
        (["--data-file", "nowhere.csv"], "--data-file nowhere.csv does not exist"),
        (["--word-vectors", "nowhere.txt"], "--word-vectors nowhere.txt does not exist or cannot be read"),
        (["--image-size", "8"], "--help lists every option"),
    ],
)
def test_bad_input_is_one_sentence(experiment, capsys, options, message):
    assert experiment(*options)[0] == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1
