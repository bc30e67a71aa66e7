"""--validation: which examples are held out, what is told of them, and that the run is chosen by them."""

import json
import statistics

import numpy as np
import pytest
from test_report import Page, write_run

from scpl_jax.cli.command_line import run
from scpl_jax.cli.run_options import from_json, to_json
from scpl_jax.cli.task_options import Options
from scpl_jax.data import TextRequest, hold_out, limit, load, load_texts
from scpl_jax.experiments import cifar, text, training_run
from scpl_jax.report import main as report

IMAGES = [
    *("--dataset", "digits", "--image-size", "16", "--width", "0.03", "--head-dims", "8,8", "--limit-test", "40"),
    *("--stages", "2", "--batch-size", "32", "--epochs", "1", "--no-tensorboard", "--probe-examples", "0"),
]
TEXTS = [
    *("--dataset", "generated", "--layers", "3", "--stages", "2", "--width", "0.03", "--embedding-size", "6"),
    *("--epochs", "2", "--batch-size", "16", "--limit-train", "120", "--no-tensorboard", "--probe-examples", "0"),
]


@pytest.fixture
def experiment(tmp_path, cache):
    """A function that runs an experiment in this process: (status, directory)."""

    def call(main, *arguments, out="run"):
        places = ["--cache-dir", str(cache), "--out-dir", str(tmp_path / out)]
        return run(main, [*arguments, *places]), tmp_path / out

    return call


@pytest.mark.parametrize("seed", ["0", "5"])
def test_the_share_is_taken_of_what_the_limit_leaves_and_keeps_its_labels(experiment, monkeypatch, cache, seed):
    seen = []

    def no_training(pipeline, dataset, *_, validation, **__):
        seen.extend([dataset, validation])

    monkeypatch.setattr(training_run.training, "train", no_training)
    noise = ["--limit-train", "200", "--validation", "0.25", "--label-noise", "1", "--seed", seed, "--method", "bp"]
    experiment(cifar.main, *IMAGES, *noise)
    dataset, validation = seen
    rest, expected = hold_out(limit(load("digits", image_size=16, cache_dir=cache), 200, 40), 0.25)
    np.testing.assert_array_equal(validation.test_images, expected.test_images)
    np.testing.assert_array_equal(validation.test_labels, expected.test_labels)
    np.testing.assert_array_equal(dataset.train_images, rest.train_images)
    assert 0.7 < np.mean(dataset.train_labels != rest.train_labels) <= 1


@pytest.mark.runs
def test_images_several_runs_and_the_page_about_them(experiment, tmp_path, capsys):
    status, path = experiment(cifar.main, *IMAGES, "--limit-train", "200", "--validation", "0.25", "--runs", "2")
    assert status == 0
    results = json.loads((path / "results.json").read_text())
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    each = [line["validation_accuracy"] for line in lines]
    config = json.loads((path / "config.json").read_text())
    assert config["train_examples"] + config["validation_examples"] == 200
    assert all(round(one * config["validation_examples"], 6).is_integer() for one in each)
    assert results["validation_accuracy"] == statistics.fmean(each)
    assert results["validation_accuracy_std"] == statistics.stdev(each)
    assert results["best_validation_accuracy"] == max(each)
    said = capsys.readouterr().out
    assert f"validation accuracy {each[0]:.4f}  test accuracy" in said
    assert f"validation accuracy {results['validation_accuracy']:.4f} +- " in said
    page = tmp_path / "page.html"
    assert run(report, [str(path), "--output", str(page)]) == 0
    assert f"{results['validation_accuracy']:.4f} ± {results['validation_accuracy_std']:.4f}" in Page(page).words


@pytest.mark.runs
def test_texts_and_a_resumed_run_that_keeps_its_share(experiment, cache, capsys):
    status, path = experiment(text.main, *TEXTS, "--validation", "0.2", "--method", "early-exit")
    assert status == 0
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    _, held = hold_out(limit(load_texts(TextRequest("generated", cache_dir=cache)), 120), 0.2)
    assert all(round(line["validation_accuracy"] * len(held.test_labels), 6).is_integer() for line in lines)
    (path / "results.json").unlink()
    assert experiment(text.main, "--resume", "--validation", "0.3")[0] == 2
    assert "--validation 0.3 contradicts the run to be resumed, which has 0.2" in capsys.readouterr().err
    assert experiment(text.main, "--resume")[0] == 0
    results = json.loads((path / "results.json").read_text())
    assert results["validation_accuracy"] == lines[-1]["validation_accuracy"]


def test_a_run_of_before_had_no_share():
    before = to_json(Options())
    del before["validation"]
    assert from_json(Options, before).validation == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--validation", "1"], "--validation must be at least 0 and less than 1, got 1.0"),
        (["--validation", "-0.1"], "--validation must be at least 0 and less than 1, got -0.1"),
        (["--validation", "nan"], "--validation must be at least 0 and less than 1, got nan"),
        (["--validation", "0.01"], "--validation 0.01 holds out 0 of the"),
        (["--validation", "0.9", "--batch-size", "64"], "--batch-size 64 is larger than the"),
    ],
)
def test_a_share_that_cannot_be_is_one_sentence(experiment, capsys, arguments, sentence):
    assert experiment(cifar.main, *IMAGES, "--limit-train", "200", *arguments)[0] == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_the_page_about_runs_tells_of_validation_where_there_is_some(tmp_path):
    plain, held_out = (write_run(tmp_path / name, "bp", complete=False) for name in ("plain", "held-out"))
    lines = [json.loads(line) for line in (held_out / "metrics.jsonl").read_text().splitlines()]
    written = [json.dumps({**line, "validation_accuracy": 0.4321}) + "\n" for line in lines]
    (held_out / "metrics.jsonl").write_text("".join(written))
    page = tmp_path / "page.html"
    assert run(report, [str(plain), "--output", str(page)]) == 0
    assert "alidation" not in Page(page).words
    assert run(report, [str(plain), str(held_out), "--output", str(page)]) == 0
    assert "0.4321" in Page(page).words
    assert "Validation accuracy after each epoch" in Page(page).words
