"""The compilation of programs for the sub-meshes that this process has."""

import concurrent.futures
import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from scpl_jax.kernels.glibc import give_back_memory
from scpl_jax.kernels.onednn import is_called_in
from scpl_jax.pipeline.placement import batch_sharding, is_local, replicated
from scpl_jax.pipeline.transfer import elsewhere


def abstract(tree: Any, sharding: Any) -> Any:
    """Shapes, dtypes and placement of arrays: what a compilation needs to know."""

    def describe(x: Any) -> jax.ShapeDtypeStruct:
        dtype = getattr(x, "dtype", None) or np.result_type(x)
        return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def signature(tree: Any) -> Any:
    """What tells batches of different shape apart."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((x.shape, np.dtype(x.dtype)) for x in leaves)


class Builder:
    """Collects programs, then compiles those of this process at the same time, equal ones only once.

    A program of another process is never compiled here: called, it returns arrays of the right shapes without values.
    """

    def __init__(self) -> None:
        # What tells a program from others -> how to compile it, and where the result is needed.
        self._jobs: dict[Any, tuple[Callable[[], Any], list[Program]]] = {}

    def add(
        self,
        function: Callable[..., Any],
        mesh: Mesh,
        arguments: tuple[Any, ...],
        batched: tuple[bool | None, ...],
        *,
        donate: tuple[int, ...] = (),
        options: dict[str, Any] | None = None,
    ) -> tuple["Program", Any]:
        """Plan a program.

        Args:
          function: a pure function that returns a tuple.
          mesh: where it runs.
          arguments: shapes and dtypes of its arguments, with their shardings.
          batched: for each of its outputs whether it is split over the batch or replicated; None leaves it to XLA.
          donate: arguments whose memory may be used again.
          options: of XLA, for this program only.

        Returns:
          (the program, to be called once :meth:`compile` is done; its outputs' shapes, with their shardings).
        """
        choices = {True: batch_sharding(mesh), False: replicated(mesh), None: None}
        shardings = tuple(choices[b] for b in batched)
        if is_local(mesh):
            # Unused arguments are kept: waiting for them keeps programs with collectives in one order on all devices
            # of a stage, which the CPU backend would otherwise not.
            jitted = jax.jit(function, donate_argnums=donate, out_shardings=shardings, keep_unused=True)
            traced = jitted.trace(*arguments)
            shapes, job = traced.out_info, traced.lower()
        else:
            shapes, job = jax.eval_shape(function, *arguments), None
        placed = tuple(abstract(tree, s or replicated(mesh)) for tree, s in zip(shapes, shardings, strict=True))
        program = Program(placed)
        if job is None:
            program.stand_in = elsewhere(placed)
        else:
            # Stages of equal blocks on one sub-mesh are the same program; deep networks have many.
            key = (mesh, job.as_text(), job.in_tree, job.out_tree, str(options))
            self._jobs.setdefault(key, (functools.partial(job.compile, options), []))[1].append(program)
        return program, placed

    def compile(self) -> None:
        """Compile all of them; XLA does it outside Python's lock, so in threads it takes as long as the slowest."""
        if self._jobs:
            _compile_all(self._jobs)
            self._jobs = {}
            give_back_memory()  # compilers have freed hundreds of MiB


def _compile_all(jobs: dict[Any, tuple[Callable[[], Any], list["Program"]]]) -> None:
    # A function of its own, so that nothing holds the jobs, which are large, when memory is given back.
    kept: list[tuple[Callable[[], Any], list[Program]]] = []
    not_kept: list[tuple[Callable[[], Any], list[Program]]] = []
    for (_, text, *_), entry in jobs.items():
        (not_kept if is_called_in(text) else kept).append(entry)
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        _compile(kept, pool)
        # Not kept in the persistent compilation cache: JAX would try to, and warn.
        with configured(jax_persistent_cache_min_compile_time_secs=math.inf):
            _compile(not_kept, pool)


def _compile(entries: list[tuple[Callable[[], Any], list["Program"]]], pool: concurrent.futures.Executor) -> None:
    for (_, programs), compiled in zip(entries, pool.map(lambda entry: entry[0](), entries), strict=True):
        for program in programs:
            program.set(compiled)


@contextlib.contextmanager
def configured(**options: Any) -> Iterator[None]:
    """Let JAX have these options for the time of a block."""
    before = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


class Program:
    """A compiled program of this process, or the stand-in for one of another.

    Attributes:
      outputs: shapes, dtypes and shardings of what it returns; exact once it is compiled.
      compiled: the program, or None.
      stand_in: what a program of another process returns here.
    """

    def __init__(self, outputs: Any):
        self.outputs = outputs
        self.compiled: Any = None
        self.stand_in: Any = None

    def set(self, compiled: Any) -> None:
        """Take the compiled program, and from it the places of outputs that were left to XLA."""
        self.compiled = compiled
        self.outputs = jax.tree.map(abstract, self.outputs, compiled.output_shardings)

    @property
    def temporary_bytes(self) -> int:
        """Memory that it needs beside its arguments and results, by the compiler's account; 0 in other processes."""
        return 0 if self.compiled is None else int(self.compiled.memory_analysis().temp_size_in_bytes)

    def __call__(self, *arguments: Any) -> Any:
        """Dispatch it."""
        return self.stand_in if self.compiled is None else self.compiled(*arguments)
