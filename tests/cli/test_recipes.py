"""Recipes on the command line: what they set, what wins, what contradicts them."""

import dataclasses

import pytest

from scpl_jax.cli.command_line import parse
from scpl_jax.cli.recipes import RECIPES, with_recipe
from scpl_jax.cli.run_options import from_json, to_json
from scpl_jax.cli.task_options import Options, TextOptions
from scpl_jax.training.run_error import RunError


def options_of(*arguments, kind=Options):
    return parse(kind, arguments, "cifar" if kind is Options else "text")[0]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("kind", [Options, TextOptions])
def test_a_recipe_sets_what_the_experiment_has_and_nothing_else(name, kind):
    found = options_of("--recipe", name, kind=kind)
    plain = options_of(kind=kind)
    differs = {
        field.name for field in dataclasses.fields(kind) if getattr(found, field.name) != getattr(plain, field.name)
    }
    assert differs - {"out_dir"} <= {"recipe", *RECIPES[name]}
    for option, value in RECIPES[name].items():
        if option in {field.name for field in dataclasses.fields(kind)}:
            assert getattr(found, option) == value
    assert from_json(kind, to_json(found)) == found


def test_an_option_that_is_given_wins():
    assert options_of("--aux-width", "0.25", "--recipe=fast").aux_width == 0.25
    assert options_of("--recipe", "fast", "--method", "early-exit").aux == "blocks"
    assert options_of("--recipe", "fast", "--aux", "conv").aux == "conv"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--recipe", "quick"), "--recipe quick is unknown; choose paper, fast or accurate"),
        (("--recipe", "fast", "--method", "scpl"), "--recipe fast is --method early-exit, got --method scpl"),
        (("--recipe", "paper", "--method", "bp"), "--recipe paper is --method scpl, got --method bp"),
        (("--recipe", "fast", "--aux", "none"), "--aux-side is for an auxiliary network"),
    ],
)
def test_what_contradicts_a_recipe_is_refused_in_one_sentence(arguments, what):
    with pytest.raises(RunError, match=what):
        options_of(*arguments)


def test_there_is_no_such_recipe():
    with pytest.raises(RunError, match="--recipe mine is unknown"):
        with_recipe(Options(), "mine")
