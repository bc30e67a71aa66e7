"""Arrays in a folder, written and read with Orbax by one process for itself.

Orbax by default takes all processes of a run for one writer: process 0 alone writes NumPy arrays, and all wait for each
other. Here every process writes folders that nobody else writes. Orbax also makes a TensorStore context at every save,
with threads for 128 files at a time. The threads stay for long, and each keeps some 80 KB: in a run that saved often
hundreds gathered. Two public means change both: options by which each process is the primary one of its own folders,
and a handler of our own for NumPy arrays, which Orbax asks to write them. The files are those of Orbax's own handler,
which reads them.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

# Threads that write or read files; TensorStore keeps them.
_FILES_AT_A_TIME = 4


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax tells at every save that there is no OCDBT database to be merged, which is as it should be."""
    return "Skipping merge of OCDBT" not in record.getMessage()


class _Arrays(ocp.type_handlers.NumpyHandler):
    """Orbax's handler of NumPy arrays, but that every process writes them, and always in the same context."""

    def __init__(self) -> None:
        super().__init__()
        self._context = tensorstore.Context({"file_io_concurrency": {"limit": _FILES_AT_A_TIME}})

    async def serialize(self, values: Sequence[np.ndarray], infos: Sequence[Any], args: Any = None) -> Sequence[Any]:
        """Write all of them."""
        await asyncio.gather(*(self._write(value, info) for value, info in zip(values, infos, strict=True)))
        return []  # nothing is left to wait for

    async def _write(self, value: np.ndarray, info: Any) -> None:
        if not value.size:
            raise ValueError(f"an array without values can't be saved: {info.name}")
        spec = {
            "driver": "zarr",
            "kvstore": {"driver": "file", "path": str(info.path)},
            "dtype": value.dtype.name,
            "metadata": {"shape": value.shape, "chunks": value.shape, "compressor": {"id": "zstd", "level": 1}},
            # A missing file is damage, not zeros.
            "store_data_equal_to_fill_value": True,
        }
        store = await tensorstore.open(spec, create=True, open=True, context=self._context)
        await store.write(value, can_reference_source_data_indefinitely=True)


class ArrayFolders:
    """Writes and reads folders of NumPy arrays, whatever other processes there are.

    Example:
      >>> import tempfile
      >>> folders = ArrayFolders()
      >>> with tempfile.TemporaryDirectory() as parent:
      ...     folders.write(Path(parent) / "a", {"layer/kernel": np.ones(2, np.float32)})
      ...     folders.read(Path(parent) / "a")
      {'layer/kernel': array([1., 1.], dtype=float32)}
    """

    def __init__(self) -> None:
        own = jax.process_index()
        options = ocp.options.MultiprocessingOptions(
            primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process-{own}"
        )
        logging.getLogger("absl").addFilter(_is_news)
        # Orbax warns where nobody would handle JAX's arrays.
        types = ((np.ndarray, _Arrays()), (jax.Array, ocp.type_handlers.ArrayHandler(array_metadata_store=None)))
        registry = ocp.type_handlers.create_type_handler_registry(*types)
        self._handler: dict[str, Any] = {"type_handler_registry": registry, "multiprocessing_options": options}
        self._options = options

    def _checkpointer(self) -> ocp.Checkpointer:
        # Files of their own for every array: with OCDBT, Orbax's default, each save leaves something in memory for
        # good, and takes no less time.
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, **self._handler)
        return ocp.Checkpointer(handler, multiprocessing_options=self._options)

    def write(self, folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write arrays by name into a new folder.

        Raises:
          OSError: of the file system, as :exc:`ValueError` and :exc:`RuntimeError` may be.
          ValueError: the folder is there already.
        """
        with self._checkpointer() as checkpointer:
            checkpointer.save(folder, args=ocp.args.PyTreeSave(dict(arrays)))

    def read(self, folder: Path) -> dict[str, Any]:
        """The arrays of a folder by name.

        Raises:
          OSError: there is none, or it can't be read.
        """
        with self._checkpointer() as checkpointer:
            found: dict[str, Any] = checkpointer.restore(folder, args=ocp.args.PyTreeRestore())
        return found
