"""The sizes on which a form of computation depends are those of the processor."""

import dataclasses
import importlib.util
import re

import pytest

from scpl_jax.kernels import onednn, thresholds


@pytest.mark.parametrize(("wide", "row"), [(True, "AVX-512"), (False, "other")])
def test_the_row_is_that_of_the_processor(monkeypatch, wide, row):
    monkeypatch.setattr(onednn, "has_avx512", lambda: wide)
    assert thresholds.here() is thresholds.TABLE[row]


def test_every_size_is_explained_and_the_commands_are_there():
    named = re.findall(r"^      (\w+): ", thresholds.Thresholds.__doc__, re.MULTILINE)
    assert named == [field.name for field in dataclasses.fields(thresholds.Thresholds)]
    modules = re.findall(r"python -m (\S+)", thresholds.__doc__)
    assert len(modules) == 5
    assert all(importlib.util.find_spec(module) for module in modules)
