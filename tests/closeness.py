"""Comparing numbers that were computed in two ways, by a tolerance that comes from their size."""

from typing import Any

import jax
import numpy as np


def assert_close(found: Any, wanted: Any, rtol: float, *, scale: float = 0.0) -> None:
    """Fail unless every array of a tree is that of the other, up to rounding.

    An array may be off by ``rtol`` times its largest value everywhere: a sum in another order is off by as much of what
    it adds up, however small the sum is. Integers and booleans must be equal, every number finite.

    Args:
      found: arrays, or a tree of them; JAX's, NumPy's or Python's.
      wanted: as many of the same shapes at the same places. They have the same dtypes, too, or are a reference in
        double precision.
      rtol: the largest error of a value as a share of the largest value of its array.
      scale: the least size of what a value is computed from, where an array may be nothing but rounding, as the
        difference of numbers of this size is.
    """
    found, wanted = (jax.tree.flatten_with_path(jax.device_get(tree))[0] for tree in (found, wanted))
    places = [[jax.tree_util.keystr(path) for path, _ in leaves] for leaves in (found, wanted)]
    if places[0] != places[1]:
        raise AssertionError(f"the arrays are at other places: {places[0]}, wanted {places[1]}")
    for place, (_, mine), (_, other) in zip(places[0], found, wanted, strict=True):
        problem = _difference(np.asarray(mine), np.asarray(other), rtol, scale)
        if problem:
            raise AssertionError(f"{place or 'the array'} {problem}")


def _difference(found: np.ndarray, wanted: np.ndarray, rtol: float, scale: float) -> str | None:
    if found.shape != wanted.shape:
        return f"has the shape {found.shape}, wanted {wanted.shape}"
    if found.dtype != wanted.dtype and wanted.dtype != np.float64:
        return f"is of {found.dtype}, wanted {wanted.dtype}"
    if not wanted.size:
        return None
    exact = np.issubdtype(wanted.dtype, np.integer) or wanted.dtype == bool
    mine, other = (np.asarray(x, x.dtype if exact else np.float64) for x in (found, wanted))
    if not exact and not (np.isfinite(mine).all() and np.isfinite(other).all()):
        return (
            f"is not finite: {np.sum(~np.isfinite(mine))} values of {mine.size}, wanted {np.sum(~np.isfinite(other))}"
        )
    off = (mine != other) if exact else np.abs(mine - other)
    at = np.unravel_index(np.argmax(off), off.shape)
    size = 0.0 if exact else max(float(np.abs(other).max()), scale)
    if off[at] <= (0 if exact else rtol * size):
        return None
    allowed = "wanted exactly" if exact else f"off by {off[at]:.3g} where {rtol:g} of {size:.3g} is allowed, wanted"
    return f"is {mine[at]!r} at {tuple(map(int, at))}, {allowed} {other[at]!r} ({found.dtype}, {found.shape})"


def numerical_gradient(function, x, step=1e-6):
    """Central differences of a function of one array, float64, in each of its entries."""
    found = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ends = []
        for sign in (1, -1):
            moved = x.copy()
            moved[index] += sign * step
            ends.append(function(moved))
        found[index] = (ends[0] - ends[1]) / (2 * step)
    return found
