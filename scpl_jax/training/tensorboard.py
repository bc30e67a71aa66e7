"""TensorBoard's event files, written such that a full disk ends neither the run nor the waiting for it."""

import logging
import time
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
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"))
        except (OSError, ValueError) as error:
            self._give_up(error)
        self._flushed = time.monotonic()

    def add(self, name: str, value: float, step: int) -> None:
        """Add one point."""
        if self._writer is None:
            return
        try:
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: OSError | ValueError) -> None:
        _LOG.warning("TensorBoard's files could not be written (%s); the run goes on without them", reason_of(error))
        self._writer = None

    def close(self) -> None:
        """Write what is left and close the file."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except (OSError, ValueError) as error:
            self._give_up(error)
        self._writer = None
