"""Notebooks are stored as they were run from the scripts beside them."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
SCRIPTS = sorted(NOTEBOOKS.glob("[0-9]*.py"))


def cells_of(script):
    """(kind, source) of each cell of a script in jupytext's percent format."""
    header, *parts = re.split(r"^# %%", script.read_text(), flags=re.MULTILINE)
    assert "percent" in header
    for part in parts:
        mark, _, source = part.partition("\n")
        if "[markdown]" in mark:
            yield "markdown", re.sub(r"^# ?", "", source, flags=re.MULTILINE).strip()
        else:
            yield "code", re.sub(r"^# (?=%[a-z])", "", source, flags=re.MULTILINE).strip()


def test_there_are_six_and_each_has_its_pair():
    assert len(SCRIPTS) == 6
    assert {script.stem for script in SCRIPTS} == {stored.stem for stored in NOTEBOOKS.glob("*.ipynb")}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_is_stored_with_the_outputs_of_its_script(script):
    cells = json.loads(script.with_suffix(".ipynb").read_text())["cells"]
    stored = [(cell["cell_type"], "".join(cell["source"]).strip()) for cell in cells]
    assert stored == list(cells_of(script)), "the script has changed: run make notebooks"
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any({"image/svg+xml", "image/png"} & set(output.get("data", {})) for output in outputs)
    # Nothing of the machine it was made on, and no warning.
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert not re.search(r"(?<![\w.])/(home|root|tmp|usr|work|Users)/|Warning", printed)
