"""Many runs as one table: means and deviations over seeds as Markdown, CSV and a figure."""

import csv
import dataclasses
import io
import statistics
from collections.abc import Sequence
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
    """

    part: str
    name: str
    accuracies: tuple[float, ...]
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()
    speed: float | None = None
    spread: tuple[float, float] | None = None
    peak_memory_bytes: tuple[int, ...] | None = None

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracies, as of a sample; None with one seed."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def markdown(rows: Sequence[Row], unit: str = "images", best: bool = True) -> str:
    """The rows as Markdown, one table a part.

    Args:
      rows: in order.
      unit: what an example is, in the plural.
      best: print the highest mean accuracy of each part in bold.

    Example:
      >>> print(markdown([Row("digits", "scpl", (0.98, 0.99)), Row("digits", "bp", (0.97,))]))
      **digits**
      <BLANKLINE>
      | | test accuracy | seeds | images/s | peak MiB |
      |---|---|---|---|---|
      | scpl | **0.9850 +- 0.0071** | 2 | | |
      | bp | 0.9700 | 1 | | |
    """
    text = []
    for part in dict.fromkeys(row.part for row in rows):
        group = [row for row in rows if row.part == part]
        highest = max(row.mean for row in group)
        lines = [f"**{part}**", "", f"| | test accuracy | seeds | {unit}/s | peak MiB |", "|---|---|---|---|---|"]
        for row in group:
            accuracy = f"{row.mean:.4f}" + (f" +- {row.deviation:.4f}" if row.deviation is not None else "")
            accuracy = f"**{accuracy}**" if best and row.mean == highest and len(group) > 1 else accuracy
            speed = "" if row.speed is None else f" {row.speed:.0f}"
            speed += "" if row.spread is None else f" ({row.spread[0]:.0f} to {row.spread[1]:.0f})"
            memory = " + ".join(f"{peak / 2**20:.0f}" for peak in row.peak_memory_bytes or ())
            lines.append(
                f"| {row.name} | {accuracy} | {len(row.accuracies)} |{speed} |{' ' if memory else ''}{memory} |"
            )
        text.append("\n".join(lines))
    return "\n\n".join(text)


def comma_separated(rows: Sequence[Row], unit: str = "images") -> str:
    """The rows as CSV, with a line of names; ``unit`` is what an example is, in the plural."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = ("part", "row", "seeds", "test_accuracy", "test_accuracy_std", f"{unit}_per_second", "peak_memory_bytes")
    writer.writerow(names)
    for row in rows:
        peak = "" if row.peak_memory_bytes is None else sum(row.peak_memory_bytes)
        writer.writerow([row.part, row.name, len(row.accuracies), row.mean, row.deviation, row.speed, peak])
    return file.getvalue()


def draw_accuracy(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against the time of training, one axis a part, one line a row: the mean over the seeds after each epoch.

    Args:
      rows: with curves.
      path: SVG or PNG.
    """
    parts = list(dict.fromkeys(row.part for row in rows if row.curves))
    styles = line_styles(row.name for row in rows)
    figure, axes = new_figure(max(1, len(parts)), figsize=(7, 3.2 * max(1, len(parts))))
    for part, axis in zip(parts, axes, strict=False):
        for row in rows:
            if row.part != part or not row.curves:
                continue
            epochs = min(len(curve) for curve in row.curves)
            seconds = [statistics.fmean(curve[i][0] for curve in row.curves) for i in range(epochs)]
            means = [statistics.fmean(curve[i][1] for curve in row.curves) for i in range(epochs)]
            axis.plot(seconds, means, label=row.name, linewidth=1.5, **styles[row.name])
            axis.plot(seconds[-1:], means[-1:], "o", markersize=4, color=styles[row.name]["color"])
        axis.set_title(part, loc="left", fontsize=10)
        axis.set_ylabel("test accuracy")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    axes[-1].set_xlabel("seconds of training")
    save_figure(figure, path)
