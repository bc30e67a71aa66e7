"""The page about runs: everything in it, nothing from outside, and one sentence for what is no run."""

import base64
import html.parser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scpl_jax.cli.command_line import run
from scpl_jax.report import main


def write_run(path, method, *, complete=True, epochs=2, text=False, seeds=1):
    unit = "texts" if text else "images"
    path.mkdir(parents=True)
    stage = {
        "blocks": [0, 2],
        "devices": ["cpu:0"],
        "parameters": 1234,
        "share_of_cost": 0.5,
        "share_of_local_loss": 0.1,
    }
    options = {"method": method, "model": "<cnn>", "stages": 2, "epochs": 2, "width": None, "seed": 0}
    (path / "config.json").write_text(
        json.dumps({"options": options, "dataset": "digits", "stages": [stage, {**stage, "blocks": [2, 3]}]})
    )
    lines = [
        {
            "seed": seed,
            "epoch": epoch,
            "train_loss": [None if epoch == 1 else 0.5, 0.25],
            "test_accuracy": 0.5 + 0.1 * epoch + 0.02 * seed,
            "train_seconds": 2.0,
            f"{unit}_per_second": 100.0,
        }
        for seed in range(seeds)
        for epoch in range(1, epochs + 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = {
        "test_accuracy": 0.7,
        "width": 0.5,
        f"{unit}_per_second": 99.6,
        "peak_memory_bytes_per_process": [3 * 2**20, 4 * 2**20],
        "seconds": 4.0,
        "devices": ["cpu:0"],
        "device_kind": "cpu",
        "versions": {"jax": "1.2.3"},
        "class_names": ["cat & dog", "<bird>"],
        "confusion": [[5, 1], [0, 0]],
        "exits": [{"stage": 0, "accuracy": 0.5, "share": 0.5}, {"stage": 1, "accuracy": 0.7, "share": 1.0}],
        "early_stops": [{"confidence": 0.9, "patience": None, "accuracy": 0.6, "share": 0.7}],
    }
    if complete:
        (path / "results.json").write_text(json.dumps(results))
    return path


class Page(html.parser.HTMLParser):
    """The text of a page, and what it would fetch."""

    def __init__(self, path):
        super().__init__()
        self.words, self.fetched, self.tags = "", [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [
            v for name, v in attrs if name in ("src", "href", "xlink:href") and not v.startswith(("#", "data:"))
        ]

    def handle_data(self, data):
        self.words += data


@pytest.fixture
def report(tmp_path):
    def call(*arguments):
        out = tmp_path / "page.html"
        return run(main, [*map(str, arguments), "--output", str(out)]), out

    return call


def test_a_page_compares_runs_and_needs_nothing_from_outside(report, tmp_path):
    first = write_run(tmp_path / "a" / "run", "scpl", seeds=2)
    second = write_run(tmp_path / "b" / "run", "early-exit", complete=False, epochs=1)
    timeline = '<?xml version="1.0"?><svg width="5pt"><text>lanes of a run</text><script>x()</script></svg>'
    (first / "timeline.svg").write_text(timeline)
    status, out = report(first, second, first)
    assert status == 0
    page = Page(out)
    assert page.fetched == []
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "@import" not in out.read_text()
    assert not re.findall(r"url\((?!#)", out.read_text())
    for text in (
        "a/run",
        "b/run (not complete)",
        "1 of 2",
        "0.7000",
        "3 + 4",
        "<cnn> x 0.5",
        "jax 1.2.3",
    ):
        assert text in page.words, text
    # As an image: of a picture nothing can run, whatever the file holds.
    (picture,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', out.read_text())
    assert base64.b64decode(picture).decode() == timeline
    # Two runs, of which only the methods differ.
    differing, same = out.read_text().split("Options of all runs")
    assert "--method" in differing
    assert "--epochs" not in differing
    assert "--epochs" in same
    # Curves and memory of all; losses of both, exits twice, confusion and timeline of the complete one.
    assert page.tags.count("figure") == 2 + 5 + 1
    assert "--out-dir" not in page.words


def test_one_run_of_texts_without_anything_special(report, tmp_path):
    path = write_run(tmp_path / "run", "bp", text=True)
    results = json.loads((path / "results.json").read_text())
    for name in ("exits", "early_stops", "confusion", "class_names"):
        del results[name]
    results["probes"] = [{"stage": 0, "neighbours_accuracy": 0.5, "linear_accuracy": 0.6}]
    (path / "results.json").write_text(json.dumps(results))
    status, out = report(path, "--title", "<Mine>")
    assert status == 0
    page = Page(out)
    assert "100 texts" in page.words
    assert page.words.count("<Mine>") == 2
    assert page.tags.count("figure") == 4


def test_a_run_that_has_just_begun(report, tmp_path):
    path = write_run(tmp_path / "run", "bp", complete=False, epochs=0)
    assert report(path)[0] == 0
    (path / "metrics.jsonl").write_text('{"seed": 0, "epo')  # being written
    assert report(path)[0] == 0


@pytest.mark.parametrize(
    ("file", "path", "value", "message"),
    [
        ("config.json", ["stages", 0, "blocks"], [1], "blocks is \\[1\\]"),
        ("config.json", ["stages", 1, "devices"], "cpu", "stages\\[1\\].devices is 'cpu'"),
        ("config.json", ["options", "width"], "x", "options.width is 'x'"),
        ("results.json", ["exits", 1, "share"], None, "exits\\[1\\].share is None"),
        ("results.json", ["seconds"], True, "seconds is True"),
        ("results.json", ["test_accuracy"], float("nan"), "test_accuracy is nan"),
        ("results.json", ["confusion"], [[1]], "confusion is no table of 2 classes"),
        ("metrics.jsonl", ["train_loss", 0], "x" * 99, "line 1 of .*train_loss\\[0\\] is 'xxx.* \\.\\.\\."),
        ("metrics.jsonl", ["epoch"], 10**400, "epoch is 1000"),
    ],
)
def test_files_that_no_run_wrote_are_one_sentence(report, tmp_path, capsys, file, path, value, message):
    place = write_run(tmp_path / "run", "scpl") / file
    first, *rest = place.read_text().splitlines() if file.endswith("l") else [place.read_text()]
    content = node = json.loads(first)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    place.write_text("\n".join([json.dumps(content), *rest]))
    assert report(tmp_path / "run")[0] == 2
    said = capsys.readouterr().err
    assert re.search(f"{file} is not what a run of this version writes: ", said)
    assert re.search(message, said)
    assert len(said.strip().splitlines()) == 1


def test_a_mistake_that_the_command_itself_finds_is_one_sentence_too():
    """By a command of its own, whose module is called __main__."""
    done = subprocess.run([sys.executable, "-m", "scpl_jax.report"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no run directory is given")
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run directory is given"),
        (["nowhere"], "nowhere holds no run: there is no config.json"),
        (["run", "--output", "no/such/folder.html"], "--output no/such/folder.html can't be written"),
        (["run", "--colour", "red"], "--help lists every option"),
        (["broken"], "line 1 of .*metrics.jsonl is no JSON"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), "scpl")
    broken = write_run(Path("broken"), "scpl") / "metrics.jsonl"
    broken.write_text("{\n" + broken.read_text())
    assert run(main, arguments) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert len(said.strip().splitlines()) == 1
