"""Bidirectional LSTM layers that take over the final state of the layer before."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.kernels.dropout import Dropout
from scpl_jax.kernels.onednn import check_library
from scpl_jax.kernels.recurrence import recurrence
from scpl_jax.models.layers import scaled, uniform
from scpl_jax.models.sequence import Embedding, TextClassifier, TextMessage


class BiLSTM(nnx.Module):
    r"""One bidirectional LSTM layer: message to message, with outputs [forward, backward] of 2H and a summary of H.

    .. math::

        i, f, o = \sigma(\cdot), \quad g = \tanh(\cdot), \quad c' = f c + i g, \quad h' = o \tanh c'

    with the gates in torch's order i, f, g, o, each from :math:`x W + b + h U + b'`. The first state is the final one
    of the layer before, where there is one. Both directions run in one loop,
    :func:`scpl_jax.kernels.recurrence.recurrence`.

    Args:
      in_features: D of the incoming sequence.
      hidden: H.
      masked: true lengths count: the backward direction begins at the last word, padding changes no state, and outputs
        there are 0. False as in the released PyTorch code, where padding counts like words.
      summary: "mean" of the two directions' final h, as in SCPL, or their "sum", as in associated learning.
      dropout: share of the outputs that training sets to 0.
      rngs, dtype, library: see :class:`scpl_jax.models.LayerOptions`; without ``dtype`` that of the input counts.

    Raises:
      ValueError: unknown ``summary``, or no library of this name, or not here.
    """

    def __init__(
        self,
        in_features: int,
        hidden: int,
        *,
        rngs: nnx.Rngs,
        masked: bool = True,
        summary: str = "mean",
        dropout: float = 0.0,
        dtype: Any = None,
        library: str = "xla",
    ):
        if summary not in ("mean", "sum"):
            raise ValueError(f"summary must be mean or sum, got {summary!r}")
        bound = 1 / math.sqrt(hidden)

        def drawn(*shape: int) -> nnx.Param[jax.Array]:
            return nnx.Param(uniform(rngs.params(), shape, -bound, bound))

        self.kernel = drawn(2, in_features, 4 * hidden)
        self.recurrent = drawn(2, hidden, 4 * hidden)
        # Two, as in torch: under Adam two biases move twice as fast as one.
        self.bias = drawn(2, 4 * hidden)
        self.recurrent_bias = drawn(2, 4 * hidden)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.masked, self.summary, self.dtype, self.library = masked, summary, dtype, check_library(library)

    def __call__(self, message: TextMessage) -> TextMessage:
        """Sequence (N, L, D) to (N, L, 2H), summary (N, H), state (2, N, H) twice."""
        x = message.sequence.astype(self.dtype or message.sequence.dtype)
        kernel, recurrent = self.kernel[...].astype(x.dtype), self.recurrent[...].astype(x.dtype)
        bias = (self.bias[...] + self.recurrent_bias[...]).astype(x.dtype)
        if message.state is None:
            h = c = jnp.zeros((2, x.shape[0], recurrent.shape[1]), x.dtype)
        else:
            h, c = (part.astype(x.dtype) for part in message.state)
        # Time first, so that a step's values lie together; the backward direction takes the steps from the last one
        # on, and padding, which is behind the words, changes no state before it has come to them.
        steps = x.transpose(1, 0, 2)
        real = (message.mask if self.masked else jnp.ones_like(message.mask)).T
        (forward, *last), (backward, *first) = recurrence(
            [
                (steps, kernel[0], recurrent[0], bias[0], h[0], c[0], real),
                (steps[::-1], kernel[1], recurrent[1], bias[1], h[1], c[1], real[::-1]),
            ],
            self.library,
        )
        sequence = jnp.concatenate([forward, backward[::-1]], axis=-1).transpose(1, 0, 2)
        h, c = (jnp.stack(both) for both in zip(last, first, strict=True))
        summary = h[0] + h[1] if self.summary == "sum" else (h[0] + h[1]) / 2
        return TextMessage(self.dropout(sequence), message.mask, summary, (h, c))


def lstm(
    num_classes: int,
    *,
    vocabulary: int = 30000,
    layers: int = 4,
    size: int = 300,
    hidden: int = 300,
    width: float = 1.0,
    masked: bool = True,
    summary: str = "mean",
    dropout: float = 0.0,
    init: str = "torch",
    dtype: Any = None,
    library: str = "xla",
    rngs: nnx.Rngs,
) -> list[nnx.Module]:
    """An embedding, ``layers - 1`` bidirectional LSTM layers, and a classifier with a tanh layer.

    Args:
      num_classes: width of the logits.
      vocabulary: number of tokens, padding (0) included.
      layers: blocks besides the classifier, at least 2.
      size: length of the word vectors.
      hidden: H of each direction, and width of the classifier's hidden layer; both times ``width``.
      width: multiplier of ``hidden``.
      masked: see :class:`BiLSTM`.
      summary: see :class:`BiLSTM`.
      dropout: share of the values that training sets to 0 behind every block.
      init, dtype, library, rngs: see :class:`scpl_jax.models.LayerOptions`; ``init`` is of the classifier only, the
        LSTM layers have torch's.

    Raises:
      ValueError: fewer than 2 layers.

    Example:
      >>> from flax import nnx
      >>> len(lstm(2, vocabulary=50, size=8, hidden=8, rngs=nnx.Rngs(0)))
      5
    """
    if layers < 2:
        raise ValueError(f"an LSTM network needs at least 2 layers, the embedding included, got {layers}")
    h = scaled(hidden, width)
    common: dict[str, Any] = {"masked": masked, "dropout": dropout, "dtype": dtype, "rngs": rngs}
    blocks: list[nnx.Module] = [Embedding(vocabulary, size, **common)]
    for index in range(layers - 1):
        blocks.append(BiLSTM(size if index == 0 else 2 * h, h, summary=summary, library=library, **common))
    return [*blocks, TextClassifier(h, h, num_classes, init=init, dtype=dtype, library=library, rngs=rngs)]
