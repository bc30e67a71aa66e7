"""What the throughput experiment measured, as text and as a figure."""

from pathlib import Path
from typing import Any

from scpl_jax.analysis.figures import new_figure, save_figure


def show(result: dict[str, Any], unit: str) -> None:
    """Print the table and the ratios; ``unit`` is what speeds count."""
    print(f"{'':22}{'ms a step':>10}{'fastest':>10}{'slowest':>10}{f'{unit}/s':>10}{'idle':>7}{'peak MiB':>10}")
    for name, row in result["methods"].items():
        seconds = row["seconds_a_step"]
        idle = sum(row["idle_share"].values()) / max(1, len(row["idle_share"]))
        peaks = row.get("peak_memory_bytes")
        memory = "" if peaks is None else "+".join(f"{peak / 2**20:.0f}" for peak in peaks)
        print(
            f"{name:22}{seconds['median'] * 1e3:>10.1f}{seconds['fastest'] * 1e3:>10.1f}"
            f"{seconds['slowest'] * 1e3:>10.1f}{row[f'{unit}_per_second']:>10.1f}{idle:>7.0%}{memory:>10}"
        )
    for key, text in (
        ("speedup_over_bp", "scpl over bp"),
        ("speedup_over_best_gpipe", f"scpl over the best GPipe ({result.get('best_gpipe')})"),
    ):
        if key in result:
            print(f"{text}: {result[key]:.2f} times")
    for key, text in (
        ("pipeline_efficiency", "pipeline efficiency (slowest stage alone / scpl's step)"),
        ("share_of_local_losses", "share of the local losses, optimizer included"),
    ):
        if key in result:
            print(f"{text}: {result[key]['median']:.3f} ({result[key]['fastest']:.3f} to {result[key]['slowest']:.3f})")


def draw(result: dict[str, Any], unit: str, path: Path) -> None:
    """Draw the speeds as SVG or PNG."""
    names = list(result["methods"])
    speeds = [result["methods"][name][f"{unit}_per_second"] for name in names]
    figure, (axis,) = new_figure(figsize=(7, 0.4 * len(names) + 0.9))
    colours = ["#4477aa" if name.startswith("scpl") else "#bbbbbb" for name in names]
    bars = axis.barh(names, speeds, color=colours)
    axis.bar_label(bars, [f" {speed:.0f}" for speed in speeds])
    axis.invert_yaxis()
    axis.set_xlabel(f"{unit}/s")
    axis.margins(x=0.1)
    save_figure(figure, path)
