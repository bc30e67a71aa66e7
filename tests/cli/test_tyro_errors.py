"""What tyro refuses is one sentence, by a private part of tyro whose changes these tests find."""

import dataclasses
import logging
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro

from scpl_jax.cli.option_types import Count, Switch, Unset
from scpl_jax.cli.parsing import parse_options
from scpl_jax.training import RunError


@dataclasses.dataclass
class Options:
    """Options of every type."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    epochs: Unset[Count] = None
    data_dir: Unset[Path] = None
    batch_size: int = 64
    lr: float = 1e-3
    every: Literal["step", "epoch", "never"] = "step"
    tensorboard: bool = True
    fuse: Switch = None


def parsed(*arguments):
    return parse_options(Options, arguments, "scpl_jax.made_up", Options())


REFUSED = {
    "an option with a slip": (["--epoch", "3"], "unrecognized options: --epoch; perhaps you meant --epochs"),
    "an option with a slip and =": (
        ["--batchsize=3"],
        "unrecognized options: --batchsize; perhaps you meant --batch-size",
    ),
    "a switch with a slip": (
        ["--no-tensorbord"],
        "unrecognized options: --no-tensorbord; perhaps you meant --no-tensorboard",
    ),
    "two slips": (
        ["--epoch", "3", "--evry", "step"],
        "unrecognized options: --epoch, --evry; perhaps you meant --epochs and --every",
    ),
    "an unknown option": (["--nonsense", "3"], "unrecognized options: --nonsense"),
    "no whole number": (["--batch-size", "x"], "error parsing --batch-size: expected a whole number, got 'x'"),
    "no whole number or None": (["--epochs", "1.5"], "error parsing --epochs: expected a whole number, got '1.5'"),
    "no number": (["--lr", "fast"], "error parsing --lr: expected a number, got 'fast'"),
    "no value": (["--epochs"], "--epochs needs a value"),
    "no value of a choice": (["--every"], "--every needs a value"),
    "an unknown word": (["--fuse", "maybe"], "error parsing --fuse: maybe is unknown; choose yes, no or auto"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_tyro_refuses_is_one_sentence(capsys, case):
    arguments, sentence = REFUSED[case]
    with pytest.raises(RunError) as caught:
        parsed(*arguments)
    assert str(caught.value) == f"{sentence}; --help lists every option"
    assert capsys.readouterr().err == ""


def test_an_unknown_choice_is_refused_with_the_choices():
    with pytest.raises(RunError, match=r"^--every day is unknown; choose step, epoch or never$"):
        parsed("--every", "day")


def test_an_option_that_must_be_given_is_named():
    @dataclasses.dataclass
    class Needed:
        folder: Path

    with pytest.raises(RunError, match=r"^missing options: --folder; --help lists every option$"):
        parse_options(Needed, [], "scpl_jax.made_up", dataclasses.replace(Needed(Path()), folder=tyro.MISSING))


def test_what_the_annotation_rules_out_is_refused_too():
    with pytest.raises(RunError, match=r"^--epochs must be at least 1, got 0$"):
        parsed("--epochs", "0")


def test_none_takes_a_value_back():
    found = parse_options(Options, ["--epochs", "None", "--data-dir", "None"], "made_up", Options(epochs=3))
    assert (found.epochs, found.data_dir) == (None, None)


@pytest.mark.parametrize("change", ["no module", "no hook", "other events"])
def test_another_version_of_tyro_shows_its_own_box_after_a_line(monkeypatch, capsys, caplog, change):
    caplog.set_level(logging.WARNING)
    if change == "no module":
        monkeypatch.delattr(tyro, "_errors")
        monkeypatch.setitem(sys.modules, "tyro._errors", None)
    elif change == "no hook":
        monkeypatch.delattr(tyro._errors, "on_parse_error")
    else:
        monkeypatch.setattr("scpl_jax.cli.tyro_errors._unrecognized", lambda tokens, options: tokens.gone)
    with pytest.raises(SystemExit) as stop:
        parsed("--epoch", "3")
    assert stop.value.code == 2
    assert "--epoch" in capsys.readouterr().err
    assert len(caplog.records) == (0 if change == "other events" else 1)


def test_a_name_of_a_file_that_is_too_long_is_one_sentence():
    @dataclasses.dataclass
    class Written:
        output: Unset[Path] = None

    with pytest.raises(RunError, match=r"^--output 9+ can't be written \(File name too long\); give another place$"):
        parse_options(Written, ["--output", "9" * 400], "scpl_jax.made_up", Written())


def test_only_one_module_uses_what_is_private_of_tyro():
    package = Path(sys.modules["scpl_jax"].__file__).parent
    users = [
        path.name
        for path in package.rglob("*.py")
        if "tyro._" in path.read_text() or "tyro import _" in path.read_text()
    ]
    assert users == ["tyro_errors.py"]


def test_a_command_ends_with_status_2_and_the_sentence():
    command = [sys.executable, "-m", "scpl_jax.report", "--titel", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: unrecognized options: --titel; perhaps you meant --title; --help lists every option\n"
