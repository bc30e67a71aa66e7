"""Pre-norm Transformer encoder layers with a padding mask."""

import math
from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.kernels.dropout import Dropout
from scpl_jax.kernels.products import attention_mixture, attention_scores
from scpl_jax.models.layers import LayerOptions, linear, scaled
from scpl_jax.models.sequence import Embedding, TextClassifier, TextMessage, masked_mean

Norm = Callable[..., nnx.Module]


def layer_norm(size: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm with torch's constants (eps 1e-5 inside the root, biased variance)."""
    return nnx.LayerNorm(size, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2): (N, L, D) and mask (N, L) to (N, L, D).

    Raises:
      ValueError: the heads do not divide D.
    """

    def __init__(
        self, size: int, heads: int, *, rngs: nnx.Rngs, dropout: float = 0.0, library: str = "xla", **options: Any
    ):
        if size % heads:
            raise ValueError(f"{heads} attention heads can't share {size} features; choose a number that divides them")
        self.query, self.key, self.value, self.out = (
            linear(size, size, rngs=rngs, library=library, **options) for _ in range(4)
        )
        self.dropout = Dropout(dropout, rngs=rngs)
        self.heads, self.library = heads, library

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """(N, L, D), and (N, L) bool, False where it is padding, to (N, L, D)."""
        n, length, size = x.shape

        def split(y: jax.Array) -> jax.Array:
            return y.reshape(n, length, self.heads, size // self.heads)

        q, k, v = (split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = attention_scores(q, k, self.library).astype(jnp.float32) / math.sqrt(size // self.heads)
        # Not -inf: a text without a word would give NaN.
        scores = jnp.where(mask[:, None, None, :], scores, -1e9)
        weights = self.dropout(jax.nn.softmax(scores, axis=-1).astype(x.dtype))
        return self.out(attention_mixture(weights, v, self.library).reshape(n, length, size))


class EncoderLayer(nnx.Module):
    """x + attention(norm(x)), then x + linear(relu(linear(norm(x)))), each with dropout before it is added."""

    def __init__(
        self, size: int, heads: int, hidden: int, *, norm: Norm, dropout: float, rngs: nnx.Rngs, **options: Any
    ):
        self.attention = Attention(size, heads, dropout=dropout, rngs=rngs, **options)
        self.first = linear(size, hidden, rngs=rngs, **options)
        self.second = linear(hidden, size, rngs=rngs, **options)
        self.norms = nnx.List([norm(size, rngs=rngs) for _ in range(2)])
        self.dropouts = nnx.List([Dropout(dropout, rngs=rngs) for _ in range(3)])

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """As of :class:`Attention`."""
        x = x + self.dropouts[0](self.attention(self._normed(0, x), mask))
        inner = self.dropouts[1](jax.nn.relu(self.first(self._normed(1, x))))
        return x + self.dropouts[2](self.second(inner))

    def _normed(self, which: int, x: jax.Array) -> jax.Array:
        # Norms compute in float32 whatever the rest does.
        y: jax.Array = self.norms[which](x)
        return y.astype(x.dtype)


class Encoder(nnx.Module):
    """Encoder layers and a norm: message to message, the summary being the mean over the words.

    Args:
      size: D.
      heads: attention heads; they must divide D.
      hidden: width of the feed-forward layer.
      layers: how many encoder layers.
      norm: builds a layer norm from (size, rngs=).
      dropout: share of the values that training sets to 0.
      rngs: source of randomness.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        hidden: int,
        layers: int = 1,
        *,
        rngs: nnx.Rngs,
        norm: Norm = layer_norm,
        dropout: float = 0.0,
        **options: Any,
    ):
        common: dict[str, Any] = {"norm": norm, "dropout": dropout, "rngs": rngs, **options}
        self.layers = nnx.List([EncoderLayer(size, heads, hidden, **common) for _ in range(layers)])
        self.norm = norm(size, rngs=rngs)

    def __call__(self, message: TextMessage) -> TextMessage:
        """Sequence and summary of D to the same."""
        x = message.sequence
        for layer in self.layers:
            x = layer(x, message.mask)
        x = self.norm(x).astype(x.dtype)
        return TextMessage(x, message.mask, masked_mean(x, message.mask))


def transformer(
    num_classes: int,
    *,
    vocabulary: int = 30000,
    layers: int = 4,
    size: int = 300,
    heads: int = 6,
    hidden: int = 300,
    width: float = 1.0,
    masked: bool = True,
    positions: str = "sinusoidal",
    norm: Norm = layer_norm,
    dropout: float = 0.1,
    **options: Unpack[LayerOptions],
) -> list[nnx.Module]:
    """An embedding, ``layers - 1`` Transformer encoders, and a classifier with a tanh layer.

    Args:
      num_classes, vocabulary, layers: as for :func:`scpl_jax.models.lstm`.
      size: length of the word vectors, and D of every layer.
      heads: attention heads; they must divide ``size``.
      hidden: width of the feed-forward layers and of the classifier's hidden layer, times ``width``.
      width: multiplier of ``hidden``.
      masked: leave padding out of the embedding's summary; False as in the released PyTorch code.
      positions: "sinusoidal" or, as in the released code, "none".
      norm: builds a layer norm from (size, rngs=).
      dropout: share of the values that training sets to 0.
      **options: see :class:`scpl_jax.models.LayerOptions`.

    Raises:
      ValueError: fewer than 2 layers, or heads that do not divide ``size``.

    Example:
      >>> from flax import nnx
      >>> len(transformer(2, vocabulary=50, size=12, heads=3, hidden=8, rngs=nnx.Rngs(0)))
      5
    """
    if layers < 2:
        raise ValueError(f"a Transformer needs at least 2 layers, the embedding included, got {layers}")
    h = scaled(hidden, width)
    common: dict[str, Any] = {"dropout": dropout, "rngs": options["rngs"], "dtype": options.get("dtype")}
    blocks: list[nnx.Module] = [Embedding(vocabulary, size, masked=masked, positions=positions, **common)]
    for _ in range(layers - 1):
        blocks.append(Encoder(size, heads, h, norm=norm, dropout=dropout, **options))
    return [*blocks, TextClassifier(size, h, num_classes, **options)]
