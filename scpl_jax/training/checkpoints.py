"""Checkpoints with Orbax: asynchronous, the last K and the best kept, restored to the bit."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from scpl_jax.pipeline import Pipeline
from scpl_jax.pipeline.placement import replicated
from scpl_jax.stages import StageState
from scpl_jax.training.errors import RunError

_LOG = logging.getLogger(__name__)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_arrays(state: StageState) -> dict[str, jax.Array]:
    """A stage's state as a flat dict, path -> array; random keys as their raw numbers.

    The arrays are copies on the device: the next step may then donate the originals while these are being written.
    """
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): jax.random.key_data(leaf)
        if _is_key(leaf)
        else jnp.copy(leaf)
        for path, leaf in leaves
    }


def from_arrays(arrays: dict[str, jax.Array], like: StageState) -> StageState:
    """The inverse of :func:`to_arrays`, in the structure of ``like``."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for path, leaf in paths:
        value = arrays[jax.tree_util.keystr(path, simple=True, separator="/")]
        leaves.append(jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else value)
    return jax.tree.unflatten(structure, leaves)


def describe(state: StageState) -> dict[str, str]:
    """Names, dtypes and shapes of a state's arrays; saved beside them, so that another network's are told apart."""
    return {name: f"{x.dtype}{list(x.shape)}" for name, x in jax.eval_shape(to_arrays, state).items()}


def _check_same(saved: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """Refuse another network's arrays before anything is read."""
    if len(saved) != len(expected):
        raise RunError(f"the checkpoint is of another network: it has {len(saved)} stages, this one {len(expected)}")
    for index, (there, here) in enumerate(zip(saved, expected, strict=True)):
        for name in sorted(set(there) | set(here)):
            if there.get(name) != here.get(name):
                raise RunError(
                    f"the checkpoint is of another network: in stage {index}, {name} is {there.get(name, 'missing')} "
                    f"there and {here.get(name, 'missing')} here"
                )


@dataclasses.dataclass
class Progress:
    """Where a run stands; saved beside the arrays.

    Attributes:
      epoch: epoch under way, from 1.
      batch: batches of it that are done; equal to the batches of an epoch: only its evaluation is missing.
      seconds: training time so far.
      epoch_seconds: training time of this epoch so far.
      best_accuracy: best test accuracy so far, a fraction, or -1.
      best_epoch: its epoch, or 0.
      last_accuracy: test accuracy of the last finished epoch, or -1.
    """

    epoch: int = 1
    batch: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    last_accuracy: float = -1.0


class CheckpointStore:
    """The checkpoints of one training run.

    Args:
      directory: where they lie; created if need be.
      keep: how many of the newest are kept; the one with the best test accuracy is kept besides.
    """

    def __init__(self, directory: Path, keep: int = 2):
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as managers

        self._ocp = ocp
        self.failed: str | None = None
        policy = managers.AnyPreservationPolicy(
            [
                managers.LatestN(keep),
                # of equals the first, as in the results
                managers.BestN(
                    get_metric_fn=lambda metrics: metrics["test_accuracy"] - 1e-9 * metrics["epoch"],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
        self._manager = ocp.CheckpointManager(directory.absolute(), options=options)

    def save(self, pipeline: Pipeline, progress: Progress) -> None:
        """Save in the background. A failure is logged and kept in ``failed``; what was saved before stays whole."""
        save = self._ocp.args
        items = {f"stage_{index:03d}": save.PyTreeSave(to_arrays(state)) for index, state in enumerate(pipeline.states)}
        items["progress"] = save.JsonSave(
            {
                "step": pipeline.step,
                "progress": dataclasses.asdict(progress),
                "stages": [describe(state) for state in pipeline.states],
            }
        )
        # Without a finished epoch there is no accuracy; orbax takes no metrics for such a checkpoint.
        metrics = None
        if progress.batch == 0 and progress.epoch > 1:
            metrics = {"test_accuracy": progress.last_accuracy, "epoch": progress.epoch - 1}
        try:
            if pipeline.step in self._manager.all_steps():  # the step is there already, perhaps without its evaluation
                self._manager.wait_until_finished()
                self._manager.delete(pipeline.step)
            self._manager.save(pipeline.step, args=save.Composite(**items), metrics=metrics)
        except OSError as error:
            self._report(error)

    def _report(self, error: BaseException) -> None:
        self.failed = str(error).splitlines()[0] if str(error) else type(error).__name__
        _LOG.error(
            "a checkpoint could not be saved (%s); training goes on, older checkpoints are intact",
            self.failed,
        )

    def wait(self) -> None:
        """Wait until everything is written."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            self._report(error)

    def close(self) -> None:
        """Wait and release the resources."""
        self.wait()
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, or None."""
        step: int | None = self._manager.latest_step()
        return step

    def restore(self, pipeline: Pipeline) -> Progress:
        """Put the newest checkpoint into the pipeline, on the pipeline's own devices.

        Raises:
          RunError: there is none, or it belongs to another network.
        """
        step = self.latest
        if step is None:
            raise RunError("there is no checkpoint to restore")
        restore = self._ocp.args
        try:
            saved = self._manager.restore(step, args=restore.Composite(progress=restore.JsonRestore()))["progress"]
            _check_same(saved["stages"], [describe(state) for state in pipeline.states])
            items = {}
            for index, (state, mesh) in enumerate(zip(pipeline.states, pipeline.meshes, strict=True)):
                sharding = replicated(mesh)
                abstract = {
                    name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)
                    for name, array in jax.eval_shape(to_arrays, state).items()
                }
                arguments = self._ocp.checkpoint_utils.construct_restore_args(abstract)
                items[f"stage_{index:03d}"] = restore.PyTreeRestore(abstract, restore_args=arguments)
            loaded = self._manager.restore(step, args=restore.Composite(**items))
        except (OSError, KeyError, TypeError) as error:
            raise RunError(f"the checkpoint of step {step} can't be read ({str(error).splitlines()[0]})") from error
        pipeline.states = tuple(
            from_arrays(loaded[f"stage_{index:03d}"], state) for index, state in enumerate(pipeline.states)
        )
        pipeline.step = saved["step"]
        return Progress(**saved["progress"])
