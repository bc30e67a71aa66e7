"""Run the notebooks from their scripts and store them with their outputs."""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

HERE = Path(__file__).parent
# These take longer than the others together, and are begun first.
LONG = (
    "02_gradient_flow_length",
    "06_why_auxiliary_networks",
    "04_choosing_cuts_and_heads",
)


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


def timed(script: Path) -> bool:
    """Run one script and say how long it took; whether it ran to its end."""
    began = time.perf_counter()
    try:
        execute(script)
    except CellExecutionError as error:
        print(f"{script.stem} failed:\n{error}", file=sys.stderr, flush=True)
        return False
    print(f"{script.stem}: {time.perf_counter() - began:.0f} s", flush=True)
    return True


def main() -> int:
    """Run those asked for, or all of them; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="such as 01_first_steps; default: all")
    parser.add_argument(
        "--jobs", type=int, default=2, help="notebooks at a time; default: 2"
    )
    options = parser.parse_args()
    scripts = {script.stem: script for script in sorted(HERE.glob("[0-9]*.py"))}
    if unknown := set(options.names) - set(scripts):
        parser.error(
            f"no notebook {', '.join(sorted(unknown))}; there are {', '.join(scripts)}"
        )
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    names = options.names or sorted(scripts, key=lambda name: (name not in LONG, name))
    chosen = [scripts[name] for name in names]
    # Each runs in a process of its own; the threads only wait for them.
    with ThreadPoolExecutor(options.jobs) as pool:
        return 0 if all(list(pool.map(timed, chosen))) else 1


if __name__ == "__main__":
    sys.exit(main())
