"""What is not public in jaxlib is used with releases that were tested; with others XLA computes as it usually does."""

import platform
import sys

import jax
import jax.experimental.serialize_executable
import jax.numpy as jnp
import pytest

from scpl_jax.kernels import onednn, xla_flags

ON_X86 = sys.platform == "linux" and platform.machine() == "x86_64"


def test_this_jaxlib_is_one_of_them(caplog):
    """If not: run all tests with it, those of oneDNN (tests/kernels) first, and widen ``onednn._JAXLIB``."""
    assert onednn.is_tested_jaxlib.__wrapped__()
    assert onednn.available.__wrapped__() is ON_X86
    assert caplog.messages == []


@pytest.mark.parametrize("version", [(0, 10, 1), (0, 11, 0)])
def test_with_another_a_line_says_so_and_nothing_private_is_used(monkeypatch, caplog, version):
    for function in (onednn.is_tested_jaxlib, onednn.available):
        function.cache_clear()
    monkeypatch.setattr(onednn.jaxlib.version, "__version_info__", version)
    monkeypatch.setattr(onednn.jaxlib.version, "__version__", "9.8.7")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    try:
        assert not onednn.available()
        assert not xla_flags.avoid_fusion_emitters()
        with pytest.raises(ValueError, match=r"with jaxlib from 0.10.2 to before 0.11.0, here are .* jaxlib 9.8.7"):
            onednn.check_library("onednn")
    finally:
        onednn.is_tested_jaxlib.cache_clear()
        onednn.available.cache_clear()
    assert caplog.messages == [
        "jaxlib 9.8.7 was not tested: programs for CPUs are compiled in XLA's usual way, and without oneDNN"
    ]


@pytest.mark.skipif(not ON_X86, reason="no oneDNN in this jaxlib")
def test_xla_can_not_serialise_its_calls_and_they_are_found_in_the_text():
    matrix = jnp.ones((4, 4))
    for function, called in ((onednn.matmul, True), (jnp.matmul, False)):
        lowered = jax.jit(function).lower(matrix, matrix)
        assert onednn.is_called_in(lowered.as_text()) is called
        assert can_be_serialised(lowered.compile()) is not called


def can_be_serialised(compiled):
    try:
        jax.experimental.serialize_executable.serialize(compiled)
    except (MemoryError, ValueError, jax.errors.JaxRuntimeError):
        return False
    return True
