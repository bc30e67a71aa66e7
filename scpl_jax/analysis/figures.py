"""How every figure is made: without a display, and the same file for the same numbers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Paul Tol's "muted", which colour-blind readers can tell apart too; with dashes there are twenty.
COLOURS = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#ddcc77",
    "#cc6677",
    "#882255",
    "#aa4499",
    "#777777",
)


def new_figure(rows: int = 1, columns: int | None = None, **options: Any) -> tuple[Any, Any]:
    """A figure and its axes, without frame at the top and at the right.

    It belongs to no window and no notebook: nothing has to be closed.

    Args:
      rows: axes, one below the other.
      columns: axes side by side, for axes (rows, columns); None for axes (rows,).
      **options: ``figsize`` in inches; others as of ``matplotlib.figure.Figure.subplots``.
    """
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


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as SVG or PNG, without a date."""
    import matplotlib

    figure.tight_layout()
    with matplotlib.rc_context({"svg.hashsalt": "scpl_jax"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
