"""Updates that were left out because loss or gradient was not a finite number: said, counted, and when it is too much.

A stage by itself leaves such updates out (:func:`scpl_jax.stages.step.apply_gradient`); here is what the host makes of
it.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from scpl_jax.data import Examples
from scpl_jax.pipeline import processes
from scpl_jax.pipeline.whole_steps import Skip
from scpl_jax.training.run_dir import RunDirectory
from scpl_jax.training.run_error import RunError
from scpl_jax.training.writing import reason_of, whole_file

_LOG = logging.getLogger(__name__)
# More lines than this about one stage would hide everything else; metrics.jsonl has the counts.
_LINES = 10


class SkipWatch:
    """Says which updates were left out and notices too many in a row.

    Args:
      limit: so many in a row of one stage are too many; None for no limit.
      steps_per_epoch: batches of an epoch.

    Example:
      >>> watch = SkipWatch(limit=2, steps_per_epoch=10)
      >>> watch.look([Skip(step=11, stage=0, loss=1.0)])  # logs: stage 0 left out its update at step 12 (epoch 2, ...
      >>> watch.look([Skip(step=12, stage=0, loss=float("inf"))])
      Skip(step=12, stage=0, loss=inf)
    """

    def __init__(self, limit: int | None, steps_per_epoch: int):
        self._limit, self._steps_per_epoch = limit, steps_per_epoch
        self._rows: dict[int, tuple[int, int]] = {}  # stage -> (its last such step, how many in a row)
        self._counts: dict[int, int] = {}

    def look(self, skips: Iterable[Skip]) -> Skip | None:
        """Take updates that were left out, oldest first; the one that was too many, if one was."""
        for skip in skips:
            self._say(skip)
            last, row = self._rows.get(skip.stage, (-2, 0))
            row = row + 1 if skip.step == last + 1 else 1
            self._rows[skip.stage] = (skip.step, row)
            if row == self._limit:
                return skip
        return None

    def _say(self, skip: Skip) -> None:
        count = self._counts[skip.stage] = self._counts.get(skip.stage, 0) + 1
        if count > _LINES:
            return
        epoch, batch = divmod(skip.step, self._steps_per_epoch)
        of_gradient = skip.loss is None or np.isfinite(skip.loss)
        reason = "its gradient is not finite" if of_gradient else f"its loss is {skip.loss}"
        more = "; further ones of this stage are only counted, in metrics.jsonl" if count == _LINES else ""
        _LOG.warning(
            "stage %d left out its update at step %d (epoch %d, batch %d): %s%s",
            *(skip.stage, skip.step + 1, epoch + 1, batch + 1, reason, more),
        )


def _write_batch(path: Path, batch: tuple[Any, Any]) -> None:
    """Write a batch (inputs, an array or a dict of arrays; labels) as the data set gave it, before augmentation."""
    inputs, labels = batch
    named = {
        jax.tree_util.keystr(way, simple=True, separator="/") or "images": np.asarray(leaf)
        for way, leaf in jax.tree_util.tree_flatten_with_path(inputs)[0]
    }
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as file:
        np.savez_compressed(file, allow_pickle=False, labels=np.asarray(labels), **named)


class BadNumbersError(RunError):
    """A stage left out too many updates in a row; the run was saved."""


def stop_run(step: int, stage: int, dataset: Examples, seed: int, batch_size: int, directory: RunDirectory) -> NoReturn:
    """Write aside the batch of the update that was one too many, and end the run, which has been saved.

    Raises:
      BadNumbersError: always; it tells where the batch lies.
    """
    epoch, batch = divmod(step, len(dataset.train_labels) // batch_size)
    path = directory.path / "bad_batches" / f"seed-{seed}-step-{step + 1}.npz"
    kept = f"its batch is in {path}"
    if processes.is_first():
        try:
            _write_batch(path, next(iter(dataset.train_batches(batch_size, seed=seed, epoch=epoch + 1, start=batch))))
        except OSError as error:
            kept = f"its batch could not be written to {path} ({reason_of(error)})"
    raise BadNumbersError(
        f"stage {stage} left out too many updates in a row for loss or gradient that are not finite, the last one at "
        f"step {step + 1} (epoch {epoch + 1}, batch {batch + 1}); the run is saved, {kept}; look at the data, start "
        "again with a smaller `lr`, or go on with `resume` and a larger `max_skipped`"
    )
