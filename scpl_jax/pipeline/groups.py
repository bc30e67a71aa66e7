"""Stages compiled into one program, and the compilation of programs for the sub-meshes that this process has."""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from scpl_jax.pipeline.placement import batch_sharding, is_local, replicated
from scpl_jax.pipeline.transfer import elsewhere
from scpl_jax.stages.decouple import Stage

# In the text of a program: a call of oneDNN, see scpl_jax.kernels.onednn.
_NOT_SERIALISABLE = "__onednn$"
# What a program on a CPU may hold unless something else is asked for: stages, and bytes handed on between them a batch.
# So memory does not grow with depth, and of a deep network's equal stages few programs are compiled;
# experiments/single/README.md has times and memory.
_STAGES, _SMALL = 4, 12 * 2**20


@dataclasses.dataclass(frozen=True)
class Group:
    """Neighbouring stages that one program runs.

    Attributes:
      stages: the stages.
      mesh: their sub-mesh.
    """

    stages: tuple[Stage, ...]
    mesh: Mesh

    @property
    def members(self) -> slice:
        """Where the group's stages are among all."""
        return slice(self.stages[0].index, self.stages[-1].index + 1)

    @property
    def name(self) -> str:
        """Its stages' numbers: "2", or "2-3"."""
        first, last = self.stages[0].index, self.stages[-1].index
        return str(first) if first == last else f"{first}-{last}"


def group_stages(stages: Sequence[Stage], meshes: Sequence[Mesh], fuse: bool | None) -> tuple[Group, ...]:
    """One group for each stage, or with ``fuse`` one for all neighbours that share a sub-mesh.

    None: for up to four that share CPUs and hand on at most 12 MiB to one another, counted for the whole batch.
    """
    groups: list[Group] = []
    for stage, mesh in zip(stages, meshes, strict=True):
        before = groups[-1] if groups else None
        if before is not None and before.mesh == mesh and (_takes_one_more(before) if fuse is None else fuse):
            groups[-1] = Group((*before.stages, stage), mesh)
        else:
            groups.append(Group((stage,), mesh))
    return tuple(groups)


def _takes_one_more(group: Group) -> bool:
    """Whether the next stage should be of the same program: mostly faster, but XLA keeps more arrays at a time."""
    small = len(group.stages) < _STAGES and sum(stage.message_bytes for stage in group.stages) <= _SMALL
    return small and group.mesh.devices.flat[0].platform == "cpu"


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
            _give_back_memory()


def _compile_all(jobs: dict[Any, tuple[Callable[[], Any], list["Program"]]]) -> None:
    # A function of its own, so that nothing holds the jobs, which are large, when memory is given back.
    kept: list[tuple[Callable[[], Any], list[Program]]] = []
    not_kept: list[tuple[Callable[[], Any], list[Program]]] = []
    for (_, text, *_), entry in jobs.items():
        (not_kept if _NOT_SERIALISABLE in text else kept).append(entry)
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        _compile(kept, pool)
        with _writing_no_cache():
            _compile(not_kept, pool)


def _compile(entries: list[tuple[Callable[[], Any], list["Program"]]], pool: concurrent.futures.Executor) -> None:
    for (_, programs), compiled in zip(entries, pool.map(lambda entry: entry[0](), entries), strict=True):
        for program in programs:
            program.set(compiled)


def _give_back_memory() -> None:
    """Give memory that compilers have freed back to the system: glibc keeps hundreds of MiB of it otherwise."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def _writing_no_cache() -> Iterator[None]:
    """Keep no program in the persistent compilation cache: JAX would try to, and warn."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


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


class Pacer:
    """Lets messages to other processes leave between two programs, where the backend does not by itself.

    The CPU backend sends a message on a thread that also computes, and goes on with the next program of the device
    first if that has been dispatched already: a message could leave only when the device has nothing more to do. So in
    a run of several processes a CPU device gets its next program when the one before has ended. Receiving is not held
    up by this: it has been asked for before. On all other backends, and in one process, nothing waits.
    """

    def __init__(self, groups: Sequence[Group]):
        platform = groups[0].mesh.devices.flat[0].platform
        self._active = platform == "cpu" and jax.process_count() > 1
        self._last: dict[Mesh, Any] = {}

    def before(self, group: Group) -> None:
        """Call before a program of the group is dispatched, and after its inputs have been asked for."""
        if self._active and group.mesh in self._last:
            jax.block_until_ready(self._last.pop(group.mesh))

    def after(self, group: Group, outputs: Any) -> None:
        """Call after it was dispatched, with outputs that no other program takes over."""
        if self._active:
            self._last[group.mesh] = outputs
