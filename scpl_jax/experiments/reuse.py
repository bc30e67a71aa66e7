"""Runs that a table shares with other tables: taken from there, not made again.

Two cells are the same run if their options mean the same, whatever their order and whether a default is spelt out;
and a run is taken only if it was made with the same versions and number of cores. That it was made on the same
machine can't be seen, and is for the caller to know.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scpl_jax.cli.command_line import parse_options
from scpl_jax.cli.image_options import Options
from scpl_jax.cli.text_options import TextOptions
from scpl_jax.experiments.tables import Cell
from scpl_jax.training.run_error import RunError

_KINDS: Mapping[str, type[Any]] = {"cifar": Options, "text": TextOptions}
# What a line of a ledger says of its own table.
_PLACE = {"part", "row", "seed", "arguments"}


def meaning(task: str, arguments: Sequence[str]) -> str:
    """What the arguments of a run come to: every option with its value.

    Args:
      task: the experiment, "cifar" or "text".
      arguments: of its command line.

    Raises:
      RunError: they can't be read.

    Example:
      >>> meaning("cifar", ["--method", "bp"]) == meaning("cifar", ["--stages", "4", "--method", "bp"])
      True
      >>> meaning("cifar", ["--method", "bp"]) == meaning("cifar", ["--method", "scpl"])
      False
    """
    found = parse_options(_KINDS[task], arguments, f"scpl_jax.experiments.{task}", _KINDS[task]())
    return json.dumps([task, dataclasses.asdict(found)], sort_keys=True, default=str)


def shared_runs(
    cells: Sequence[Cell], task: str, folder: Path, versions: Mapping[str, str], cores: int
) -> dict[Cell, dict[str, Any]]:
    """Numbers of those cells that another table has run.

    Args:
      cells: what is to be run.
      task: the experiment they are of.
      folder: in which other tables' ``cells.jsonl`` are looked for, at any depth.
      versions: that a run must have been made with.
      cores: that a run must have been made on.

    Returns:
      Cell -> its numbers, with the table that they are of as ``taken_from``.

    Raises:
      RunError: the folder is not there.
    """
    if not folder.is_dir():
        raise RunError(f"--reuse {folder} is no folder; give one that holds tables, such as experiments")
    wanted: dict[str, list[Cell]] = {}
    for cell in cells:
        with contextlib.suppress(RunError):  # its run will say so
            wanted.setdefault(meaning(task, cell.arguments), []).append(cell)
    found: dict[Cell, dict[str, Any]] = {}
    for path in sorted(folder.rglob("cells.jsonl")):
        for text in path.read_text(errors="replace").splitlines():
            # Half a line, or options that are no longer there.
            with contextlib.suppress(ValueError, KeyError, TypeError):
                line = json.loads(text)
                if line["versions"] != versions or line["cores"] != cores:
                    continue
                numbers = {name: value for name, value in line.items() if name not in _PLACE}
                for cell in wanted.get(meaning(task, line["arguments"]), ()):
                    found[cell] = {"taken_from": path.parent.name, **numbers}
    return found
