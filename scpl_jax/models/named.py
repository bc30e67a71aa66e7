"""Networks by name, and the cuts that the paper uses for them."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from scpl_jax.models.cnn import cnn
from scpl_jax.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from scpl_jax.models.vgg import vgg8

_Network = tuple[Callable[..., list[nnx.Module]], tuple[int, ...]]
# How it is built, and where a new stage begins, in blocks; the ResNets' stem is block 0 and belongs to the first group.
_NETWORKS: dict[str, _Network] = {
    "vgg8": (vgg8, (2, 4, 5)),
    "resnet18": (resnet18, (3, 5, 7)),
    "resnet34": (resnet34, (4, 8, 14)),
    "resnet50": (resnet50, (4, 8, 14)),
    "resnet101": (resnet101, (4, 8, 31)),
    "resnet152": (resnet152, (4, 12, 48)),
    "cnn": (cnn, (2, 4, 6)),
}
MODELS = tuple(_NETWORKS)


def _known(name: str) -> _Network:
    if name not in _NETWORKS:
        raise ValueError(f"unknown model {name!r}; choose one of {', '.join(MODELS)}")
    return _NETWORKS[name]


def build_model(name: str, num_classes: int, **options: Any) -> list[nnx.Module]:
    """The network called ``name`` as a list of blocks, the classifier last.

    Args:
      name: one of :data:`MODELS`.
      num_classes: width of the logits.
      **options: ``width``, ``image_shape``, for ResNets ``shortcut``, and :class:`scpl_jax.models.LayerOptions`.

    Raises:
      ValueError: the name is unknown, or an option does not fit the network.

    Example:
      >>> from flax import nnx
      >>> len(build_model("vgg8", 10, width=0.125, rngs=nnx.Rngs(0)))
      7
    """
    build, _ = _known(name)
    return build(num_classes, **options)


def paper_cut(name: str) -> tuple[int, ...]:
    """The paper's four stages of a network, as the blocks at which the second, third and fourth begin.

    Raises:
      ValueError: the name is unknown.

    Example:
      >>> paper_cut("vgg8")  # stages of 2, 2, 1 and 1 convolution blocks
      (2, 4, 5)
    """
    return _known(name)[1]
