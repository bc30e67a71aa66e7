"""Checkpoints with Orbax: asynchronous, the last K and the best kept, restored to the bit."""

import concurrent.futures
import dataclasses
import itertools
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scpl_jax.pipeline import Pipeline, processes
from scpl_jax.pipeline.compilation import abstract
from scpl_jax.pipeline.placement import is_local, replicated
from scpl_jax.pipeline.placement import processes as processes_of
from scpl_jax.pipeline.transfer import elsewhere, to_devices
from scpl_jax.stages import StageState
from scpl_jax.training import writing
from scpl_jax.training.run_error import RunError

_LOG = logging.getLogger(__name__)
# More bytes than what lists and describes a stage's arrays takes, and than an array takes on the disk besides its
# values (a folder, a description, a last block that is not full).
_BESIDES = 256 << 10
_BESIDES_ARRAY = 12 << 10


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _to_arrays(state: StageState) -> dict[str, jax.Array]:
    """A stage's state as a flat dict, path -> array on one device; random keys as their raw numbers."""
    # Copies on the device: the next step may then donate the originals while these are being written.
    return {_name(path): _copy(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer):
        leaf = leaf.addressable_shards[0].data  # a state is the same on every device of its stage
    return jnp.copy(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _from_arrays(arrays: dict[str, jax.Array], like: StageState) -> StageState:
    """The inverse of :func:`_to_arrays`, in the structure of ``like``."""
    paths, structure = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for path, leaf in paths:
        value = arrays[_name(path)]
        leaves.append(jax.random.wrap_key_data(value, impl=jax.random.key_impl(leaf)) if _is_key(leaf) else value)
    return jax.tree.unflatten(structure, leaves)


def describe(state: StageState) -> dict[str, str]:
    """Names, dtypes and shapes of a state's arrays; saved beside them, so that another network's are told apart."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        # Leaf by leaf: traced as a whole, each call would leave an entry in JAX's cache.
        one = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        one = jax.eval_shape(jax.random.key_data, one) if _is_key(leaf) else one
        found[_name(path)] = f"{one.dtype}{list(one.shape)}"
    return found


def _renamed(saved: dict[str, str], expected: dict[str, str]) -> dict[str, str]:
    """Names of a stage's arrays there -> here: earlier versions held local loss and classifier in lists."""
    now = {name: re.sub(r"(^|/)(loss|classifier)/0/", r"\1\2/", name, count=1) for name in set(saved) - set(expected)}
    return {name: now.get(name, name) for name in saved}


def _uncounted(saved: dict[str, str], expected: dict[str, str]) -> set[str]:
    """A stage's numbers of updates of batch norms that are missing; earlier versions did not count them."""
    ends = ("/mean/value", "/var/value")
    missing = {name for name in set(expected) - set(saved) if expected[name] == "int32[]"}
    norms = {name.removesuffix("/updates/value") for name in missing if name.endswith("/updates/value")}
    return {f"{norm}/updates/value" for norm in norms if all(norm + end in saved for end in ends)}


def _check_same(saved: list[dict[str, str]], expected: list[dict[str, str]]) -> list[set[str]]:
    """Refuse another network's arrays before anything is read; :func:`_uncounted` of each stage."""
    if len(saved) != len(expected):
        raise RunError(f"the checkpoint is of another network: it has {len(saved)} stages, this one {len(expected)}")
    uncounted = [_uncounted(there, here) for there, here in zip(saved, expected, strict=True)]
    for index, (there, here) in enumerate(zip(saved, expected, strict=True)):
        for name in sorted((set(there) | set(here)) - uncounted[index]):
            if there.get(name) != here.get(name):
                raise RunError(
                    f"the checkpoint is of another network: in stage {index}, {name} is {there.get(name, 'missing')} "
                    f"there and {here.get(name, 'missing')} here"
                )
    return uncounted


@dataclasses.dataclass
class Progress:
    """Where a run stands; saved beside the arrays.

    Attributes:
      epoch: epoch under way, from 1.
      batch: batches of it that are done; equal to the batches of an epoch: only its evaluation is missing.
      seconds: training time so far.
      epoch_seconds: training time of this epoch so far.
      best_accuracy: test accuracy of the best epoch so far, a fraction, or -1.
      best_epoch: the epoch that was best by :attr:`rating`, or 0.
      last_accuracy: test accuracy of the last finished epoch, or -1.
      best_validation: validation accuracy of the best epoch so far; None where nothing is held out.
      last_validation: that of the last finished epoch, or None.
    """

    epoch: int = 1
    batch: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best_accuracy: float = -1.0
    best_epoch: int = 0
    last_accuracy: float = -1.0
    best_validation: float | None = None
    last_validation: float | None = None

    @property
    def rating(self) -> float:
        """What the last finished epoch is judged by: its validation accuracy, without one its test accuracy."""
        return self.last_accuracy if self.last_validation is None else self.last_validation

    @property
    def best_rating(self) -> float:
        """The same of the best epoch."""
        return self.best_accuracy if self.best_validation is None else self.best_validation

    def to_json(self) -> dict[str, Any]:
        """Without what there is not, so that checkpoints of runs that hold nothing out stay as they always were."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


class CheckpointStore:
    """The checkpoints of one training run: a folder a step, in it a folder a stage, ``progress.json``, ``SHA256SUMS``.

    Every process writes the stages it has; a stage that lies on several processes is written by the first of them. A
    step's folder gets its name only when all of it is written, so a reader never finds a part. Several processes need a
    directory that all of them see. A folder whose files are not as they were written is never restored.

    Args:
      directory: where they lie; created if need be.
      keep: how many of the newest are kept; the best one by :attr:`Progress.rating` is kept besides.

    Attributes:
      failed: why the last save that failed did, or None.

    Raises:
      RunError: the directory can't be made or tidied.
    """

    def __init__(self, directory: Path, keep: int = 2):
        from scpl_jax.training.orbax_files import ArrayFolders  # Orbax takes a second to import

        self._folders = ArrayFolders()
        self.failed: str | None = None
        self._root, self._keep = directory.absolute(), keep
        self._pool = concurrent.futures.ThreadPoolExecutor(max_workers=1)
        self._job: concurrent.futures.Future[None] | None = None
        processes.decided_by_first(self._prepare)  # nobody looks before it is tidy

    def _prepare(self) -> None:
        """Make the directory; finish or undo what a killed run left half done."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            for folder in self._root.glob("*.old"):
                if (self._root / folder.stem).exists():
                    shutil.rmtree(folder)
                else:
                    folder.rename(self._root / folder.stem)
            for folder in self._root.glob("*.partial"):
                shutil.rmtree(folder)
        except OSError as error:
            raise RunError(
                f"{self._root} can't be prepared for checkpoints ({writing.reason_of(error)}); give an `out_dir` that "
                "can be written"
            ) from error

    def _steps(self) -> list[int]:
        return sorted(int(folder.name) for folder in self._root.iterdir() if folder.name.isdigit())

    def save(self, pipeline: Pipeline, progress: Progress, problem: str | None = None) -> None:
        """Save in the background. A failure is logged and kept in ``failed``; what was saved before stays whole.

        Args:
          pipeline: the stages with their states.
          progress: where the run stands.
          problem: why this process must not save now, if so: a checkpoint vouches for the metrics up to its step, so it
            must not be there without them.

        Raises:
          PipelineBrokenError: the pipeline's states are lost.
        """
        pipeline.check_whole()
        self.wait()
        own = {
            index: _to_arrays(state)
            for index, (state, mesh) in enumerate(zip(pipeline.states, pipeline.meshes, strict=True))
            if processes_of(mesh)[0] == jax.process_index()
        }
        record = {
            "step": pipeline.step,
            "progress": progress.to_json(),
            "stages": [describe(state) for state in pipeline.states],
        }
        self._job = self._pool.submit(self._write, pipeline, own, record, problem)

    def _write(
        self, pipeline: Pipeline, own: dict[int, dict[str, jax.Array]], record: dict[str, Any], problem: str | None
    ) -> None:
        step = record["step"]
        partial, final, old = (self._root / f"{step}{suffix}" for suffix in (".partial", "", ".old"))
        sums: dict[str, str] = {}
        try:
            if problem is None:
                partial.mkdir(exist_ok=True)
                sums = self._write_stages(partial, own)
        except (OSError, ValueError, RuntimeError) as error:
            problem = writing.reason_of(error)
        answers = processes.gather([problem, sums], "saves")
        problem = next((told for told, _ in answers if told is not None), None)
        if processes.is_first() and problem is None:
            try:
                writing.write_json(partial / "progress.json", record)
                sums = {path: digest for _, some in answers for path, digest in some.items()}
                writing.write_sums(partial, sums | writing.sums_of(partial, partial / "progress.json"))
                if final.exists():  # the step was saved already, perhaps without its evaluation
                    final.rename(old)
                partial.rename(final)
                writing.sync_folder(self._root)
                shutil.rmtree(old, ignore_errors=True)
                self._prune()
            except OSError as error:
                problem = writing.reason_of(error)
        if problem is None:
            pipeline.saved = f"step {step} in {self._root}"
        else:
            self.failed = problem
            _LOG.error("a checkpoint could not be saved (%s); training goes on, older checkpoints are intact", problem)
            if processes.is_first():
                shutil.rmtree(partial, ignore_errors=True)

    def _write_stages(self, partial: Path, own: dict[int, dict[str, jax.Array]]) -> dict[str, str]:
        """Write the stages of this process; the checksums of their files."""
        sums: dict[str, str] = {}
        # Of a full disk Orbax's threads tell in pages of tracebacks, and go on writing for a while.
        sizes = (_BESIDES + sum(array.nbytes + _BESIDES_ARRAY for array in one.values()) for one in own.values())
        writing.check_space(partial, sum(sizes))
        for index, arrays in own.items():
            values = {key: np.asarray(array) for key, array in arrays.items()}
            folder = partial / f"stage_{index:03d}"
            self._folders.write(folder, values)
            sums |= writing.sums_of(partial, folder)
        return sums

    def _prune(self) -> None:
        """Remove all but the newest and the best; of equally good ones the first counts, as in the results."""
        steps = self._steps()
        rated = []
        for step in steps:
            try:
                progress = Progress(**writing.read_json(self._root / str(step) / "progress.json")["progress"])
            except (RunError, KeyError, TypeError):
                continue  # damaged meanwhile; the newest ones are looked at when they are restored
            if progress.batch == 0 and progress.epoch > 1:  # without a finished epoch there is no accuracy
                rated.append((-progress.rating, step))
        best = {min(rated)[1]} if rated else set()
        for step in set(steps[: -self._keep]) - best:
            shutil.rmtree(self._root / str(step))

    def wait(self) -> None:
        """Wait until everything is written."""
        if self._job is not None:
            self._job.result()
            self._job = None

    def close(self) -> None:
        """Wait and release the resources."""
        self.wait()
        self._pool.shutdown()

    def _newest_whole(self) -> int | None:
        """Step of the newest checkpoint whose files are as they were written, or None without any checkpoint.

        Newer ones get another name, so that they are neither counted nor pruned as checkpoints.

        Raises:
          RunError: there are checkpoints, but none is whole.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []
        for step in reversed(self._steps()):
            problem = writing.damage(self._root / str(step))
            if problem is not None:
                damaged.append((step, problem))
                continue
            for bad, what in damaged:
                aside = self._set_aside(bad)
                where = f" (it is kept as {aside})" if aside else ""
                _LOG.warning(
                    "the checkpoint of step %d is damaged: %s; going on from that of step %d%s", bad, what, step, where
                )
            return step
        if damaged:
            found = "; ".join(f"step {step}: {problem}" for step, problem in damaged)
            raise RunError(
                f"no checkpoint in {self._root} is whole ({found}); put a whole one back, or start in a new `out_dir`"
            )
        return None

    def _set_aside(self, step: int) -> Path | None:
        aside = self._root / f"{step}.damaged"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            (self._root / str(step)).rename(aside)
        except OSError:
            return None
        return aside

    def restore(self, pipeline: Pipeline) -> Progress | None:
        """Put the newest whole checkpoint into the pipeline, on the pipeline's own devices.

        Returns:
          Where the run stood; None if there is no checkpoint.

        Raises:
          RunError: none is whole, or the newest whole one belongs to another network.
        """
        step = processes.decided_by_first(self._newest_whole)
        if step is None:
            return None
        folder = self._root / str(step)
        try:
            saved = writing.read_json(folder / "progress.json")
            expected = [describe(state) for state in pipeline.states]
            # Of each stage; where the numbers of stages differ, that is refused below.
            both = itertools.zip_longest(saved["stages"], expected, fillvalue=dict[str, str]())
            names = [_renamed(there, here) for there, here in both]
            stages = [{now[name]: one[name] for name in one} for now, one in zip(names, saved["stages"], strict=False)]
            uncounted = _check_same(stages, expected)
            if any(uncounted):
                _LOG.warning(
                    "the checkpoint of step %d was saved before the running averages of batch norm were corrected for "
                    "their start; they go on from what was saved, uncorrected",
                    step,
                )
            states = []
            for index, (state, mesh) in enumerate(zip(pipeline.states, pipeline.meshes, strict=True)):
                place = replicated(mesh)
                if not is_local(mesh):
                    states.append(elsewhere(abstract(state, place)))
                    continue
                loaded = self._folders.read(folder / f"stage_{index:03d}")
                loaded = {names[index][name]: array for name, array in loaded.items()}
                loaded |= dict.fromkeys(uncounted[index], np.int32(saved["step"]))
                states.append(to_devices(_from_arrays(loaded, state), place))
            progress = Progress(**saved["progress"])
        except (OSError, KeyError, TypeError) as error:
            raise RunError(f"the checkpoint of step {step} can't be read ({writing.reason_of(error)})") from error
        pipeline.states = tuple(states)
        pipeline.step = saved["step"]
        pipeline.saved = f"step {step} in {self._root}"
        return progress
