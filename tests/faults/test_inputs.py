"""A few cases of the campaign of damaged input, and that it would notice what must not happen."""

import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import inputs


@pytest.fixture(scope="module", autouse=True)
def watched():
    sys.addaudithook(inputs._audit)  # for good, but it looks only while a case runs


@pytest.mark.parametrize("target", inputs.TARGETS)
def test_damaged_input_is_read_or_refused_in_one_sentence(target):
    inputs.warm_up(target)
    for number in range(4):
        assert inputs.run_case(target, number) is None, number


def test_the_same_number_is_the_same_case():
    given = []
    inputs.TARGETS["probe"] = (1, lambda folder, chance: given.append(inputs.damage(bytes(range(99)), chance)))
    try:
        for number in (0, 0, 1):
            assert inputs.run_case("probe", number) is None
    finally:
        del inputs.TARGETS["probe"]
    assert given[0] == given[1] != given[2]


def write_outside(folder, chance):
    (folder.parent.parent / "scpl-jax-outside").write_text("")


def write_by_handle(folder, chance):
    import os

    where = os.open(folder.parent.parent, os.O_RDONLY)
    os.mkdir("scpl-jax-outside", dir_fd=where)


def start(folder, chance):
    import subprocess

    subprocess.run(["true"], check=True)


def two_lines(folder, chance):
    from scpl_jax.training import RunError

    raise RunError("one\ntwo")


def foreign(folder, chance):
    raise ValueError("not by a check of this package")


def hang(folder, chance):
    while True:
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("function", "problem"),
    [
        (write_outside, "trespass: open "),
        (write_by_handle, "trespass: os.mkdir "),
        (start, "trespass: subprocess.Popen "),
        (two_lines, "RunError: one"),
        (foreign, "ValueError: not by a check"),
        (hang, "TimeoutError: no end within 1 s"),
        (lambda folder, chance: sys.exit(3), "SystemExit 3"),
        (lambda folder, chance: {}["x"], "KeyError: 'x'"),
        (lambda folder, chance: (folder / "x").write_text(""), None),
        (lambda folder, chance: sys.exit(0), None),
    ],
)
def test_what_must_not_happen_is_noticed(function, problem, monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "SECONDS", 1)
    monkeypatch.setitem(inputs.TARGETS, "probe", (1, function))
    monkeypatch.setattr(inputs.tempfile, "tempdir", str(tmp_path))
    found = inputs.run_case("probe", 0)
    assert found is None if problem is None else found.startswith(problem)
