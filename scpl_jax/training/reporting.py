"""What a user sees while a run goes on: progress bar, lines, TensorBoard. It never waits for the device.

Of several processes the first one reports; the others leave it the losses and norms of their stages.
"""

import collections
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import tqdm

from scpl_jax.pipeline import processes
from scpl_jax.training.streams import lasting
from scpl_jax.training.writing import reason_of

if TYPE_CHECKING:
    from scpl_jax.training.tensorboard import Scalars

_LOG = logging.getLogger(__name__)
# How often losses are looked at, in seconds.
_INTERVAL = 0.5


def _here(leaf: jax.Array) -> bool:
    """Whether this process has the value."""
    return len(leaf.addressable_shards) > 0


def _ready(tree: Any) -> bool:
    return all(leaf.is_ready() for leaf in jax.tree.leaves(tree) if _here(leaf))


def _scalars(folder: Path) -> "Scalars | None":
    """The writer of curves; TensorBoard's packages take their time to import, so a run without curves does not."""
    try:
        from scpl_jax.training.tensorboard import Scalars
    except Exception as error:  # its protocol buffers do not fit the environment or one another
        _LOG.warning("TensorBoard's files are not written (%s)", reason_of(error))
        return None
    return Scalars(folder)


def _values(metrics: list[dict[str, Any]], *, with_norms: bool) -> dict[int, dict[str, Any]]:
    """Losses and norms of the stages that this process has, as numbers: stage -> name -> value."""
    found: dict[int, dict[str, Any]] = {}
    for index, one in enumerate(metrics):
        if not all(_here(leaf) for leaf in jax.tree.leaves(one)):
            continue
        norms = one["gradient_norms"] if with_norms else {}
        found[index] = {"gradient_norms": {name: float(norm) for name, norm in norms.items()}}
        if "loss" in one:
            found[index]["loss"] = float(one["loss"])
    return found


class Reporter:
    """Progress on the terminal, and TensorBoard files.

    Args:
      tensorboard: directory for TensorBoard files, or None for none.
      progress: show a progress bar; by default if standard error is a terminal. Only the first process shows and
        writes.
      unit: what the examples are, in the plural.
    """

    def __init__(self, tensorboard: Path | None = None, *, progress: bool | None = None, unit: str = "images"):
        self._unit = unit
        self._progress = processes.is_first() and (lasting(sys.stderr).isatty() if progress is None else progress)
        self._curves = None if tensorboard is None or not processes.is_first() else _scalars(tensorboard)
        self._pending: collections.deque[tuple[int, Any, bool]] = collections.deque()
        self._next_look = 0.0
        self._bar: Any = None
        self._losses: dict[int, float] = {}

    def start_epoch(self, epoch: int, epochs: int, batches: int, done: int, batch_size: int, left: int) -> None:
        """Begin an epoch's progress bar; ``left`` batches remain in the whole run."""
        self._left, self._batch_size, self._began, self._since = left, batch_size, time.perf_counter(), 0
        self._bar = tqdm.tqdm(
            total=batches,
            initial=done,
            desc=f"epoch {epoch}/{epochs}",
            unit="batch",
            disable=not self._progress,
            leave=False,
            dynamic_ncols=True,
            file=lasting(sys.stderr),
        )

    def after_step(self, step: int, metrics: list[dict[str, Any]], with_norms: bool) -> None:
        """Take a step's metrics; they are read later, once they have arrived."""
        self._since += 1
        self._pending.append((step, metrics, with_norms))
        while len(self._pending) > 64 and not self._pending[0][2]:
            self._pending.popleft()  # only a sample of the steps is shown
        now = time.perf_counter()
        if now >= self._next_look:
            self._next_look = now + _INTERVAL
            self._look()
        self._bar.update(1)

    def _look(self) -> None:
        """Show the newest step that has arrived; keep every one that carries gradient norms."""
        newest = None
        arrived: dict[int, dict[int, dict[str, Any]]] = {}
        while self._pending and _ready(self._pending[0][1]):
            newest = self._pending.popleft()
            if newest[2]:
                arrived[newest[0]] = _values(newest[1], with_norms=True)
        if newest is not None and not newest[2]:
            arrived[newest[0]] = _values(newest[1], with_norms=False)
        if not processes.is_first():
            for step, values in arrived.items():
                processes.publish(f"metrics/{step}-{jax.process_index()}", values)
            return
        for step, values in arrived.items():
            self._write(step, values)
        for name, values in processes.collect("metrics").items():
            self._write(int(name.rpartition("/")[2].split("-")[0]), {int(k): v for k, v in values.items()})
        if newest is None:
            return
        losses = [self._losses[index] for index in sorted(self._losses)]
        seconds = max(time.perf_counter() - self._began, 1e-9)
        rate = self._since / seconds
        self._bar.set_postfix_str(
            f"loss {' '.join(f'{loss:.3f}' for loss in losses)}, {rate * self._batch_size:.0f} {self._unit}/s, "
            f"{max(self._left - self._since, 0) / max(rate, 1e-9):.0f} s left",
            refresh=False,
        )

    def _write(self, step: int, stages: dict[int, dict[str, Any]]) -> None:
        for index, values in stages.items():
            if "loss" in values:
                self._losses[index] = values["loss"]
            if self._curves is None:
                continue
            if "loss" in values:
                self._curves.add(f"loss/stage_{index}", values["loss"], step)
            for name, norm in values["gradient_norms"].items():
                self._curves.add(f"gradient_norm/stage_{index}/{name}", norm, step)

    def end_epoch(self) -> None:
        """Close the progress bar and write what has arrived."""
        self._look()
        self._bar.close()

    def after_epoch(self, line: dict[str, Any], epochs: int) -> None:
        """Print an epoch's line and write its values."""
        self._look()  # what other processes have left meanwhile
        # a loss that is not a number, or of a stage that has not joined yet, is null in metrics.jsonl
        if not processes.is_first():
            return
        joined = line["train_loss"][: line.get("joined_stages")]
        losses = " ".join("nan" if loss is None else f"{loss:.4f}" for loss in joined)
        accuracy = line.get("train_accuracy")
        trained = "" if accuracy is None else f"train accuracy {accuracy:.4f}  "
        held_out = line.get("validation_accuracy")
        validated = "" if held_out is None else f"validation accuracy {held_out:.4f}  "
        exits = " ".join(f"{one['accuracy']:.4f}" for one in line.get("exits", ())[:-1])
        text = (
            f"epoch {line['epoch']}/{epochs}  loss {losses}  {trained}{validated}"
            f"test accuracy {line['test_accuracy']:.4f}"
            f"{f' (earlier exits {exits})' if exits else ''}  "
            f"{line[f'{self._unit}_per_second']:.0f} {self._unit}/s"
        )
        if any(line.get("skipped_updates", ())):
            text += f"  updates left out {' '.join(map(str, line['skipped_updates']))}"
        print(text, file=lasting(sys.stdout), flush=True)
        if self._curves is not None:
            values = {
                name: line.get(name) for name in ("test_accuracy", "validation_accuracy", "train_accuracy", "test_loss")
            }
            rates = line["learning_rate"]
            each = enumerate(rates) if isinstance(rates, list) else ()
            values |= {f"learning_rate/stage_{index}": rate for index, rate in each} or {"learning_rate": rates}
            for name, value in values.items():
                if value is not None:
                    self._curves.add(name, value, line["step"])
            for one in line.get("exits", ()):
                self._curves.add(f"exit_accuracy/stage_{one['stage']}", one["accuracy"], line["step"])
            for index, loss in enumerate(line["train_loss"]):
                if loss is not None:
                    self._curves.add(f"epoch_loss/stage_{index}", loss, line["step"])

    def close(self) -> None:
        """Close the files."""
        if self._bar is not None:
            self._bar.close()
        if self._curves is not None:
            self._curves.close()
