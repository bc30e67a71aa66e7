"""Four emulated devices, exact float32, small networks that compile fast."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Code is made in one piece, as each test has a core of its own.
_FLAGS = "--xla_force_host_platform_device_count=4 --xla_cpu_parallel_codegen_split_count=1"
# tests/portable.py says by which library networks compute that are built without a word about it. Then the code is the
# one that users get. Otherwise what its compilation saves counts more than how fast it is: most programs run a few
# times only.
_LIBRARY = os.environ.get("SCPL_JAX_TEST_LIBRARY")
if _LIBRARY is None:
    _FLAGS += " --xla_backend_optimization_level=0"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"

import contextlib
import dataclasses
import functools
import inspect
import sys
import tempfile
from pathlib import Path

from jaxtyping import install_import_hook

# From here on the shapes and dtypes that losses and augmentations document are checked at every call.
install_import_hook(["scpl_jax.losses", "scpl_jax.data"], "beartype.beartype")

import jax
import numpy as np
import pytest
from flax import nnx
from jax._src import compilation_cache

import scpl_jax as scpl
from scpl_jax.data import paths
from scpl_jax.kernels import thresholds
from scpl_jax.kernels.xla_flags import avoid_fusion_emitters
from scpl_jax.stages import cost
from scpl_jax.stages.variables import split

# What is tested is the code that the commands run.
avoid_fusion_emitters()
jax.config.update("jax_default_matmul_precision", "highest")
# Tests build the same small programs again and again; each is compiled once a session, whichever worker needs it first.
if "SCPL_JAX_TEST_CACHE" not in os.environ:
    _CACHE = tempfile.TemporaryDirectory(prefix="scpl-jax-tests-")
    os.environ["SCPL_JAX_TEST_CACHE"] = _CACHE.name
jax.config.update("jax_compilation_cache_dir", os.environ["SCPL_JAX_TEST_CACHE"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
# Data sets that tests and examples prepare don't go to the user's folder either.
paths.DEFAULT_CACHE_DIR = Path(os.environ["SCPL_JAX_TEST_CACHE"])


def _kept_if_possible(write):
    """XLA can't serialise a program with a call of oneDNN; JAX would try to keep it all the same, and warn."""

    @functools.wraps(write)
    def put(key, name, executable, *rest):
        try:
            write(key, name, executable, *rest)
        except MemoryError:
            if not any("__onednn$" in module.to_string() for module in executable.hlo_modules()):
                raise

    return put


compilation_cache.put_executable_and_time = _kept_if_possible(compilation_cache.put_executable_and_time)


def _once(estimate):
    """Tests cut the same small networks again and again; what a block costs is estimated once a session."""
    known = {}

    @functools.wraps(estimate)
    def module_cost(module, *inputs, call=cost.call_module):
        graph, *values = split(module)
        leaves, tree = jax.tree.flatten((values, inputs))
        key = (call, graph, tree, tuple((x.shape, x.dtype) for x in leaves))
        try:
            if key not in known:
                known[key] = estimate(module, *inputs, call=call)
        except TypeError:  # something of the module can't be compared
            return estimate(module, *inputs, call=call)
        return known[key]

    return module_cost


cost.module_cost = _once(cost.module_cost)

ANY_SIZE = {"onednn_convolution": 0, "onednn_product": 0}


def _default_to(library):
    """Have everything that takes a library take this one by default, for arrays of any size."""
    thresholds.TABLE = {name: dataclasses.replace(row, **ANY_SIZE) for name, row in thresholds.TABLE.items()}
    for name, module in list(sys.modules.items()):
        if name.startswith("scpl_jax.models."):
            made_here = [value for value in vars(module).values() if getattr(value, "__module__", "") == name]
            for value in made_here:
                function = inspect.unwrap(value.__init__ if isinstance(value, type) else value)
                if "library" in (getattr(function, "__kwdefaults__", None) or {}):
                    function.__kwdefaults__["library"] = library


if _LIBRARY == "onednn":
    _default_to("onednn")


@pytest.fixture(scope="session")
def default_library():
    """By which library networks compute that are built without a word about it."""
    return _LIBRARY or "xla"


@pytest.fixture(scope="session")
def code_of_users():
    """Whether programs are compiled as outside the tests."""
    return _LIBRARY is not None


@pytest.fixture(autouse=True)
def same_cache():
    """A run in a test may name a folder of its own for compiled programs, which is gone after the test."""
    yield
    if jax.config.jax_compilation_cache_dir != os.environ["SCPL_JAX_TEST_CACHE"]:
        jax.config.update("jax_compilation_cache_dir", os.environ["SCPL_JAX_TEST_CACHE"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
        compilation_cache.reset_cache()


@pytest.fixture
def compilations():
    """A context that gives the names of the functions that are compiled while it is open."""

    @contextlib.contextmanager
    def counting():
        names = []

        def listener(event, *_, **about):
            if "backend_compile" in event:
                names.append(about["fun_name"])

        jax.monitoring.register_event_duration_secs_listener(listener)
        try:
            yield names
        finally:
            jax.monitoring.unregister_event_duration_listener(listener)

    return counting


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where runs keep compiled programs and prepared data: one folder for all tests."""
    return Path(os.environ["SCPL_JAX_TEST_CACHE"])


@pytest.fixture
def set_thresholds(monkeypatch):
    """A function that changes some of the sizes on which a form of computation depends."""

    def change(**sizes):
        table = {name: dataclasses.replace(row, **sizes) for name, row in thresholds.TABLE.items()}
        monkeypatch.setattr(thresholds, "TABLE", table)

    return change


@pytest.fixture
def onednn_at_any_size(set_thresholds):
    """Has oneDNN compute what is too small to be worth it, too."""
    set_thresholds(**ANY_SIZE)


@pytest.fixture(scope="session")
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    made = rng.normal(size=(8, 16, 16, 3)).astype(np.float32), np.array([0, 1, 2, 0, 1, 2, 3, 3], np.int32)
    for array in made:
        array.setflags(write=False)  # all tests have the same
    return made


@pytest.fixture(scope="session")
def small_vgg():
    """A function that makes the blocks of a small VGG: three convolution blocks and the classifier."""

    def make(seed: int = 0) -> list[nnx.Module]:
        layers = [4, "M", 6, "M", 8, "M"]
        return scpl.models.vgg(layers, 4, hidden=8, image_shape=(16, 16, 3), rngs=nnx.Rngs(seed))

    return make
