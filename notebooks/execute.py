"""Run the notebooks from their scripts and store them with their outputs."""

import argparse
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).parent


def execute(script: Path) -> None:
    """Run one script as a notebook and write it beside it; after an error nothing is written."""
    notebook = jupytext.read(script)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, resources={}
    ).execute(cwd=HERE)
    # What differs from run to run without a reason would hide in a diff what has changed.
    notebook.metadata.pop("language_info", None)
    for number, cell in enumerate(notebook.cells):
        if "outputs" in cell:
            cell.outputs = _joined(cell.outputs)
        cell.id = f"cell-{number}"
        cell.metadata = {}
    nbformat.write(notebook, script.with_suffix(".ipynb"))


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Outputs with what was printed in several pieces in one."""
    found: list[NotebookNode] = []
    for output in outputs:
        if (
            found
            and output.output_type == "stream"
            and found[-1].get("name") == output.name
        ):
            found[-1].text += output.text
        else:
            found.append(output)
    return found


def main() -> int:
    """Run those asked for, or all of them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as 01_first_steps; default: all")
    names = parser.parse_args().names
    scripts = sorted(HERE.glob("[0-9]*.py"))
    unknown = set(names) - {script.stem for script in scripts}
    if unknown:
        there = ", ".join(script.stem for script in scripts)
        parser.error(f"no notebook {', '.join(sorted(unknown))}; there are {there}")
    for script in scripts:
        if names and script.stem not in names:
            continue
        began = time.perf_counter()
        try:
            execute(script)
        except CellExecutionError as error:
            print(f"{script.stem} failed:\n{error}", file=sys.stderr)
            return 1
        print(f"{script.stem}: {time.perf_counter() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
