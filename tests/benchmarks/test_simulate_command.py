import json

import pytest

from scpl_jax.benchmarks.simulate import main
from scpl_jax.cli.command_line import run


def test_the_table_has_a_row_for_each_number_of_stages(tmp_path, capsys):
    out = tmp_path / "table.json"
    options = ["--stages", "2,8", "--micro-batches", "4", "--channels", "64", "--batch-size", "32"]
    # so slow a device that starting programs and sending messages take no time beside the work
    assert run(main, [*options, "--operations-per-second", "1e6", "--output", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["stages"] for row in rows] == [2, 8]
    for row in rows:
        # a bubble of S - 1 stages beside M micro-batches
        assert row["gpipe 4"] / row["bp"] == pytest.approx((4 + row["stages"] - 1) / 4 / row["stages"], rel=0.02)
        assert row["scpl"] < row["gpipe 4"] < row["bp"]
    assert "gpipe 4" in capsys.readouterr().out


def test_check_compares_with_what_was_measured(tmp_path, capsys):
    """Two stages: 1 s and 2 s alone; forward 0.5 s, backward 1 s in the first, 1.5 s for both in the second."""
    seconds = {"scpl": 2.0, "bp": 3.0, "gpipe 2": 2.5}
    methods = {name: {"seconds_a_step": {"median": value}} for name, value in seconds.items()}
    methods["bp"]["task_seconds"] = {"0": {"forward": 0.5, "backward": 1.0}, "1": {"forward_backward": 1.5}}
    measured = tmp_path / "throughput.json"
    found = {"methods": methods, "alone_seconds": [{"median": 1.0}, {"median": 2.0}], "message_bytes": [8, 0]}
    measured.write_text(json.dumps(found))
    out = tmp_path / "check.json"
    assert run(main, ["--check", str(measured), "--output", str(out), "--overhead", "0", "--latency", "0"]) == 0
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["scpl"]["simulated"] == pytest.approx(2.0, rel=1e-3)
    assert rows["bp"]["simulated"] == pytest.approx(3.0, rel=1e-3)
    assert rows["gpipe 2"]["simulated"] == pytest.approx(0.25 + 1.5 + 0.5, rel=1e-3)
    assert rows["gpipe 2"]["error"] == pytest.approx(2.25 / 2.5 - 1, abs=1e-3)
    assert "+0.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--stages", "3"], "numbers that divide 64, got 3"), (["--check", "README.md"], "can't be read as JSON")],
)
def test_wrong_options_are_said_in_one_sentence(options, message, capsys):
    assert run(main, options) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
