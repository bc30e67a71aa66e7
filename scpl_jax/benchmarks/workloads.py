"""What throughput is measured on: a network and a batch of noise for it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from flax import nnx

from scpl_jax.cli.image_options import Options
from scpl_jax.cli.methods import Rule, rule_of
from scpl_jax.cli.run_options import RunOptions
from scpl_jax.cli.text_options import TEXT_MODELS as TEXT_MODELS
from scpl_jax.cli.text_options import TextOptions
from scpl_jax.models import build_model, lstm, transformer


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network and a batch for it.

    Attributes:
      unit: what an example is, in the plural.
      inputs: a batch, the examples along the first axis.
      labels: its labels, int32.
      blocks: makes the network.
      rule: from the name of a learning rule, as for ``--method``, and the number of stages to its objectives.
      tokens: of an example, where it is a text.
    """

    unit: str
    inputs: np.ndarray
    labels: np.ndarray
    blocks: Callable[[nnx.Rngs], list[nnx.Module]]
    rule: Callable[[str, int], Rule]
    tokens: int | None = None


def images(
    model: str,
    width: float,
    batch_size: int,
    options: Options,
    image_size: int,
    *,
    dtype: Any = None,
    library: str = "xla",
) -> Workload:
    """Images of noise, ten classes.

    Args:
      model: as for the cifar experiment.
      width: multiplier of the numbers of channels.
      batch_size: images.
      options: the others of the cifar experiment that count: those of the heads.
      image_size: side of the images.
      dtype: of the computation; None for float32.
      library: what computes convolutions and matrix products on the CPU, one of ``scpl_jax.models.LIBRARIES``.

    Example:
      >>> workload = images("vgg8", 0.1, 4, Options(head="linear"), 32)
      >>> workload.inputs.shape
      (4, 32, 32, 3)
      >>> workload.rule("scpl", 2).objectives[0].head
      'linear'
    """
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(batch_size, image_size, image_size, 3)).astype(np.float32)
    labels = rng.integers(0, 10, batch_size).astype(np.int32)
    return Workload(
        "images",
        inputs,
        labels,
        lambda rngs: build_model(
            model, 10, width=width, image_shape=inputs.shape[1:], dtype=dtype, library=library, rngs=rngs
        ),
        lambda name, stages: _rule(options, name, stages, 10, dtype),
    )


def texts(
    model: str,
    width: float,
    batch_size: int,
    options: TextOptions,
    length: int,
    *,
    dtype: Any = None,
    library: str = "xla",
) -> Workload:
    """Texts of random words, all of the same length, two classes.

    Args:
      model: "lstm" or "transformer".
      width: multiplier of the numbers of hidden units.
      batch_size: texts.
      options: the others of the text experiment that count: layers, vocabulary, embedding_size, heads, and
        those of the projection heads.
      length: tokens of each text.
      dtype: of the computation; None for float32.
      library: what computes convolutions and matrix products on the CPU, one of ``scpl_jax.models.LIBRARIES``.

    Example:
      >>> texts("lstm", 0.1, 4, TextOptions(vocabulary=50, embedding_size=6), 12).inputs.shape
      (4, 12)
    """
    rng = np.random.default_rng(0)
    inputs = rng.integers(2, options.vocabulary, (batch_size, length)).astype(np.int32)
    labels = rng.integers(0, 2, batch_size).astype(np.int32)
    common: dict[str, Any] = {
        "vocabulary": options.vocabulary,
        "layers": options.layers,
        "size": options.embedding_size,
        "width": width,
        "dtype": dtype,
        "library": library,
    }

    def blocks(rngs: nnx.Rngs) -> list[nnx.Module]:
        if model == "lstm":
            return lstm(2, **common, rngs=rngs)
        return transformer(2, heads=options.heads, **common, rngs=rngs)

    return Workload(
        "texts", inputs, labels, blocks, lambda name, stages: _rule(options, name, stages, 2, dtype), length
    )


def _rule(options: RunOptions, method: str, stages: int, classes: int, dtype: Any) -> Rule:
    asked = dataclasses.replace(options, method=method, stages=stages)
    return rule_of(asked, classes, dtype)
