"""Train an image classifier: ``python -m scpl_jax.experiments.cifar --stages 4``.

On CIFAR-10 at full size (VGG8, 200 epochs, batch 1024) this wants a GPU; without CIFAR-10 at hand it trains on
scikit-learn's digits, which takes about two minutes on two CPU cores.
"""

import dataclasses
import importlib.metadata
import platform
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_STARTED = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

from scpl_jax.data import Dataset, add_label_noise, limit, load, make_augment, normalise  # noqa: E402
from scpl_jax.experiments.command_line import parse, run  # noqa: E402
from scpl_jax.experiments.options import Options, integers, to_json  # noqa: E402
from scpl_jax.models import build_model, paper_cut  # noqa: E402
from scpl_jax.objectives import CrossEntropy, Objective, SupCon  # noqa: E402
from scpl_jax.pipeline import Pipeline, processes  # noqa: E402
from scpl_jax.stages import Stage, decouple  # noqa: E402
from scpl_jax.training import (  # noqa: E402
    CheckpointStore,
    Interrupt,
    Plan,
    Reporter,
    Result,
    RunDirectory,
    RunError,
    build_optimizer,
    cosine_schedule,
    train,
)

_DIGITS_DEFAULTS: dict[str, Any] = {"width": 0.125, "epochs": 20, "batch_size": 128, "augment": "none"}
_DEFAULTS: dict[str, Any] = {"width": 1.0, "epochs": 200, "batch_size": 1024, "augment": "strong"}


def resolve(options: Options, dataset: Dataset) -> Options:
    """Fill in the defaults that depend on the data set."""
    defaults = _DIGITS_DEFAULTS if dataset.name == "digits" else _DEFAULTS
    missing = {name: value for name, value in defaults.items() if getattr(options, name) is None}
    return dataclasses.replace(options, **missing)


def objective_of(options: Options) -> Objective:
    """The objective that ``--method`` and the options of the head describe."""
    if options.method in ("bp", "gpipe"):
        return CrossEntropy()
    return SupCon(
        temperature=options.temperature,
        head=options.head,
        head_dims=integers(options.head_dims, "--head-dims"),
        head_pool=options.head_pool,
        count_anchor=options.count_anchor,
        classifier_gradient=options.classifier_gradient,
        init=options.init,
        dtype=_dtype(options),
    )


def build_stages(
    options: Options, dataset: Dataset, seed: int, plan: dict[str, Any] | None = None
) -> tuple[Stage, ...]:
    """The network's stages with the initial values of one seed.

    ``plan`` holds cut and costs that were measured before, for ``--costs measured``.
    """
    assert options.width is not None
    assert options.batch_size is not None
    key = jax.random.key(seed)
    extra = {"shortcut": options.shortcut} if options.model.startswith("resnet") else {}
    blocks = build_model(
        options.model,
        dataset.num_classes,
        width=options.width,
        image_shape=dataset.image_shape,
        init=options.init,
        dtype=_dtype(options),
        rngs=nnx.Rngs(jax.random.fold_in(key, 0)),
        **extra,
    )
    if options.stages > len(blocks) - 1:
        raise RunError(
            f"--stages {options.stages} is too many: {options.model} has {len(blocks) - 1} blocks that can be cut"
        )
    cut: str | Sequence[int] = options.cut
    if options.cut == "paper":
        if options.stages != 4:
            raise RunError(f"--cut paper is defined for 4 stages, got --stages {options.stages}; use auto or even")
        cut = paper_cut(options.model)
    elif options.cut not in ("auto", "even"):
        cut = integers(options.cut, "--cut") or ()
    views = 2 if options.augment == "strong" else 1
    example = jax.ShapeDtypeStruct((options.batch_size * views, *dataset.image_shape), _dtype(options) or jnp.float32)
    rngs = nnx.Rngs(jax.random.fold_in(key, 1))
    objective = objective_of(options)

    def stages(cut: str | Sequence[int], costs: str = "estimate") -> tuple[Stage, ...]:
        return decouple(blocks, options.stages, objective, example, rngs, cut=cut, costs=costs)

    if options.costs == "estimate":
        return stages(cut)
    if plan is None:  # times differ from one process to the next and from one start to the next
        plan = processes.decided_by_first(lambda: _plan(stages(cut, "measured")))
    positions, costs, loss_costs = plan["cut"], plan["costs"], plan["loss_costs"]
    return tuple(
        dataclasses.replace(stage, cost=cost, loss_cost=loss_cost)
        for stage, cost, loss_cost in zip(stages(positions), costs, loss_costs, strict=True)
    )


def _plan(stages: Sequence[Stage]) -> dict[str, Any]:
    """The cut and the costs on which the placement rests."""
    return {
        "cut": [stage.blocks[0] for stage in stages[1:]],
        "costs": [stage.cost for stage in stages],
        "loss_costs": [stage.loss_cost for stage in stages],
    }


def _devices(options: Options) -> list[jax.Device]:
    """As many devices as asked for, the same number of every process."""
    devices = jax.devices()
    if options.devices is None:
        return devices
    if options.devices > len(devices):
        raise RunError(f"--devices {options.devices} is more than the {len(devices)} there are")
    each, left = divmod(options.devices, jax.process_count())
    if left:
        raise RunError(f"--devices {options.devices} can't be shared by {jax.process_count()} processes equally")
    by_process: dict[int, list[jax.Device]] = {}
    for device in devices:
        by_process.setdefault(device.process_index, []).append(device)
    return [device for group in by_process.values() for device in group[:each]]


def build_pipeline(
    options: Options,
    dataset: Dataset,
    seed: int,
    total_steps: int,
    steps_per_epoch: int,
    plan: dict[str, Any] | None = None,
) -> Pipeline:
    """The stages of one seed on their devices, with optimizer and augmentation."""
    schedule = _schedule(options, total_steps, steps_per_epoch)
    optimizer = build_optimizer(options.optimizer, schedule)
    dtype = _dtype(options) or jnp.float32
    assert options.augment is not None
    return Pipeline(
        build_stages(options, dataset, seed, plan),
        optimizer,
        _devices(options),
        data_parallel=options.data_parallel,
        across_hosts=options.across_hosts,
        fuse=options.fuse,
        micro_batches=(options.micro_batches or 4) if options.method == "gpipe" else 1,
        remat=options.remat,
        prepare=make_augment(options.augment, mean=dataset.mean, std=dataset.std, dtype=dtype),
        prepare_eval=lambda images: normalise(images, dataset.mean, dataset.std, dtype),
        key=jax.random.fold_in(jax.random.key(seed), 2),
        max_in_flight=options.max_in_flight,
    )


def _schedule(options: Options, total_steps: int, steps_per_epoch: int) -> Any:
    every = steps_per_epoch if options.lr_every == "epoch" else 1
    return cosine_schedule(options.lr, options.end_lr, total_steps, every)


def _dtype(options: Options) -> Any:
    return jnp.bfloat16 if options.precision == "bfloat16" else None


def _configure_jax(options: Options) -> None:
    """Matrix precision (float32 means float32 on a GPU too) and the persistent compilation cache."""
    precision = {"float32": "highest", "tf32": "tensorfloat32", "bfloat16": "default"}[options.precision]
    jax.config.update("jax_default_matmul_precision", precision)
    cache = (options.cache_dir or Path("~/.cache/scpl_jax")).expanduser() / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _load(options: Options) -> Dataset:
    dataset = load(
        options.dataset, data_dir=options.data_dir, cache_dir=options.cache_dir, image_size=options.image_size
    )
    dataset = limit(dataset, options.limit_train, options.limit_test)
    if options.label_noise:
        dataset = add_label_noise(dataset, options.label_noise, options.seed)
    return dataset


def _config(options: Options, asked: Options, dataset: Dataset, pipeline: Pipeline) -> dict[str, Any]:
    """What it takes to repeat the run, and what was chosen for the user."""
    return {
        "options": to_json(asked),
        "resolved": to_json(options),
        "command": ["python", "-m", "scpl_jax.experiments.cifar", *sys.argv[1:]],
        "dataset": dataset.name,
        "dataset_source": dataset.source,
        "train_examples": len(dataset.train_images),
        "test_examples": len(dataset.test_images),
        "num_classes": dataset.num_classes,
        "stages": [
            {
                "blocks": list(stage.blocks),
                "devices": [str(device) for device in mesh.devices.flat],
                "parameters": stage.num_parameters,
                "share_of_cost": stage.cost / sum(s.cost for s in pipeline.stages),
                "share_of_local_loss": stage.loss_cost / stage.cost,
            }
            for stage, mesh in zip(pipeline.stages, pipeline.meshes, strict=True)
        ],
        "plan": _plan(pipeline.stages),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("scpl-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_memory_bytes() -> int:
    """Peak memory in use: of the fullest device where the backend tells, else the process's resident size."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak]
    if known:
        return max(known)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say(text: str) -> None:
    """Print in the first process of a run only."""
    if processes.is_first():
        print(text, flush=True)


def names(mesh: jax.sharding.Mesh) -> str:
    """The devices of a sub-mesh, for people."""
    return " ".join(str(device) for device in mesh.devices.flat)


def _describe(options: Options, dataset: Dataset, pipeline: Pipeline) -> None:
    if not processes.is_first():
        return
    if dataset.note:
        print(dataset.note)
    print(
        f"{options.method}, {options.model} x {options.width:g} on {dataset.name} "
        f"({len(dataset.train_images)} train, {len(dataset.test_images)} test), {options.epochs} epochs, "
        f"batch {options.batch_size}, augmentation {options.augment}, {options.precision}"
    )
    total = sum(stage.cost for stage in pipeline.stages)
    for stage, mesh in zip(pipeline.stages, pipeline.meshes, strict=True):
        first, last = stage.blocks[0], stage.blocks[1] - 1
        blocks = f"block {first}" if first == last else f"blocks {first} to {last}"
        print(
            f"  stage {stage.index}: {blocks} on {names(mesh)}, {stage.num_parameters:,} parameters, "
            f"{stage.cost / total:.0%} of the estimated cost, its local loss {stage.loss_cost / stage.cost:.0%} of it"
        )
    sys.stdout.flush()


def _train_seed(
    options: Options,
    dataset: Dataset,
    pipeline: Pipeline,
    seed: int,
    directory: RunDirectory,
    interrupt: Interrupt,
) -> tuple[Result | None, str | None]:
    """Train one seed; (its result or None if interrupted, why the last save failed or None)."""
    assert options.epochs is not None
    assert options.batch_size is not None
    steps_per_epoch = len(dataset.train_images) // options.batch_size
    plan = Plan(
        seed=seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        schedule=_schedule(options, options.epochs * steps_per_epoch, steps_per_epoch),
        save_every=options.save_every,
        norms_every=options.norms_every if options.tensorboard else None,
        profile=directory.path / "profile" / str(jax.process_index()) if options.profile else None,
    )
    store = CheckpointStore(directory.checkpoints / f"seed-{seed}", options.keep)
    reporter = Reporter(directory.path / "tensorboard" / f"seed-{seed}" if options.tensorboard else None)

    def on_first_step() -> None:
        say(
            f"first step {time.perf_counter() - _STARTED:.1f} s after the start, "
            f"{pipeline.compile_seconds:.1f} s of them to compile"
        )

    try:
        result = train(pipeline, dataset, plan, store, directory, reporter, interrupt, on_first_step=on_first_step)
    finally:
        reporter.close()
        store.close()
    return result, store.failed


def _summary(options: Options, dataset: Dataset, pipeline: Pipeline, per_run: list[dict[str, Any]]) -> dict[str, Any]:
    """The contents of ``results.json``."""
    accuracies = [one["test_accuracy"] for one in per_run]
    peaks = processes.gather(peak_memory_bytes())
    best = max(per_run, key=lambda one: one["best_test_accuracy"])
    results: dict[str, Any] = {
        "dataset": dataset.name,
        "dataset_source": dataset.source,
        "model": options.model,
        "width": options.width,
        "method": options.method,
        "stages": len(pipeline.stages),
        "seed": options.seed,
        "runs": options.runs,
        "epochs": options.epochs,
        "test_accuracy": statistics.fmean(accuracies),
        "best_test_accuracy": best["best_test_accuracy"],
        "best_epoch": best["best_epoch"],
        "images_per_second": statistics.fmean(one["images_per_second"] for one in per_run),
        "peak_memory_bytes": max(peaks),
        "peak_memory_bytes_per_process": peaks,
        "devices": sorted({str(device) for mesh in pipeline.meshes for device in mesh.devices.flat}),
        "device_kind": pipeline.meshes[0].devices.flat[0].device_kind,
        "versions": versions(),
        "seconds": sum(one["seconds"] for one in per_run),
    }
    if options.runs > 1:
        results["test_accuracy_std"] = statistics.stdev(accuracies)
        results["per_run"] = per_run
    return results


def main(arguments: Sequence[str]) -> int:
    """Run the experiment; returns the exit status."""
    asked, config = parse(arguments, "cifar")
    assert asked.out_dir is not None
    _configure_jax(asked)
    dataset = _load(asked)
    options = resolve(asked, dataset)
    assert options.epochs is not None
    assert options.batch_size is not None
    if options.batch_size > len(dataset.train_images):
        raise RunError(
            f"--batch-size {options.batch_size} is larger than the {len(dataset.train_images)} training images"
        )
    if config is not None and (config["dataset"], config["dataset_source"]) != (dataset.name, dataset.source):
        raise RunError(
            f"the run to be resumed used {config['dataset']} ({config['dataset_source']}), now there is "
            f"{dataset.name} ({dataset.source}); give the same --data-dir"
        )
    steps_per_epoch = len(dataset.train_images) // options.batch_size
    total_steps = options.epochs * steps_per_epoch
    plan = None if config is None else config["plan"]
    pipeline = build_pipeline(options, dataset, options.seed, total_steps, steps_per_epoch, plan)
    plan = _plan(pipeline.stages)
    directory = RunDirectory(asked.out_dir, writes=processes.is_first())
    if directory.complete:
        say(f"the run in {asked.out_dir} is complete, there is nothing left to do")
        return 0
    if config is None:
        directory.write_config(_config(options, asked, dataset, pipeline))
    _describe(options, dataset, pipeline)

    per_run: list[dict[str, Any]] = []
    failed: str | None = None
    with Interrupt() as interrupt:
        for index in range(options.runs):
            seed = options.seed + index
            if (finished := directory.finished_run(seed)) is not None:
                per_run.append(finished)
                continue
            if index:
                pipeline = build_pipeline(options, dataset, seed, total_steps, steps_per_epoch, plan)
            result, failure = _train_seed(options, dataset, pipeline, seed, directory, interrupt)
            failed = failure or failed
            if result is None:
                say(
                    f"\nstopped and saved; continue with: python -m scpl_jax.experiments.cifar "
                    f"--out-dir {asked.out_dir} --resume"
                )
                return interrupt.exit_status
            per_run.append({"seed": seed, **dataclasses.asdict(result)})
            directory.finish_run(seed, per_run[-1])
    results = _summary(options, dataset, pipeline, per_run)
    directory.write_results(results)
    spread = f" +- {results['test_accuracy_std']:.4f} over {options.runs} runs" if options.runs > 1 else ""
    say(f"test accuracy {results['test_accuracy']:.4f}{spread}; {asked.out_dir}/results.json")
    if failed is not None:
        print(f"error: a checkpoint could not be saved ({failed}); the results are whole", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
