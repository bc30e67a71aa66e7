"""Train one network from a seed: epochs, evaluation, checkpoints. Reads top to bottom."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from scpl_jax.data import Examples
from scpl_jax.pipeline import Pipeline
from scpl_jax.pipeline.exits import StopRule
from scpl_jax.training.bad_numbers import SkipWatch, stop_run
from scpl_jax.training.checkpoints import CheckpointStore, Progress
from scpl_jax.training.interrupt import Agreement, Interrupt
from scpl_jax.training.reporting import Reporter
from scpl_jax.training.run_dir import RunDirectory

# With more classes than this a confusion matrix is too large to keep.
_MOST_CLASSES = 200


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one training run does, beyond network and data.

    Attributes:
      seed: of the order of the data.
      epochs: number of epochs.
      batch_size: source examples a batch.
      schedule: learning rate by step, a scalar or one for each stage; only reported, the optimizers have their own.
      save_every: steps between checkpoints; None for every epoch.
      norms_every: steps between gradient norms in TensorBoard; None for never.
      profile: directory for a trace of ten steps by the JAX profiler, or None.
      rules: when an example may stop at an early exit, for the evaluation.
      max_skipped: so many updates in a row that a stage left out for bad numbers end the run; None for no limit.
      joins: the epoch from which each stage takes part in training, ascending from 1; none: all do from the start.
    """

    seed: int
    epochs: int
    batch_size: int
    schedule: optax.Schedule
    save_every: int | None = None
    norms_every: int | None = None
    profile: Path | None = None
    rules: tuple[StopRule, ...] = ()
    joins: tuple[int, ...] = ()
    max_skipped: int | None = 10


@dataclasses.dataclass(frozen=True)
class Result:
    """What one training run gave.

    Attributes:
      test_accuracy: of the last epoch, a fraction: the figure to quote.
      best_test_accuracy: of the best epoch; where that was chosen by it, only to compare with papers that report the
        best.
      best_epoch: the epoch of the best validation accuracy, without validation examples of the best test accuracy.
      examples_per_second: source examples trained on per second of training, evaluation left out.
      seconds: training time, evaluation left out.
      validation_accuracy: of the last epoch; None without validation examples.
      best_validation_accuracy: of the best epoch, or None.
    """

    test_accuracy: float
    best_test_accuracy: float
    best_epoch: int
    examples_per_second: float
    seconds: float
    validation_accuracy: float | None = None
    best_validation_accuracy: float | None = None


def train(
    pipeline: Pipeline,
    dataset: Examples,
    plan: Plan,
    store: CheckpointStore,
    directory: RunDirectory,
    reporter: Reporter,
    interrupt: Interrupt,
    *,
    validation: Examples | None = None,
    on_first_step: Callable[[], None] = lambda: None,
    after_step: Callable[[int], None] = lambda done: None,
) -> Result | None:
    """Train from the newest checkpoint, or from the start, to the last epoch.

    Args:
      pipeline: the stages; its states are overwritten by the checkpoint, if there is one.
      dataset: training and test examples.
      plan: epochs, batch size and so on.
      store: where checkpoints are kept.
      directory: where ``metrics.jsonl`` is written.
      reporter: what shows the progress.
      interrupt: tells when to stop.
      validation: a data set by whose test examples the best epoch is chosen, as :func:`scpl_jax.data.hold_out` gives
        it; None: by those of ``dataset``.
      on_first_step: called once, when the first step of this session is done.
      after_step: called when a step was dispatched, with the number of steps of this session.

    Returns:
      The result; None if ``interrupt`` stopped the run, which is then saved.

    Raises:
      BadNumbersError: a stage left out too many updates in a row; the run is saved too, and the batch written aside.
    """
    progress = store.restore(pipeline) or Progress()
    restored_step = pipeline.step
    # The last step whose line the checkpoint knows of: an unfinished epoch has none yet.
    directory.keep_metrics(plan.seed, restored_step if progress.batch == 0 else restored_step - 1)
    steps_per_epoch = len(dataset.train_labels) // plan.batch_size
    # Compiled now, so that the first epoch's speed is that of training.
    for shapes in dataset.shapes(plan.batch_size):
        pipeline.compile(*shapes)
    stop = Agreement(interrupt, pipeline.max_in_flight)
    watch = SkipWatch(plan.max_skipped, steps_per_epoch)

    def look_for_skips() -> None:
        skip = watch.look(pipeline.take_skipped())
        if skip is not None and stop.cause is None:
            stop.ask([skip.step, skip.stage])

    def save() -> None:
        directory.flush_metrics()
        store.save(pipeline, progress, directory.failed)

    def end_early() -> None:
        """End a run that was asked to stop and is being saved."""
        reporter.end_epoch()
        store.wait()
        if stop.cause is not None:
            step, stage = stop.cause
            stop_run(step, stage, dataset, plan.seed, plan.batch_size, directory)

    while progress.epoch <= plan.epochs:
        if plan.joins:
            pipeline.active = sum(join <= progress.epoch for join in plan.joins)
        left = (plan.epochs - progress.epoch + 1) * steps_per_epoch - progress.batch
        reporter.start_epoch(progress.epoch, plan.epochs, steps_per_epoch, progress.batch, plan.batch_size, left)
        began = time.perf_counter() - progress.epoch_seconds
        order = {"seed": plan.seed, "epoch": progress.epoch, "start": progress.batch}
        for batch in dataset.train_batches(plan.batch_size, **order):
            with_norms = plan.norms_every is not None and pipeline.step % plan.norms_every == 0
            _profile(plan, pipeline, pipeline.step - restored_step)
            metrics = pipeline.train_step(*batch, with_norms=with_norms)
            if pipeline.step == restored_step + 1:
                pipeline.wait()
                on_first_step()
            reporter.after_step(pipeline.step, metrics, with_norms)
            after_step(pipeline.step - restored_step)
            look_for_skips()
            progress.batch += 1
            due = plan.save_every is not None and pipeline.step % plan.save_every == 0
            stopping = stop.reached(pipeline.step)
            if stopping or (due and progress.batch < steps_per_epoch):
                pipeline.wait()
                progress.epoch_seconds = time.perf_counter() - began
                save()
            if stopping:
                end_early()
                return None
        pipeline.wait()
        look_for_skips()
        progress.epoch_seconds = time.perf_counter() - began
        reporter.end_epoch()

        evaluation = _evaluate(pipeline, dataset, plan, interrupt)
        validated = None if validation is None else _evaluate(pipeline, validation, plan, interrupt)
        if evaluation is None or (validation is not None and validated is None):
            save()
            end_early()
            return None
        line = _line(pipeline, plan, progress, evaluation, steps_per_epoch, dataset.unit)
        if validated is not None:
            line["validation_accuracy"] = validated["accuracy"]
        directory.append_metrics(line)
        reporter.after_epoch(line, plan.epochs)
        pipeline.reset_totals()
        progress = _next_epoch(progress, line["test_accuracy"], line.get("validation_accuracy"))
        ends = progress.epoch > plan.epochs
        stopping = stop.reached(pipeline.step)
        if plan.save_every is None or ends or pipeline.step % plan.save_every == 0 or stopping:
            save()
        if stopping and not ends:
            end_early()
            return None

    store.wait()
    examples = plan.epochs * steps_per_epoch * plan.batch_size
    rate = examples / progress.seconds if progress.seconds else 0.0
    accuracies = (progress.last_accuracy, progress.best_accuracy, progress.best_epoch)
    return Result(*accuracies, rate, progress.seconds, progress.last_validation, progress.best_validation)


def _profile(plan: Plan, pipeline: Pipeline, done: int) -> None:
    """Trace steps 3 to 12 of this session: the first ones are not typical."""
    if plan.profile is not None and done == 3:
        pipeline.wait()
        jax.profiler.start_trace(str(plan.profile))
    if plan.profile is not None and done == 13:
        pipeline.wait()
        jax.profiler.stop_trace()


def _evaluate(pipeline: Pipeline, dataset: Examples, plan: Plan, interrupt: Interrupt) -> dict[str, Any] | None:
    """Accuracy over the data set's test examples; None if the run was asked to stop meanwhile."""

    def until_interrupted() -> Any:
        for batch in dataset.every("test", plan.batch_size):
            if alone and interrupt.received is not None:
                return
            yield batch

    # Several processes would have to agree in the middle of an evaluation; they finish it.
    alone = jax.process_count() == 1
    if alone and interrupt.received is not None:
        return None
    evaluation = pipeline.evaluate(until_interrupted(), plan.rules)
    return None if alone and interrupt.received is not None else evaluation


def _line(
    pipeline: Pipeline, plan: Plan, progress: Progress, evaluation: dict[str, Any], steps_per_epoch: int, unit: str
) -> dict[str, Any]:
    """One line of ``metrics.jsonl``."""
    totals = pipeline.totals()
    last = totals[-1]
    line: dict[str, Any] = {
        "seed": plan.seed,
        "epoch": progress.epoch,
        "step": pipeline.step,
        "learning_rate": np.asarray(plan.schedule(pipeline.step - 1)).tolist(),
        "train_loss": [_mean(total, "loss") for total in totals if "loss" in total],
        "skipped_updates": [total["skipped"] for total in totals],
        "test_accuracy": evaluation["accuracy"],
        "test_loss": _finite(evaluation["loss"]),
        "train_seconds": progress.epoch_seconds,
        f"{unit}_per_second": steps_per_epoch * plan.batch_size / progress.epoch_seconds,
    }
    if progress.epoch == plan.epochs and len(evaluation["confusion"]) <= _MOST_CLASSES:
        line["confusion"] = evaluation["confusion"]
    if plan.joins:
        line["joined_stages"] = pipeline.active
    if "classifier_loss" in last:
        line["classifier_loss"] = _mean(last, "classifier_loss")
        line["train_accuracy"] = last["correct"] / last["examples"] if last["examples"] else None
    if len(evaluation["exits"]) > 1:
        line["exits"] = evaluation["exits"]
        line["early_stops"] = [
            {**dataclasses.asdict(rule), **stop} for rule, stop in zip(plan.rules, evaluation["stops"], strict=True)
        ]
    return line


def _mean(total: dict[str, float], name: str) -> float | None:
    """Mean over the batches of an epoch; None for a stage that has not joined yet."""
    return _finite(total[name] / total["batches"]) if total["batches"] else None


def _finite(value: float) -> float | None:
    """JSON has no NaN: a loss that is not a number is null there."""
    return value if np.isfinite(value) else None


def _next_epoch(progress: Progress, accuracy: float, validation: float | None) -> Progress:
    done = Progress(
        epoch=progress.epoch + 1,
        seconds=progress.seconds + progress.epoch_seconds,
        best_accuracy=accuracy,
        best_epoch=progress.epoch,
        last_accuracy=accuracy,
        best_validation=validation,
        last_validation=validation,
    )
    if progress.best_epoch and done.rating <= progress.best_rating:
        kept = ("best_accuracy", "best_epoch", "best_validation")
        return dataclasses.replace(done, **{name: getattr(progress, name) for name in kept})
    return done
