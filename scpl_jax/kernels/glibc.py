"""What glibc's allocator does with memory that is freed; Python has no interface for it.

The CPU backend allocates the arrays of each step again. By default glibc gives large ones back to the system at once,
which then has to find and clear every page again, step after step. And of what compilers have freed it keeps hundreds
of MiB. ``mallopt`` and ``malloc_trim`` change that; both answer whether they did. With another C library nothing is
changed; where glibc is without them, or refuses, a line of warning says so.
"""

import ctypes
import functools
import logging
import os
import platform
from collections.abc import Callable

_LOG = logging.getLogger(__name__)
# The parameters of mallopt in malloc.h, since glibc 2.10.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


@functools.cache
def _function(name: str) -> Callable[..., int] | None:
    """glibc's function of this name; None without it."""
    library, version = platform.libc_ver()
    if library != "glibc":
        return None
    found: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    if found is None:
        _LOG.warning("glibc %s has no %s; steps may take longer, and more memory", version, name)
    return found


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next arrays instead of giving it back to the system; whether it does.

    To be called before JAX starts its threads. Where the environment sets glibc's allocator (``MALLOC_...``,
    ``GLIBC_TUNABLES``), it stays as it is.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    kept = all(mallopt(*pair) for pair in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1)))
    if not kept:
        _LOG.warning("glibc %s gives freed memory back at once; steps may take longer", platform.libc_ver()[1])
    return kept


def give_back_memory() -> bool:
    """Give memory that is free back to the system, once; whether there was any.

    Example:
      >>> give_back_memory() in (True, False)
      True
    """
    malloc_trim = _function("malloc_trim")
    return malloc_trim is not None and bool(malloc_trim(0))
