"""Processes of a run tell each other values by what JAX has no public name for."""

import sys
import types

import jax
import pytest
from jax._src import distributed

from scpl_jax.pipeline import jax_private

ask = jax_private.key_value_store.__wrapped__


class Store:
    """What is needed of it, with arguments as they are used."""

    def key_value_set(self, key, value): ...
    def blocking_key_value_get(self, key, timeout_in_ms): ...
    def key_value_dir_get(self, key): ...
    def key_value_delete(self, key): ...


def test_this_jax_has_it(caplog):
    """The class, as a client is there only in a run of several processes (tests/experiments/test_processes.py)."""
    client = jax._src.lib._jax.DistributedRuntimeClient
    assert all(hasattr(client, name) for name in jax_private._NEEDED)
    assert hasattr(distributed.global_state, "client")
    oldest, newest = jax_private._TESTED
    assert oldest <= jax.__version_info__[:3] < newest


def test_what_is_needed_is_enough(monkeypatch, caplog):
    monkeypatch.setattr(distributed.global_state, "client", Store())
    assert isinstance(ask(), Store)
    assert caplog.messages == []


def test_another_version_is_said_in_a_line(monkeypatch, caplog):
    monkeypatch.setattr(distributed.global_state, "client", Store())
    monkeypatch.setattr(jax, "__version__", "9.8.7")
    monkeypatch.setattr(jax, "__version_info__", (9, 8, 7))
    assert isinstance(ask(), Store)
    assert caplog.messages == ["several processes were tested with jax from 0.10.0 to before 0.11.0, not 9.8.7"]


@pytest.mark.parametrize("gone", ["module", "state", "method"])
def test_without_it_several_processes_are_refused_in_a_sentence(monkeypatch, gone):
    if gone == "module":
        monkeypatch.setitem(sys.modules, "jax._src.distributed", None)
        monkeypatch.delattr(jax._src, "distributed")
    elif gone == "state":
        monkeypatch.setattr(distributed, "global_state", types.SimpleNamespace())
    else:
        monkeypatch.setattr(distributed.global_state, "client", types.SimpleNamespace(key_value_set=None))
    with pytest.raises(
        ValueError, match=r"^JAX .*; run a single process, or install jax from [\d.]+ to before [\d.]+$"
    ):
        ask()
