"""What an experiment tells of the machine and of the run, besides its results."""

import importlib.metadata
import os
import platform
import resource
import shlex
import sys
from pathlib import Path
from typing import Any

import jax

from scpl_jax.data.paths import find_cache_dir, say_once
from scpl_jax.pipeline import processes
from scpl_jax.training.writing import hindrance


def versions(*others: str) -> dict[str, str]:
    """Versions of what the numbers depend on, and of other packages that were compared with."""
    names = (*others, "scpl-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def this_machine(*others: str) -> dict[str, Any]:
    """The device, how many cores there are, and versions as for :func:`versions`: what stands beside every number."""
    return {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "versions": versions(*others)}


def device_peak_bytes() -> int:
    """Peak memory in use of this process's fullest device; 0 where the backend does not tell."""
    return max((device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices())


def process_peak_bytes() -> int:
    """Peak resident size of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_compiled(cache_dir: Path | None) -> None:
    """Keep compiled programs below the cache's folder; one that can't be written is read, and a warning says so."""
    folder = find_cache_dir(cache_dir)
    jax.config.update("jax_compilation_cache_dir", None if folder is None else str(folder / "compiled"))
    least: float = 0  # seconds that a program must have taken to be kept
    if folder is not None and (why := hindrance(folder / "compiled")) is not None:
        least = float("inf")  # JAX would warn for every program
        if processes.is_first():
            say_once(f"Compiled programs are not kept in {folder} ({why}); --cache-dir names another folder for them.")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def say(text: str) -> None:
    """Print in the first process of a run only."""
    if processes.is_first():
        print(text, flush=True)


def shell_line(module: str, *arguments: str | Path) -> str:
    """The command line of a module of the package, as a shell takes it.

    Example:
      >>> print(shell_line("scpl_jax.report", "--output", Path("my runs.html")))
      python -m scpl_jax.report --output 'my runs.html'
    """
    # What begins with a dash would be an option.
    words = (f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else str(word) for word in arguments)
    return shlex.join(["python", "-m", module, *words])
