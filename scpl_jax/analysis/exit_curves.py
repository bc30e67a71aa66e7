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

    def plot(points: Sequence[dict[str, Any]], style: str, colour: str, label: str) -> None:
        axis.plot([p["share"] for p in points], [p["accuracy"] for p in points], style, color=colour, label=label)

    def name(point: dict[str, Any], text: str, above: int) -> None:
        at = (point["share"], point["accuracy"])
        axis.annotate(text, at, (0, above), textcoords="offset points", ha="center")

    plot(exits, "s", "#777777", "one exit for all")
    for one in exits:
        name(one, f"{one['stage']}", -13)
    plot(curve, "o-", "#4477aa", "by confidence")
    for stop, text in _named_ends(curve):
        name(stop, text, 7)
    if patient := [s for s in stops if s["patience"] is not None]:
        plot(patient, "^", "#cc6677", "by patience")
    axis.set(xlabel="mean share of the network's cost", ylabel="test accuracy", xlim=(0, 1.05))
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
