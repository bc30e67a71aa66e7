"""Options say themselves what they may be: help in groups, choices and bounds; what was asked for and what holds."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import optax
import pytest

from scpl_jax import report
from scpl_jax.benchmarks import contrastive, convolutions, memory, overhead, simulate, throughput
from scpl_jax.cli import methods
from scpl_jax.cli.building import _build_stages
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.option_types import Count, flag
from scpl_jax.cli.rules import LearningRule, Rule, SharedRuleOptions
from scpl_jax.cli.run_options import ResolvedOptions, from_json, resolved, to_json
from scpl_jax.cli.task_options import Options, ResolvedImageOptions, ResolvedTextOptions, TextOptions
from scpl_jax.data import DataError, load
from scpl_jax.experiments import cifar, reproduce
from scpl_jax.objectives import LocalClassifier
from scpl_jax.training import RunDirectory, RunError, build_optimizer

RUNS = {"cifar": Options, "text": TextOptions}
BENCHMARKS = (report, contrastive, convolutions, memory, overhead, simulate, throughput)
KINDS = {**RUNS, "reproduce": reproduce.Options, **{one.__name__.split(".")[-1]: one.Options for one in BENCHMARKS}}
GROUPS = ["network", "rule", "training", "data", "device", "output"]


@pytest.fixture
def help_of(capsys, monkeypatch):
    """A function from a dataclass of options to its help, by default without the lines of its boxes."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(kind, as_drawn=False):
        with pytest.raises(SystemExit) as stop:
            parse_options(kind, ["--help"], "made_up", kind())
        assert not stop.value.code
        drawn = capsys.readouterr().out
        return drawn if as_drawn else " ".join(drawn.replace("│", " ").split())

    return call


@pytest.mark.parametrize("name", RUNS)
def test_help_has_every_option_in_one_of_the_groups(help_of, name):
    text = help_of(RUNS[name], as_drawn=True)
    assert re.findall(r"^\W*(\w+) options ", text, re.MULTILINE) == GROUPS
    for field in dataclasses.fields(RUNS[name]):
        assert len(re.findall(rf"^\W ?{flag(field.name)}(?:, --no| [A-Z{{[]|$)", text, re.MULTILINE)) == 1, field.name


@pytest.mark.parametrize("name", KINDS)
def test_help_tells_each_default_once_and_never_none(help_of, name):
    text = help_of(KINDS[name])
    assert "None" not in text
    assert "Default:" not in text
    assert "default: )" not in text
    assert not re.search(r"\(default: [^)]*\) \(default:", text)


def test_help_lists_choices_where_the_command_line_and_where_the_library_has_them(help_of):
    text = help_of(Options)
    for listed in (
        "--costs {estimate,measured}",
        "--library {xla,onednn}",
        "--head {identity,linear,mlp,mlp-bn,simsiam}",
    ):
        assert listed in text
    assert "(default: 200; for the digits 20)" in text
    assert re.search(r"scpl \(local.*dascpl \(scpl with a classifier", text)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"costs": "guessed"}, "--costs guessed is unknown; choose estimate or measured"),
        ({"augment": "all"}, "--augment all is unknown; choose none, basic or strong"),
        ({"save_every": 0}, "--save-every must be at least 1, got 0"),
        ({"head_pool": -1}, "--head-pool must be at least 0, got -1"),
        ({"end_lr": float("inf")}, "--end-lr must be a number of at least 0, got inf"),
    ],
    ids=str,
)
def test_values_of_a_saved_run_are_checked_as_those_of_a_command_line(values, sentence):
    with pytest.raises(RunError, match=f"^{sentence}$"):
        from_json(Options, values).check()


@pytest.mark.parametrize(
    "values",
    [{"lr": "fast"}, {"epochs": 1.5}, {"tensorboard": 1}, {"stages": True}, {"head": 1}, {"head": None}],
    ids=str,
)
def test_values_of_a_saved_run_have_the_types_of_their_options(values):
    with pytest.raises(RunError, match="which is not of the right type"):
        from_json(Options, values)


# What config.json holds in runs that are to be resumed.
SAVED = [
    "method",
    "dataset",
    "data_dir",
    "model",
    "width",
    "init",
    "stages",
    "cut",
    "costs",
    "head",
    "head_dims",
    "join_epochs",
    "al_codes",
    "exit_hidden",
    "joint_answer",
    "exit_threshold",
    "exit_patience",
    "exit_similarity",
    "probe_examples",
    "temperature",
    "queue",
    "count_anchor",
    "classifier_gradient",
    "recipe",
    "validation",
    "aux",
    "aux_side",
    "aux_depth",
    "aux_width",
    "epochs",
    "batch_size",
    "lr",
    "end_lr",
    "lr_every",
    "warmup_steps",
    "optimizer",
    "label_noise",
    "limit_train",
    "limit_test",
    "precision",
    "library",
    "seed",
    "runs",
    "devices",
    "data_parallel",
    "across_hosts",
    "fuse",
    "micro_batches",
    "remat",
    "coordinator_address",
    "num_processes",
    "process_id",
    "cluster",
    "max_in_flight",
    "out_dir",
    "resume",
    "save_every",
    "keep",
    "cache_dir",
    "skip_non_finite",
    "max_skipped",
    "tensorboard",
    "norms_every",
    "timeline",
    "profile",
]
IMAGES = ["image_size", "shortcut", "head_pool", "augment"]
TEXTS = [
    "data_file",
    "test_file",
    "text_column",
    "label_column",
    "vocabulary",
    "max_length",
    "keep_stop_words",
    "buckets",
    "word_vectors",
    "layers",
    "embedding_size",
    "heads",
    "positions",
    "unmasked",
    "dropout",
]


@pytest.mark.parametrize(("kind", "own"), [(Options, IMAGES), (TextOptions, TEXTS)], ids=["images", "texts"])
def test_the_names_of_saved_options_stay(kind, own):
    saved = json.loads(json.dumps(to_json(kind())))
    assert sorted(saved) == sorted([*SAVED, *own])
    assert from_json(kind, saved) == kind()


def test_resolved_options_are_those_asked_for_and_have_no_gap():
    asked = Options(epochs=3)
    defaults = {"width": 1.0, "epochs": 20, "batch_size": 128, "augment": "none", "library": "xla"}
    found = resolved(ResolvedImageOptions, asked, defaults)
    assert (found.epochs, found.batch_size, found.model) == (3, 128, "vgg8")
    assert list(to_json(found)) != []
    assert sorted(to_json(found)) == sorted(to_json(asked))
    del defaults["augment"]
    with pytest.raises(TypeError, match=r"^augment is neither given nor among the defaults$"):
        resolved(ResolvedImageOptions, asked, defaults)


@pytest.mark.parametrize("kind", [ResolvedOptions, ResolvedImageOptions, ResolvedTextOptions])
def test_what_a_run_needs_has_no_default(kind):
    with pytest.raises(TypeError, match=r"required keyword-only arguments: .*'epochs'"):
        kind()


def test_options_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().epochs = 3


# The library names arguments, a command line its options.


@pytest.mark.parametrize("room", ["data", "training"])
def test_the_library_names_no_option(room):
    folder = Path(report.__file__).parent / room
    found = [path.name for path in folder.rglob("*.py") if re.search(r"--[a-z]", path.read_text())]
    assert found == []


def test_errors_of_the_library_name_options_where_a_command_shows_them(capsys, tmp_path):
    with pytest.raises(DataError, match=r"^`name` npz needs `data_dir`, which was not given; "):
        load("npz")
    assert run(cifar.main, ["--dataset", "npz", "--out-dir", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.startswith("error: --dataset npz needs --data-dir, which was not given; ")


def test_errors_of_the_training_room_name_options_where_a_command_shows_them(capsys, tmp_path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(RunError, match=r"is not the configuration of a run; start in a new `out_dir`$"):
        RunDirectory.config_of(tmp_path)
    assert run(cifar.main, ["--out-dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err.endswith("is not the configuration of a run; start in a new --out-dir\n")
    with pytest.raises(RunError, match=r"^`optimizer` noise is not an Optax optimizer"):
        build_optimizer("noise", optax.constant_schedule(0.1))
    assert run(lambda _: build_optimizer("noise", optax.constant_schedule(0.1)), []) == 2
    assert capsys.readouterr().err.startswith("error: --optimizer noise is not an Optax optimizer that needs only ")


def test_what_a_user_gave_stays_as_it_was(capsys, tmp_path):
    assert run(cifar.main, ["--cut", "`name`", "--out-dir", str(tmp_path / "run")]) == 2
    assert "got '`name`'" in capsys.readouterr().err


def test_warnings_of_the_package_and_of_no_other_name_options():
    code = "import logging; from scpl_jax.cli.command_line import run; "
    code += "say = lambda name: logging.getLogger(name).warning('`cache_dir` it is'); "
    code += "run(lambda _: [say('scpl_jax.data.paths'), say('jax')] and 0, [])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "--cache-dir it is\n`cache_dir` it is\n"


# A rule that is made up: what scpl_jax.cli.rules would hold.


@dataclasses.dataclass(frozen=True)
class VoteOptions(SharedRuleOptions):
    """Options of a made-up rule."""

    votes: Count = 3
    """vote: hidden units of every stage's classifier."""


def _objectives(options, setting):
    return Rule((LocalClassifier(setting.num_classes, (options.votes,), **setting.pooled),) * setting.stages)


VOTE = LearningRule("vote", "a made-up rule", options=VoteOptions, own=("votes",), objectives=_objectives)


def test_a_new_rule_is_a_row(help_of, monkeypatch):
    table = (*methods.TABLE, VOTE)
    rule_options = methods._options_of(table)
    assert [field.name for field in dataclasses.fields(rule_options) if field.name == "votes"] == ["votes"]
    # What a start of the program with this row would have.
    for name, value in (("TABLE", table), ("RULES", (*methods.RULES, "vote")), ("RuleOptions", rule_options)):
        monkeypatch.setattr(methods, name, value)
    kind = dataclasses.dataclass(frozen=True)(type("Options", (rule_options, Options), {"__doc__": "Train."}))
    text = help_of(kind)
    assert "--votes INT" in text
    assert "vote (a made-up rule)" in text
    given = ["--method", "vote", "--votes", "5", "--dataset", "synthetic", "--stages", "2", "--width", "0.05"]
    options = parse_options(kind, [*given, "--batch-size", "8", "--limit-train", "8"], "cifar", kind())
    options.check()
    dataset = cifar.TASK.load(options)
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    filled = dataclasses.make_dataclass("Filled", [(name, object) for name in values])
    settled = filled(**{**values, "epochs": 1, "augment": "none", "library": "xla"})
    stages = _build_stages(cifar.TASK, settled, dataset, 0)
    assert [stage.objective.hidden for stage in stages] == [(5,), (5,)]
    with pytest.raises(RunError, match=r"^--votes is for --method vote, got --method scpl$"):
        parse_options(kind, ["--votes", "5"], "cifar", kind()).check()
