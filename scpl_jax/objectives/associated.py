"""Associated learning: stages learn to predict codes of the label, and to read them back."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from scpl_jax.losses import cross_entropy
from scpl_jax.losses.labels import IGNORE, is_kept, kept_mean
from scpl_jax.models.layers import linear
from scpl_jax.objectives.base import Objective, check_classes, one_array
from scpl_jax.objectives.heads import ProjectionHead

_ACTIVATIONS = {"sigmoid": jax.nn.sigmoid, "tanh": jnp.tanh}


class AssociatedLoss(nnx.Module):
    """Bridge b from features to the target code, encoder g and decoder h of that code."""

    def __init__(
        self,
        bridge: ProjectionHead,
        encoder: nnx.Linear,
        decoder: nnx.Linear,
        activation: str,
        bounded: bool,
        loss: str,
    ):
        self.bridge = bridge
        self.encoder = encoder
        self.decoder = decoder
        self.activation = _ACTIVATIONS[activation]
        self.bounded = bounded
        self.loss = loss

    def predict_code(self, features: jax.Array) -> jax.Array:
        """b: features (N, ...) to the predicted code (N, C)."""
        return self.activation(self.bridge(features))

    def encode(self, code: jax.Array) -> jax.Array:
        """g: the code of the stage before to this stage's, (..., C) each."""
        return self.activation(self.encoder(code))

    def decode(self, code: jax.Array) -> jax.Array:
        """h: this stage's code back to that of the stage before; in stage 0 to scores of the classes."""
        decoded = self.decoder(code)
        return self.activation(decoded) if self.bounded else decoded

    def __call__(
        self, features: jax.Array, code: jax.Array, kept: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Features (N, ...) and the code of the stage before to (a scalar, this stage's code).

        The scalar is the mean over the examples that are ``kept``, (N,) bool; None: over all.
        """
        kept = jnp.ones(code.shape[0], bool) if kept is None else kept
        target = self.encode(code)
        dtype = jnp.promote_types(target.dtype, jnp.float32)
        goal = jax.lax.stop_gradient(target)
        associated = self._squares(self.predict_code(features).astype(dtype) - goal.astype(dtype), kept)
        decoded = self.decode(target).astype(dtype)
        if self.loss == "cross-entropy":
            return associated + cross_entropy(decoded, jnp.where(kept, jnp.argmax(code, axis=-1), IGNORE)), goal
        return associated + self._squares(decoded - code.astype(dtype), kept), goal

    @staticmethod
    def _squares(difference: jax.Array, kept: jax.Array) -> jax.Array:
        """Mean square of the rows that are kept."""
        return kept_mean(difference**2, jnp.broadcast_to(kept[:, None], difference.shape))


class _Bridge(ProjectionHead):
    """A projection head with sigmoid or tanh between its layers."""

    def __init__(self, *arguments: Any, activation: str, **options: Any):
        super().__init__(*arguments, **options)
        self.activation = activation

    def __call__(self, features: jax.Array) -> jax.Array:
        x = self.pooled(features)
        for index, layer in enumerate(self.layers):
            x = layer.linear(_ACTIVATIONS[self.activation](x) if index else x)
        return x


# What the options of the same name may be.
_CHOICES = {
    "activation": tuple(_ACTIVATIONS),
    "bounded": ("all", "first", "none"),
    "first_loss": ("mse", "cross-entropy"),
}


@dataclasses.dataclass(frozen=True)
class Associated(Objective):
    r"""Associated learning (Wu et al., ICLR 2022; Kao and Chen).

    Stage k gets features :math:`s` and a code :math:`t` of the label (before stage 0 the one-hot label), detached, and
    hands on :math:`f(s)` and :math:`g(t)`. It minimises

    .. math::
      MSE(b(f(s)), g(t)) + MSE(h(g(t)), t)

    where no gradient of the first term reaches g. The network's answer goes forward through all f, over the last
    bridge b, and back through all h; the bridge of an earlier stage is an exit. The network's own classifier is not
    used.

    The first autoencoder reads the label from h's output as logits, by cross-entropy instead of the squares above. The
    released code for images has squares and a sigmoid behind everything; there the codes of all classes stay close
    to each other for thousands of steps, so that is an option and not the default.

    Args:
      num_classes: number of classes, at least 1.
      code: size of the codes, at least 1.
      hidden: size of the bridges' hidden layer; 0 for none.
      pool: average a feature map down to this side before the bridge; 0 for none.
      activation: behind b's layers, g and h: "tanh" or, as in the released code for images, "sigmoid".
      bounded: whether h has one, too: "none", "first" (only that of stage 0, as in the released code for text) or
        "all" stages' (as in that for images).
      first_loss: of stage 0's autoencoder: "cross-entropy" of h's output as logits or, as in the released code for
        images, "mse".
      init, dtype: see :class:`scpl_jax.models.LayerOptions`. The losses are at least float32.

    Raises:
      ValueError: a value out of range, at construction.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> features, code = jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32), jax.ShapeDtypeStruct((8, 5), jnp.float32)
      >>> loss = Associated(5, code=16, hidden=32).build(features, companion=code, rngs=nnx.Rngs(0))
      >>> value, code = loss(jnp.ones((8, 4, 4, 3)), Associated(5).accompany(jnp.arange(8) % 5))
      >>> value.shape, code.shape, loss.decode(loss.predict_code(jnp.ones((8, 4, 4, 3)))).shape
      ((), (8, 16), (8, 5))
    """

    num_classes: int
    code: int = 128
    hidden: int = 640
    pool: int = 2
    activation: str = "tanh"
    bounded: str = "none"
    first_loss: str = "cross-entropy"
    init: str = "torch"
    dtype: Any = None

    takes_classifier: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_classes(self.num_classes)
        if self.code < 1 or self.hidden < 0:
            raise ValueError(f"code must be at least 1 and hidden 0 or more, got {self.code} and {self.hidden}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def accompany(self, labels: jax.Array) -> jax.Array:
        """Labels (N,) to the code that accompanies the network's input: one-hot, (N, classes), float32; -1: zeros."""
        return jax.nn.one_hot(labels, self.num_classes, dtype=jnp.float32)

    def local_loss(
        self, module: AssociatedLoss, features: Any, labels: jax.Array, companion: Any
    ) -> tuple[jax.Array, Any]:
        """The loss, and this stage's code of the code that came along."""
        return module(features, companion, is_kept(labels))

    def answer(self, module: AssociatedLoss, features: Any) -> jax.Array:
        """The code (N, C) that the stage's bridge predicts."""
        return module.predict_code(features)

    def read_back(self, module: AssociatedLoss, answer: jax.Array) -> jax.Array:
        """Codes (N, C) of a stage to those of the stage before; by the network's first stage to scores of classes."""
        return module.decode(answer)

    def as_logits(self, answer: jax.Array) -> jax.Array:
        """Where squares trained it, the logarithms of its scores, which divided by their sum serve as probabilities."""
        return jnp.log(jnp.maximum(answer.astype(jnp.float32), 1e-6)) if self.first_loss == "mse" else answer

    def build(self, features: Any, *, rngs: nnx.Rngs, companion: Any = None) -> AssociatedLoss:
        """Bridge, encoder, decoder for features of this shape; ``companion``: the code of the stage before."""
        size = self.num_classes if companion is None else companion.shape[-1]
        common: dict[str, Any] = {"rngs": rngs, "init": self.init, "dtype": self.dtype}
        shape = one_array(features, "Associated").shape[1:]
        kind, dims = ("mlp", (self.hidden, self.code)) if self.hidden else ("linear", (self.code,))
        bridge = _Bridge(shape, kind, dims, self.pool, activation=self.activation, **common)
        encoder, decoder = linear(size, self.code, **common), linear(self.code, size, **common)
        bounded = self.bounded == "all" or (self.bounded == "first" and companion is None)
        loss = self.first_loss if companion is None else "mse"
        return AssociatedLoss(bridge, encoder, decoder, self.activation, bounded, loss)
