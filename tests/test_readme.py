"""The examples of README and documentation run as they stand."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "docs/objectives.md")
EXAMPLES = [text for page in PAGES for text in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)]


def test_there_are_examples():
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0][:20])
def test_examples_run(example, capsys):
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert "nan" not in capsys.readouterr().out
