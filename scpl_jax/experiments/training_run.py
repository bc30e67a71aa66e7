"""A training run from its command line to its results, whatever is trained on."""

import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from scpl_jax import training
from scpl_jax.analysis.figures import attempt
from scpl_jax.analysis.report_figures import draw_exits
from scpl_jax.cli.building import Task, build_pipeline, plan_of, schedule_of, stop_rules, with_library
from scpl_jax.cli.command_line import parse
from scpl_jax.cli.environment import device_peak_bytes, keep_compiled, process_peak_bytes, say, shell_line, versions
from scpl_jax.cli.methods import row_of
from scpl_jax.cli.option_types import as_options
from scpl_jax.cli.run_options import PRECISIONS, AnyOptions, AnyResolved, ResolvedOptions, RunOptions, to_json
from scpl_jax.data import Examples, add_label_noise, hold_out, limit
from scpl_jax.experiments.recording import Recording
from scpl_jax.pipeline import Pipeline, processes
from scpl_jax.training.writing import reason_of


def _config(
    name: str,
    options: ResolvedOptions,
    asked: RunOptions,
    dataset: Examples,
    validation: Examples | None,
    pipeline: Pipeline,
) -> dict[str, Any]:
    """What it takes to repeat the run, and what was chosen for the user."""
    return {
        "options": to_json(asked),
        "resolved": to_json(options),
        "command": ["python", "-m", f"scpl_jax.experiments.{name}", *sys.argv[1:]],
        "dataset": dataset.name,
        "dataset_source": dataset.source,
        "train_examples": len(dataset.train_labels),
        **({} if validation is None else {"validation_examples": len(validation.test_labels)}),
        "test_examples": len(dataset.test_labels),
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
        "plan": plan_of(pipeline.stages),
        "versions": versions(),
    }


def _describe(title: str, dataset: Examples, validation: Examples | None, pipeline: Pipeline) -> None:
    if not processes.is_first():
        return
    if dataset.note:
        print(as_options(dataset.note))
    print(title)
    if validation is not None:
        print(f"  {len(validation.test_labels)} more training {dataset.unit} are held out for validation")
    total = sum(stage.cost for stage in pipeline.stages)
    for stage, mesh in zip(pipeline.stages, pipeline.meshes, strict=True):
        first, last = stage.blocks[0], stage.blocks[1] - 1
        devices = " ".join(str(device) for device in mesh.devices.flat)
        blocks = f"block {first}" if first == last else f"blocks {first} to {last}"
        print(
            f"  stage {stage.index}: {blocks} on {devices}, {stage.num_parameters:,} parameters, "
            f"{stage.cost / total:.0%} of the estimated cost, its local loss {stage.loss_cost / stage.cost:.0%} of it"
        )
    for group in pipeline.groups:
        if len(group.stages) > 1:
            print(f"  stages {group.name} are one program")
    sys.stdout.flush()


def _train_seed(
    options: ResolvedOptions,
    dataset: Examples,
    validation: Examples | None,
    pipeline: Pipeline,
    seed: int,
    directory: training.RunDirectory,
    interrupt: training.Interrupt,
    started: float,
) -> tuple[training.Result | None, str | None]:
    """Train one seed; (its result or None if interrupted, why the last save failed or None)."""
    plan = training.Plan(
        seed=seed,
        epochs=options.epochs,
        batch_size=options.batch_size,
        schedule=schedule_of(options, dataset),
        save_every=options.save_every,
        norms_every=options.norms_every if options.tensorboard else None,
        profile=directory.path / "profile" / str(jax.process_index()) if options.profile else None,
        rules=tuple(stop_rules(options)),
        joins=row_of(options.method).joins(options),
        max_skipped=options.max_skipped or None,
    )
    store = training.CheckpointStore(directory.checkpoints / f"seed-{seed}", options.keep)
    board = directory.path / "tensorboard" / f"seed-{seed}" if options.tensorboard else None
    reporter = training.Reporter(board, unit=dataset.unit)

    def on_first_step() -> None:
        seconds = time.perf_counter() - started
        say(f"first step {seconds:.1f} s after the start, {pipeline.compile_seconds:.1f} s of them to compile")

    recording = Recording(pipeline, directory.path) if options.timeline else None
    try:
        result = training.train(
            pipeline,
            dataset,
            plan,
            store,
            directory,
            reporter,
            interrupt,
            validation=validation,
            on_first_step=on_first_step,
            after_step=(lambda done: None) if recording is None else recording.after_step,
        )
        if recording is not None:
            recording.finish()
    finally:
        reporter.close()
        store.close()
    return result, store.failed


def _after_training(
    options: ResolvedOptions, dataset: Examples, pipeline: Pipeline, seed: int, directory: training.RunDirectory
) -> dict[str, Any]:
    """What is known of the single stages of a trained network: their exits, or probes of their features."""
    last = processes.from_first(directory.last_metrics(seed))
    found = {name: last[name] for name in ("exits", "early_stops", "confusion") if name in last}
    count = options.probe_examples
    if count is None:
        count = 0 if "exits" in found else 2000
    if count:
        found["probes"] = training.probe_stages(pipeline, dataset, count, options.batch_size)
        for name, key in (("nearest neighbours", "neighbours_accuracy"), ("linear probe", "linear_accuracy")):
            say(f"{name} of stages 0 to {len(pipeline.stages) - 1}: " + _each(found["probes"], key))
    if "exits" in found:
        numbers = ", ".join(str(one["stage"]) for one in found["exits"])
        say(f"exits at stages {numbers}: {_each(found['exits'], 'accuracy')}")
        if all("joint_accuracy" in one for one in found["exits"]):  # an older run that is resumed has none
            say(f"by the mean of the probabilities up to there: {_each(found['exits'], 'joint_accuracy')}")
    return found


def _each(found: Sequence[dict[str, Any]], key: str) -> str:
    return " ".join(f"{one[key]:.4f}" for one in found)


def _mean_over_runs(lists: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Lists of the same length, one a run: the means of what was measured."""
    measured = ("accuracy", "joint_accuracy", "share", "neighbours_accuracy", "linear_accuracy")
    return [
        {
            **first,
            **{
                name: statistics.fmean(one[name] for one in same)
                for name in measured
                if all(name in one for one in same)
            },
        }
        for same in zip(*lists, strict=True)
        for first in same[:1]
    ]


def _summary(
    task: Task[Any, AnyResolved], options: AnyResolved, dataset: Any, pipeline: Pipeline, per_run: list[dict[str, Any]]
) -> dict[str, Any]:
    """The contents of ``results.json``."""
    rate = f"{dataset.unit}_per_second"
    speed = statistics.fmean(one[rate] for one in per_run)
    measured = [name for name in ("test_accuracy", "validation_accuracy") if name in per_run[0]]
    accuracies = {name: [one[name] for one in per_run] for name in measured}
    chosen_by = f"best_{measured[-1]}"
    peaks = processes.gather(device_peak_bytes() or process_peak_bytes())
    best = max(per_run, key=lambda one: one[chosen_by])
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
        **{name: statistics.fmean(each) for name, each in accuracies.items()},
        "best_test_accuracy": best["best_test_accuracy"],
        "best_epoch": best["best_epoch"],
        chosen_by: best[chosen_by],
        rate: speed,
        **task.measured(dataset, speed),
        "peak_memory_bytes": max(peaks),
        "peak_memory_bytes_per_process": peaks,
        "devices": sorted({str(device) for mesh in pipeline.meshes for device in mesh.devices.flat}),
        "device_kind": pipeline.meshes[0].devices.flat[0].device_kind,
        "versions": versions(),
        "seconds": sum(one["seconds"] for one in per_run),
    }
    for name in ("exits", "early_stops", "probes"):
        if all(name in one for one in per_run):
            results[name] = _mean_over_runs([one[name] for one in per_run])
    if all("confusion" in one for one in per_run):
        results["class_names"] = list(dataset.class_names)
        results["confusion"] = np.sum([one["confusion"] for one in per_run], axis=0).tolist()
    if options.runs > 1:
        results |= {f"{name}_std": statistics.stdev(each) for name, each in accuracies.items()}
        results["per_run"] = per_run
    return results


def train_task(task: Task[AnyOptions, AnyResolved], arguments: Sequence[str], started: float) -> int:
    """Run an experiment.

    Args:
      task: the kind of experiment.
      arguments: of its command line.
      started: when the program was started, by ``time.perf_counter``.

    Returns:
      The exit status.
    """
    asked, out_dir, config = parse(task.options, arguments, task.name)
    processes.decided_by_first(lambda: training.RunDirectory.check_free(out_dir))
    jax.config.update("jax_default_matmul_precision", PRECISIONS[asked.precision])
    keep_compiled(asked.cache_dir)
    dataset = limit(task.load(asked), asked.limit_train, asked.limit_test)
    validation = None
    if asked.validation:
        dataset, validation = hold_out(dataset, asked.validation)
    if asked.label_noise:
        dataset = add_label_noise(dataset, asked.label_noise, asked.seed)
    options = task.resolve(with_library(asked, dataset.name, config), dataset)
    if options.batch_size > len(dataset.train_labels):
        raise training.RunError(
            f"--batch-size {options.batch_size} is larger than the {len(dataset.train_labels)} training {dataset.unit}"
        )
    row_of(options.method).joins(options)  # refuses epochs that do not fit
    if config is not None and (config["dataset"], config["dataset_source"]) != (dataset.name, dataset.source):
        raise training.RunError(
            f"the run to be resumed used {config['dataset']} ({config['dataset_source']}), now there is "
            f"{dataset.name} ({dataset.source}); give the same --data-dir"
        )
    plan = None if config is None else config.get("plan")
    pipeline = build_pipeline(task, options, dataset, options.seed, plan)
    directory = training.RunDirectory(out_dir, writes=processes.is_first())
    with processes.entered_by_first(directory.lock):
        # Only now is it sure that nobody else has started a run here since the command line was read.
        there = processes.decided_by_first(lambda: training.RunDirectory.config_of(out_dir))
        if there != config:
            raise training.RunError(f"--out-dir {out_dir} holds another run by now; choose another directory")
        if directory.complete:
            say(f"the run in {out_dir} is complete, there is nothing left to do")
            return 0
        if config is None:
            directory.write_config(_config(task.name, options, asked, dataset, validation, pipeline))
        _describe(task.title(options, dataset), dataset, validation, pipeline)
        return _train_all(task, options, dataset, validation, pipeline, directory, started)


def _train_all(
    task: Task[Any, AnyResolved],
    options: AnyResolved,
    dataset: Any,
    validation: Any,
    pipeline: Pipeline,
    directory: training.RunDirectory,
    started: float,
) -> int:
    """Train every seed and write the results; the exit status."""
    plan = plan_of(pipeline.stages)
    per_run: list[dict[str, Any]] = []
    failed: str | None = None
    with training.Interrupt() as interrupt:
        for index in range(options.runs):
            seed = options.seed + index
            if (finished := directory.finished_run(seed)) is not None:
                per_run.append(finished)
                continue
            if index:
                pipeline = build_pipeline(task, options, dataset, seed, plan)
            result, failure = _train_seed(options, dataset, validation, pipeline, seed, directory, interrupt, started)
            failed = failure or failed
            if result is None:
                again = shell_line(f"scpl_jax.experiments.{task.name}", "--out-dir", directory.path, "--resume")
                say(f"\nstopped and saved; continue with: {again}")
                return interrupt.exit_status
            more = _after_training(options, dataset, pipeline, seed, directory)
            numbers = {name: value for name, value in dataclasses.asdict(result).items() if value is not None}
            numbers[f"{dataset.unit}_per_second"] = numbers.pop("examples_per_second")
            per_run.append({"seed": seed, **numbers, **more})
            # With a full disk the other seeds go on; results.json is tried at the end.
            with contextlib.suppress(OSError):
                directory.finish_run(seed, per_run[-1])
    results = _summary(task, options, dataset, pipeline, per_run)
    accuracy = ", ".join(
        f"{name.replace('_', ' ')} {results[name]:.4f}"
        + (f" +- {results[f'{name}_std']:.4f} over {options.runs} runs" if options.runs > 1 else "")
        for name in ("validation_accuracy", "test_accuracy")
        if name in results
    )
    try:
        _write_results(results, directory)
    except OSError as error:
        say(accuracy)
        print(
            f"error: the results could not be written to {directory.path} ({reason_of(error)}); with --resume they are "
            "written from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    say(f"{accuracy}; {directory.path}/results.json")
    if failed is not None:
        print(f"error: a checkpoint could not be saved ({failed}); the results are whole", file=sys.stderr)
        return 1
    return 0


def _write_results(results: dict[str, Any], directory: training.RunDirectory) -> None:
    """Write what a run leaves at its end; ``results.json`` marks it as complete, and only then figures are drawn."""
    if not processes.is_first():
        return
    directory.flush_metrics()
    if directory.failed is not None:
        raise OSError(directory.failed)
    directory.write_results(results)
    if "exits" in results:
        attempt("plots/exits.svg", _draw_exits, results, directory.path / "plots")


def _draw_exits(results: dict[str, Any], plots: Path) -> None:
    plots.mkdir(exist_ok=True)
    draw_exits(results["exits"], results["early_stops"], plots / "exits.svg")
