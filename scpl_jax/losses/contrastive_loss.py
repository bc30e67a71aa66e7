r"""The supervised contrastive loss of Khosla et al. (2020), safe for every input.

That of a large batch is computed a block of columns at a time: memory grows with the batch, not with its square. With S
the matrix of similarities over temperature, :math:`m_i = \log \sum_{k \ne i} e^{S_{ik}}`, and :math:`d_i` what row i is
divided by,

.. math::
  N L = \sum_i \frac{|P(i)| m_i - \sum_{p \in P(i)} S_{ip}}{d_i}, \qquad
  N \frac{\partial L}{\partial S_{ij}} = \frac{|P(i)|}{d_i} e^{S_{ij} - m_i} - \frac{[j \in P(i)]}{d_i}.

S is symmetric, so the gradient of the rows needs this matrix plus its transpose, and both follow from a block of S and
the vectors m, |P| and d. So each block is computed twice (for m, and for the gradient) and never kept: three matrix
products in all, as many as the plain form needs. Blocks are of columns, not of rows, so that a batch that is spread
over devices stays so: each device has its rows of every block.

Rows of a queue are further columns. They are no anchors and have no gradient, so theirs is no part of the transpose.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from scpl_jax.kernels import thresholds
from scpl_jax.losses.labels import IGNORE, indices_on_device, is_kept, kept_mean
from scpl_jax.losses.rows import unit_rows

# From here on e^(-2 / T), about 1e-26, and its inverse are far from the limits of float32.
_LEAST_TEMPERATURE = 1 / 30

_Sums = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
_Block = tuple[jax.Array, jax.Array, jax.Array]  # as in _blocks
_Queue = tuple[jax.Array, jax.Array] | None


def supervised_contrastive(
    features: Float[Array | np.ndarray, "n d"],
    labels: Shaped[Array | np.ndarray, "n ..."],
    temperature: float | int = 0.1,
    *,
    count_anchor: bool = False,
    ignore: int | None = IGNORE,
    queue: tuple[Float[Array | np.ndarray, "m d"], Shaped[Array | np.ndarray, " m"]] | None = None,
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

    With a queue, its rows are among the k and, where they have the label of row i, in :math:`P(i)`. They are no
    anchors, so N is still the number of the batch's rows, and they get no gradient. This is the queue of MoCo (He et
    al. 2020, arXiv 1911.05722) without its second encoder.

    Args:
      features: shape (N, D), floating. Computed in at least float32.
      labels: class indices, shape (N,) or (N, 1), integer.
      temperature: T > 0; smaller weighs the hard pairs more.
      count_anchor: divide by :math:`|P(i)| + 1` instead, as the code released with SCPL (arXiv 2602.00062) does: every
        anchor with p positives is then weighted by p / (p + 1).
      ignore: label of a row that is left out; None for none.
      queue: further rows, of length 1 or 0, shape (M, D), floating, and their labels, shape (M,), integer; a row with
        the label ``ignore`` does not count. None for none.

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
      >>> queue = features[1:], jnp.array([0, 1, -1])  # its last row does not count
      >>> round(float(supervised_contrastive(features[:1], jnp.array([0]), 1.0, queue=queue)), 4)  # log(e + 1) - 1
      0.3133
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be greater than 0, got {temperature}; 0.1 is the usual value")
    features, labels = jnp.asarray(features), indices_on_device(labels)
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    n = features.shape[0]
    if n == 0 or (n == 1 and queue is None):
        # Nobody to compare with; still a function of the features, so that it can be differentiated.
        return jnp.sum(features, dtype=dtype) * 0
    unit = unit_rows(features.astype(dtype))
    more = 0
    if queue is not None:
        rows, theirs = queue
        more = rows.shape[0]
        queue = jax.lax.stop_gradient(jnp.asarray(rows, dtype)), indices_on_device(theirs)
    if n * (n + more) >= thresholds.here().contrastive_rows ** 2:  # the matrix is not kept
        return blockwise_loss(unit, labels, float(temperature), count_anchor, columns_of(n, more), ignore, queue)
    return plain_loss(unit, labels, float(temperature), count_anchor, ignore, queue)


def plain_loss(
    unit: jax.Array,
    labels: jax.Array,
    temperature: float,
    count_anchor: bool,
    ignore: int | None = IGNORE,
    queue: _Queue = None,
) -> jax.Array:
    """The loss of rows of length 1 (or 0), by the whole matrix of similarities; see :func:`supervised_contrastive`."""
    kept = is_kept(labels, ignore)
    columns, their_labels = _with_queue(unit, labels, queue)
    similarity = jnp.matmul(unit, columns.T, precision=jax.lax.Precision.HIGHEST) / temperature
    others = ~jnp.eye(unit.shape[0], columns.shape[0], dtype=bool) & is_kept(their_labels, ignore)[None, :]
    positives = (labels[:, None] == their_labels[None, :]) & others
    # A sum over nothing has no logarithm, so a row that has nobody to compare with sums over all; it has no positives.
    among = others | ~jnp.any(others, axis=1, keepdims=True)
    log_prob = similarity - jax.nn.logsumexp(similarity, axis=1, where=among, keepdims=True)
    count = jnp.sum(positives, axis=1)
    divisor = count + 1 if count_anchor else jnp.maximum(count, 1)
    return kept_mean(jnp.sum(jnp.where(positives, -log_prob, 0), axis=1) / divisor, kept)


def _with_queue(unit: jax.Array, labels: jax.Array, queue: _Queue) -> tuple[jax.Array, jax.Array]:
    """Rows and labels of all columns: the batch's, then those of the queue."""
    if queue is None:
        return unit, labels
    return jnp.concatenate([unit, queue[0]]), jnp.concatenate([labels, queue[1]])


def columns_of(n: int, more: int = 0) -> int:
    """How many columns a block of a batch of n has, with so many more of a queue."""
    of_block = thresholds.here()
    return min(n + more, max(of_block.contrastive_columns, of_block.contrastive_elements // n))


def _blocks(unit: jax.Array, labels: jax.Array, numbers: jax.Array, columns: int) -> _Block:
    """Rows, labels and numbers of the columns of each block; what fills the last one up has the number -1."""
    n, d = unit.shape
    count = -(-n // columns)
    more = count * columns - n
    return (
        jnp.pad(unit, ((0, more), (0, 0))).reshape(count, columns, d),
        jnp.pad(labels, (0, more)).reshape(count, columns),
        jnp.pad(numbers, (0, more), constant_values=-1).reshape(count, columns),
    )


def _numbers(labels: jax.Array, ignore: int | None) -> jax.Array:
    """The number of each row, -1 for those that are left out."""
    return jnp.where(is_kept(labels, ignore), jnp.arange(labels.shape[0]), -1)


def _similarities(
    unit: jax.Array, labels: jax.Array, numbers_of_rows: jax.Array, block: _Block, temperature: float
) -> _Block:
    """(S of a block (N, columns), whether the column is another row, whether it is a positive of the row).

    A row that is left out has no others, and is none of the others' others.
    """
    columns, their_labels, numbers = block
    similarity = jnp.matmul(unit, columns.T, precision=jax.lax.Precision.HIGHEST) / temperature
    others = (numbers[None, :] != numbers_of_rows[:, None]) & (numbers >= 0)[None, :] & (numbers_of_rows >= 0)[:, None]
    return similarity, others, (labels[:, None] == their_labels[None, :]) & others


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def blockwise_loss(
    unit: jax.Array,
    labels: jax.Array,
    temperature: float,
    count_anchor: bool,
    columns: int,
    ignore: int | None = IGNORE,
    queue: _Queue = None,
) -> jax.Array:
    """The loss of rows of length 1 (or 0), as :func:`scpl_jax.losses.supervised_contrastive`.

    Args:
      unit: shape (N, D), float32 or float64.
      labels: shape (N,), integer.
      temperature: greater than 0 (static).
      count_anchor: divide by one more (static).
      columns: of a block (static); the last one is filled up.
      ignore: label of a row that is left out (static); None for none.
      queue: as for :func:`supervised_contrastive`, with rows of the dtype of ``unit``.

    Returns:
      A scalar. It has a reverse-mode derivative only.

    Example:
      >>> unit, labels = jnp.eye(3)[jnp.array([0, 0, 1, 1])], jnp.array([0, 0, 1, 1])
      >>> round(float(blockwise_loss(unit, labels, 1.0, False, 3)), 4)  # log(e + 2) - 1
      0.5514
    """
    return _forward(unit, labels, temperature, count_anchor, columns, ignore, queue)[0]


def _forward(
    unit: jax.Array,
    labels: jax.Array,
    temperature: float,
    count_anchor: bool,
    columns: int,
    ignore: int | None,
    queue: _Queue,
) -> tuple[jax.Array, tuple[Any, ...]]:
    n, bounded = unit.shape[0], temperature >= _LEAST_TEMPERATURE
    numbers, blocks = _numbered(unit, labels, columns, ignore, queue)

    def add(carry: _Sums, block: _Block) -> tuple[_Sums, None]:
        largest, total, of_positives, count = carry
        similarity, others, positives = _similarities(unit, labels, numbers, block, temperature)
        new = largest
        if not bounded:
            new = jnp.maximum(largest, jnp.max(similarity, axis=1, where=others, initial=-jnp.inf))
        # A row that has met only itself so far has no largest one; nothing is added for it, and nothing must be NaN.
        base = jnp.where(jnp.isfinite(new), new, 0)[:, None]
        total = total * jnp.exp(largest - base[:, 0]) + jnp.sum(jnp.exp(similarity - base), axis=1, where=others)
        of_positives += jnp.sum(similarity, axis=1, where=positives)
        return (new, total, of_positives, count + jnp.sum(positives, axis=1, dtype=jnp.int32)), None

    zero = jnp.zeros(n, unit.dtype)
    first = 1 / temperature if bounded else -jnp.inf
    start = (jnp.full(n, first, unit.dtype), zero, zero, jnp.zeros(n, jnp.int32))
    (largest, total, of_positives, count), _ = jax.lax.scan(add, start, blocks)
    # Where there was nobody to compare with, any finite number does: nothing is multiplied with it but 0.
    alone = total == 0
    log_total = jnp.where(alone, 0, largest + jnp.log(jnp.where(alone, 1, total)))
    divisor = (count + 1 if count_anchor else jnp.maximum(count, 1)).astype(unit.dtype)
    loss = kept_mean((count * log_total - of_positives) / divisor, numbers >= 0)
    return loss, (unit, labels, log_total, count / divisor, 1 / divisor, queue)


def _numbered(
    unit: jax.Array, labels: jax.Array, columns: int, ignore: int | None, queue: _Queue
) -> tuple[jax.Array, _Block]:
    """(the numbers of the batch's rows, all blocks of columns)."""
    rows, their_labels = _with_queue(unit, labels, queue)
    numbers = _numbers(their_labels, ignore)
    return numbers[: unit.shape[0]], _blocks(rows, their_labels, numbers, columns)


def _backward(
    temperature: float,
    count_anchor: bool,
    columns: int,
    ignore: int | None,
    saved: tuple[Any, ...],
    cotangent: jax.Array,
) -> tuple[jax.Array, None, None]:
    unit, labels, log_total, pull, push, queue = saved
    n, bounded = unit.shape[0], temperature >= _LEAST_TEMPERATURE
    numbers, blocks = _numbered(unit, labels, columns, ignore, queue)
    if bounded:
        pull = pull * jnp.exp(1 / temperature - log_total)

    def add(gradient: jax.Array, given: tuple[_Block, _Block]) -> tuple[jax.Array, None]:
        block, (log_of_columns, pull_of_columns, push_of_columns) = given
        similarity, others, positives = _similarities(unit, labels, numbers, block, temperature)
        if bounded:
            slopes = jnp.exp(similarity - 1 / temperature) * (pull[:, None] + pull_of_columns[None, :])
        else:
            slopes = jnp.exp(similarity - log_total[:, None]) * pull[:, None]
            slopes += jnp.exp(similarity - log_of_columns[None, :]) * pull_of_columns[None, :]
        slopes -= jnp.where(positives, push[:, None] + push_of_columns[None, :], 0)
        slopes = jnp.where(others, slopes, 0)
        return gradient + jnp.matmul(slopes, block[0], precision=jax.lax.Precision.HIGHEST), None

    more = blocks[2].size - n
    # What is no row of the batch pulls and pushes by 0, which must not be multiplied with an infinite number.
    fills = ((log_total, 0 if queue is None else 1 / temperature), (pull, 0), (push, 0))
    padded = (jnp.pad(of_rows, (0, more), constant_values=fill) for of_rows, fill in fills)
    log_of, pull_of, push_of = (of_columns.reshape(-1, columns) for of_columns in padded)
    gradient, _ = jax.lax.scan(add, jnp.zeros_like(unit), (blocks, (log_of, pull_of, push_of)))
    count = jnp.maximum(jnp.sum(numbers >= 0), 1).astype(unit.dtype)
    return gradient * (cotangent / (count * temperature)), None, None


blockwise_loss.defvjp(_forward, _backward)
