"""One page about some runs: ``python -m scpl_jax.report RUN_DIR [RUN_DIR ...] --output report.html``.

The page holds everything it shows, figures included, so it opens without a network. Runs that still go on are shown as
far as they have come.
"""

import base64
import dataclasses
import datetime
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from scpl_jax.analysis import report_figures
from scpl_jax.analysis.runs import Run, name_runs, read_run
from scpl_jax.cli.command_line import parse_options, run
from scpl_jax.cli.option_types import default, flag
from scpl_jax.training.run_error import RunError

_STYLE = """
:root { color-scheme: light; --ink: #222; --faint: #666; --line: #ddd; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; max-width: 60rem;
  padding: 1.5rem; }
h1 { font-size: 1.7rem; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); } h3 { margin-top: 1.8rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.25rem 0.8rem 0.25rem 0; border-bottom: 1px solid var(--line); }
td.number, th.number { text-align: right; } .wide { overflow-x: auto; }
figure { margin: 1rem 0; max-width: 46rem; } figcaption { color: var(--faint); font-size: 0.9rem; }
svg, figure img { width: 100%; height: auto; } nav a { margin-right: 1rem; } .faint { color: var(--faint); }
details > summary { cursor: pointer; } code { font-size: 0.9em; overflow-wrap: anywhere; }
"""


@dataclasses.dataclass
class Options:
    """Write one self-contained HTML page about runs: configuration, curves, exits, confusion, timelines, memory."""

    run_dirs: Annotated[tuple[Path, ...], tyro.conf.Positional, default()] = ()
    """Run directories of the experiments, one or more."""
    output: Path = Path("report.html")
    """The page; a file that is there is written over."""
    title: str = "Training runs"
    """Heading of the page."""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    def cells(tag: str, values: Sequence[str]) -> str:
        kinds = (' class="number"' if index in numbers else "" for index in range(len(values)))
        return "".join(f"<{tag}{kind}>{html.escape(v)}</{tag}>" for kind, v in zip(kinds, values, strict=True))

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{cells("th", head)}</tr></thead><tbody>{body}</tbody></table></div>'


def _figure(svg: str, caption: str) -> str:
    label = html.escape(caption, quote=True)
    return f'<figure role="img" aria-label="{label}">{svg}<figcaption>{html.escape(caption)}</figcaption></figure>'


def _overview(runs: Sequence[Run]) -> str:
    """A row for each run with what it reached and took."""
    rows = []
    validated = any(one.curve("validation_accuracy") for one in runs)
    names = [*(["validation_accuracy"] if validated else []), "test_accuracy"]
    for one in runs:
        found, options = one.results or {}, one.options
        epochs = max((line["epoch"] for line in one.lines), default=0)
        speed = found.get(f"{one.unit}_per_second")
        peaks = found.get("peak_memory_bytes_per_process", [])
        rows.append(
            [
                one.name,
                str(options.get("method")),
                f"{options.get('model')} x {found.get('width') or options.get('width') or 1:g}",
                str(one.config.get("dataset", options.get("dataset"))),
                str(options.get("stages")),
                f"{epochs} of {options.get('epochs')}",
                *(_accuracy(one, name) for name in names),
                "" if speed is None else f"{speed:.0f} {one.unit}",
                " + ".join(f"{peak / 2**20:.0f}" for peak in peaks),
                "" if "seconds" not in found else f"{found['seconds']:.0f}",
            ]
        )
    head = ["run", "method", "network", "data", "stages", "epochs", *(name.replace("_", " ") for name in names)]
    head += ["per second", "peak MiB", "seconds"]
    return _table(head, rows, numbers=range(4, len(head)))


def _accuracy(one: Run, name: str) -> str:
    """An accuracy with its deviation over seeds, or of a run that goes on that of its last epoch; empty for none."""
    found, curve = one.results or {}, one.curve(name)
    value = found.get(name, curve[-1][2] if curve else None)
    spread = f" ± {found[f'{name}_std']:.4f}" if f"{name}_std" in found else ""
    return "" if value is None else f"{value:.4f}{spread}"


def _configuration(runs: Sequence[Run]) -> str:
    """Options that differ, then those that all runs share."""
    names = list(dict.fromkeys(name for one in runs for name in one.options))
    hidden = {"out_dir", "resume"}
    values = {
        name: ["" if (value := one.options.get(name)) is None else str(value) for one in runs]
        for name in names
        if name not in hidden
    }
    differing = {name: each for name, each in values.items() if len(set(each)) > 1}
    text = ""
    if differing:
        rows = [[flag(name), *each] for name, each in differing.items()]
        text += "<p>Options that differ:</p>" + _table(["option", *(one.name for one in runs)], rows)
    same = [[flag(name), each[0]] for name, each in values.items() if name not in differing]
    open_ = "" if differing else " open"
    what = "Options of all runs" if len(runs) > 1 else "Options"
    return text + f"<details{open_}><summary>{what}</summary>{_table(['option', 'value'], same)}</details>"


def _details(one: Run) -> str:
    """Everything about one run."""
    found = one.results or {}
    state = "" if one.results else " (not complete)"
    text = [
        f"<h2>{html.escape(one.name + state)}</h2>",
        f'<p class="faint"><code>{html.escape(str(one.path))}</code></p>',
    ]
    if found:
        devices = ", ".join(found["devices"])
        versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        text.append(f"<p>{html.escape(found['device_kind'])} ({html.escape(devices)}); {html.escape(versions)}.</p>")
    stages = one.config.get("stages", [])
    if stages:
        rows = [
            [
                str(index),
                _blocks(stage["blocks"]),
                ", ".join(stage["devices"]),
                f"{stage['parameters']:,}",
                f"{stage['share_of_cost']:.0%}",
                f"{stage['share_of_local_loss']:.0%}",
            ]
            for index, stage in enumerate(stages)
        ]
        head = ["stage", "blocks", "devices", "parameters", "share of the cost", "its local loss"]
        text.append(_table(head, rows, numbers=(0, 3, 4, 5)))
    if one.lines:
        text.append(_figure(report_figures.loss_curves(one), "Training loss of each stage (of the first seed)."))
    if found.get("exits") or found.get("probes"):
        what = "Accuracy of each stage's exit." if found.get("exits") else "Probes of each stage's features."
        text.append(_figure(report_figures.probes(one), what))
    if found.get("exits") and found.get("early_stops"):
        svg = report_figures.svg_of(lambda file: report_figures.draw_exits(found["exits"], found["early_stops"], file))
        text.append(_figure(svg, "Stopping early: accuracy against the mean share of the network that is computed."))
    if "confusion" in found:
        svg = report_figures.confusion(found["confusion"], found["class_names"])
        text.append(_figure(svg, "Test examples of each class (rows) by the network's answer (columns), as shares."))
    timeline = one.path / "timeline.svg"
    if timeline.is_file():
        # Not ours to put into the page as it is: a file may hold anything, and in an image nothing of it can run.
        data = base64.b64encode(timeline.read_bytes()).decode()
        picture = f'<img alt="" src="data:image/svg+xml;base64,{data}">'
        text.append(_figure(picture, "When each stage worked; the same in timeline.json for Perfetto."))
    return "\n".join(text)


def _blocks(span: Sequence[int]) -> str:
    first, last = span[0], span[1] - 1
    return str(first) if first == last else f"{first} to {last}"


def page(runs: Sequence[Run], title: str = "Training runs") -> str:
    """The page about some runs.

    Args:
      runs: at least one.
      title: its heading.
    """
    links = "".join(f'<a href="#run-{index}">{html.escape(one.name)}</a>' for index, one in enumerate(runs))
    parts = [f"<h1>{html.escape(title)}</h1>", f"<nav>{links}</nav>", _overview(runs)]
    for name in ("test_accuracy", "validation_accuracy"):
        if any(one.curve(name) for one in runs):
            what = name.replace("_", " ").capitalize()
            caption = f"{what} after each epoch, by epochs and by seconds of training (means over seeds)."
            parts.append(_figure(report_figures.accuracy_curves(runs, name), caption))
    if any((one.results or {}).get("peak_memory_bytes_per_process") for one in runs):
        caption = "Peak memory of each process: of its fullest device, or of the process where devices do not tell."
        parts.append(_figure(report_figures.memory(runs), caption))
    parts += ["<h2>Configuration</h2>", _configuration(runs)]
    parts += [f'<section id="run-{index}">{_details(one)}</section>' for index, one in enumerate(runs)]
    made = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    parts.append(f'<p class="faint">Made by scpl_jax on {made}.</p>')
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def main(arguments: Sequence[str]) -> int:
    """Write the report; returns the exit status."""
    options = parse_options(Options, arguments, "scpl_jax.report", Options())
    if not options.run_dirs:
        raise RunError("no run directory is given; name one or more, as python -m scpl_jax.report runs/cifar/DATE-TIME")
    paths = list(dict.fromkeys(path.resolve() for path in options.run_dirs))
    runs = [read_run(path, name) for path, name in zip(paths, name_runs(paths), strict=True)]
    text = page(runs, options.title)
    try:
        options.output.write_bytes(text.encode(errors="backslashreplace"))
    except OSError as error:
        raise RunError(f"--output {options.output} can't be written ({error.strerror}); name another file") from error
    print(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
