"""TensorBoard's event files, written such that a full disk ends neither the run nor the waiting for it."""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from scpl_jax.training.writing import reason_of

_LOG = logging.getLogger(__name__)
# What was written appears in TensorBoard after so many seconds at most.
_FLUSH_SECONDS = 10.0


class Scalars:
    """Curves for TensorBoard.

    tensorboardX's own ``SummaryWriter`` writes from a thread; when that one dies of a full disk, the next points wait
    for it for ever. Here points are written at once, and after a failure no more.

    Args:
      folder: where the event file is created; made if need be.

    Example:
      >>> import tempfile
      >>> curves = Scalars(Path(tempfile.mkdtemp()) / "tensorboard")
      >>> curves.add("loss/stage_0", 0.5, step=1)
      >>> curves.close()
    """

    def __init__(self, folder: Path):
        self._writer: EventsWriter | None = None
        with self._or_give_up():
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
        self._flushed = time.monotonic()

    def add(self, name: str, value: float, step: int) -> None:
        """Add one point."""
        if self._writer is None:
            return
        with self._or_give_up():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    @contextlib.contextmanager
    def _or_give_up(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            what = "TensorBoard's files could not be written (%s); the run goes on without them"
            _LOG.warning(what, reason_of(error))
            self._writer = None

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is not None:
            with self._or_give_up():
                self._writer.close()
        self._writer = None
