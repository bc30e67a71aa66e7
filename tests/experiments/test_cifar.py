"""The command line: whole small runs, signals, resuming, and what it says to bad input."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scpl_jax.cli.command_line import run
from scpl_jax.experiments.cifar import main
from scpl_jax.kernels import onednn

COMMAND = [sys.executable, "-m", "scpl_jax.experiments.cifar"]
TINY = [
    "--dataset", "synthetic", "--width", "0.03", "--head-dims", "8,8", "--batch-size", "32", "--augment", "none",
    "--limit-train", "128", "--limit-test", "40", "--stages", "2",
]  # fmt: skip


@pytest.fixture
def tiny(tmp_path, cache):
    """A function that runs the command in this process on a tiny network: (status, run directory)."""

    def call(*arguments, out="run"):
        path = tmp_path / out
        return run(main, [*TINY, "--cache-dir", str(cache), "--out-dir", str(path), *arguments]), path

    return call


def read(path: Path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return json.loads((path / "results.json").read_text()), lines


def test_a_run_leaves_the_files_of_the_contract(tiny, capsys):
    status, path = tiny("--epochs", "2")
    assert status == 0
    results, lines = read(path)
    assert {
        "dataset", "dataset_source", "model", "method", "stages", "seed", "runs", "test_accuracy", "best_test_accuracy",
        "best_epoch", "images_per_second", "peak_memory_bytes", "devices", "versions", "seconds",
    } <= set(results)  # fmt: skip
    assert {"epoch", "step", "learning_rate", "train_loss", "test_accuracy"} <= set(lines[0])
    assert {"train_seconds", "images_per_second"} <= set(lines[0])
    assert not any("validation" in name for name in (*results, *lines[0]))
    assert [line["epoch"] for line in lines] == [1, 2]
    assert results["test_accuracy"] == lines[-1]["test_accuracy"]
    assert round(results["test_accuracy"] * 40, 6).is_integer()  # every test image counts once
    assert results["peak_memory_bytes"] > 1e6
    config = json.loads((path / "config.json").read_text())
    assert [stage["blocks"][1] for stage in config["stages"]][-1] == 6
    assert any((path / "tensorboard").rglob("events*"))
    printed = capsys.readouterr().out
    assert "first step" in printed
    assert "s of them to compile" in printed


@pytest.mark.runs
def test_several_runs_give_mean_and_deviation(tiny):
    status, path = tiny("--epochs", "1", "--runs", "2", "--seed", "3", "--no-tensorboard")
    results, lines = read(path)
    accuracies = [one["test_accuracy"] for one in results["per_run"]]
    assert status == 0
    assert [one["seed"] for one in results["per_run"]] == [3, 4]
    assert [line["seed"] for line in lines] == [3, 4]
    assert results["test_accuracy"] == pytest.approx(np.mean(accuracies))
    assert results["test_accuracy_std"] == pytest.approx(np.std(accuracies, ddof=1))


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "gpipe", "--lr", "1e-3,3e-4", "--end-lr", "1e-4,0", "--warmup-steps", "1", "--lr-every", "epoch"],
        ["--queue", "40", "--temperature", "0.5,0.1", "--lr", "1e-3,3e-4", "--data-parallel", "2", "--aux", "conv"],
        ["--method", "dascpl", "--queue", "40", "--temperature", "0.5,0.1", "--fuse", "--join-epochs", "1,1"],
        ["--stages", "1", "--optimizer", "sgd", "--lr-every", "epoch", "--lr", "0.1"],
        ["--model", "cnn", "--cut", "paper", "--stages", "4", "--head", "simsiam", "--augment", "strong"],
        ["--model", "resnet18", "--cut", "even", "--shortcut", "3x3", "--head", "linear", "--head-dims", "8"],
        [
            "--precision",
            "bfloat16",
            "--head-pool",
            "0",
            "--head",
            "mlp-bn",
            "--label-noise",
            "0.4",
            "--init",
            "he",
        ],
        [
            "--precision",
            "tf32",
            "--classifier-gradient",
            "--count-anchor",
            "--augment",
            "basic",
            "--image-size",
            "20",
        ],
    ],
    ids=lambda options: " ".join(options[:4]),
)
@pytest.mark.runs
def test_options_work_together(tiny, options):
    status, path = tiny("--epochs", "1", "--limit-train", "64", "--no-tensorboard", *options)
    assert status == 0
    assert np.isfinite(read(path)[1][0]["train_loss"]).all()


@pytest.mark.runs
@pytest.mark.parametrize("library", ["xla", "onednn"])
def test_fused_or_not_changes_no_bit(tmp_path, cache, library):
    """Of code that XLA optimises, unlike that of most tests."""
    if library == "onednn" and not onednn.available():
        pytest.skip("no oneDNN in this jaxlib")
    environment = {**os.environ, "XLA_FLAGS": ""}
    losses = []
    for fuse in ("yes", "no"):
        options = ["--fuse", fuse, "--library", library, "--epochs", "3", "--limit-train", "64", "--no-tensorboard"]
        files = ["--cache-dir", str(cache), "--out-dir", str(tmp_path / fuse)]
        subprocess.run([*COMMAND, *TINY, *files, *options], env=environment, check=True, timeout=200)
        losses.append([line["train_loss"] for line in read(tmp_path / fuse)[1]])
    assert losses[0] == losses[1]


@pytest.mark.runs
def test_a_profile_is_written_when_asked_for(tiny):
    status, path = tiny("--epochs", "4", "--profile")
    assert status == 0
    assert any((path / "profile").rglob("*.xplane.pb"))


def test_an_existing_run_needs_resume_and_a_complete_one_stays(tiny, capsys):
    tiny("--epochs", "1")
    status, path = tiny("--epochs", "1")
    assert status == 2
    assert "holds a run already; add --resume" in capsys.readouterr().err
    kept = (path / "results.json").read_bytes()
    assert tiny("--resume")[0] == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert (path / "results.json").read_bytes() == kept
    assert tiny("--resume", "--lr", "0.5")[0] == 2
    assert "--lr 0.5 contradicts the run to be resumed, which has 0.001" in capsys.readouterr().err


def test_resume_without_anything_saved_starts_afresh(tiny):
    status, path = tiny("--epochs", "1", "--resume")
    assert status == 0
    assert read(path)[0]["epochs"] == 1


@pytest.mark.runs
def test_a_run_that_diverges_stops_and_goes_on_where_more_is_allowed(tiny, capsys):
    wild = ["--lr", "1e30", "--epochs", "2"]
    status, path = tiny(*wild, "--max-skipped", "1")
    assert status == 2
    assert "--resume and a larger --max-skipped" in capsys.readouterr().err
    assert len(list((path / "bad_batches").iterdir())) == 1
    assert tiny(*wild, "--resume", "--no-skip-non-finite")[0] == 2
    assert "--skip-non-finite False contradicts the run to be resumed" in capsys.readouterr().err
    assert tiny(*wild, "--resume", "--max-skipped", "0")[0] == 0
    results, lines = read(path)
    assert [line["epoch"] for line in lines] == [1, 2]
    assert min(lines[-1]["skipped_updates"]) > 1
    for probe in results["probes"]:
        assert 0 <= probe["neighbours_accuracy"] == probe["linear_accuracy"] < 0.5


def without_times(lines):
    return [{k: v for k, v in line.items() if k not in ("train_seconds", "images_per_second")} for line in lines]


@pytest.mark.processes
def test_signals_save_and_the_resumed_run_ends_as_an_undisturbed_one(tiny, tmp_path, cache):
    """Ctrl-C in one session, SIGTERM in the next, then to the end: as a user would."""
    epochs = ["--epochs", "40"]
    _, undisturbed = tiny(*epochs)
    path = tmp_path / "disturbed"
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    arguments = [*COMMAND, *TINY, *epochs, "--cache-dir", str(cache), "--out-dir", str(path)]
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch"):
                break
        process.send_signal(number)
        output = process.stdout.read()
        assert process.wait(60) == status
        assert f"--out-dir {path} --resume" in output
        arguments = [*COMMAND, "--out-dir", str(path), "--resume"]
    assert not (path / "results.json").exists()
    assert run(main, ["--out-dir", str(path), "--resume"]) == 0
    assert without_times(read(path)[1]) == without_times(read(undisturbed)[1])
    assert read(path)[0]["test_accuracy"] == read(undisturbed)[0]["test_accuracy"]


@pytest.mark.parametrize(
    "options",
    [
        ["--method", "al", "--exit-threshold", "0.3", "--al-codes", "released"],
        ["--method", "dascpl", "--join-epochs", "1,2", "--exit-hidden", "8", "--classifier-gradient"],
        ["--method", "supcon+0.5*ce,inforeg", "--exit-patience", "1", "--optimizer", "lars", "--fuse"],
        ["--method", "early-exit", "--devices", "2", "--data-parallel", "2", "--joint-answer"],
        ["--method", "ce+recon", "--aux", "conv", "--aux-width", "0.5", "--devices", "2", "--data-parallel", "2"],
        ["--recipe", "fast", "--aux-depth", "1", "--fuse"],
    ],
    ids=lambda options: options[1],
)
@pytest.mark.runs
def test_other_rules_train_and_report_their_exits(tiny, options):
    status, path = tiny("--epochs", "2", "--limit-train", "64", "--no-tensorboard", *options)
    assert status == 0
    lines = read(path)[1]
    joined = "dascpl" not in options
    assert [loss is not None for loss in lines[0]["train_loss"]] == [True, joined]
    assert np.isfinite(lines[1]["train_loss"]).all()
    assert [one["stage"] for one in lines[1]["exits"]] == [0, 1]
    answer = "joint_accuracy" if {"fast", "--joint-answer"} & set(options) else "accuracy"
    assert lines[1]["exits"][1][answer] == lines[1]["test_accuracy"]
    asked = [name for name in ("--exit-threshold", "--exit-patience") if name in options]
    assert len(lines[1]["early_stops"]) == 10 + len(asked)
    assert all(0 < stop["share"] <= 1 for stop in lines[1]["early_stops"])
    results = read(path)[0]
    assert results["exits"] == lines[1]["exits"]
    assert results["early_stops"] == lines[1]["early_stops"]
    assert np.sum(results["confusion"]) == 40
    assert np.trace(results["confusion"]) == round(40 * results["test_accuracy"])
    assert "share of the network" in (path / "plots" / "exits.svg").read_text()
    assert "probes" not in results


@pytest.mark.runs
def test_stages_without_exits_are_probed_and_runs_averaged(tiny, capsys):
    status, path = tiny("--epochs", "1", "--runs", "2", "--probe-examples", "64", "--no-tensorboard")
    assert status == 0
    results = read(path)[0]
    for index, probe in enumerate(results["probes"]):
        assert probe["stage"] == index
        for name in ("neighbours_accuracy", "linear_accuracy"):
            each = [one["probes"][index][name] for one in results["per_run"]]
            assert probe[name] == pytest.approx(np.mean(each))
            assert round(each[0] * 40, 6).is_integer()
    assert "linear probe of stages 0 to 1" in capsys.readouterr().out
    assert not (path / "plots").exists()
    status, path = tiny("--epochs", "1", "--probe-examples", "0", "--no-tensorboard", out="none")
    assert "probes" not in read(path)[0]


BAD = {
    "no mixture": (["--method", "supcon+"], "--method supcon+ is unknown"),
    "mixture of nothing known": (["--method", "supcon+0.5*x"], "--method supcon+0.5*x is unknown"),
    "weight 0": (["--method", "0*ce+supcon"], "the weight 0 is not a number greater than 0"),
    "too many parts": (["--method", "supcon,ce,ce"], "has 3 parts for 2 stages"),
    "threshold 0": (["--exit-threshold", "0"], "--exit-threshold must be greater than 0 and at most 1, got 0"),
    "threshold above 1": (["--exit-threshold", "1.5"], "--exit-threshold must be greater than 0 and at most 1"),
    "similarity nan": (["--exit-similarity", "nan"], "--exit-similarity must be greater than 0"),
    "patience 0": (["--exit-patience", "0"], "--exit-patience must be at least 1"),
    "hidden size 0": (["--exit-hidden", "8,0"], "--exit-hidden must be numbers of at least 1"),
    "codes without al": (["--al-codes", "released"], "--al-codes is for --method al, got --method scpl"),
    "micro-batches without gpipe": (
        ["--micro-batches", "2"],
        "--micro-batches is for --method gpipe, got",
    ),
    "recomputing without a gradient of all": (["--remat"], "--remat is for --method bp or gpipe, got --method scpl"),
    "hidden sizes": (["--exit-hidden", "a"], "--exit-hidden takes whole numbers separated by commas, got 'a'"),
    "unknown codes": (["--method", "al", "--al-codes", "x"], "--al-codes x is unknown; choose plain or released"),
    "joining without dascpl": (["--join-epochs", "1,2"], "--join-epochs is for --method dascpl"),
    "joins descending": (["--method", "dascpl", "--join-epochs", "2,1"], "ascending epochs from 1"),
    "joins too late": (
        ["--method", "dascpl", "--join-epochs", "1,9", "--epochs", "2"],
        "would join after the 2 epochs",
    ),
    "no probe images": (["--probe-examples", "-1"], "--probe-examples must be at least 0, got -1"),
    "unknown costs": (["--costs", "guessed"], "--costs guessed is unknown; choose estimate or measured"),
    "unknown spread": (["--across-hosts", "all"], "--across-hosts all is unknown; choose stages or data"),
    "unknown data set": (["--dataset", "nonsense"], "--dataset nonsense is unknown; choose auto, cifar10,"),
    "unknown model": (["--model", "nonsense"], "--model nonsense is unknown; choose vgg8, resnet18,"),
    "unknown method": (["--method", "nonsense"], "--method nonsense is unknown"),
    "unknown head": (
        ["--head", "nonsense"],
        "--head nonsense is unknown; choose identity, linear, mlp,",
    ),
    "unknown optimizer": (["--optimizer", "nonsense"], "--optimizer nonsense"),
    "unknown augmentation": (["--augment", "nonsense"], "--augment nonsense is unknown; choose none, basic or strong"),
    "unknown initialisation": (["--init", "nonsense"], "--init nonsense is unknown; choose torch, lecun or he"),
    "unknown precision": (["--precision", "float8"], "--precision float8"),
    "no stage": (["--stages", "0"], "--stages must be at least 1, got 0"),
    "too many stages": (["--stages", "7"], "6 blocks that can be cut"),
    "cut outside": (["--cut", "9"], "ascending positions"),
    "cut no number": (["--cut", "a,b"], "--cut takes auto, even, paper"),
    "paper cut for two stages": (["--cut", "paper"], "--cut paper is defined for 4 stages"),
    "temperature 0": (["--temperature", "0"], "--temperature must be a number greater than 0"),
    "temperature nan": (["--temperature", "nan"], "--temperature must be a number greater than 0"),
    "negative lr": (["--lr", "-1"], "--lr must be a number greater than 0"),
    "negative epochs": (["--epochs", "-3"], "--epochs must be at least 1"),
    "batch of nothing": (["--batch-size", "0"], "--batch-size must be at least 1"),
    "batch too large": (["--batch-size", "129"], "--batch-size 129 is larger than the 128 training images"),
    "width 0": (["--width", "0"], "--width must be a number greater than 0"),
    "noise above 1": (["--label-noise", "1.5"], "--label-noise must lie between 0 and 1"),
    "head dims": (["--head", "linear", "--head-dims", "3,4"], "takes one layer size"),
    "image too small": (["--image-size", "8"], "needs at least 16 x 16 pixels, got 8 x 8"),
    "too many devices": (["--devices", "99"], "--devices 99 is more than"),
    "image folder without a folder": (["--dataset", "imagefolder"], "--data-dir"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_status_2(tiny, capsys, case):
    arguments, sentence = BAD[case]
    status, path = tiny(*arguments)
    error = capsys.readouterr().err
    assert status == 2
    assert sentence in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (path / "config.json").exists()


@pytest.mark.parametrize("arguments", [["--stages", "four"], ["--no-such-option", "1"], ["--lr", "fast"], ["--epochs"]])
def test_options_that_cannot_be_read_are_one_sentence_too(capsys, arguments):
    assert run(main, arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert arguments[0] in printed.err
    assert printed.out == ""


def test_help_explains_every_option_with_its_default():
    output = subprocess.run([*COMMAND, "--help"], capture_output=True, text=True, check=True).stdout
    for option in (
        "--stages",
        "--cut",
        "--head-pool",
        "--temperature",
        "--resume",
        "--label-noise",
        "--lr-every",
    ):
        assert option in output
    assert "default: 4" in output


def image_folder(root: Path, classes=("cat", "dog")) -> Path:
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("test", 4)):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


@pytest.mark.runs
def test_image_folders_are_trained_on_and_their_faults_named(tiny, tmp_path, capsys):
    folder = image_folder(tmp_path / "images")
    arguments = ["--dataset", "imagefolder", "--data-dir", str(folder), "--epochs", "1", "--no-tensorboard"]
    assert tiny(*arguments)[0] == 0
    (folder / "train" / "cat" / "3.png").write_bytes(b"no image")
    capsys.readouterr()
    assert tiny(*arguments, out="second")[0] == 2
    assert "3.png" in capsys.readouterr().err
    for file in (folder / "train" / "cat").iterdir():
        file.unlink()
    assert tiny(*arguments, out="third")[0] == 2
    assert "cat" in capsys.readouterr().err


def test_labels_outside_the_classes_are_refused(tiny, tmp_path, capsys):
    images = np.zeros((64, 16, 16, 3), np.uint8)
    np.savez(
        tmp_path / "bad.npz",
        x_train=images,
        y_train=np.full(64, -2),
        x_test=images[:8],
        y_test=np.zeros(8, int),
    )
    assert tiny("--dataset", "npz", "--data-dir", str(tmp_path / "bad.npz"))[0] == 2
    assert "label" in capsys.readouterr().err


def test_a_directory_that_cannot_be_written_is_refused(tiny, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert tiny(out="file/run")[0] == 2
    assert "can't be written" in capsys.readouterr().err


@pytest.mark.runs
def test_the_bundled_data_need_no_network_and_are_announced(tmp_path, capsys, monkeypatch, cache):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "empty"))
    arguments = [
        "--width",
        "0.03",
        "--head-dims",
        "8,8",
        "--epochs",
        "1",
        "--stages",
        "2",
        "--batch-size",
        "256",
    ]
    path = tmp_path / "run"
    assert run(main, [*arguments, "--out-dir", str(path), "--cache-dir", str(cache)]) == 0
    assert "--dataset cifar10" in capsys.readouterr().out
    assert json.loads((path / "results.json").read_text())["dataset"] == "digits"
