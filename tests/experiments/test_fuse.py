"""Whether stages share a program: the option, and where it is decided by itself."""

import pytest

from scpl_jax.cli.building import build_pipeline
from scpl_jax.cli.command_line import parse_options
from scpl_jax.cli.run_options import from_json, to_json
from scpl_jax.cli.task_options import Options
from scpl_jax.experiments.cifar import TASK
from scpl_jax.training import RunError


def parsed(*arguments):
    return parse_options(Options, arguments, "cifar", Options())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], None),
        (["--fuse"], True),
        (["--fuse", "--stages", "3"], True),
        (["--fuse", "yes"], True),
        (["--fuse", "no"], False),
        (["--fuse=auto"], None),
    ],
    ids=str,
)
def test_the_option_alone_or_with_a_word(arguments, expected):
    options = parsed(*arguments)
    assert options.fuse is expected
    assert from_json(Options, to_json(options)).fuse is expected


@pytest.mark.parametrize("arguments", [["--fuse", "maybe"], ["--fuse", "yes", "no"]], ids=str)
def test_other_words_are_refused_in_one_sentence(arguments):
    with pytest.raises(RunError, match=r"--help lists every option$"):
        parsed(*arguments)


@pytest.mark.parametrize(
    ("arguments", "programs"),
    [
        (["--devices", "1"], ["0-2"]),
        (["--devices", "1", "--fuse", "no"], ["0", "1", "2"]),
        (["--devices", "3"], ["0", "1", "2"]),
        (["--devices", "3", "--fuse"], ["0", "1", "2"]),
        (["--devices", "1", "--timeline"], ["0", "1", "2"]),
        (["--devices", "1", "--timeline", "--fuse"], ["0-2"]),
        (["--devices", "1", "--method", "dascpl"], ["0", "1", "2"]),
        (["--devices", "1", "--method", "dascpl", "--fuse"], ["0-2"]),
        (["--devices", "1", "--method", "early-exit"], ["0-2"]),
    ],
    ids=str,
)
def test_by_itself_it_fuses_where_each_stage_is_trained_from_the_start_and_no_timeline_is_wanted(arguments, programs):
    small = ["--dataset", "synthetic", "--width", "0.03", "--head-dims", "8,8", "--batch-size", "32", "--epochs", "4"]
    options = parsed(*small, "--stages", "3", "--limit-train", "64", "--library", "xla", *arguments)
    dataset = TASK.load(options)
    pipeline = build_pipeline(TASK, TASK.resolve(options, dataset), dataset, 0)
    assert [group.name for group in pipeline.groups] == programs
