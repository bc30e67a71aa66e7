"""What the blocks of text networks hand on, and the first and the last of them: embedding and classifier."""

import dataclasses
import math
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.kernels.dropout import Dropout
from scpl_jax.models.layers import LayerOptions, linear

PAD = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TextMessage:
    """What passes from block to block: a sequence, what is padding in it, and one vector that stands for it.

    Attributes:
      sequence: (N, L, D), floating; 0 where it is padding.
      mask: (N, L), bool; False where it is padding.
      summary: (N, S), floating: what local losses and the classifier see.
      state: final (h, c) of an LSTM, each (2 directions, N, H); None behind other blocks.
    """

    sequence: jax.Array
    mask: jax.Array
    summary: jax.Array
    state: tuple[jax.Array, jax.Array] | None = None


def masked_mean(sequence: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Mean over the positions that count: (N, L, D) and (N, L) to (N, D); 0 where none does. Without a mask all do.

    Example:
      >>> import jax.numpy as jnp
      >>> masked_mean(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([[True, True, False]]))
      Array([[2.]], dtype=float32)
    """
    if mask is None:
        return sequence.mean(axis=1)
    weights = mask.astype(sequence.dtype)
    total = jnp.einsum("nld,nl->nd", sequence, weights, precision=jax.lax.Precision.HIGHEST)
    return total / jnp.maximum(weights.sum(axis=1, keepdims=True), 1)


def sinusoids(length: int, size: int) -> jax.Array:
    """Positions as sines and cosines of falling frequency (Vaswani et al. 2017, section 3.5): (L, D), float32.

    Example:
      >>> sinusoids(2, 4).shape
      (2, 4)
    """
    position = jnp.arange(length, dtype=jnp.float32)[:, None]
    frequency = jnp.exp(jnp.arange(0, size, 2, dtype=jnp.float32) * (-math.log(10000.0) / size))
    angles = position * frequency
    both = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return both.reshape(length, -1)[:, :size]


class Embedding(nnx.Module):
    """Tokens to vectors: (N, L) integer, 0 for padding, to a :class:`TextMessage` whose summary is their mean.

    Args:
      vocabulary: number of tokens, padding included.
      size: length of the vectors.
      positions: "sinusoidal" (vectors are scaled by sqrt(size) first) or "none".
      masked: leave padding out; False as in the released PyTorch code, where it counts like a word.
      dropout: share of the values that training sets to 0.
      rngs: source of randomness: normal initial vectors, as torch's; that of padding is 0.
      dtype: dtype of the computation; None for float32.

    Raises:
      ValueError: unknown ``positions``.
    """

    def __init__(
        self,
        vocabulary: int,
        size: int,
        *,
        rngs: nnx.Rngs,
        positions: str = "none",
        masked: bool = True,
        dropout: float = 0.0,
        dtype: Any = None,
    ):
        if positions not in ("none", "sinusoidal"):
            raise ValueError(f"positions must be none or sinusoidal, got {positions!r}")
        values = jax.random.normal(rngs.params(), (vocabulary, size))
        self.vectors = nnx.Param(values.at[PAD].set(0) if masked else values)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.positions, self.masked, self.dtype = positions, masked, dtype

    def __call__(self, tokens: jax.Array) -> TextMessage:
        """(N, L), integer, to a message with sequence and summary of ``size``."""
        mask = tokens != PAD
        vectors = self.vectors[...].astype(self.dtype or jnp.float32)
        sequence = jnp.take(vectors, tokens, axis=0)
        if self.positions == "sinusoidal":
            length, size = sequence.shape[1:]
            sequence = sequence * math.sqrt(size) + sinusoids(length, size).astype(sequence.dtype)
        sequence = self.dropout(sequence)
        if self.masked:
            sequence = jnp.where(mask[..., None], sequence, 0)
        return TextMessage(sequence, mask, masked_mean(sequence, mask if self.masked else None))


class TextClassifier(nnx.Module):
    """Linear, tanh, linear over a message's summary: to (N, classes).

    Args:
      size: length of the summary.
      hidden: width of the hidden layer.
      num_classes: width of the logits.
      **options: see :class:`scpl_jax.models.LayerOptions`.
    """

    def __init__(self, size: int, hidden: int, num_classes: int, **options: Unpack[LayerOptions]):
        self.hidden = linear(size, hidden, **options)
        self.out = linear(hidden, num_classes, **options)

    def __call__(self, message: TextMessage) -> jax.Array:
        """Logits (N, classes)."""
        return self.out(jnp.tanh(self.hidden(message.summary)))
