"""Unpickles arrays in plain containers and refuses everything else."""

import io
import pickle
from typing import Any

from scpl_jax.data.errors import DataError, reason

# A pickle may call whatever it names, so only what rebuilds arrays may be named. numpy moved its `core` to
# `_core` in 2.0; files written by either are in use.
_ALLOWED = frozenset(
    {
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy.core.numeric", "_frombuffer"),
        ("numpy._core.numeric", "_frombuffer"),
    }
)


def _encode(text: str, encoding: str) -> bytes:
    """Stand in for `codecs.encode`, a call of which is how Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if module.startswith("numpy.core"):
            module = module.replace("numpy.core", "numpy._core", 1)
        return super().find_class(module, name)


def load_arrays(content: bytes, name: str) -> Any:
    """Unpickle arrays, numbers and strings in dicts, lists and tuples.

    Args:
        content: a pickle, of Python 2 or 3.
        name: what to call it in an error.

    Returns:
        What was pickled; strings of Python 2 come as bytes.

    Raises:
        DataError: when the pickle is damaged, or names anything but what rebuilds a numpy array. Nothing it
            names is imported or called then.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    # A damaged pickle makes the unpickler raise nearly anything.
    except Exception as error:
        raise DataError(
            f"{name} is no intact pickle of arrays ({reason(error)}); fetch the official archive again."
        ) from error
