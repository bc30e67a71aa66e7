"""Side-by-side speeds: ``python -m scpl_jax.benchmarks.throughput --processes 2 --pin --output FILE.json``.

SCPL (pipelined and synchronous), backpropagation over the same devices (naive model parallelism) and GPipe train the
same blocks with the same cut and placement, in turn, in one run. Times are medians over the repeats, of the steady
state.
"""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from scpl_jax.analysis.figures import attempt, new_figure, save_figure
from scpl_jax.analysis.timeline_figure import draw
from scpl_jax.benchmarks import measure
from scpl_jax.benchmarks.single import measure_single, memory_of
from scpl_jax.benchmarks.single import show as show_single
from scpl_jax.benchmarks.throughput_options import Options
from scpl_jax.cli.building import devices_of
from scpl_jax.cli.command_line import join, parse_options, run
from scpl_jax.cli.environment import versions
from scpl_jax.data.paths import find_cache_dir
from scpl_jax.pipeline import Pipeline, Span, idle_shares, processes
from scpl_jax.training.run_error import RunError
from scpl_jax.training.writing import read_json, write_json


def _measure_all(options: Options) -> dict[str, Any]:
    """Everything that one set of processes measures."""
    options.use_precision()
    network = measure.network(options)
    placement = {"devices": devices_of(options.devices), "data_parallel": options.data_parallel}
    inputs, labels = network.inputs, network.labels
    if options.only_memory_of is not None:
        name = options.only_memory_of.removesuffix(" synchronous")
        pipeline = measure.pipelines(network, [name], placement)[name]
        ahead = _ahead(options.only_memory_of, options)
        peaks = processes.gather(measure.peak_bytes(pipeline, inputs, labels, options.steps, ahead))
        return {"peak_memory_bytes": peaks}

    made = measure.pipelines(network, list(dict.fromkeys(_program(m) for m in ["scpl", *options.methods])), placement)
    scpl = made["scpl"]
    # For each part of this process the variants of its stages, each with a message as the stages before hand it on.
    variants = {"scpl": network.local, "bare": network.bare, **network.others}
    parts = list(
        zip(
            *(
                [
                    (part, measure.message_before(stages, first, inputs, labels))
                    for part, first in measure.own_parts(scpl, stages)
                ]
                for stages in variants.values()
            ),
            strict=True,
        )
    )
    for pipeline in made.values():
        measure.seconds_a_step(pipeline, inputs, labels, 1, options.max_in_flight)

    def alone() -> list[list[float]]:
        """Seconds a step of each part of all processes by each variant."""
        processes.gather(None)  # all begin together
        mine = [measure.seconds_alone(part, labels, options.steps * 0.1) for part in parts]
        return [one for some in processes.gather(mine) for one in some]

    candidates: dict[str, Callable[[], Any]] = {
        name: functools.partial(
            measure.seconds_a_step, made[_program(name)], inputs, labels, options.steps, _ahead(name, options)
        )
        for name in options.methods
    }
    times = measure.in_turn({**candidates, "alone": alone}, options.repeats)
    spans = {
        name: measure.record(made[_program(name)], inputs, labels, 12, _ahead(name, options))
        for name in options.methods
    }
    rounds = times.pop("alone")
    by_variant = {name: [[part[k] for part in each] for each in rounds] for k, name in enumerate(variants)}
    result = _result(options, scpl, times, by_variant, spans)
    return {**result, "message_bytes": [*(stage.message_bytes for stage in network.local[:-1]), 0]}


def _program(method: str) -> str:
    return method.removesuffix(" synchronous")


def _ahead(method: str, options: Options) -> int:
    return 1 if method.endswith("synchronous") else options.max_in_flight


def _result(
    options: Options,
    scpl: Pipeline,
    times: dict[str, list[float]],
    alone: dict[str, list[list[float]]],
    spans: dict[str, list[Span]],
) -> dict[str, Any]:
    """The numbers, as they are printed and written.

    ``alone`` has the seconds of each part by variant and round.
    """
    table = {}
    for name in options.methods:
        row = measure.speed_of(options, times[name])
        row["idle_share"] = idle_shares(spans[name], skip=1)
        row["task_seconds"] = measure.task_seconds(spans[name])
        rule = name.split()[0]
        if rule in alone:
            row["alone_seconds"] = [measure.summary(part) for part in zip(*alone[rule], strict=True)]
            row["slowest_stage_alone_seconds"] = measure.summary([max(parts) for parts in alone[rule]])
        table[name] = row
    slowest = [max(parts) for parts in alone["scpl"]]
    shares = [1 - sum(b) / sum(a) for a, b in zip(alone["scpl"], alone["bare"], strict=True)]
    result: dict[str, Any] = {
        "methods": table,
        "alone_seconds": [measure.summary(part) for part in zip(*alone["scpl"], strict=True)],
        "slowest_stage_alone_seconds": measure.summary(slowest),
        "share_of_local_losses": measure.summary(shares),
        "stages": [
            {
                "blocks": list(s.blocks),
                "devices": [str(d) for d in mesh.devices.flat],
                "estimated_share": s.cost / total,
            }
            for total in [sum(stage.cost for stage in scpl.stages)]
            for s, mesh in zip(scpl.stages, scpl.meshes, strict=True)
        ],
    }

    if "scpl" in table:
        result["pipeline_efficiency"] = measure.ratios(slowest, times["scpl"])
        result["speedup_over"] = {
            name: measure.ratios(times[name], times["scpl"]) for name in options.methods if name != "scpl"
        }
        if "bp" in table:
            result["speedup_over_bp"] = result["speedup_over"]["bp"]["median"]
        gpipe = {name: result["speedup_over"][name]["median"] for name in options.methods if name.startswith("gpipe")}
        if gpipe:
            result["best_gpipe"] = min(gpipe, key=lambda name: gpipe[name])
            result["speedup_over_best_gpipe"] = gpipe[result["best_gpipe"]]
    result["timelines"] = {name: [dataclasses.asdict(span) for span in some] for name, some in spans.items()}
    return result


def _show(result: dict[str, Any], unit: str) -> None:
    """Print the table and the ratios; ``unit`` is what speeds count."""
    speeds = f"{'ms a step':>10}{'fastest':>10}{'slowest':>10}{f'{unit}/s':>10}"
    print(f"{'':22}{speeds}{'idle':>7}{'alone':>8}{'peak MiB':>10}")
    for name, row in result["methods"].items():
        seconds = row["seconds_a_step"]
        idle = sum(row["idle_share"].values()) / max(1, len(row["idle_share"]))
        peaks = row.get("peak_memory_bytes")
        memory = "" if peaks is None else "+".join(f"{peak / 2**20:.0f}" for peak in peaks)
        alone = f"{row['slowest_stage_alone_seconds']['median'] * 1e3:.1f}" if "alone_seconds" in row else ""
        print(
            f"{name:22}{seconds['median'] * 1e3:>10.1f}{seconds['fastest'] * 1e3:>10.1f}"
            f"{seconds['slowest'] * 1e3:>10.1f}{row[f'{unit}_per_second']:>10.1f}{idle:>7.0%}{alone:>8}{memory:>10}"
        )
    print("alone: ms a step of the slowest stage on input of its own")
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


def _draw(result: dict[str, Any], unit: str, path: Path) -> None:
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


def _in_processes(options: Options, arguments: Sequence[str], memory_of: str | None = None) -> dict[str, Any]:
    """Run this experiment, or its measurement of one method's memory, in processes; what the first of them found."""
    extra = [] if memory_of is None else ["--only-memory-of", memory_of]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "scpl_jax.launch", "--processes", str(options.processes)]
        command += ["--pin"] if options.pin else []
        command += ["--", sys.executable, "-m", "scpl_jax.benchmarks.throughput", *arguments, *extra]
        # Compiled programs go where the other experiments keep them, not into a folder that nobody removes.
        environment = {**os.environ, "SCPL_THROUGHPUT_ANSWER": str(answer)}
        if "JAX_COMPILATION_CACHE_DIR" not in environment and (kept := find_cache_dir(None)) is not None:
            environment["JAX_COMPILATION_CACHE_DIR"] = str(kept / "compiled")
        if memory_of is not None:
            environment |= measure.GIVE_BACK
        status = subprocess.run(command, env=environment, check=False).returncode
        if status or not answer.exists():
            raise RunError(f"the measuring processes ended with status {status}")
        found: dict[str, Any] = read_json(answer)
        return found


def main(arguments: Sequence[str]) -> int:
    """Run the measurement; returns the exit status."""
    answer = os.environ.get("SCPL_THROUGHPUT_ANSWER")
    options = parse_options(Options, arguments, "scpl_jax.benchmarks.throughput", Options())
    options.check()
    if options.single:
        return _main_single(options)
    if answer is not None:
        join(arguments)
    if answer is not None or options.processes == 1:
        result = _measure_all(options)
        if answer is not None:
            if processes.is_first():
                write_json(Path(answer), result)
            return 0
    else:
        result = _in_processes(options, arguments)
    if options.memory:
        for name, row in result["methods"].items():
            row |= _in_processes(options, arguments, name)
    found = result.pop("timelines").items()
    unit = "tokens" if options.is_text else "images"
    spans: dict[str, Sequence[Span]] = {name: [Span(**span) for span in some] for name, some in found}
    _show(result, unit)
    _write(options, result)
    drawn = [True]
    if options.figure is not None:
        drawn.append(attempt(f"--figure {options.figure}", _draw, result, unit, options.figure))
    if options.timeline is not None:
        drawn.append(attempt(f"--timeline {options.timeline}", draw, spans, options.timeline))
    return 0 if all(drawn) else 1


def _main_single(options: Options) -> int:
    if options.only_memory_of is not None:
        print(json.dumps(memory_of(options)))
        return 0
    result = measure_single(options)
    show_single(result, "tokens" if options.is_text else "images")
    _write(options, result)
    return 0


def _write(options: Options, result: dict[str, Any]) -> None:
    if options.output is not None:  # or JAX would not be needed here
        devices = {"device_kind": jax.devices()[0].device_kind, "cores": os.cpu_count()}
        found = versions("torch") if any("PyTorch" in name for name in result["methods"]) else versions()
        measure.write_numbers(options, {**result, **devices, "versions": found})


if __name__ == "__main__":
    sys.exit(run(main))
