"""Information regularisation: the local loss of DeInfoReg."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from scpl_jax.losses.labels import IGNORE, indices_on_device, is_kept
from scpl_jax.losses.rows import unit_rows
from scpl_jax.losses.similarity import similarity_matching


class Information(NamedTuple):
    """The three parts of :func:`information_regularisation`, scalars; their sum is the loss."""

    variance: jax.Array
    invariance: jax.Array
    covariance: jax.Array


def information_regularisation(
    features: Float[Array | np.ndarray, "n d"],
    labels: Shaped[Array | np.ndarray, "n ..."],
    num_classes: int,
    *,
    ignore: int | None = IGNORE,
) -> Information:
    r"""Variance, invariance to the label, and covariance of a batch of features.

    With :math:`n` the rows at length 1 (a row of zeros stays) and :math:`v_d` the unbiased variance of
    column d over the batch:

    .. math::
      L_{var} = \frac{1}{N D} \sum_d \max(0, 1 - \sqrt{v_d + 10^{-7}}), \quad
      L_{inv} = \frac{1}{N^2} \sum_{ij} (R(n)_{ij} - R(y)_{ij})^2, \quad
      L_{cov} = \frac{1}{D} \sum_{d \ne e} C_{de}^2, \quad
      C = \frac{1}{N} (n - \bar{n})^T (n - \bar{n})

    with R of :func:`scpl_jax.losses.adjusted_cosine` and y the one-hot labels. This is the loss of the code released
    with DeInfoReg (Decoupled Supervised Learning for Information Regularization), after VICReg (arXiv 2105.04906).
    Value and gradient are finite for every finite input; with one example the variance counts as 0.

    Args:
      features: shape (N, D), floating. Computed in at least float32.
      labels, num_classes, ignore: as for :func:`scpl_jax.losses.similarity_matching`, whose loss the invariance is.

    Returns:
      Three scalars, float32 (float64 for float64 features).

    Raises:
      ValueError: labels of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> parts = information_regularisation(jnp.eye(3), jnp.array([0, 1, 2]), 3)
      >>> [round(float(part), 4) for part in parts]
      [0.1409, 0.0, 0.0247]
    """
    x = jnp.asarray(features)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    d = x.shape[1]
    labels = indices_on_device(labels)
    kept = is_kept(labels, ignore)[:, None]
    n = jnp.maximum(jnp.sum(kept), 1).astype(x.dtype)
    unit = unit_rows(x)
    centred = jnp.where(kept, unit - jnp.sum(jnp.where(kept, unit, 0), axis=0) / n, 0)
    variances = jnp.sum(centred**2, axis=0) / jnp.maximum(n - 1, 1)
    variance = jnp.mean(jax.nn.relu(1 - jnp.sqrt(variances + 1e-7))) / n
    products = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / n
    covariance = jnp.sum(jnp.where(jnp.eye(d, dtype=bool), 0, products) ** 2) / d
    return Information(variance, similarity_matching(unit, labels, num_classes, ignore=ignore), covariance)
