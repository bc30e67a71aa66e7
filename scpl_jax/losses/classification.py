"""Cross-entropy with integer labels."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array | np.ndarray, "n classes"], labels: Int[Array | np.ndarray, " n"]
) -> Float[Array, ""]:
    """Mean softmax cross-entropy over a batch.

    Args:
      logits: unnormalised log-probabilities, shape (N, classes), any floating dtype; computed in at least float32.
      labels: class indices, shape (N,), integer, each in [0, classes).

    Returns:
      A scalar, float32 (float64 for float64 logits): mean over i of ``-log softmax(logits_i)[labels_i]``.

    Example:
      >>> import jax.numpy as jnp
      >>> loss = cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))
      >>> round(float(loss), 4)  # log(4)
      1.3863
    """
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    losses: jax.Array = optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(dtype), labels)
    return losses.mean()
