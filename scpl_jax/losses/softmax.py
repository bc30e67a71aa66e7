"""Cross-entropy with integer labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Shaped

from scpl_jax.losses.labels import IGNORE, indices_on_device, is_kept, is_outside, kept_mean, not_a_number_if


def cross_entropy(
    logits: Float[Array | np.ndarray, "n classes"],
    labels: Shaped[Array | np.ndarray, "n ..."],
    *,
    ignore: int | None = IGNORE,
) -> Float[Array, ""]:
    """Mean softmax cross-entropy over the labelled examples of a batch.

    Args:
      logits: unnormalised log-probabilities, shape (N, classes), any floating dtype; computed in at least float32.
      labels: class indices, shape (N,) or (N, 1), integer. A label outside [0, classes) makes the loss NaN.
      ignore: label of an example that is left out; None for none.

    Returns:
      A scalar, float32 (float64 for float64 logits): mean over the i that are not left out of
      ``-log softmax(logits_i)[labels_i]``; 0 where all are.

    Raises:
      ValueError: labels of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = cross_entropy(jnp.zeros((3, 4)), jnp.array([0, 3, -1]))
      >>> round(float(loss), 4)  # log(4)
      1.3863
    """
    labels = indices_on_device(labels)
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    kept, outside = is_kept(labels, ignore), is_outside(labels, logits.shape[-1], ignore)
    known = jnp.where(kept & ~outside, labels, 0)
    losses: jax.Array = optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(dtype), known)
    return not_a_number_if(outside, kept_mean(losses, kept))
