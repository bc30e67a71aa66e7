"""The examples of README and documentation run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/objectives.md")
EXAMPLES = [text for page in PAGES for text in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)]


def test_there_are_examples():
    assert len(EXAMPLES) == 4


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0][:20])
def test_examples_run(example, capsys):
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["kills.md", "soak.md"])
def test_tables_of_the_fault_campaigns_are_the_recorded_ones(name):
    folder = ROOT / "experiments" / "faults"
    rows = [line for line in (folder / name).read_text().splitlines() if line]
    page = (folder / "README.md").read_text().splitlines()
    assert len(rows) > 6
    assert [line for line in rows if line not in page] == []
