"""A timeline as a trace for Perfetto and as a chart: one lane a device, one colour a batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scpl_jax.analysis.figures import new_figure, save_figure
from scpl_jax.pipeline.timeline import Span
from scpl_jax.training.writing import write_json

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb", "#332288")


def trace_events(spans: Sequence[Span]) -> dict[str, Any]:
    """The spans in the format that Perfetto and chrome://tracing open: microseconds since the first one.

    Example:
      >>> events = trace_events([Span("step", "0", "cpu:0", 3, 0, 10.0, 10.5)])["traceEvents"]
      >>> events[-1]["name"], events[-1]["ts"], events[-1]["dur"]
      ('stage 0, step 3', 0.0, 500000.0)
    """
    devices = sorted({span.device for span in spans})
    begin = min((span.start for span in spans), default=0.0)
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": 0, "tid": index, "args": {"name": device}}
        for index, device in enumerate(devices)
    ]
    for span in spans:
        part = f" {span.task.replace('_', ' and ')} {span.micro_batch}"
        kind = {"step": "", "update": " update"}.get(span.task, part)
        events.append(
            {
                "ph": "X",
                "name": f"stage {span.stages}{kind}, step {span.step}",
                "cat": span.task,
                "pid": 0,
                "tid": devices.index(span.device),
                "ts": round((span.start - begin) * 1e6, 3),
                "dur": round((span.end - span.start) * 1e6, 3),
                "args": {"step": span.step, "micro_batch": span.micro_batch},
            }
        )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def write_trace(spans: Sequence[Span], path: Path) -> None:
    """Write the spans as a file that https://ui.perfetto.dev opens."""
    write_json(path, trace_events(spans))


def draw(charts: dict[str, Sequence[Span]], path: Path, milliseconds: float | None = None) -> None:
    """Draw timelines as :func:`chart` does and write them to an SVG or PNG file."""
    save_figure(chart(charts, milliseconds), path)


def chart(charts: dict[str, Sequence[Span]], milliseconds: float | None = None) -> Any:
    """Timelines one below the other with a common time axis.

    Args:
      charts: title -> spans.
      milliseconds: how much of each is shown; by default all.

    Returns:
      A matplotlib figure, which a notebook shows.
    """
    lanes = {title: sorted({span.device for span in spans}) for title, spans in charts.items()}
    heights = [len(devices) + 0.6 for devices in lanes.values()]
    size = (9, 0.5 * sum(heights) + 0.8)
    figure, axes = new_figure(len(charts), sharex=True, figsize=size, height_ratios=heights)
    longest = 0.0
    for axis, (title, spans) in zip(axes, charts.items(), strict=True):
        begin = min((span.start for span in spans), default=0.0)
        for span in spans:
            start, length = (span.start - begin) * 1e3, (span.end - span.start) * 1e3
            if milliseconds is not None and start > milliseconds:
                continue
            longest = max(longest, start + length)
            colour, alpha = _COLOURS[span.step % len(_COLOURS)], 0.6 if span.task == "backward" else 1.0
            style = {"color": colour, "alpha": alpha, "edgecolor": "white", "linewidth": 0.3}
            axis.barh(lanes[title].index(span.device), length, left=start, height=0.8, **style)
        axis.set_yticks(range(len(lanes[title])), lanes[title])
        axis.invert_yaxis()
        axis.set_title(title, loc="left", fontsize=10)
    axes[-1].set_xlim(0, longest if milliseconds is None else min(longest, milliseconds))
    axes[-1].set_xlabel("milliseconds; one lane a device, one colour a batch, lighter: backward pass only")
    return figure
