"""Similarity matching: examples of one class alike, examples of two classes unlike (Nokland and Eidnes, 2019).

Information regularisation, the local loss of DeInfoReg, has it as one of its parts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from scpl_jax.losses.labels import IGNORE, indices_on_device, is_kept, is_outside, kept_mean, not_a_number_if
from scpl_jax.losses.rows import magnitude, safe_sqrt, unit_rows


def adjusted_cosine(features: Float[Array | np.ndarray, "n d"]) -> Float[Array, "n n"]:
    r"""Cosine similarity of all pairs of rows after each row's own mean is taken out.

    With :math:`c_i = x_i - \bar{x}_i`: :math:`R_{ij} = c_i \cdot c_j / ((10^{-8} + |c_i|) (10^{-8} + |c_j|))`, kept
    within [-1, 1]. A row of equal entries has similarity 0 to all, and gradient 0.

    Args:
      features: shape (N, D), floating. Computed in at least float32.

    Returns:
      Shape (N, N), float32 (float64 for float64 features).

    Example:
      >>> import jax.numpy as jnp
      >>> adjusted_cosine(jnp.array([[1.0, 0.0], [3.0, 1.0], [0.0, 2.0]])).round(3)
      Array([[ 1.,  1., -1.],
             [ 1.,  1., -1.],
             [-1., -1.,  1.]], dtype=float32)
    """
    x = jnp.asarray(features)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    scale = magnitude(x)  # cancels
    centred = x / scale - jnp.mean(x / scale, axis=1, keepdims=True)
    length = safe_sqrt(jnp.sum(centred**2, axis=1, keepdims=True))
    unit = centred / (1e-8 / scale + length)
    return jnp.clip(jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST), -1, 1)


def similarity_matching(
    features: Float[Array | np.ndarray, "n d"],
    labels: Shaped[Array | np.ndarray, "n ..."],
    num_classes: int,
    *,
    ignore: int | None = IGNORE,
) -> Float[Array, ""]:
    r"""How far the pairwise similarities of features are from those of the labels.

    .. math::
      L = \frac{1}{N^2} \sum_{ij} (R(x)_{ij} - R(y)_{ij})^2

    with :math:`R` of :func:`adjusted_cosine` and :math:`y` the one-hot labels: 1 for a pair of one class,
    -1 / (classes - 1) for one of two (Nokland and Eidnes 2019, arXiv 1901.06656, section 2.1). Value and gradient are
    finite for every finite input.

    Args:
      features: shape (N, D), floating. Computed in at least float32.
      labels: class indices, shape (N,) or (N, 1), integer. A label outside [0, classes) makes the loss NaN.
      num_classes: number of classes, at least 1.
      ignore: label of a row that is left out, with all its pairs; None for none.

    Returns:
      A scalar, float32 (float64 for float64 features).

    Raises:
      ValueError: labels of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> features = jnp.array([[1.0, 0.0], [3.0, 1.0], [0.0, 2.0]])
      >>> round(float(similarity_matching(features, jnp.array([0, 0, 1]), 2)), 6)
      0.0
    """
    labels = indices_on_device(labels)
    similarity = adjusted_cosine(features)
    wanted = adjusted_cosine(jax.nn.one_hot(labels, num_classes, dtype=similarity.dtype))
    kept = is_kept(labels, ignore)
    loss = kept_mean((similarity - wanted) ** 2, kept[:, None] & kept[None, :])
    return not_a_number_if(is_outside(labels, num_classes, ignore), loss)


def spatial_deviation(maps: Float[Array | np.ndarray, "n h w c"]) -> Float[Array, "n d"]:
    """What similarity matching compares of a feature map: the deviation of each channel over the positions.

    A map of at most three channels, or one of height 1, is flattened instead, as in the released code.

    Args:
      maps: shape (N, H, W, C), floating.

    Returns:
      Shape (N, C): unbiased standard deviations; or (N, H W C).

    Example:
      >>> import jax.numpy as jnp
      >>> spatial_deviation(jnp.arange(16.0).reshape(1, 2, 2, 4)).round(2)
      Array([[5.16, 5.16, 5.16, 5.16]], dtype=float32)
    """
    maps = jnp.asarray(maps)
    n, height, _, channels = maps.shape
    if channels <= 3 or height == 1:
        return maps.reshape(n, -1)
    x = maps.astype(jnp.promote_types(maps.dtype, jnp.float32)).reshape(n, -1, channels)
    scale = magnitude(x)
    return safe_sqrt(jnp.var(x / scale, axis=1, ddof=1)) * scale[:, 0]


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

    With :math:`n` the rows at length 1 (a row of zeros stays) and :math:`v_d` the unbiased variance of column d:

    .. math::
      L_{var} = \frac{1}{N D} \sum_d \max(0, 1 - \sqrt{v_d + 10^{-7}}), \quad
      L_{inv} = \frac{1}{N^2} \sum_{ij} (R(n)_{ij} - R(y)_{ij})^2, \quad
      L_{cov} = \frac{1}{D} \sum_{d \ne e} C_{de}^2, \quad
      C = \frac{1}{N} (n - \bar{n})^T (n - \bar{n})

    with R of :func:`adjusted_cosine` and y the one-hot labels. This is the loss of the code released
    with DeInfoReg (Decoupled Supervised Learning for Information Regularization), after VICReg (arXiv 2105.04906).
    Value and gradient are finite for every finite input; with one example the variance counts as 0.

    Args:
      features: shape (N, D), floating. Computed in at least float32.
      labels, num_classes, ignore: as for :func:`similarity_matching`, whose loss the invariance is.

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
