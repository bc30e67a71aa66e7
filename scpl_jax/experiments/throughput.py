"""Side-by-side speeds: ``python -m scpl_jax.experiments.throughput --processes 2 --pin --output FILE.json``.

SCPL (pipelined and synchronous), backpropagation over the same devices (naive model parallelism) and GPipe train the
same blocks with the same cut and placement, in turn, in one run. Times are medians over the repeats, of the steady
state.
"""

import dataclasses
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from scpl_jax.experiments import measure, speed_report
from scpl_jax.experiments.building import devices_of
from scpl_jax.experiments.command_line import join, parse_options, run
from scpl_jax.experiments.machine import versions
from scpl_jax.experiments.methods import END_TO_END, check_method
from scpl_jax.experiments.options import Options as ImageOptions
from scpl_jax.experiments.run_options import integers
from scpl_jax.experiments.text_options import TextOptions
from scpl_jax.experiments.workloads import TEXT_MODELS, Workload, images, texts
from scpl_jax.models import paper_cut
from scpl_jax.pipeline import Pipeline, Span, idle_shares, processes
from scpl_jax.training.errors import RunError
from scpl_jax.training.files import read_json, write_json

KNOWN = ("scpl", *END_TO_END)
METHODS = "scpl,scpl synchronous,bp,gpipe 2,gpipe 4,gpipe 8,gpipe 4 remat"


@dataclasses.dataclass
class Options:
    """Compare the speed of SCPL, backpropagation and GPipe on the same network, cut and devices."""

    model: str = "vgg8"
    """Network, as of the cifar experiment, or lstm or transformer."""
    width: float = 0.25
    """Multiplier of the numbers of channels or hidden units."""
    image_size: int = 32
    """Side of the images, in pixels."""
    length: int = 64
    """Tokens of a text; for lstm and transformer, as the next four."""
    layers: int = 4
    """Blocks besides the classifier, the embedding included."""
    vocabulary: int = 30000
    """Number of token ids."""
    embedding_size: int = 300
    """Length of the word vectors."""
    heads: int = 6
    """Attention heads of the transformer."""
    batch_size: int = 64
    """Images or texts a batch."""
    stages: int = 2
    """Number of stages."""
    cut: str = "auto"
    """auto, even, paper, or the blocks at which stages begin, as 2,4."""
    head: str = "mlp"
    """Projection head: identity, linear, mlp, mlp-bn or simsiam."""
    head_dims: str | None = None
    """Layer sizes of the head, as 512,1024. Default: 512,1024; linear: 1024."""
    head_pool: int = 2
    """Average a feature map to this side before the projection head, in pixels; 0: not at all."""
    method: str = METHODS
    """What is measured, separated by commas: scpl (needed for the ratios), bp, gpipe 4, or another rule of the cifar
    experiment's --method; behind it synchronous, fused or remat."""
    processes: int = 1
    """Local processes to start; 1: this one, with the devices it has."""
    pin: bool = False
    """Give each process its own cores."""
    devices: int | None = None
    """Devices to use, over all processes. Default: all."""
    data_parallel: int = 1
    """Devices a stage."""
    max_in_flight: int = 8
    """Batches under way at a time in pipelined training."""
    steps: int = 16
    """Training steps a measurement."""
    repeats: int = 5
    """Measurements of each, taken in turn."""
    memory: bool = True
    """Also measure the peak memory of each method, in runs of their own."""
    precision: str = "float32"
    """float32 or tf32."""
    output: Path | None = None
    """Write the numbers as JSON."""
    figure: Path | None = None
    """Draw the speeds as SVG or PNG."""
    timeline: Path | None = None
    """Draw the timelines of all methods as SVG or PNG."""
    only_memory_of: str | None = None
    """Measure nothing but the memory of this method (used by the experiment itself)."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
          RunError: one sentence for the first bad option.
        """
        positive = ("batch_size", "stages", "processes", "steps", "repeats", "max_in_flight", "data_parallel")
        least = dict.fromkeys((*positive, "image_size", "length", "embedding_size", "heads"), 1)
        for name, low in {**least, "layers": 2, "vocabulary": 3}.items():
            if getattr(self, name) < low:
                raise RunError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        if self.model == "transformer" and self.embedding_size % self.heads:
            raise RunError(f"--heads {self.heads} does not divide --embedding-size {self.embedding_size}")
        if self.precision not in ("float32", "tf32"):
            raise RunError(f"--precision must be float32 or tf32, got {self.precision}")
        for method in self.methods:
            words = method.split() or [""]
            numbers = [word for word in words[1:] if word.isdigit() and int(word) > 0]
            if words[0] not in END_TO_END:
                check_method(words[0], 1)
            allowed = {"bp": {"remat"}, "gpipe": {"remat", *numbers}}.get(words[0], {"synchronous", "fused"})
            if not set(words[1:]) <= allowed:
                raise RunError(f"--method {method!r} is unknown; choose from scpl, scpl synchronous, bp, gpipe 4, ...")
            if words[0] == "gpipe" and len(numbers) != 1:
                raise RunError(f"--method {method!r} needs a number of micro-batches, as gpipe 4")
        if self.cut == "paper" and self.stages != 4:
            raise RunError(f"--cut paper is defined for 4 stages, got --stages {self.stages}; use auto or even")
        if self.cut not in ("auto", "even", "paper"):
            integers(self.cut, "--cut")
        if self.pin and self.processes == 1:
            raise RunError("--pin needs --processes of at least 2")

    @property
    def methods(self) -> list[str]:
        """The methods, in order; scpl among them."""
        asked = [" ".join(name.split()) for name in self.method.split(",")]
        return list(dict.fromkeys(asked))


def _workload(options: Options) -> Workload:
    if options.model not in TEXT_MODELS:
        heads = ImageOptions(head=options.head, head_dims=options.head_dims, head_pool=options.head_pool)
        return images(options.model, options.width, options.batch_size, heads, options.image_size)
    names = ("layers", "vocabulary", "embedding_size", "heads", "head", "head_dims")
    others = {name: getattr(options, name) for name in names}
    return texts(options.model, options.width, options.batch_size, TextOptions(**others), options.length)


def _measure_all(options: Options) -> dict[str, Any]:
    """Everything that one set of processes measures."""
    jax.config.update(
        "jax_default_matmul_precision", {"float32": "highest", "tf32": "tensorfloat32"}[options.precision]
    )
    cut: str | tuple[int, ...] = options.cut
    if options.cut == "paper":
        cut = (1, 2, 3) if options.model in TEXT_MODELS else paper_cut(options.model)
    elif options.cut not in ("auto", "even"):
        cut = integers(options.cut, "--cut") or ()
    workload = _workload(options)
    others = list(dict.fromkeys(name for method in options.methods if (name := method.split()[0]) not in KNOWN))
    network = measure.network(workload, options.stages, cut, others)
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
    parts = [
        ([whole, bare], measure.message_before(network.local, first, inputs))
        for (whole, first), (bare, _) in zip(
            measure.own_parts(scpl, network.local), measure.own_parts(scpl, network.bare), strict=True
        )
    ]
    names = [*options.methods, "alone"]
    times: dict[str, list[Any]] = {name: [] for name in [*names, "alone without local losses"]}
    for pipeline in made.values():
        measure.seconds_a_step(pipeline, inputs, labels, 1, options.max_in_flight)
    for repeat in range(options.repeats):
        # Every second round backwards, so that a machine that slows down favours nobody.
        for name in names if repeat % 2 == 0 else names[::-1]:
            if name == "alone":
                processes.gather(None)  # all begin together
                least = options.steps * 0.1
                mine = [measure.seconds_alone(both, message, labels, least) for both, message in parts]
                everywhere = [one for some in processes.gather(mine) for one in some]
                for kind, seconds in zip(
                    ("alone", "alone without local losses"), zip(*everywhere, strict=True), strict=True
                ):
                    times[kind].append(seconds)
                continue
            ahead = _ahead(name, options)
            times[name].append(measure.seconds_a_step(made[_program(name)], inputs, labels, options.steps, ahead))
    spans = {
        name: measure.record(made[_program(name)], inputs, labels, 12, _ahead(name, options))
        for name in options.methods
    }
    result = _result(options, workload, scpl, times, spans)
    return {**result, "message_bytes": measure.message_bytes(network.local, inputs)}


def _program(method: str) -> str:
    return method.removesuffix(" synchronous")


def _ahead(method: str, options: Options) -> int:
    return 1 if method.endswith("synchronous") else options.max_in_flight


def _result(
    options: Options, workload: Workload, scpl: Pipeline, times: dict[str, list[Any]], spans: dict[str, list[Span]]
) -> dict[str, Any]:
    """The numbers, as they are printed and written."""
    table = {}
    for name in options.methods:
        row: dict[str, Any] = {"seconds_a_step": measure.summary(times[name])}
        rate = options.batch_size / row["seconds_a_step"]["median"]
        row[f"{workload.unit}_per_second"] = rate
        if workload.tokens is not None:
            row["tokens_per_second"] = rate * workload.tokens
        row["idle_share"] = idle_shares(spans[name], skip=1)
        row["task_seconds"] = measure.task_seconds(spans[name])
        table[name] = row
    slowest = [max(parts) for parts in times["alone"]]
    with_losses = [sum(parts) for parts in times["alone"]]
    without = [sum(parts) for parts in times["alone without local losses"]]
    alone = [measure.summary(parts) for parts in zip(*times["alone"], strict=True)]
    result: dict[str, Any] = {
        "methods": table,
        "alone_seconds": alone,
        "slowest_stage_alone_seconds": measure.summary(slowest),
        "share_of_local_losses": measure.summary([1 - b / a for a, b in zip(with_losses, without, strict=True)]),
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

    # Ratios within a round, then their median: what slows the machine down slows both.
    def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
        return measure.summary([a / b for a, b in zip(numerator, denominator, strict=True)])

    if "scpl" in table:
        result["pipeline_efficiency"] = ratios(slowest, times["scpl"])
        result["speedup_over"] = {
            name: ratios(times[name], times["scpl"]) for name in options.methods if name != "scpl"
        }
        if "bp" in table:
            result["speedup_over_bp"] = result["speedup_over"]["bp"]["median"]
        gpipe = {name: result["speedup_over"][name]["median"] for name in options.methods if name.startswith("gpipe")}
        if gpipe:
            result["best_gpipe"] = min(gpipe, key=lambda name: gpipe[name])
            result["speedup_over_best_gpipe"] = gpipe[result["best_gpipe"]]
    result["timelines"] = {name: [dataclasses.asdict(span) for span in some] for name, some in spans.items()}
    return result


def _in_processes(options: Options, arguments: Sequence[str], memory_of: str | None = None) -> dict[str, Any]:
    """Run this experiment, or its measurement of one method's memory, in processes; what the first of them found."""
    extra = [] if memory_of is None else ["--only-memory-of", memory_of]
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        command = [sys.executable, "-m", "scpl_jax.experiments.throughput", *arguments, *extra]
        launch = [sys.executable, "-m", "scpl_jax.launch", "--processes", str(options.processes)]
        launch += ["--pin"] if options.pin else []
        command = [*launch, "--", *command]
        # Compiled programs go where the other experiments keep them, not into a folder that nobody removes.
        kept = str(Path("~/.cache/scpl_jax/compiled").expanduser())
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", kept)
        environment = {**os.environ, "SCPL_THROUGHPUT_ANSWER": str(answer), "JAX_COMPILATION_CACHE_DIR": cache}
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
    options = parse_options(Options, arguments, "throughput", Options())
    options.check()
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
            alone = dataclasses.replace(options, repeats=1)
            row |= _in_processes(alone, arguments, name)
    found = result.pop("timelines").items()
    unit = "tokens" if options.model in TEXT_MODELS else "images"
    spans: dict[str, Sequence[Span]] = {name: [Span(**span) for span in some] for name, some in found}
    speed_report.show(result, unit)
    settings = {name: value for name, value in dataclasses.asdict(options).items() if not isinstance(value, Path)}
    devices = {"device_kind": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    if options.output is not None:
        write_json(options.output, {"options": settings, **result, **devices, "versions": versions()})
    if options.figure is not None:
        speed_report.draw(result, unit, options.figure)
    if options.timeline is not None:
        from scpl_jax.analysis.timeline import draw

        draw(spans, options.timeline)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
