import functools

import jax
import numpy as np
import pytest

from scpl_jax.kernels.norm import BatchNorm


def zeros(*_):
    return lambda key, shape, dtype=np.float32, *_, **__: jax.device_put(np.zeros(shape, dtype))


@pytest.fixture(autouse=True)
def full_precision():
    with jax.default_matmul_precision("float32"):
        yield


@pytest.fixture(autouse=True)
def no_random_initial_values(monkeypatch):
    """Every initial value is replaced by a loaded one; zeros need no program to be compiled."""
    monkeypatch.setattr("scpl_jax.models.layers.kernel_init", zeros)
    monkeypatch.setattr("scpl_jax.models.layers.bias_init", zeros)


@pytest.fixture(autouse=True)
def running_averages_of_the_reference(monkeypatch):
    """They start from what is loaded, and one step moves them by a tenth."""
    monkeypatch.setattr("scpl_jax.models.layers.BatchNorm", functools.partial(BatchNorm, bias_correction=False))


@pytest.fixture(autouse=True)
def quick_compilation(code_of_users):
    """These programs run once, and compiling them with all optimisations takes most of the time."""
    jax.config.update("jax_disable_most_optimizations", not code_of_users)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
