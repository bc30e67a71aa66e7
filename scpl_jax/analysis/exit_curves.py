"""What stopping early gives: accuracy against the share of the network that is computed."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from scpl_jax.analysis.figures import new_figure, save_figure


def draw_exits(exits: Sequence[dict[str, Any]], stops: Sequence[dict[str, Any]], file: Path | IO[str]) -> None:
    """Draw accuracy against the mean share of the network's cost.

    Args:
      exits: ``stage``, ``accuracy`` and ``share`` of each exit, all examples stopping there.
      stops: ``accuracy`` and ``share`` of stop rules, with either ``confidence`` or ``patience``.
      file: SVG or PNG, or a file that is open for SVG.
    """
    figure, (axis,) = new_figure(figsize=(6, 3.6))
    curve = sorted((s for s in stops if s["confidence"] is not None), key=lambda s: s["confidence"])
    axis.plot(
        [e["share"] for e in exits], [e["accuracy"] for e in exits], "s", color="#777777", label="one exit for all"
    )
    for exit_ in exits:
        below = (0, -13)
        axis.annotate(
            f"{exit_['stage']}", (exit_["share"], exit_["accuracy"]), below, textcoords="offset points", ha="center"
        )
    axis.plot([s["share"] for s in curve], [s["accuracy"] for s in curve], "o-", color="#4477aa", label="by confidence")
    for stop, text in _named_ends(curve):
        axis.annotate(
            text,
            (stop["share"], stop["accuracy"]),
            (0, 7),
            textcoords="offset points",
            ha="center",
        )
    patient = [s for s in stops if s["patience"] is not None]
    if patient:
        axis.plot(
            [s["share"] for s in patient], [s["accuracy"] for s in patient], "^", color="#cc6677", label="by patience"
        )
    axis.set_xlabel("mean share of the network's cost")
    axis.set_ylabel("test accuracy")
    axis.set_xlim(0, 1.05)
    axis.margins(y=0.2)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="lower right")
    save_figure(figure, file)


def _named_ends(curve: Sequence[dict[str, Any]]) -> list[tuple[dict[str, Any], str]]:
    """The first and the last point with their confidences; where they lie close together, one name for both."""
    if not curve:
        return []
    first, last = curve[0], curve[-1]
    if abs(first["share"] - last["share"]) > 0.1:
        return [(first, f"{first['confidence']:g}"), (last, f"{last['confidence']:g}")]
    return [(last, f"{first['confidence']:g} to {last['confidence']:g}")]
