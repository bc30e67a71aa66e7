"""One device: ``python -m scpl_jax.benchmarks.throughput --single``.

How fast training is by local losses and by backpropagation, which share of the device's matrix-product peak that is,
how long compilation takes, how much memory is needed, how much faster its input comes than it is used up; and the same
networks and steps in PyTorch, where it is installed. Everything is measured in turn in one process, each method's
memory in a process of its own.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache
from jax.extend.core import Jaxpr
from jax.interpreters import partial_eval

from scpl_jax.benchmarks import measure
from scpl_jax.benchmarks.input_path import data_paths
from scpl_jax.benchmarks.throughput_options import Options
from scpl_jax.cli.building import dtype_of
from scpl_jax.cli.environment import device_peak_bytes
from scpl_jax.cli.run_options import as_arguments
from scpl_jax.kernels import onednn
from scpl_jax.losses import cross_entropy
from scpl_jax.pipeline import Pipeline
from scpl_jax.pipeline.compilation import configured
from scpl_jax.stages import Stage, initial_state, train_step
from scpl_jax.stages.cost import inner_programs

TORCH = ("PyTorch scpl", "PyTorch bp")
# Side of the matrices whose product shows the peak.
_SIDE = {"cpu": 2048}
_LARGE = 8192


def measure_single(options: Options) -> dict[str, Any]:
    """The numbers, as they are printed and written.

    Raises:
      RunError: PyTorch is asked for in a setting that it is not written for.
    """
    options.use_precision()
    # Compiled before programs are kept: those of oneDNN can't be, and JAX would warn.
    products, product_flops = _products(options)
    # The processes whose memory is measured take the programs from the folder: what a compiler needs is not what
    # training needs, and would hide it.
    with tempfile.TemporaryDirectory() as folder, _programs_kept_in(folder):
        return _measure(options, folder, products, product_flops)


@contextlib.contextmanager
def _programs_kept_in(folder: str) -> Iterator[None]:
    """Keep every compiled program in a folder that is empty now."""
    all_programs = {"jax_persistent_cache_min_compile_time_secs": 0, "jax_persistent_cache_min_entry_size_bytes": -1}
    try:
        with configured(jax_compilation_cache_dir=folder, **all_programs):
            compilation_cache.reset_cache()  # it has one folder until told otherwise
            yield
    finally:
        compilation_cache.reset_cache()


def _measure(
    options: Options, cache: str, products: dict[str, Callable[[], object]], product_flops: float
) -> dict[str, Any]:
    network = measure.network(options)
    made = measure.pipelines(network, options.methods, {"devices": jax.devices()[:1]})
    compiled = {name: pipeline.compile(network.inputs, network.labels) for name, pipeline in made.items()}
    cut = [stage.blocks[0] for stage in network.local[1:]]
    steps: dict[str, Callable[[], object]] = {
        name: functools.partial(_train, pipeline, network, options.steps) for name, pipeline in made.items()
    }
    if _with_torch(options):
        from scpl_jax.benchmarks.torch_steps import torch_steps

        steps |= {name: torch_steps(options, cut, name, options.steps) for name in TORCH}
    inputs = data_paths(options)
    for step in (*steps.values(), *inputs.values()):
        step()  # compiled, or tuned, and warm
    times = measure.alternate({**steps, **inputs, **products}, options.repeats)
    rates = {name: product_flops / min(times.pop(name)) for name in products}
    peak = max(rates.values())
    times = {name: [seconds / options.steps for seconds in some] for name, some in times.items()}
    paths = {name: times.pop(name) for name in inputs}
    flops = {"bp": _flops_of_bp(network.end_to_end, network), "scpl": _flops_of_local(network.local, network)}
    flops |= {name: _flops_of_local(stages, network) for name, stages in network.others.items()}
    table: dict[str, dict[str, Any]] = {}
    for name, seconds in times.items():
        row = measure.speed_of(options, seconds)
        needed = flops[next(part for part in name.split() if part in flops)]
        row |= {"flops_a_step": needed, "share_of_peak": needed / row["seconds_a_step"]["median"] / peak}
        if name in compiled:
            row["compile_seconds"] = compiled[name]
        table[name] = row
    if options.memory:
        positions = ",".join(map(str, cut)) or options.cut
        cut_once = dataclasses.replace(options, cut=positions, output=None, memory=False)
        for name, row in table.items():
            alone = as_arguments(dataclasses.asdict(dataclasses.replace(cut_once, only_memory_of=name)))
            variables = {"JAX_COMPILATION_CACHE_DIR": cache}
            row |= measure.in_own_process("throughput", alone, f"the memory of {name}", **variables)
    ratios = {
        f"{name} to {other}": measure.ratios(times[other], times[name])
        for name in times
        for other in ("bp", *TORCH)
        if other in times and name not in TORCH and name != other and ("bp" in name.split()) <= ("bp" in other.split())
    }
    quickest = min((name for name in times if name not in TORCH), key=lambda name: statistics.median(times[name]))
    return {
        "methods": table,
        "input": {
            name: {
                # Texts of several lengths, as training gets them.
                **measure.speed_of(options, seconds, tokens=False),
                "times_as_fast_as_training": measure.ratios(times[quickest], seconds),
            }
            for name, seconds in paths.items()
        },
        "speed_ratios": ratios,
        "peak_flops_per_second": peak,
        "products_flops_per_second": rates,
        "stages": [list(stage.blocks) for stage in network.local],
    }


def memory_of(options: Options) -> dict[str, int]:
    """Peak memory of one method in this process, and what was in use before it was built, in bytes."""
    options.use_precision()
    name = options.only_memory_of or ""
    if name in TORCH:
        from scpl_jax.benchmarks import torch_steps

        cut = [int(part) for part in options.cut_positions()] if options.stages > 1 else []
        return torch_steps.memory_of(options, cut, name)
    jax.devices()
    before = measure.resident_bytes()
    network = measure.network(options)
    pipeline = measure.pipelines(network, [name], {"devices": jax.devices()[:1]})[name]
    inputs, labels = network.inputs, network.labels
    del network  # the stages of the other methods
    pipeline.compile(inputs, labels)
    peak = measure.peak_bytes(pipeline, inputs, labels, options.steps, options.max_in_flight)
    return {"peak_memory_bytes": peak, "memory_before_bytes": 0 if device_peak_bytes() else before}


def _train(pipeline: Pipeline, network: measure.Network, steps: int) -> None:
    for _ in range(steps):
        pipeline.train_step(network.inputs, network.labels)
    pipeline.wait()


def _with_torch(options: Options) -> bool:
    return options.torch and importlib.util.find_spec("torch") is not None


def _products(options: Options) -> tuple[dict[str, Callable[[], object]], float]:
    """A product of large square matrices by each library at hand, in the precision asked for, and its operations."""
    side = _SIDE.get(jax.default_backend(), _LARGE)
    matrix = jax.random.normal(jax.random.key(0), (side, side), dtype_of(options.precision) or jnp.float32)
    multiply: dict[str, Callable[..., jax.Array]] = {"product by XLA": jnp.matmul}
    if jax.default_backend() == "cpu" and onednn.available() and onednn.usable(matrix):
        multiply["product by oneDNN"] = onednn.matmul
    products: dict[str, Callable[[], object]] = {
        name: functools.partial(lambda product: jax.block_until_ready(product(matrix, matrix)), jax.jit(function))
        for name, function in multiply.items()
    }
    if _with_torch(options):
        from scpl_jax.benchmarks.torch_steps import torch_product

        products["product by PyTorch"] = torch_product(options, side)
    for product in products.values():
        product()  # compiled and warm
    return products, 2.0 * side**3


def _flops_of_local(stages: tuple[Stage, ...], network: measure.Network) -> float:
    """Operations of one training step of all stages by their own losses."""
    optimizer, message, total = optax.adam(1e-3), network.inputs, 0.0
    for stage in stages:
        step = functools.partial(train_step, stage, optimizer)
        arguments = (initial_state(stage, optimizer), message, network.labels)
        total += _matrix_flops(step, *arguments)
        message = jax.eval_shape(step, *arguments)[1]
    return total


def _flops_of_bp(stages: tuple[Stage, ...], network: measure.Network) -> float:
    """Operations of one step of backpropagation through all stages."""

    def loss(params: Any) -> jax.Array:
        message = network.inputs
        for stage, one in zip(stages, params, strict=True):
            module = nnx.merge(stage.train_graph, one, stage.rest, copy=True)
            for block in module.blocks:
                message = block(message)
        return cross_entropy(module.classifier(message), network.labels)

    return _matrix_flops(jax.grad(loss), [stage.params for stage in stages])


def _matrix_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of all matrix products and convolutions of a function, a multiplication and an addition being two.

    They are counted in the program as JAX traces it, before any compiler changes it, but without what no result needs,
    as the gradient of a stage's inputs, which derivatives of our own give unasked. What a loop does counts as often as
    it is done; of the branches of a condition the most expensive one counts. Zeros that a strided convolution's
    gradient is given between the pixels don't count.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _flops_in(needed)


def _flops_in(jaxpr: Jaxpr) -> float:
    return sum((_flops_by(equation) for equation in jaxpr.eqns), 0.0)


def _flops_by(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, numbers = equation.invars[1].aval.shape, parameters["dimension_numbers"].rhs_spec
        each = math.prod(kernel) / kernel[numbers[0]]  # products for each value of the output
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * each / math.prod(parameters["lhs_dilation"])
    if name == "cond":
        return max(_flops_in(branch.jaxpr) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    return float(times * sum((_flops_in(inner) for inner in inner_programs(equation)), 0.0))


def show(result: dict[str, Any], unit: str) -> None:
    """Print the numbers; ``unit`` is what speeds count."""
    print(
        f"{'':16}{'ms a step':>10}{'fastest':>9}{'slowest':>9}{f'{unit}/s':>10}{'of peak':>9}"
        f"{'compile s':>11}{'MiB':>7}"
    )
    for name, row in result["methods"].items():
        seconds = row["seconds_a_step"]
        compiled = f"{row['compile_seconds']:.1f}" if "compile_seconds" in row else ""
        memory = ""
        if "peak_memory_bytes" in row:
            memory = f"{(row['peak_memory_bytes'] - row['memory_before_bytes']) / 2**20:.0f}"
        print(
            f"{name:16}{seconds['median'] * 1e3:>10.1f}{seconds['fastest'] * 1e3:>9.1f}{seconds['slowest'] * 1e3:>9.1f}"
            f"{row[f'{unit}_per_second']:>10.1f}{row['share_of_peak']:>9.1%}{compiled:>11}{memory:>7}"
        )
    rates = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in result["products_flops_per_second"].items())
    print(f"peak of large matrix products: {result['peak_flops_per_second'] / 1e9:.0f} GFLOP/s, the best of {rates}")
    for name, row in result["input"].items():
        ratio = row["times_as_fast_as_training"]
        drawn = next(key.removesuffix("_per_second") for key in row if key.endswith("_per_second"))
        print(
            f"{name} alone: {row[f'{drawn}_per_second']:.0f} {drawn}/s, {ratio['median']:.0f} times "
            f"({ratio['fastest']:.0f} to {ratio['slowest']:.0f}) as fast as the fastest training here"
        )
    for name, ratio in result["speed_ratios"].items():
        print(f"speed of {name}: {ratio['median']:.2f} ({ratio['fastest']:.2f} to {ratio['slowest']:.2f})")
    if not set(TORCH) & set(result["methods"]):
        print("PyTorch is not measured")
