"""Tables of many runs: what they consist of, that they go on where they stopped, and what is written."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import pytest

import scpl_jax
from scpl_jax.analysis.results import Row, comma_separated, draw_accuracy, draw_rows, markdown
from scpl_jax.benchmarks.throughput import Options as ThroughputOptions
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.environment import versions
from scpl_jax.cli.recipes import with_recipe
from scpl_jax.cli.task_options import Options, TextOptions
from scpl_jax.experiments.cells import Ledger, cores_here
from scpl_jax.experiments.cifar import main as train
from scpl_jax.experiments.reproduce import main
from scpl_jax.experiments.tables import read_table
from scpl_jax.training.run_error import RunError

EXPERIMENTS = Path(scpl_jax.__file__).parent.parent / "experiments"
TABLES = sorted(EXPERIMENTS.glob("*/table.toml"))

TINY = """
title = "tiny"
seeds = [0, 1]

[options]
stages = 2
epochs = 1

[small]
dataset = "synthetic"
model = "cnn"
image-size = 16
width = 0.05
head-dims = "8,8"
batch-size = 32
augment = "none"
limit-train = 64
limit-test = 40
probe-examples = 0

[paper]
width = 1.0

[rows]
scpl = { method = "scpl" }
"bp, one stage" = { method = "bp", stages = 1 }

[[parts]]
name = "VGG8"

[[parts]]
name = "half of the labels drawn anew"
options = { label-noise = 0.5 }
rows = ["scpl"]
"""

# The same with one row.
ONE = TINY.replace('"bp, one stage" = { method = "bp", stages = 1 }\n', "")


@pytest.fixture
def tiny(tmp_path):
    """A function that makes the tiny table in this process: (status, directory)."""
    (tmp_path / "tiny").mkdir()
    file = tmp_path / "tiny" / "table.toml"
    file.write_text(TINY)

    def call(*arguments):
        # Programs are kept for the whole session: every cell is a process of its own and would compile them anew.
        places = ["--out-dir", str(tmp_path / "out"), "--cache-dir", os.environ["SCPL_JAX_TEST_CACHE"]]
        return run(main, ["--table", str(file), *places, *arguments]), tmp_path / "out"

    return call


@pytest.mark.parametrize("file", TABLES, ids=lambda file: file.parent.name)
@pytest.mark.parametrize("scale", ["small", "paper"])
def test_every_cell_of_the_tables_is_a_command_that_parses(file, scale):
    table = read_table(file, scale)
    assert table.cells or table.speeds
    kind = {"cifar": Options, "text": TextOptions}[table.task]
    for cell in {(cell.part, cell.row): cell for cell in table.cells}.values():  # others differ in the seed only
        recipe = dict(zip(cell.arguments, cell.arguments[1:], strict=False)).get("--recipe")
        parse_options(kind, cell.arguments, table.task, with_recipe(kind(), recipe)).check()
    for speed in table.speeds:
        parse_options(ThroughputOptions, speed.arguments, "throughput", ThroughputOptions()).check()
    assert len({cell.folder for cell in table.cells}) == len(table.cells)


def test_a_row_overrides_a_part_which_overrides_the_scale(tmp_path):
    file = tmp_path / "table.toml"
    file.write_text(TINY)
    cells = read_table(file, "small").cells
    assert [(c.part, c.row, c.seed) for c in cells[:3]] == [
        ("VGG8", "scpl", 0),
        ("VGG8", "bp, one stage", 0),
        ("half of the labels drawn anew", "scpl", 0),
    ]
    found = parse_options(Options, cells[1].arguments, "cifar", Options())
    assert (found.stages, found.method, found.width, found.label_noise) == (1, "bp", 0.05, 0)
    found = parse_options(Options, cells[2].arguments, "cifar", Options())
    assert (found.stages, found.label_noise, found.seed) == (2, 0.5, 0)
    file.write_text(TINY.replace("{ label-noise = 0.5 }", '{ label-noise = 0.5, method = "bp" }'))
    cells = read_table(file, "small").cells
    found = parse_options(Options, cells[2].arguments, "cifar", Options())
    assert (found.method, found.label_noise) == ("scpl", 0.5)
    other = read_table(file, "small", seeds=1, dataset="digits").cells
    assert len(other) == 3
    assert parse_options(Options, other[0].arguments, "cifar", Options()).dataset == "digits"


def test_rows_of_the_same_network_are_measured_together_and_parts_with_noise_only_where_there_are_no_others(tmp_path):
    file = tmp_path / "table.toml"
    rows = """[rows]
bp = { method = "bp" }
"no head" = { head = "identity" }
large = { batch-size = 64 }
scpl = {}
fast = { recipe = "fast" }
"large bp" = { method = "bp", batch-size = 64 }
"""
    noise = "\n".join(f'[[parts]]\nname = "{name}"\noptions = {{ label-noise = {name} }}' for name in ("0.2", "0.4"))
    own = '[[parts]]\nname = "digits"\noptions = { dataset = "digits" }\nown = ["limit-train"]\n'
    start = TINY[: TINY.index("[rows]")] + "[speed]\nsteps = 1\n" + rows
    file.write_text(f'{start}[[parts]]\nname = "clean"\n{noise}\n{own}')
    speeds = read_table(file, "small").speeds
    assert [tuple(speed.methods) for speed in speeds] == [("bp", "scpl", "fast"), ("no head",), ("large", "large bp")]
    assert speeds[0].methods["fast"] == "fast"
    assert {speed.parts for speed in speeds} == {("clean",)}
    found = [parse_options(ThroughputOptions, s.arguments, "throughput", ThroughputOptions()) for s in speeds]
    assert [(one.head, one.head_dims, one.batch_size) for one in found] == [
        ("mlp", "8,8", 32),
        ("identity", "8,8", 32),
        ("mlp", "8,8", 64),
    ]
    file.write_text(start + noise)
    speeds = read_table(file, "small").speeds
    assert [speed.parts for speed in speeds] == [("0.2", "0.4")] * 3
    # What the throughput experiment lacks would be left out of what is measured without a word.
    for name, value in (("aux", '"conv"'), ("remat", "true"), ("optimizer", '"sgd"')):
        file.write_text(start.replace("fast = {", f"other = {{ {name} = {value} }}\nfast = {{") + noise)
        with pytest.raises(RunError, match=f"the speed of a row with {name} can't be measured; leave .speed. out"):
            read_table(file, "small")


@pytest.mark.processes
def test_a_table_is_made_kept_and_completed(tiny, capsys):
    status, out = tiny("--seeds", "1", "--jobs", "1")
    assert status == 0
    lines = [json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()]
    assert [(line["part"], line["row"]) for line in lines] == [
        ("VGG8", "scpl"),
        ("VGG8", "bp, one stage"),
        ("half of the labels drawn anew", "scpl"),
    ]
    # The same run by hand gives the same accuracy.
    by_hand = out.parent / "by-hand"
    assert run(train, [*lines[2]["arguments"], "--no-tensorboard", "--out-dir", str(by_hand)]) == 0
    assert json.loads((by_hand / "results.json").read_text())["test_accuracy"] == lines[2]["test_accuracy"]
    assert lines[0]["curve"][-1][1] == lines[0]["test_accuracy"]

    # Only what is missing is run: the first seed's numbers are kept, even if they are not what a run would give.
    text = (out / "cells.jsonl").read_text()
    lines[0]["test_accuracy"] = 0.125
    (out / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"part": "VGG8", "row')
    status, _ = tiny("--only", "scpl")
    assert status == 0
    after = (out / "cells.jsonl").read_text().splitlines()
    assert len(text.splitlines()) == 3
    assert len(after) == 3 + 1 + 2
    table = json.loads((out / "table.json").read_text())
    first = table["rows"][0]
    assert first["accuracies"][0] == 0.125
    assert first["mean"] == pytest.approx(sum(first["accuracies"]) / 2)
    printed = (out / "table.md").read_text()
    assert "1 of 6 runs are still missing" in printed
    rows = list(csv.DictReader((out / "table.csv").open()))
    assert [row["row"] for row in rows] == ["scpl", "bp, one stage", "scpl"]
    assert [row["seeds"] for row in rows] == ["2", "1", "2"]
    assert "VGG8" in (out / "accuracy.svg").read_text()
    assert "| scpl |" in capsys.readouterr().out


@pytest.mark.processes
def test_a_broken_cell_does_not_stop_the_others_and_is_run_again(tiny, tmp_path, capsys):
    file = tmp_path / "tiny" / "table.toml"
    file.write_text(TINY.replace('method = "scpl" }', 'method = "scpl", temperature = 0 }'))
    status, out = tiny("--seeds", "1", "--only", "VGG8")
    assert status == 1
    said = capsys.readouterr()
    assert "failed with status 2: error: --temperature must be a number greater than 0" in said.out
    assert "1 runs failed" in said.err
    assert len((out / "cells.jsonl").read_text().splitlines()) == 1
    file.write_text(TINY)
    assert tiny("--seeds", "1", "--only", "VGG8")[0] == 0
    assert len((out / "cells.jsonl").read_text().splitlines()) == 2


@pytest.mark.processes
def test_a_run_of_other_options_or_a_damaged_one_is_not_continued(tiny, tmp_path):
    (tmp_path / "tiny" / "table.toml").write_text(ONE)
    folder = tmp_path / "out" / "runs" / "vgg8" / "scpl" / "seed-0"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    (folder / "cell.json").write_text("[]")
    status, out = tiny("--seeds", "1", "--only", "VGG8")
    assert status == 0
    assert json.loads((folder / "config.json").read_text())["options"]["seed"] == 0
    assert len((out / "cells.jsonl").read_text().splitlines()) == 1


@pytest.mark.processes
def test_sigterm_saves_the_running_cell_and_the_same_command_continues(tmp_path):
    file = tmp_path / "table.toml"
    file.write_text(TINY.replace("epochs = 1", "epochs = 400"))
    out = tmp_path / "out"
    places = ["--out-dir", str(out), "--cache-dir", os.environ["SCPL_JAX_TEST_CACHE"]]
    command = [sys.executable, "-m", "scpl_jax.experiments.reproduce", "--table", str(file), *places]
    process = subprocess.Popen([*command, "--seeds", "1"], stdout=subprocess.PIPE, text=True)
    metrics = out / "runs" / "vgg8" / "scpl" / "seed-0" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "the same command continues" in said
    assert "stopped and saved" in (metrics.parent / "log.txt").read_text()
    assert any((metrics.parent / "checkpoints").rglob("*"))


@pytest.mark.processes
def test_measured_speed_goes_into_table_and_figure(tiny, tmp_path):
    file = tmp_path / "tiny" / "table.toml"
    file.write_text(ONE + "\n[speed]\nrepeats = 1\nsteps = 1\nmemory = false\n")
    status, out = tiny("--seeds", "1")
    assert status == 0
    measured = [str(path.relative_to(out)) for path in out.glob("speed/*.json")]
    assert measured == ["speed/vgg8-scpl.json"]  # noise makes no difference to speed
    speed = json.loads((out / measured[0]).read_text())["methods"]["scpl"]["images_per_second"]
    row = json.loads((out / "table.json").read_text())["rows"][0]
    assert row["speed"] == speed
    assert row["spread"][0] <= speed <= row["spread"][1]
    before = (out / measured[0]).stat().st_mtime_ns
    assert tiny("--seeds", "1")[0] == 0  # nothing is measured twice
    assert (out / measured[0]).stat().st_mtime_ns == before


def cell_line(table, index, accuracy, unit="images", **extra):
    """A line of ``cells.jsonl``, as a run of the cell would leave it."""
    cell = table.cells[index]
    numbers = {f"{unit}_per_second": 100.0 * (index + 1), f"{unit}_per_epoch": 64, "test_accuracy": accuracy, **extra}
    found = {"part": cell.part, "row": cell.row, "seed": cell.seed, "arguments": list(cell.arguments)}
    return json.dumps({**found, "curve": [[2.0, accuracy]], **numbers}) + "\n"


def test_a_line_that_was_half_written_costs_no_other(tmp_path):
    file, kept = tmp_path / "table.toml", tmp_path / "cells.jsonl"
    file.write_text(TINY)
    table = read_table(file, "small")
    kept.write_text(cell_line(table, 0, 0.5) + '{"part": "VGG8", "row')
    Ledger(kept).add(table.cells[1], {"test_accuracy": 0.25})
    Ledger(kept).add(table.cells[2], {"test_accuracy": 0.75})
    again = Ledger(kept)
    found = [again.get(cell) for cell in table.cells]
    assert [one and one["test_accuracy"] for one in found] == [0.5, 0.25, 0.75, None, None, None]


@pytest.mark.parametrize("task", ["cifar", "text"])
def test_what_is_there_is_collected_and_a_table_without_a_speed_of_its_own_shows_that_of_the_runs(
    tmp_path, capsys, task
):
    unit = {"cifar": "images", "text": "texts"}[task]
    file, out = tmp_path / "table.toml", tmp_path / "out"
    file.write_text(f'task = "{task}"\n{TINY}')
    table = read_table(file, "small")
    out.mkdir()
    # Cells 0 and 3 are the two seeds of the first row.
    (out / "cells.jsonl").write_text(cell_line(table, 0, 0.5, unit) + cell_line(table, 3, 0.75, unit))
    assert run(main, ["--table", str(file), "--out-dir", str(out), "--collect"]) == 0
    said = capsys.readouterr().out
    assert "2 runs are there, 0 to be made" in said
    assert f"| test accuracy | seeds | {unit}/s |" in said
    assert "| scpl | 0.6250 +- 0.1768 | 2 | 250 (100 to 400) |" in said
    assert "4 of 6 runs are still missing" in (out / "table.md").read_text()
    (row,) = csv.DictReader((out / "table.csv").open())
    assert row[f"{unit}_per_second"] == "250.0"
    # With a speed that is still to be measured, that of the runs, which shared the machine, is not shown.
    file.write_text(f'task = "{task}"\n{TINY}\n[speed]\nrepeats = 1\n')
    assert run(main, ["--table", str(file), "--out-dir", str(out), "--collect"]) == 0
    assert "| scpl | 0.6250 +- 0.1768 | 2 |\n" in capsys.readouterr().out


def test_runs_of_other_tables_with_the_same_options_are_taken_over(tmp_path, capsys):
    file, out, others = tmp_path / "table.toml", tmp_path / "out", tmp_path / "others"
    file.write_text(TINY)
    table = read_table(file, "small")
    (others / "heads").mkdir(parents=True)
    made_here = {"cores": len(cores_here()), "versions": versions()}
    line = json.loads(cell_line(table, 0, 0.5, **made_here))
    # The same run: its options in another order, a default spelt out, under another name.
    pairs = list(zip(line["arguments"][::2], line["arguments"][1::2], strict=True))
    spelt_out = [word for pair in pairs[::-1] for word in pair] + ["--temperature", "0.1"]
    same = {**line, "part": "another part", "row": "another row", "arguments": spelt_out}
    cell_2 = json.loads(cell_line(table, 2, 0.25, **made_here))
    not_the_same = [
        {**cell_2, "arguments": [*cell_2["arguments"], "--temperature", "0.2"]},
        {**cell_2, "arguments": [*cell_2["arguments"], "--forgotten", "1"]},
        {**cell_2, "versions": {**versions(), "jax": "0.0.1"}},
        {**cell_2, "cores": len(cores_here()) + 1},
        {"part": "no run"},
    ]
    text = "".join(json.dumps(one) + "\n" for one in [same, *not_the_same])
    (others / "heads" / "cells.jsonl").write_text(text + '{"part": "VGG8", "row')
    asked = ["--table", str(file), "--out-dir", str(out), "--collect", "--reuse", str(others)]
    assert run(main, asked) == 0
    said = capsys.readouterr().out
    assert "VGG8 | scpl | seed 0: taken from heads" in said
    assert "1 runs are there, 0 to be made" in said
    (kept,) = [json.loads(text) for text in (out / "cells.jsonl").read_text().splitlines()]
    assert (kept["part"], kept["row"], kept["seed"]) == ("VGG8", "scpl", 0)
    assert kept["arguments"] == list(table.cells[0].arguments)
    assert (kept["test_accuracy"], kept["taken_from"]) == (0.5, "heads")
    assert run(main, asked) == 0  # it is there now, and is not taken again
    assert "taken" not in capsys.readouterr().out
    assert len((out / "cells.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--reuse", "nowhere"], "--reuse nowhere is no folder; give one that holds tables"),
        (["--table", "nothing"], "--table nothing is unknown; choose"),
        (["--table", "nothing.toml"], "--table nothing.toml is not there"),
        (["--scale", "large"], "--scale large is unknown; choose small or paper"),
        (["--jobs", "0"], "--jobs must lie between 1 and"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--only", "nothing"], "--only nothing fits no cell"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, options, message):
    assert run(main, ["--out-dir", str(tmp_path / "out"), "--collect", *options]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("title", "titel"), "'titel' is unknown"),
        (('rows = ["scpl"]', 'rows = ["scpl2"]'), "row 'scpl2' is not there"),
        (("seeds = [0, 1]", ""), "it needs seeds or [speed], rows, parts"),
        (("seeds", 'task = "sound"\nseeds'), "its task must be cifar or text, got 'sound'"),
        (('"tiny"', '"tiny'), "can't be read as TOML"),
        (("seeds", "speed = 3\nseeds"), "rows, options, speed and [small] must be names with values"),
        (("seeds", "speed = { method = [] }\nseeds"), "method must be a text, a number or true or false, got []"),
        (("stages = 2", "stages = {}"), "stages must be a text, a number or true or false, got {}"),
        (("stages = 2", 'stages = "2"'), "stages must be a whole number, got '2'"),
        (("seeds", 'task = ["text"]\nseeds'), "its task must be cifar or text, got ['text']"),
        (("seeds = [0, 1]", "seeds = 2"), "seeds must be whole numbers, got 2"),
        (('rows = ["scpl"]', "rows = 1"), "must be names, got 1"),
        (("seeds", "target = 40\nseeds"), "target must be an accuracy above 0 and at most 1, got 40"),
        (("seeds", 'target = "high"\nseeds'), "target must be an accuracy above 0 and at most 1, got 'high'"),
    ],
)
def test_a_table_that_is_none_is_one_sentence(tmp_path, capsys, change, message):
    file = tmp_path / "table.toml"
    file.write_text(TINY.replace(*change))
    assert run(main, ["--table", str(file), "--out-dir", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_the_best_row_of_each_part_is_bold_and_speed_comes_with_its_spread():
    rows = [
        Row("a", "x", (0.5,), (), 100.0, (90.0, 120.0), (2**20, 2**21)),
        Row("a", "y", (0.6, 0.8)),
        Row("b", "x", (0.1,)),
        Row("c", "x", (), (), 50.0),
    ]
    text = markdown(rows)
    assert "| x | 0.5000 | 1 | 100 (90 to 120) | 1 + 2 |" in text
    assert "| y | **0.7000 +- 0.1414** | 2 | | |" in text
    # Columns that would be empty in a part are left out.
    assert "| | test accuracy | seeds |\n|---|---|---|\n| x | 0.1000 | 1 |" in text
    assert "| | images/s |\n|---|---|\n| x | 50 |" in text
    assert list(csv.reader(comma_separated(rows).splitlines()))[-1] == ["c", "x", "0", "", "", "50.0", ""]


def test_a_target_tells_when_each_seed_got_there():
    curves = (((5.0, 0.4), (9.0, 0.6)), ((7.0, 0.5), (11.0, 0.4)))
    rows = [Row("a", "both", (0.6, 0.4), curves), Row("a", "late", (0.4, 0.3), (curves[0][:1], curves[1][1:]))]
    rows += [Row("a", "one", (0.6, 0.4), (curves[0], curves[1][1:]))]
    text = markdown(rows, target=0.5)
    assert "| | test accuracy | seeds | seconds to 0.5 |" in text
    assert "| both | **0.5000 +- 0.1414** | 2 | 8 (7 to 9) |" in text
    assert "| 2 | not reached |" in text
    assert "| 2 | 9, 1 of 2 seeds |" in text
    lines = list(csv.DictReader(comma_separated(rows, target=0.5).splitlines()))
    assert [line["seconds_to_0.5"] for line in lines] == ["8.0", "", ""]


@pytest.mark.parametrize("draw", [draw_accuracy, draw_rows])
def test_the_figures_name_parts_and_rows(tmp_path, draw):
    curve = ((1.0, 0.1), (2.0, 0.3))
    rows = [
        Row("part one", "row one", (0.3,), (curve,), 20.0, (10.0, 30.0)),
        Row("part two", "row two", (0.2,), (curve,)),
    ]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw(rows, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert all(name in text for name in ("part one", "row one", "part two", "row two"))
    assert ("images/s" in text) == (draw is draw_rows)
    # The same file for the same numbers.
    draw(rows, tmp_path / "b.svg")
    draw(rows, tmp_path / "c.svg")
    assert (tmp_path / "b.svg").read_text() == (tmp_path / "c.svg").read_text()


def test_bars_of_all_parts_have_one_scale(tmp_path):
    rows = [Row("fast", "x", (), (), 1000.0), Row("slow", "x", (), (), 10.0)]
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_rows(rows, tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count(">1000<") == 2


SPEEDS = """
[small]
width = 0.1

[speed]
processes = 1
steps = 2
repeats = 1
memory = false

[rows]
scpl = { method = "scpl" }
gpipe = { method = "gpipe", micro-batches = 2 }

[[parts]]
name = "one"
options = { stages = 1, batch-size = 32, model = "cnn" }

[[parts]]
name = "two"
options = { stages = 2, batch-size = 32, model = "cnn" }
"""


@pytest.mark.processes
def test_a_table_of_speeds_alone_trains_nothing(tmp_path, capsys):
    (tmp_path / "table.toml").write_text(SPEEDS)
    arguments = ["--table", str(tmp_path / "table.toml"), "--out-dir", str(tmp_path / "out")]
    assert run(main, [*arguments, "--only", "two"]) == 0
    assert "scpl" in (tmp_path / "out" / "table.md").read_text()
    first = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [(line["part"], line["row"]) for line in first] == [("two", "scpl"), ("two", "gpipe")]
    assert run(main, arguments) == 0
    after = list(csv.DictReader((tmp_path / "out" / "table.csv").open()))
    assert [line["part"] for line in after] == ["one", "one", "two", "two"]
    assert after[2:] == first
    assert all(float(line["images_per_second"]) > 0 and not line["test_accuracy"] for line in after)
    assert not (tmp_path / "out" / "accuracy.svg").exists()
    assert (tmp_path / "out" / "rows.svg").exists()
    assert run(main, [*arguments, "--only", "three"]) == 2
    assert "--only three fits no cell" in capsys.readouterr().err
