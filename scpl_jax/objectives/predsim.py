"""Local prediction and similarity matching (Nokland and Eidnes, 2019)."""

import dataclasses
from typing import Any

import jax
from flax import nnx

from scpl_jax.losses import cross_entropy, similarity_matching, spatial_deviation
from scpl_jax.models.layers import conv, linear
from scpl_jax.objectives.base import Objective, check_classes, one_array
from scpl_jax.objectives.heads import ProjectionHead


class PredSimLoss(nnx.Module):
    """A linear classifier and a layer whose output is matched to the labels by similarity."""

    def __init__(self, classifier: ProjectionHead, matched: nnx.Module, num_classes: int, weights: tuple[float, float]):
        self.classifier = classifier
        self.matched = matched
        self.num_classes = num_classes
        self.weights = weights

    def logits(self, features: jax.Array) -> jax.Array:
        """(N, ...) to (N, classes)."""
        return self.classifier(features)

    def __call__(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Features (N, ...) and labels (N,) to a scalar."""
        x = self.matched(features)
        rows = spatial_deviation(x) if x.ndim == 4 else x
        prediction, similarity = self.weights
        matching = similarity_matching(rows, labels, self.num_classes)
        return prediction * cross_entropy(self.logits(features), labels) + similarity * matching


@dataclasses.dataclass(frozen=True)
class PredSim(Objective):
    """Weighted sum of a local classifier's cross-entropy and of similarity matching (arXiv 1901.06656).

    Similarity is matched behind a 3 x 3 convolution without bias (a linear layer, where the features are no feature
    map); what the classifier sees is averaged to a small side and flattened. The labels' similarity is a constant.

    Args:
      num_classes: number of classes, at least 1.
      weights: of prediction and of similarity matching.
      pool: average a feature map down to this side, or these (height, width), before the classifier; 0 for none.
      init, dtype: see :class:`scpl_jax.models.LayerOptions`. The losses are at least float32.

    Raises:
      ValueError: a value out of range, at construction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> loss = PredSim(5).build(jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32), rngs=nnx.Rngs(0))
      >>> loss(jnp.ones((8, 4, 4, 3)), jnp.arange(8) % 5).shape
      ()
    """

    num_classes: int
    weights: tuple[float, float] = (0.01, 0.99)
    pool: int | tuple[int, int] = 2
    init: str = "torch"
    dtype: Any = None

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        if min(self.weights) < 0:
            raise ValueError(f"weights must be at least 0, got {self.weights}")

    def build(self, features: Any, *, rngs: nnx.Rngs) -> PredSimLoss:
        """Classifier and matched layer for features of this shape, with their losses."""
        shape = one_array(features, "PredSim").shape[1:]
        common: dict[str, Any] = {"rngs": rngs, "init": self.init, "dtype": self.dtype}
        matched: nnx.Module
        if len(shape) == 3:
            matched = conv(shape[-1], shape[-1], 3, **common)
        else:
            matched = linear(shape[-1], shape[-1], use_bias=False, **common)
        classifier = ProjectionHead(shape, "linear", (self.num_classes,), self.pool, **common)
        return PredSimLoss(classifier, matched, self.num_classes, self.weights)
