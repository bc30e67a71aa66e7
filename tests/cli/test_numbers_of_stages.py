"""Options that take one number for all stages, or one for each; the queue, and the warm-up."""

import json

import jax
import numpy as np
import pytest

from scpl_jax.cli.building import build_pipeline, schedule_of
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.methods import rule_of
from scpl_jax.cli.run_options import contradiction, from_json, to_json
from scpl_jax.cli.task_options import Options, TextOptions
from scpl_jax.experiments import cifar
from scpl_jax.training import RunError

SMALL = ["--dataset", "synthetic", "--width", "0.03", "--head-dims", "8,8", "--batch-size", "16", "--limit-train", "64"]


def parsed(*arguments, kind=Options):
    options = parse_options(kind, arguments, "cifar", kind())
    options.check()
    return options


@pytest.mark.parametrize("kind", [Options, TextOptions])
@pytest.mark.parametrize("name", ["temperature", "lr", "end_lr"])
@pytest.mark.parametrize(
    ("given", "expected"), [("0.3", 0.3), ("0.5,0.3,0.1,1e-1", (0.5, 0.3, 0.1, 0.1)), ("1,2,3,4", (1.0, 2.0, 3.0, 4.0))]
)
def test_one_number_or_one_for_each_stage_is_read_and_comes_back_from_a_saved_run(kind, name, given, expected):
    options = parsed(f"--{name.replace('_', '-')}", given, kind=kind)
    assert getattr(options, name) == expected
    loaded = from_json(kind, json.loads(json.dumps(to_json(options))))
    assert loaded == options
    assert parse_options(kind, [], "cifar", loaded) == options  # as a resumed run


def test_a_run_from_before_is_read():
    saved = json.loads(json.dumps(to_json(Options())))
    del saved["queue"], saved["warmup_steps"]
    assert (saved["temperature"], saved["lr"], saved["end_lr"]) == (0.1, 1e-3, 1e-5)
    assert from_json(Options, saved) == Options()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--temperature", "0.5,0.1"], "--temperature 0.5,0.1 has 2 numbers for 4 stages; give one, or one for each"),
        (["--lr", "1,2,3,4,5"], "--lr 1.0,2.0,3.0,4.0,5.0 has 5 numbers for 4 stages; give one, or one for each stage"),
        (["--lr", "0.1,0.1,0,0.1"], "--lr must be a number greater than 0, got 0.0"),
        (["--end-lr", "0,0,-1,0"], "--end-lr must be a number of at least 0, got -1.0"),
        (["--temperature", "0.1,nan,1,1"], "--temperature must be a number greater than 0, got nan"),
        (
            ["--temperature", "0.1,"],
            "error parsing --temperature: expected a number, got '0.1,'; --help lists every option",
        ),
        (["--queue", "-1"], "--queue must be at least 0, got -1"),
        (["--warmup-steps", "-1"], "--warmup-steps must be at least 0, got -1"),
        (["--queue", "8", "--method", "bp"], "--queue is for the contrastive loss, got --method bp; choose scpl, "),
        (["--queue", "8", "--method", "predsim+ce"], "--queue is for the contrastive loss, got --method predsim+ce; "),
        (
            ["--temperature", "1,1,1,2", "--method", "early-exit"],
            "--temperature with several numbers is for the contrastive loss, got --method early-exit; ",
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_cannot_be_served_is_refused(arguments, sentence):
    with pytest.raises(RunError) as told:
        parsed(*arguments)
    assert str(told.value).startswith(sentence)


@pytest.mark.parametrize("values", [{"lr": [0.1, "fast"]}, {"temperature": "0.1,0.2"}, {"stages": [4]}], ids=str)
def test_a_saved_run_with_something_else_is_refused(values):
    with pytest.raises(RunError, match="which is not of the right type"):
        from_json(Options, values)


def test_a_resumed_run_keeps_its_numbers():
    saved = parsed("--temperature", "0.5,0.3,0.1,0.1")
    assert contradiction(parsed("--temperature", "0.50,0.3,0.1,0.1"), saved) is None
    said = "--temperature 0.1 contradicts the run to be resumed, which has 0.5,0.3,0.1,0.1; "
    assert contradiction(parsed(), saved).startswith(said)
    for name in ("queue", "warmup-steps"):
        assert contradiction(parsed(f"--{name}", "7"), parsed()).startswith(f"--{name} 7 contradicts")


@pytest.mark.parametrize("method", ["scpl", "2*supcon", "supcon+ce", "supcon,supcon+ce,supcon,supcon", "dascpl"])
def test_each_stage_has_its_temperature_and_a_queue_whatever_the_rule(method):
    options = parsed("--method", method, "--temperature", "0.5,0.4,0.3,0.2", "--queue", "64")
    losses = [getattr(one, "terms", ((1, one),))[0][1] for one in rule_of(options, 10, None).objectives]
    assert [(one.temperature, one.queue) for one in losses] == [(t, 64) for t in (0.5, 0.4, 0.3, 0.2)]
    one = rule_of(parsed("--method", method), 10, None).objectives
    assert one == rule_of(parsed("--method", method, "--temperature", "0.1,0.1,0.1,0.1"), 10, None).objectives


def built(*arguments):
    options = parsed(*SMALL, "--stages", "2", "--epochs", "2", "--library", "xla", "--augment", "none", *arguments)
    dataset = cifar.TASK.load(options)
    options = cifar.TASK.resolve(options, dataset)
    return build_pipeline(cifar.TASK, options, dataset, 0), schedule_of(options, dataset), dataset


@pytest.mark.parametrize("method", ["scpl", "bp"])
def test_each_stage_moves_by_its_own_rate(method):
    asked = ["--lr", "1e-2,1e-4", "--end-lr", "0", "--optimizer", "sign_sgd"]
    pipeline, rates, dataset = built("--method", method, *asked)
    np.testing.assert_allclose(rates(0), [1e-2, 1e-4], rtol=1e-6)
    pipeline.train_step(*next(iter(dataset.train_batches(16, seed=0, epoch=1, start=0))))
    for stage, state, rate in zip(pipeline.stages, pipeline.states, (1e-2, 1e-4), strict=True):
        moves = jax.tree.map(lambda before, after: abs(after - before).max(), stage.params, state.params)
        assert float(max(jax.tree.leaves(moves))) == pytest.approx(rate, rel=1e-2)


def test_one_rate_is_reported_as_one_number():
    assert built()[1](0).shape == ()
    assert built("--end-lr", "0,0")[1](0).shape == (2,)


def test_a_warm_up_as_long_as_the_run_is_refused_by_one_sentence(capsys, tmp_path):
    files = ["--out-dir", str(tmp_path / "run"), "--cache-dir", str(tmp_path)]
    assert run(cifar.main, [*SMALL, "--stages", "2", "--epochs", "2", "--warmup-steps", "8", *files]) == 2
    said = "error: --warmup-steps must be at least 0 and fewer than the 8 steps of the run, got 8; take fewer, or more "
    assert capsys.readouterr().err.startswith(said)
    assert not (tmp_path / "run").exists()
