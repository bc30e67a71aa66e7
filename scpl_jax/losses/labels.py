"""Labels as losses take them: class indices, of which some may say that an example is to be left out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

IGNORE = -1
"""The label of an example that losses and accuracies leave out, unless another one is chosen."""

_LARGEST = np.iinfo(np.int32).max


def class_indices(labels: Any) -> Any:
    """Labels as an array of class indices, shape (N,), after a check of shape and dtype; values are not looked at.

    Args:
      labels: (N,), or (N, 1) as some data sets have them; integer or boolean, of any size; an array on the host or on a
        device, a traced one, a ``jax.ShapeDtypeStruct``, or a list of numbers.

    Returns:
      The same kind of array (of a list a NumPy array), shape (N,), signed integer.

    Raises:
      ValueError: another shape or dtype.

    Example:
      >>> class_indices(np.array([[3], [0]], np.uint8))
      array([3, 0])
      >>> class_indices([[0.0, 1.0]])
      Traceback (most recent call last):
      ValueError: labels must be integers of shape (N,) or (N, 1), got float64 of shape (1, 2); give class indices, ...
    """
    if not hasattr(labels, "dtype"):
        labels = _from_list(labels)
    shape, dtype = tuple(labels.shape), labels.dtype
    boolean = jnp.issubdtype(dtype, np.bool_)
    one_each = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if not one_each or not (boolean or jnp.issubdtype(dtype, np.integer)):
        remedy = "labels.argmax(axis=-1)" if len(shape) == 2 and shape[1] > 1 else "labels.astype(int)"
        raise ValueError(
            f"labels must be integers of shape (N,) or (N, 1), got {dtype} of shape {shape}; give class indices, "
            f"for instance {remedy}"
        )
    if isinstance(labels, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(shape[:1], np.int32 if not jnp.issubdtype(dtype, np.signedinteger) else dtype)
    labels = labels.reshape(shape[0])
    if boolean:
        return labels.astype(np.int32)
    if jnp.issubdtype(dtype, np.unsignedinteger):
        # A label that is too large must not come out as a negative one.
        kind = np.int64 if isinstance(labels, np.ndarray) else np.int32
        return (labels.clip(max=np.iinfo(kind).max) if dtype.itemsize >= np.dtype(kind).itemsize else labels).astype(
            kind
        )
    return labels


def indices_on_device(labels: Any) -> jax.Array:
    """:func:`class_indices` as an array of JAX.

    Raises:
      ValueError: another shape or dtype, or a label on the host that 32 bits can't hold.

    Example:
      >>> indices_on_device(np.array([7, 2**32 - 1]))
      Traceback (most recent call last):
      ValueError: labels must fit into 32 bits, got 4294967295; number the classes from 0
    """
    labels = class_indices(labels)
    if isinstance(labels, np.ndarray) and labels.dtype.itemsize > 4:
        large = labels[(labels > _LARGEST) | (labels < -_LARGEST)]
        if large.size:
            raise ValueError(f"labels must fit into 32 bits, got {large[0]}; number the classes from 0")
    return jnp.asarray(labels)


def _from_list(labels: Any) -> np.ndarray:
    try:
        return np.asarray(labels)
    except ValueError as error:
        raise ValueError(f"labels must be an array or a list of class indices ({error})") from error


def is_kept(labels: jax.Array, ignore: int | None = IGNORE) -> jax.Array:
    """Which labels (N,) count, (N,) bool: all but those that equal ``ignore``.

    Example:
      >>> is_kept(jnp.array([2, -1])).tolist(), is_kept(jnp.array([2, -1]), None).tolist()
      ([True, False], [True, True])
    """
    return jnp.ones(labels.shape, bool) if ignore is None else labels != ignore


def is_outside(labels: jax.Array, num_classes: int | None, ignore: int | None = IGNORE) -> jax.Array:
    """Which labels (N,) count but are none of the classes 0 to ``num_classes`` - 1, (N,) bool.

    Args:
      labels: (N,), integer.
      num_classes: their number; None where it is not known: then only negative labels are outside.
      ignore: the label that does not count; None for none.

    Example:
      >>> is_outside(jnp.array([0, 2, -1, -2]), 2).tolist()
      [False, True, False, True]
    """
    outside = labels < 0
    if num_classes is not None:
        outside |= labels >= num_classes
    return outside & is_kept(labels, ignore)


def kept_mean(values: jax.Array, kept: jax.Array) -> jax.Array:
    """Mean of ``values`` where ``kept`` (of the same shape), a scalar; 0 where there are none.

    Example:
      >>> float(kept_mean(jnp.array([1.0, 5.0]), jnp.array([True, False])))
      1.0
    """
    count = jnp.maximum(jnp.sum(kept, dtype=jnp.int32), 1).astype(values.dtype)
    return jnp.sum(jnp.where(kept, values, 0)) / count


def not_a_number_if(wrong: jax.Array, loss: jax.Array) -> jax.Array:
    """The loss, a scalar; NaN, and its gradient too, where any of ``wrong`` is true: useless instead of misleading."""
    return loss * jnp.where(jnp.any(wrong), jnp.nan, 1).astype(loss.dtype)
