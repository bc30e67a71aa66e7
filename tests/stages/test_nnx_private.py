"""Flax tells of new variables by a method that is not made for that, and of attributes by its pytrees."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from scpl_jax.stages.first_call import output_of
from scpl_jax.stages.nnx_private import created_variables
from scpl_jax.stages.variables import BOOKKEEPING, data_attributes


class Counting(nnx.Module):
    """Makes its count at the first call, and counts that call."""

    def __call__(self, x):
        if not hasattr(self, "calls"):
            self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.calls[...] += 1
        return x


def count_of_the_first_call():
    module = Counting()
    output_of("a block", module, jax.ShapeDtypeStruct((2,), jnp.float32))
    return int(module.calls[...])


def test_this_flax_tells_of_every_new_variable():
    with created_variables() as created:
        norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    made = {id(variable) for variable, _ in created}
    assert {id(variable) for variable in (norm.mean, norm.var, norm.scale, norm.bias)} <= made
    assert count_of_the_first_call() == 0


def test_the_method_is_put_back_whatever_happens():
    original = nnx.Variable.create_value

    def fail():
        with created_variables():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert nnx.Variable.create_value is original


def test_without_the_method_a_line_says_what_is_different(monkeypatch, caplog):
    monkeypatch.setattr("scpl_jax.stages.nnx_private._HOOK", "create_value_of_old")
    assert count_of_the_first_call() == 1
    (said,) = caplog.messages
    assert "has no Variable.create_value_of_old: variables that a module makes at its first call begin with" in said


class Various(nnx.Module):
    def __init__(self):
        self.variable, self.array, self.module = nnx.Param(jnp.ones(2)), jnp.ones(2), nnx.Dropout(0.1)
        self.number, self.text, self.nothing = 3, "text", None
        self.number_as_data, self.nothing_as_data = nnx.data(3), nnx.data(None)
        self.listed = nnx.List([nnx.Param(jnp.ones(2)), 4])


class NoPytree(nnx.Module, pytree=False):
    def __init__(self):
        self.variable, self.number = nnx.Param(jnp.ones(2)), 3


@pytest.mark.parametrize("make", [Various, NoPytree, lambda: Various().listed])
def test_attributes_that_are_data_are_those_that_flax_notes(make):
    module = make()
    noted = {name for name, is_data in vars(module)["_pytree__nodes"].items() if is_data and name in vars(module)}
    assert data_attributes(module) - BOOKKEEPING == noted - BOOKKEEPING
    assert {name for name in vars(module) if name.startswith("_pytree__")} == BOOKKEEPING
