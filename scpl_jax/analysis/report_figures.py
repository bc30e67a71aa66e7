"""The figures of a report, as SVG to put into a page; that of early exits is drawn for every run, too."""

import functools
import io
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, ParamSpec

import numpy as np

from scpl_jax.analysis.figures import COLOURS, attempt, line_styles, new_figure, save_figure
from scpl_jax.analysis.runs import Run

# More classes than this are drawn without numbers.
_NUMBERED = 20
_LEGEND = {"fontsize": 8, "frameon": False}
_BESIDE = {**_LEGEND, "loc": "center left", "bbox_to_anchor": (1, 0.5)}

Arguments = ParamSpec("Arguments")


def svg_of(draw: Callable[[IO[str]], None]) -> str:
    """What ``draw`` writes to a file, without the head that only a file of its own has.

    Where it fails, a sentence that says so.
    """
    file = io.StringIO()
    if not attempt("a figure of the report", draw, file):
        return "<p>This figure could not be written.</p>"
    return _inline(file.getvalue())


def _inline(text: str) -> str:
    """An SVG file's element, as wide as its place in a page."""
    text = text[text.index("<svg") :]
    head, rest = text.split(">", 1)
    return re.sub(r'\s(width|height)="[^"]*"', "", head) + ">" + rest


def _as_svg(draw: Callable[Arguments, Any]) -> Callable[Arguments, str]:
    """Make of a function that draws a figure one that gives it as SVG, see :func:`svg_of`."""

    @functools.wraps(draw)
    def svg(*arguments: Arguments.args, **named: Arguments.kwargs) -> str:
        return svg_of(lambda file: save_figure(draw(*arguments, **named), file))

    return svg


@_as_svg
def accuracy_curves(runs: Sequence[Run], name: str = "test_accuracy") -> Any:
    """An accuracy of all runs against epochs, and against seconds of training."""
    figure, axes = new_figure(2, figsize=(7, 6.4))
    styles = line_styles(run.name for run in runs)
    for run in runs:
        curve = run.curve(name)
        style = {"label": run.name, **styles[run.name]}
        for axis, column in zip(axes, (0, 1), strict=True):
            axis.plot([point[column] for point in curve], [point[2] for point in curve], marker=".", **style)
    axes[0].xaxis.get_major_locator().set_params(integer=True)
    for axis, label in zip(axes, ("epoch", "seconds of training"), strict=True):
        axis.set(xlabel=label, ylabel=name.replace("_", " "), xlim=(0, None))
        axis.grid(alpha=0.3)
    if len(runs) > 1:
        axes[0].legend(**_BESIDE)
    return figure


@_as_svg
def loss_curves(run: Run) -> Any:
    """Training loss of every stage against epochs, of the first seed."""
    figure, (axis,) = new_figure(figsize=(6, 3.4))
    lines = run.seeds()[0]
    by_stage = list(itertools.zip_longest(*(line["train_loss"] for line in lines)))
    for stage, losses in enumerate(by_stage):
        points = [(line["epoch"], loss) for line, loss in zip(lines, losses, strict=True) if loss is not None]
        label = f"stage {stage}" if len(by_stage) > 1 else "network"
        axis.plot(*zip(*points, strict=True), ".-", color=COLOURS[stage % len(COLOURS)], label=label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set(xlabel="epoch", ylabel="training loss", xlim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend(**_BESIDE)
    return figure


@_as_svg
def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Any:
    """A confusion matrix: shares of each class's examples by the answer they got."""
    counts = np.asarray(matrix, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    numbered = len(names) <= _NUMBERED
    side = 2.2 + (0.42 * len(names) if numbered else 4)
    figure, (axis,) = new_figure(figsize=(side + 0.6, side))
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if numbered:
        for row, column in np.ndindex(*shares.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            text = f"{shares[row, column]:.2f}".lstrip("0") if counts[row, column] else ""
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.spines[["top", "right", "bottom", "left"]].set_visible(False)
    axis.set(xlabel="answer", ylabel="class")
    figure.colorbar(image, ax=axis, label="share of the class", shrink=0.8)
    return figure


@_as_svg
def probes(run: Run) -> Any:
    """Accuracy by stage: of exits, or of probes of the stage's features."""
    results = run.results or {}
    figure, (axis,) = new_figure(figsize=(6, 3.2))
    curves = (
        ("exit", "exits", "accuracy"),
        ("20 nearest neighbours", "probes", "neighbours_accuracy"),
        ("logistic regression", "probes", "linear_accuracy"),
    )
    for index, (label, part, key) in enumerate(curves):
        if rows := results.get(part):
            stages, values = [row["stage"] for row in rows], [row[key] for row in rows]
            axis.plot(stages, values, "o-", color=COLOURS[index], label=label)
            axis.set_xticks(stages)
    axis.set(xlabel="stage", ylabel="test accuracy")
    axis.grid(alpha=0.3)
    axis.legend(**_LEGEND)
    return figure


@_as_svg
def memory(runs: Sequence[Run]) -> Any:
    """Peak memory of every run's processes."""
    rows = [
        (run.name if len(peaks) == 1 else f"{run.name}, process {index}", peak / 2**20)
        for run in runs
        for peaks in [(run.results or {}).get("peak_memory_bytes_per_process", [])]
        for index, peak in enumerate(peaks)
    ]
    figure, (axis,) = new_figure(figsize=(7, 0.4 * len(rows) + 1))
    bars = axis.barh([name for name, _ in rows], [peak for _, peak in rows], color=COLOURS[1])
    axis.bar_label(bars, [f" {peak:.0f}" for _, peak in rows], fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("peak memory, MiB")
    return figure


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
