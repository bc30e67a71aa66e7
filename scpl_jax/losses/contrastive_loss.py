"""The supervised contrastive loss of Khosla et al. (2020), safe for every input."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from scpl_jax.kernels import thresholds
from scpl_jax.losses.contrastive_blocks import blockwise_loss, columns_of
from scpl_jax.losses.labels import IGNORE, indices_on_device, is_kept, kept_mean
from scpl_jax.losses.rows import unit_rows


def supervised_contrastive(
    features: Float[Array | np.ndarray, "n d"],
    labels: Shaped[Array | np.ndarray, "n ..."],
    temperature: float | int = 0.1,
    *,
    count_anchor: bool = False,
    ignore: int | None = IGNORE,
) -> Float[Array, ""]:
    r"""Supervised contrastive loss over one batch.

    With :math:`z_i` the L2-normalised rows, :math:`P(i)` the other rows with the label of row i, and T the temperature:

    .. math::
      L = \frac{1}{N} \sum_i \frac{-1}{|P(i)|} \sum_{p \in P(i)}
          \log \frac{\exp(z_i \cdot z_p / T)}{\sum_{k \ne i} \exp(z_i \cdot z_k / T)}

    which is equation 2 ("L_out") of Khosla et al. 2020, arXiv 2004.11362, averaged over all N rows. A row without
    positives contributes 0 and is counted in N. A row whose label is ``ignore`` is left out as if it were not in the
    batch: it is no anchor, no positive, not among the k, and not counted in N. Value and gradient are finite for every
    finite input: classes of one sample, one class only, N = 1 (which gives 0), rows of zeros (similarity 0 to all,
    gradient 0), any floating dtype.

    Args:
      features: shape (N, D), floating. Computed in at least float32.
      labels: class indices, shape (N,) or (N, 1), integer.
      temperature: T > 0; smaller weighs the hard pairs more.
      count_anchor: divide by :math:`|P(i)| + 1` instead, as the code released with SCPL (arXiv 2602.00062) does: every
        anchor with p positives is then weighted by p / (p + 1).
      ignore: label of a row that is left out; None for none.

    Returns:
      A scalar, float32 (float64 for float64 features).

    Raises:
      ValueError: ``temperature`` is not positive, or labels of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> features = jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> round(float(supervised_contrastive(features, jnp.array([0, 0, 1, 1]), 1.0)), 4)  # log(e + 2) - 1
      0.5514
      >>> round(float(supervised_contrastive(features, jnp.array([0, 0, 1, 1]), 1.0, count_anchor=True)), 4)
      0.2757
      >>> float(supervised_contrastive(features, jnp.array([0, 1, 2, 3])))  # nobody has a positive
      0.0
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}; 0.1 is the usual value")
    features, labels = jnp.asarray(features), indices_on_device(labels)
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    n = features.shape[0]
    if n < 2:  # nobody to compare with; still a function of the features, so that it can be differentiated
        return jnp.sum(features, dtype=dtype) * 0
    unit = unit_rows(features.astype(dtype))
    if n >= thresholds.here().contrastive_rows:  # the N x N matrix is not kept
        return blockwise_loss(unit, labels, float(temperature), count_anchor, columns_of(n), ignore)
    return plain_loss(unit, labels, float(temperature), count_anchor, ignore)


def plain_loss(
    unit: jax.Array, labels: jax.Array, temperature: float, count_anchor: bool, ignore: int | None = IGNORE
) -> jax.Array:
    """The loss of rows of length 1 (or 0), by the whole matrix of similarities; see :func:`supervised_contrastive`."""
    n, kept = unit.shape[0], is_kept(labels, ignore)
    similarity = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST) / temperature
    others = ~jnp.eye(n, dtype=bool) & kept[None, :]
    positives = (labels[:, None] == labels[None, :]) & others
    # A sum over nothing has no logarithm, so a row that has nobody to compare with sums over all; it has no positives.
    among = others | ~jnp.any(others, axis=1, keepdims=True)
    log_prob = similarity - jax.nn.logsumexp(similarity, axis=1, where=among, keepdims=True)
    count = jnp.sum(positives, axis=1)
    divisor = count + 1 if count_anchor else jnp.maximum(count, 1)
    return kept_mean(jnp.sum(jnp.where(positives, -log_prob, 0), axis=1) / divisor, kept)
