"""The door: every array that a user hands in is checked here, once, by shape and dtype, in one sentence."""

import contextlib
from collections.abc import Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scpl_jax.losses.labels import IGNORE, class_indices

# What a label becomes that says "ignore" where another value, or none, does.
_NO_CLASS = -2
_LARGEST = np.iinfo(np.int32).max


def admit_inputs(inputs: Any, example: Any = None) -> Any:
    """A batch of inputs as arrays, after a check of shapes and dtypes.

    Args:
      inputs: any pytree of arrays, batch first; on the host, on devices, or ``jax.ShapeDtypeStruct``. What is no array,
        such as a number or a list as a leaf, becomes a NumPy array.
      example: shapes and dtypes of a batch that the network takes, perhaps of another size; None: it is not known.
        Sizes of other axes than the first may differ from it: networks may take images or texts of several sizes. Where
        its own arrays differ in the first one, as messages with the state of an LSTM do, those of a batch may, too.

    Returns:
      The same tree of arrays.

    Raises:
      ValueError: no array, arrays without a batch axis or of different batch sizes, or arrays unlike the example's.

    Example:
      >>> admit_inputs({"x": np.ones((4, 2)), "n": [1, 2, 3]})
      Traceback (most recent call last):
      ValueError: the arrays of a batch must have the same number of examples, got n (3,), x (4, 2); check that each ...
    """
    inputs = jax.tree.map(_as_array, inputs, is_leaf=_is_list_of_numbers)
    named = _named(inputs)
    shapes = ", ".join(f"{name} {tuple(leaf.shape)}".strip() for name, leaf in named)
    if not named or min(leaf.ndim for _, leaf in named) < 1:
        raise ValueError(
            f"a batch must be arrays whose first axis is the examples, got {shapes or 'no array'}; give each that axis"
        )
    if example is not None:
        _check_alike(inputs, example)
    batched = _batched(example, len(named))
    sizes = {leaf.shape[0] for (_, leaf), counts in zip(named, batched, strict=True) if counts}
    if len(sizes) > 1:
        raise ValueError(
            f"the arrays of a batch must have the same number of examples, got {shapes}; check that each has the batch "
            "as its first axis"
        )
    if sizes == {0}:
        raise ValueError(f"a batch must have at least one example, got {shapes}; leave empty batches out")
    return inputs


def _batched(example: Any, count: int) -> list[bool]:
    """Which arrays have the examples as their first axis: as many entries as the example's first array."""
    if example is None:
        return [True] * count
    sizes = [leaf.shape[0] for leaf in jax.tree.leaves(example)]
    return [size == sizes[0] for size in sizes]


def _is_list_of_numbers(node: Any) -> bool:
    """Whether a list stands for an array: its first entry is a number, or such a list."""
    while isinstance(node, list) and node:
        node = node[0]
        if isinstance(node, bool | int | float):
            return True
    return False


def _as_array(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        try:
            leaf = np.asarray(leaf)
        except ValueError as error:
            raise ValueError(f"a batch must be arrays of numbers ({error})") from error
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "biufc" and not jnp.issubdtype(leaf.dtype, jnp.number):
        raise ValueError(f"a batch must be arrays of numbers, got dtype {leaf.dtype}; convert it first")
    return leaf


def _kind(dtype: Any) -> str:
    kinds = (("floating", jnp.floating), ("whole", jnp.integer), ("bool", jnp.bool_))
    return next((name for name, kind in kinds if jnp.issubdtype(dtype, kind)), str(dtype))


def _named(tree: Any) -> list[tuple[str, Any]]:
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in paths]


def _describe(tree: Any) -> str:
    return ", ".join(f"{name} {leaf.dtype} {tuple(leaf.shape)}".strip() for name, leaf in _named(tree))


def _check_alike(inputs: Any, example: Any) -> None:
    """Refuse another structure, other numbers of axes, or whole numbers in place of others."""
    structures: list[Any] = [jax.tree.structure(inputs), jax.tree.structure(example)]
    alike = structures[0] == structures[1] and all(
        one.ndim == other.ndim and _kind(one.dtype) == _kind(other.dtype)
        for one, other in zip(jax.tree.leaves(inputs), jax.tree.leaves(example), strict=True)
    )
    if not alike:
        raise ValueError(
            f"the network was made for batches like {_describe(example)}, got {_describe(inputs)}; "
            "convert the batch, or give decouple another example"
        )


@contextlib.contextmanager
def traced_for(inputs: Any, example: Any) -> Iterator[None]:
    """Say in one sentence that the network can't take a batch of these sizes, if tracing it fails for that.

    Args:
      inputs: the batch, as :func:`admit_inputs` returns it.
      example: what the network was made with; None: it is not known.

    Raises:
      ValueError: in place of what is raised in the block, if the batch has other sizes than the example.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        sizes = [[leaf.shape[1:] for leaf in jax.tree.leaves(tree)] for tree in (inputs, example)]
        if example is None or sizes[0] == sizes[1]:
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"the network was made for batches like {_describe(example)} and can't take {_describe(inputs)} "
            f"({reason[:200]}); convert the batch, or give decouple another example"
        ) from error


def admit_labels(labels: Any, examples: int, classes: int | None, ignored: Collection[int] = (IGNORE,)) -> Any:
    """Labels as int32 class indices, (N,), -1 where they are to be ignored.

    The values of arrays on the host are checked here; those of arrays on a device where they are used, so that nothing
    waits for them.

    Args:
      labels: as :func:`scpl_jax.losses.labels.class_indices` takes them.
      examples: N.
      classes: number of classes; None: not known.
      ignored: the labels that say so.

    Raises:
      ValueError: another shape or dtype, another number of labels, or a label that is none of the classes.

    Example:
      >>> admit_labels([[2], [255]], 2, 10, ignored=[255])
      array([ 2, -1], dtype=int32)
      >>> admit_labels([2, 10], 2, 10)
      Traceback (most recent call last):
      ValueError: labels must be from 0 to 9, or -1, which is ignored, got 10 at position 1 (of 2 labels 1 is no such)
    """
    labels = class_indices(labels)
    if labels.shape != (examples,):
        raise ValueError(
            f"a batch must have a label for each example, got {labels.shape[0]} labels for {examples} examples"
        )
    if isinstance(labels, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(labels.shape, np.int32)
    on_host = isinstance(labels, np.ndarray)
    numpy: Any = np if on_host else jnp
    skip = numpy.isin(labels, numpy.asarray(list(ignored), labels.dtype)) if ignored else numpy.zeros(examples, bool)
    if on_host:
        bad = ((labels < 0) | (labels > (_LARGEST if classes is None else classes - 1))) & ~skip
        if bad.any():
            at, count = int(np.argmax(bad)), int(bad.sum())
            raise ValueError(
                f"{labels_must_be(classes, ignored)}, got {labels[at]} at position {at} (of {examples} labels {count} "
                f"{'is' if count == 1 else 'are'} no such)"
            )
    return numpy.where(skip, IGNORE, numpy.where(labels == IGNORE, _NO_CLASS, labels)).astype(np.int32)


def labels_must_be(classes: int | None, ignored: Collection[int]) -> str:
    """What labels must be, in words.

    Example:
      >>> labels_must_be(10, [255])
      'labels must be from 0 to 9, or 255, which is ignored'
    """
    known = "0 or more" if classes is None else f"from 0 to {classes - 1}"
    return f"labels must be {known}" + "".join(f", or {label}, which is ignored" for label in sorted(set(ignored)))
