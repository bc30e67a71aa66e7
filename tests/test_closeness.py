"""The comparison of numbers lets rounding pass and nothing else."""

import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close

ARRAY = np.float32([1e-9, -2.0, 100.0])


def test_a_small_value_may_be_off_by_as_much_as_a_large_one():
    assert_close({"a": [ARRAY, 3]}, {"a": (ARRAY + np.float32([9e-4, 0, 0]), 3)}, 1e-5)
    with pytest.raises(AssertionError, match=r"\['a'\]\[0\] is .* at \(0,\), off by 0.0011 where 1e-05 of 100 is allo"):
        assert_close({"a": [ARRAY]}, {"a": [ARRAY + np.float32([1.1e-3, 0, 0])]}, 1e-5)


def test_every_array_of_a_tree_has_a_size_of_its_own_but_no_less_than_what_it_was_computed_from():
    with pytest.raises(AssertionError, match=r"\[1\] is .*1e-05 of 1e-09"):
        assert_close([ARRAY, ARRAY[0] + 1e-12], [ARRAY, ARRAY[0]], 1e-5)
    assert_close([ARRAY, ARRAY[0] + 1e-12], [ARRAY, np.float64(ARRAY[0])], 1e-5, scale=1e-6)
    with pytest.raises(AssertionError, match="1e-05 of 100"):
        assert_close(ARRAY - np.float32(0.1), ARRAY, 1e-5, scale=1e-6)


@pytest.mark.parametrize(
    ("found", "wanted", "message"),
    [
        ([1.0, np.nan], [1.0, np.nan], r"\[1\] is not finite: 1 values of 1, wanted 1"),
        ([1.0, np.inf], [1.0, np.inf], "not finite"),
        (np.float32([np.nan]), np.float32([1]), "not finite: 1 values of 1, wanted 0"),
        ([1.0], [1.0, 2.0], "at other places"),
        ({"a": 1.0}, {"b": 1.0}, "at other places"),
        (ARRAY, ARRAY[:, None], r"has the shape \(3,\), wanted \(3, 1\)"),
        (ARRAY, np.float32(1), "has the shape"),
        (jnp.asarray(ARRAY, jnp.bfloat16), ARRAY, "is of bfloat16, wanted float32"),
        (np.float64(1), np.float32(1), "is of float64, wanted float32"),
        (np.int32([1000000, 1]), np.int32([1000001, 1]), r"is .*1000000.* at \(0,\), wanted exactly .*1000001"),
        (np.array([True]), np.array([False]), "wanted exactly"),
    ],
)
def test_what_is_no_rounding_is_named(found, wanted, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(found, wanted, 1e-2)


def test_low_precision_is_compared_in_double_precision():
    low = jnp.asarray([1.0, 2.0], jnp.bfloat16)
    assert_close(low, low + jnp.asarray(2**-7, jnp.bfloat16), 1e-2)
    with pytest.raises(AssertionError, match=r"off by 0\.0156"):
        assert_close(low, low + jnp.asarray(2**-6, jnp.bfloat16), 1e-3)
    assert_close(np.zeros((0, 3)), np.zeros((0, 3)), 1e-5)
