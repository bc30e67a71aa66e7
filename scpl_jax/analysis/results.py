"""Many runs as one table: means and deviations over seeds as Markdown, CSV and a figure."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scpl_jax.analysis.figures import line_styles, new_figure, save_figure


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a table: the same run with several seeds.

    Attributes:
      part: part of the table.
      name: name of the row.
      accuracies: test accuracy of the last epoch of each seed that was run, fractions.
      curves: for each seed the (seconds of training, test accuracy) after each epoch.
      speed: examples a second, or None.
      spread: slowest and fastest, or None.
      peak_memory_bytes: peak memory of each process, or None.
      rate: the learning rate that was chosen for the row, or None.
      searched: rate -> validation accuracy of the run that tried it, None where bad numbers ended it; empty without a
        search.
    """

    part: str
    name: str
    accuracies: tuple[float, ...]
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()
    speed: float | None = None
    spread: tuple[float, float] | None = None
    peak_memory_bytes: tuple[int, ...] | None = None
    rate: float | None = None
    searched: Mapping[float, float | None] = dataclasses.field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Mean accuracy; None where none was measured."""
        return statistics.fmean(self.accuracies) if self.accuracies else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracies, taken as a sample; None with fewer than two seeds."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    def seconds_to(self, target: float) -> tuple[float | None, ...]:
        """For each seed the seconds of training after which a test accuracy was first at least ``target``, or None.

        Accuracy is measured once an epoch, so this is the end of the epoch that reached it.

        Example:
          >>> Row("digits", "scpl", (0.9, 0.6), (((10.0, 0.5), (20.0, 0.9)), ((10.0, 0.6),))).seconds_to(0.8)
          (20.0, None)
        """
        return tuple(next((s for s, accuracy in curve if accuracy >= target), None) for curve in self.curves)


def markdown(rows: Sequence[Row], unit: str = "images", best: bool = True, target: float | None = None) -> str:
    """The rows as Markdown, one table a part, with a column for everything that is known of a row of the part.

    Args:
      rows: in order.
      unit: what an example is, in the plural.
      best: print the highest mean accuracy of each part in bold.
      target: a test accuracy: also tell how long it took to get there.

    Example:
      >>> print(markdown([Row("digits", "scpl", (0.98, 0.99)), Row("digits", "bp", (0.97,), speed=400.0)]))
      **digits**
      <BLANKLINE>
      | | test accuracy | seeds | images/s |
      |---|---|---|---|
      | scpl | **0.9850 +- 0.0071** | 2 | |
      | bp | 0.9700 | 1 | 400 |
    """
    text = []
    for part, group in _by_part(rows).items():
        highest = max((row.mean for row in group if row.mean is not None), default=None)
        columns: dict[str, list[str]] = {"": [row.name for row in group]}
        marks = ["**" if best and row.mean == highest and len(group) > 1 and row.accuracies else "" for row in group]
        columns["test accuracy"] = [f"{mark}{_accuracy(row)}{mark}" for mark, row in zip(marks, group, strict=True)]
        columns["seeds"] = [str(len(row.accuracies) or "") for row in group]
        if target is not None:
            columns[f"seconds to {target:g}"] = [_seconds(row, target) for row in group]
        columns[f"{unit}/s"] = [_speed(row) for row in group]
        columns["peak MiB"] = [
            " + ".join(f"{peak / 2**20:.0f}" for peak in row.peak_memory_bytes or ()) for row in group
        ]
        columns["rate"] = ["" if row.rate is None else f"{row.rate:g}" for row in group]
        columns["validation accuracy by rate"] = [_searched(row) for row in group]
        used = {name: cells for name, cells in columns.items() if any(cells)}
        lines = [f"**{part}**", "", _line(used), "|" + "---|" * len(used)]
        lines += [_line(cells) for cells in zip(*used.values(), strict=True)]
        text.append("\n".join(lines))
    return "\n\n".join(text)


def _by_part(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Parts and their rows, both in order."""
    return {part: [row for row in rows if row.part == part] for part in dict.fromkeys(row.part for row in rows)}


def _line(cells: Iterable[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def _accuracy(row: Row) -> str:
    if row.mean is None:
        return ""
    return f"{row.mean:.4f}" + (f" +- {row.deviation:.4f}" if row.deviation is not None else "")


def _seconds(row: Row, target: float) -> str:
    """Mean and range over the seeds that got there, and how many did where not all."""
    there = _reached(row, target)
    if not there:
        return "not reached" if row.curves else ""
    text = f"{statistics.fmean(there):.0f}"
    text += f" ({min(there):.0f} to {max(there):.0f})" if len(there) > 1 else ""
    return text if len(there) == len(row.curves) else f"{text}, {len(there)} of {len(row.curves)} seeds"


def _reached(row: Row, target: float) -> list[float]:
    """Seconds of the seeds that got there."""
    return [seconds for seconds in row.seconds_to(target) if seconds is not None]


def _searched(row: Row) -> str:
    told = {rate: "bad numbers" if accuracy is None else f"{accuracy:.4f}" for rate, accuracy in row.searched.items()}
    return ", ".join(f"{rate:g}: {accuracy}" for rate, accuracy in told.items())


def _speed(row: Row) -> str:
    if row.speed is None:
        return ""
    return f"{row.speed:.0f}" + (f" ({row.spread[0]:.0f} to {row.spread[1]:.0f})" if row.spread is not None else "")


def comma_separated(rows: Sequence[Row], unit: str = "images", target: float | None = None) -> str:
    """The rows as CSV, with a line of names; otherwise as :func:`markdown`."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = ["part", "row", "seeds", "test_accuracy", "test_accuracy_std", f"{unit}_per_second", "peak_memory_bytes"]
    with_rates = any(row.rate is not None for row in rows)
    names += [] if target is None else [f"seconds_to_{target:g}"]
    names += ["rate"] if with_rates else []
    writer.writerow(names)
    for row in rows:
        peak = "" if row.peak_memory_bytes is None else sum(row.peak_memory_bytes)
        line = [row.part, row.name, len(row.accuracies), row.mean, row.deviation, row.speed, peak]
        if target is not None:
            there = _reached(row, target)
            line.append(statistics.fmean(there) if there and len(there) == len(row.curves) else None)
        writer.writerow([*line, row.rate][: len(names)])
    return file.getvalue()


def draw_rows(rows: Sequence[Row], path: Path, unit: str = "images") -> None:
    """Accuracy and speed of every row, a part below the other: a dot a seed, a line at the mean, bars for speeds.

    Args:
      rows: in order.
      path: SVG or PNG.
      unit: what an example is, in the plural.
    """
    groups = _by_part(rows)
    kinds = ["accuracy"] * any(row.accuracies for row in rows) + ["speed"] * any(row.speed for row in rows)
    heights = [len(group) + 2.0 for group in groups.values()]
    size = (4 * len(kinds) + 1.5, 0.26 * sum(heights) + 0.6)
    figure, axes = new_figure(len(groups), len(kinds), figsize=size, height_ratios=heights)
    styles = line_styles(row.name for row in rows)
    for (part, group), line in zip(groups.items(), axes, strict=True):
        for kind, axis in zip(kinds, line, strict=True):
            for place, row in enumerate(group):
                colour = styles[row.name]["color"]
                if kind == "speed" and row.speed is not None:
                    axis.barh(place, row.speed, height=0.6, color=colour)
                    if row.spread is not None:
                        axis.plot(row.spread, [place, place], color="black", linewidth=1)
                if kind == "accuracy" and row.mean is not None:
                    axis.plot(row.accuracies, [place] * len(row.accuracies), "o", color=colour, markersize=4, alpha=0.7)
                    axis.plot([row.mean, row.mean], [place - 0.35, place + 0.35], color=colour, linewidth=2)
            axis.set_yticks(range(len(group)), [row.name for row in group] if axis is line[0] else [])
            axis.set_ylim(len(group) - 0.4, -0.6)
            axis.grid(axis="x", alpha=0.3)
            axis.xaxis.get_major_locator().set_params(nbins=5)  # more would run into each other
        line[0].set_title(part, loc="left", fontsize=10)
    labels = {"accuracy": "test accuracy: seeds and mean", "speed": f"{unit}/s, line: slowest to fastest"}
    for column, kind in enumerate(kinds):
        filled = [axis for line in axes if (axis := line[column]).lines or axis.patches]
        filled[-1].set_xlabel(labels[kind])
        if kind == "speed":  # bars of different parts can be compared
            right = max(axis.get_xlim()[1] for axis in filled)
            for axis in filled:
                axis.set_xlim(0, right)
        for axis in {line[column] for line in axes} - set(filled):
            axis.set_axis_off()  # a part of which this was not measured
    save_figure(figure, path)


def draw_accuracy(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against the time of training, one axis a part, one line a row: the mean over the seeds after each epoch.

    Args:
      rows: with curves.
      path: SVG or PNG.
    """
    groups = _by_part([row for row in rows if row.curves])
    styles = line_styles(row.name for row in rows)
    figure, axes = new_figure(max(1, len(groups)), figsize=(7, 3.2 * max(1, len(groups))))
    for (part, group), axis in zip(groups.items(), axes, strict=False):
        for row in group:
            epochs = min(len(curve) for curve in row.curves)
            seconds = [statistics.fmean(curve[i][0] for curve in row.curves) for i in range(epochs)]
            means = [statistics.fmean(curve[i][1] for curve in row.curves) for i in range(epochs)]
            axis.plot(seconds, means, label=row.name, linewidth=1.5, **styles[row.name])
            axis.plot(seconds[-1:], means[-1:], "o", markersize=4, color=styles[row.name]["color"])
        axis.set_title(part, loc="left", fontsize=10)
        axis.set(ylabel="test accuracy", xlim=(0, None))
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set_xlabel("seconds of training")
    save_figure(figure, path)
