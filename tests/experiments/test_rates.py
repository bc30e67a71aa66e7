"""Tables that search for learning rates: the trials, what is chosen by them, and what is told of it."""

import csv
import json
import os
import types

import pytest
from test_reproduce import TINY, cell_line

from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import versions
from scpl_jax.cli.task_options import Options, TextOptions
from scpl_jax.experiments import cells
from scpl_jax.experiments.cells import Ledger, cores_here
from scpl_jax.experiments.rates import choose, decided
from scpl_jax.experiments.reproduce import main
from scpl_jax.experiments.tables import read_table

RATES = TINY.replace("seeds", "rates = [0.01, 0.001]\nvalidation = 0.25\nseeds").replace("epochs = 1", "epochs = 7")
# The same with a row that is not searched.
FIXED = RATES.replace("stages = 1 }", "stages = 1, lr = 0.5 }")


@pytest.fixture
def table_of(tmp_path):
    """A function that reads a table from its text."""

    def read(text, **options):
        (tmp_path / "table.toml").write_text(text)
        return read_table(tmp_path / "table.toml", "small", **options)

    return read


@pytest.fixture
def make(tmp_path):
    """A function that makes a table from its text in this process: (status, directory)."""

    def call(text, *arguments):
        (tmp_path / "table.toml").write_text(text)
        places = ["--out-dir", str(tmp_path / "out"), "--cache-dir", os.environ["SCPL_JAX_TEST_CACHE"]]
        return run(main, ["--table", str(tmp_path / "table.toml"), *places, *arguments]), tmp_path / "out"

    return call


@pytest.fixture
def runs(monkeypatch):
    """The cells whose runs would be started, each with numbers as its answer, and the status that it would end with."""
    started = []

    def accuracies(options):
        return {0.001: 0.5, 0.01: 0.25}.get(options.lr, 0.125)

    def wait(runner, cell, folder, cores):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").write_text("error: said the run\n")
        started.append(cell)
        return wait.status(folder, cell)

    def numbers(folder, unit, count):
        options = parse_options(Options, started[-1].arguments, "cifar", Options())
        found = {"test_accuracy": 1 - accuracies(options), "validation_accuracy": accuracies(options)}
        speed = {f"{unit}_per_second": 100.0, f"{unit}_per_epoch": 64}
        return {**found, **speed, "curve": [[1.0, found["test_accuracy"]]], "versions": versions(), "cores": count}

    wait.status = lambda folder, cell: 0
    monkeypatch.setattr(cells.Runner, "_wait", wait)
    monkeypatch.setattr(cells, "_numbers", numbers)
    return types.SimpleNamespace(cells=started, answer=wait)


def options_of(cell, kind=Options):
    return parse_options(kind, cell.arguments, "an experiment", kind())


def lines_of(path):
    return [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []


def test_every_rate_of_every_row_is_tried_with_the_first_seed_in_a_third_of_the_epochs(table_of):
    table = table_of(RATES)
    tried = [(trial.part, trial.row, trial.rate) for trial in table.trials]
    rows = [("VGG8", "scpl"), ("VGG8", "bp, one stage"), ("half of the labels drawn anew", "scpl")]
    assert tried == [(*row, rate) for row in rows for rate in (0.001, 0.01)]
    for trial in table.trials:
        found = options_of(trial)
        assert (found.lr, found.seed, found.epochs, found.validation) == (trial.rate, 0, 2, 0.25)
    noisy = options_of(table.trials[-1])
    assert (noisy.label_noise, noisy.method, noisy.stages) == (0.5, "scpl", 2)
    folders = [cell.folder for cell in (*table.trials, *table.cells)]
    assert len(set(folders)) == len(folders)
    short = table_of(RATES.replace("epochs = 7", "epochs = 2"))
    assert {options_of(trial).epochs for trial in short.trials} == {1}
    # A row that says its rate is not searched.
    assert {(trial.part, trial.row) for trial in table_of(FIXED).trials} == {rows[0], rows[2]}


def test_a_table_without_rates_has_no_trials_and_nothing_to_choose(table_of, tmp_path):
    table = table_of(TINY)
    assert table.trials == ()
    assert choose(table, Ledger(tmp_path / "searches.jsonl")) == []
    assert "--validation" not in table.cells[0].arguments
    assert decided(table, []) == table


@pytest.mark.parametrize(
    ("accuracies", "rate"),
    [
        ((0.3, 0.4), 0.01),
        ((0.4, 0.3), 0.001),
        ((0.4, 0.4), 0.001),
        ((0.1, None), 0.001),
        ((None, 0.1), 0.01),
        ((None, None), None),
        ((0.4,), None),
        ((), None),
    ],
)
def test_the_best_rate_is_that_of_all_seeds_of_the_row(table_of, tmp_path, accuracies, rate):
    table = table_of(FIXED)
    searches = Ledger(tmp_path / "searches.jsonl")
    for trial, accuracy in zip(table.trials, accuracies, strict=False):
        searches.add(trial, {"validation_accuracy": accuracy, "test_accuracy": 0.0 if accuracy == 0.4 else 1.0})
    choices = choose(table, Ledger(tmp_path / "searches.jsonl"))
    assert [choice.rate for choice in choices] == [rate, 0.5, None]
    found = decided(table, choices)
    first = [cell for cell in found.cells if (cell.part, cell.row) == ("VGG8", "scpl")]
    assert [options_of(cell).lr for cell in first] == ([] if rate is None else [rate] * 2)
    assert [(options_of(cell).epochs, options_of(cell).validation) for cell in first] == [(7, 0.25)] * len(first)
    fixed = [cell for cell in found.cells if cell.row == "bp, one stage"]
    assert [(options_of(cell).lr, options_of(cell).validation) for cell in fixed] == [(0.5, 0.25)] * 2
    assert len(found.cells) + len(found.undecided) == len(table.cells)


def test_of_texts_the_rate_stays_as_it_is_unless_the_table_says_otherwise(table_of):
    text = 'seeds = [0]\ntask = "text"\nrates = [0.01, 0.1]\nvalidation = 0.1\n[small]\nepochs = 3\n'
    text += "[rows]\nplain = {}\nfalling = { end-lr = 0.002 }\n[[parts]]\nname = 'a'\n"
    found = [options_of(trial, TextOptions) for trial in table_of(text).trials]
    assert [(one.lr, one.end_lr) for one in found] == [(0.01, 0.01), (0.1, 0.1), (0.01, 0.002), (0.1, 0.002)]


def test_the_search_comes_first_and_is_told_in_every_file(make, runs, capsys):
    status, out = make(FIXED, "--seeds", "1")
    assert status == 0
    found = [options_of(cell) for cell in runs.cells]
    assert [(one.lr, one.epochs) for one in found] == [(0.001, 2), (0.01, 2)] * 2 + [(0.001, 7), (0.5, 7), (0.001, 7)]
    said = capsys.readouterr().out
    assert "VGG8 | scpl | rate 0.01: 0.2500" in said
    first, fixed, _ = json.loads((out / "table.json").read_text())["rows"]
    assert (first["rate"], first["searched"]) == (0.001, {"0.001": 0.5, "0.01": 0.25})
    assert (fixed["rate"], fixed["searched"]) == (0.5, {})
    text = (out / "table.md").read_text()
    assert "| rate | validation accuracy by rate |" in text
    assert "| 0.001 | 0.001: 0.5000, 0.01: 0.2500 |" in text
    assert [line["rate"] for line in csv.DictReader((out / "table.csv").open())] == ["0.001", "0.5", "0.001"]
    # Everything is there now.
    runs.cells.clear()
    assert make(FIXED, "--seeds", "1")[0] == 0
    assert runs.cells == []
    # Another rate is tried alone; as it is no better, nothing else is run.
    assert make(FIXED.replace("[0.01,", "[0.1, 0.01,"), "--seeds", "1", "--only", "VGG8")[0] == 0
    assert [options_of(cell).lr for cell in runs.cells] == [0.1]


def test_what_is_missing_of_a_search_is_run_and_collect_runs_nothing(make, runs, tmp_path, table_of, capsys):
    (tmp_path / "out").mkdir()
    table = table_of(FIXED)
    Ledger(tmp_path / "out" / "searches.jsonl").add(table.trials[0], {"validation_accuracy": 0.75})
    # A run at the default rate, as the table would have made without a search, is none of its cells.
    (tmp_path / "out" / "cells.jsonl").write_text(cell_line(table, 0, 0.9))
    status, out = make(FIXED, "--collect")
    assert (status, runs.cells) == (0, [])
    (row,) = json.loads((out / "table.json").read_text())["rows"]
    assert (row["rate"], row["searched"], row["accuracies"]) == (None, {"0.001": 0.75}, [])
    assert "6 of 6 runs are still missing" in (out / "table.md").read_text()
    assert make(FIXED, "--only", "VGG8", "--seeds", "1")[0] == 0
    assert [options_of(cell).lr for cell in runs.cells] == [0.01, 0.001, 0.5]
    assert "| 0.001: 0.7500, 0.01: 0.2500 |" in (out / "table.md").read_text()


def test_a_rate_that_ends_in_bad_numbers_is_not_chosen_and_another_failure_is_tried_again(make, runs, capsys):
    def fails(folder, cell):
        if getattr(cell, "rate", None) != 0.001:
            return 0
        (folder / "bad_batches").mkdir(exist_ok=True)
        (folder / "bad_batches" / "seed-0-step-1.npz").touch()
        return 2

    only = ("--only", "VGG8", "--seeds", "1")
    runs.answer.status = fails
    status, out = make(FIXED, *only)
    assert status == 0
    assert [options_of(cell).lr for cell in runs.cells] == [0.001, 0.01, 0.01, 0.5]
    assert "| 0.01 | 0.001: bad numbers, 0.01: 0.2500 |" in (out / "table.md").read_text()

    (out / "searches.jsonl").unlink()
    runs.cells.clear()
    runs.answer.status = lambda folder, cell: fails(folder, cell) if cell.seed else 2 * hasattr(cell, "rate")
    for path in out.rglob("bad_batches/*"):
        path.unlink()
    capsys.readouterr()
    assert make(FIXED, *only)[0] == 1
    assert "2 runs failed; the same command tries them again" in capsys.readouterr().err
    assert lines_of(out / "searches.jsonl") == []
    assert [options_of(cell).lr for cell in runs.cells] == [0.001, 0.01]  # the fixed row is there already


def test_a_row_without_a_rate_that_works_is_one_sentence(make, runs, capsys):
    def fails(folder, cell):
        (folder / "bad_batches").mkdir(exist_ok=True)
        (folder / "bad_batches" / "seed-0-step-1.npz").touch()
        return 2 * hasattr(cell, "rate")

    runs.answer.status = fails
    status, _ = make(FIXED, "--only", "VGG8", "--seeds", "1")
    assert status == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert (
        "VGG8 | scpl has no learning rate: bad numbers ended its run with each of 0.001 or 0.01; add a smaller" in said
    )


def test_trials_of_other_tables_are_taken_over(make, runs, tmp_path, table_of):
    table = table_of(FIXED)
    (tmp_path / "others").mkdir()
    made_here = {"validation_accuracy": 0.75, "cores": len(cores_here()), "versions": versions()}
    Ledger(tmp_path / "others" / "searches.jsonl").add(table.trials[1], made_here)
    status, out = make(FIXED, "--only", "VGG8", "--seeds", "1", "--reuse", str(tmp_path / "others"))
    assert status == 0
    assert [options_of(cell).lr for cell in runs.cells] == [0.001, 0.01, 0.5]
    taken = lines_of(out / "searches.jsonl")[0]
    assert (taken["rate"], taken["taken_from"], taken["row"]) == (0.01, "others", "scpl")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("validation = 0.25", ""), "rates and validation, by which one of them is chosen, must come together"),
        (("rates = [0.01, 0.001]", ""), "rates and validation, by which one of them is chosen, must come together"),
        (("[0.01, 0.001]", "[0.01]"), "rates must be 2 to 5 different numbers greater than 0, got [0.01]"),
        (("[0.01, 0.001]", "[0.01, 0.01]"), "rates must be 2 to 5 different numbers greater than 0"),
        (("[0.01, 0.001]", "[0.01, 0]"), "rates must be 2 to 5 different numbers greater than 0"),
        (("[0.01, 0.001]", "[0.01, inf]"), "rates must be 2 to 5 different numbers greater than 0"),
        (("[0.01, 0.001]", '["0.01", "1"]'), "rates must be 2 to 5 different numbers greater than 0"),
        (("[0.01, 0.001]", "[1, 2, 3, 4, 5, 6]"), "rates must be 2 to 5 different numbers greater than 0"),
        (("[0.01, 0.001]", "0.01"), "rates must be 2 to 5 different numbers greater than 0"),
        (("validation = 0.25", "validation = 1"), "validation must be a share greater than 0 and less than 1, got 1"),
        (("validation = 0.25", "validation = 0.0"), "validation must be a share greater than 0 and less than 1"),
        (("seeds = [0, 1]", "speed = { steps = 1 }"), "rates need seeds"),
        (("stages = 2", "validation = 0.1"), "all runs hold out the same share"),
        (("stages = 1 }", "stages = 1, validation = 0.1 }"), "all runs hold out the same share"),
        (("epochs = 7", "lr = 0.1"), "rates are for rows without an lr, and every row has one"),
        (("epochs = 7", ""), "takes a third of the epochs, and the row 'scpl' has no epochs; add them"),
    ],
)
def test_a_search_that_is_none_is_one_sentence(make, capsys, change, message):
    assert change[0] in RATES
    assert make(RATES.replace(*change), "--collect")[0] == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.processes
def test_a_search_and_its_table_from_whole_runs(make):
    text = RATES.replace("epochs = 7", "epochs = 3").replace('"synthetic"', '"digits"').replace("= 64", "= 200")
    only = ("--only", "bp", "--seeds", "1")
    status, out = make(text, *only)
    assert status == 0
    trials, (final,) = lines_of(out / "searches.jsonl"), lines_of(out / "cells.jsonl")
    best = max(trials, key=lambda line: (line["validation_accuracy"], -line["rate"]))
    assert [line["rate"] for line in trials] == [0.001, 0.01]
    assert final["arguments"][-2:] == ["--lr", str(best["rate"])]
    assert 0 <= final["validation_accuracy"] <= 1
    config = json.loads((out / "runs" / "vgg8" / "bp-one-stage" / "seed-0" / "config.json").read_text())
    assert config["train_examples"] + config["validation_examples"] == 200
