"""How every figure is made: without a display, and the same file for the same numbers."""

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from scpl_jax.training.writing import reason_of

_LOG = logging.getLogger(__name__)

# Paul Tol's "muted", which colour-blind readers can tell apart too; with dashes there are twenty.
COLOURS = ("#332288", "#88ccee", "#44aa99", "#117733", "#999933", "#ddcc77", "#cc6677", "#882255", "#aa4499", "#777777")


def new_figure(rows: int = 1, columns: int | None = None, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, without frame at the top and at the right.

    It belongs to no window and no notebook: nothing has to be closed.

    Args:
      rows: axes, one below the other.
      columns: axes side by side, for axes (rows, columns); None for axes (rows,).
      **options: ``figsize`` in inches; others as for ``matplotlib.figure.Figure.subplots``.
    """
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=options.pop("figsize", None))
    axes = figure.subplots(rows, columns or 1, squeeze=False, **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[:, 0] if columns is None else axes


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour for each name, the same in every axis; dashed when the colours are used up."""
    return {
        name: {"color": COLOURS[index % len(COLOURS)], "linestyle": "-" if index < len(COLOURS) else "--"}
        for index, name in enumerate(dict.fromkeys(names))
    }


def save_figure(figure: Any, file: Path | IO[str]) -> None:
    """Write a figure as SVG or PNG to a path, or as SVG to an open file, without a date."""
    kind = file.suffix if isinstance(file, Path) else ".svg"
    figure.tight_layout()
    with _matplotlib().rc_context({"svg.hashsalt": "scpl_jax"}):
        figure.savefig(file, format=kind[1:] or None, metadata={"Date": None} if kind == ".svg" else None)


def attempt(what: str, draw: Callable[..., object], *arguments: Any) -> bool:
    """Draw; numbers are worth more than their figure, so a failure is a warning.

    Args:
      what: is drawn, for the warning.
      draw: draws it.
      *arguments: of ``draw``.

    Returns:
      Whether it was drawn.

    Example:
      >>> attempt("the figure", lambda numbers: max(numbers), [])
      False
    """
    try:
        draw(*arguments)
    except Exception as error:  # of matplotlib, its configuration, fonts, the disk
        _LOG.warning("%s could not be written (%s); the numbers are whole", what, reason_of(error))
        return False
    return True


def _matplotlib() -> Any:
    """Matplotlib, whatever the environment says of its backend.

    Nothing here needs one, but the name of one that this installation does not have, as a notebook hands it on to the
    commands that it starts, would end the import.
    """
    if "matplotlib" in sys.modules:
        return sys.modules["matplotlib"]
    asked = os.environ.pop("MPLBACKEND", None)
    try:
        matplotlib = importlib.import_module("matplotlib")
    finally:
        if asked is not None:
            os.environ["MPLBACKEND"] = asked
    if asked:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = asked  # for a notebook's own figures
    return matplotlib
