"""Reference numbers made with PyTorch: reading them, and their names and layouts in terms of NNX modules.

A table of :class:`Layer` says where each torch layer lies in the module of a stage; :func:`load` and :func:`to_torch`
then convert whole trees of parameters, gradients and batch statistics either way.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

from scpl_jax.models.layers import Classifier
from scpl_jax.models.resnet import Residual, Stem
from scpl_jax.models.vgg import VGGBlock

FOLDER = Path(__file__).parents[2].parent / "shared" / "golden"

Path_ = tuple[Any, ...]
# Names of a layer's variables: here, and in torch.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "vectors": "weight",
    "a": "a",
    "b": "b",
}
# Variables of a bidirectional LSTM, the two directions in the first axis.
_LSTM = {"kernel": "weight_ih_l0", "recurrent": "weight_hh_l0", "bias": "bias_ih_l0", "recurrent_bias": "bias_hh_l0"}
# The reference's names of the kinds of heads.
_HEADS = {"i": "identity", "l": "linear", "m": "mlp", "mb": "mlp-bn", "SimSiamMLP": "simsiam"}


class Golden:
    """One file of reference numbers, its options in ``meta``."""

    def __init__(self, name: str):
        file = FOLDER / f"{name}.npz"
        if not file.exists():
            pytest.skip(f"the reference numbers are not there: {file}")
        with np.load(file, allow_pickle=False) as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def section(self, prefix: str) -> dict[str, np.ndarray]:
        """Arrays whose name begins with ``prefix/``, under the rest of their name."""
        return {
            name.removeprefix(f"{prefix}/"): array
            for name, array in self.arrays.items()
            if name.startswith(f"{prefix}/")
        }

    def head(self, *, pooled: bool = False) -> dict[str, Any]:
        """Options of ``scpl_jax.SupCon`` for the head that ``meta`` names.

        ``pooled``: features are averaged over the whole image first, which turns the head's own averaging off.
        """
        kind, *rest = self.meta["proj_type"].split(",")
        pool = 0
        if "avg" in rest and self.meta["shape"] > 2:
            pool = self.meta["shape"] // 2
        dims = tuple(int(size) for size in rest if size != "avg")
        return {
            "temperature": self.meta["temperature"],
            "head": _HEADS[kind],
            "head_dims": dims or None,
            "head_pool": 1 if pooled else pool,
            "count_anchor": True,
        }


def images_here(images: np.ndarray) -> np.ndarray:
    """(B, C, H, W) to (B, H, W, C)."""
    return images.transpose(0, 2, 3, 1)


def images_there(images: Any) -> np.ndarray:
    """(B, H, W, C) to (B, C, H, W)."""
    return np.asarray(images).transpose(0, 3, 1, 2)


def kernel_here(weight: np.ndarray, flattened: tuple[int, ...] | None = None) -> np.ndarray:
    """A torch weight as a kernel; ``flattened`` is the (H, W, C) of the feature map whose pixels are its inputs."""
    if weight.ndim == 4:
        return weight.transpose(2, 3, 1, 0)
    if flattened is None:
        return weight.T
    height, width, channels = flattened
    cells = weight.reshape(-1, channels, height, width)
    return cells.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def kernel_there(kernel: np.ndarray, flattened: tuple[int, ...] | None = None) -> np.ndarray:
    """The inverse of :func:`kernel_here`."""
    if kernel.ndim == 4:
        return kernel.transpose(3, 2, 0, 1)
    if flattened is None:
        return kernel.T
    cells = kernel.reshape(*flattened, kernel.shape[1])
    return cells.transpose(3, 2, 0, 1).reshape(kernel.shape[1], -1)


@dataclasses.dataclass(frozen=True)
class Layer:
    """A torch layer and the layer of ours that it is.

    Attributes:
      path: of our layer, in the module that holds it.
      name: of torch's layer, in the ``state_dict``.
      flattened: for a linear layer on a flattened feature map, that map's (H, W, C).
      count: for a batch norm, the values that one channel's statistics are taken over.
      lstm: whether it is a bidirectional LSTM.
    """

    path: Path_
    name: str
    flattened: tuple[int, ...] | None = None
    count: int = 0
    lstm: bool = False


def head_layers(head: nnx.Module, in_shape: tuple[int, ...], path: Path_, name: str) -> list[Layer]:
    """Layers of a ProjectionHead for features (B, H, W, C)."""
    batch, height, width, channels = in_shape
    if head.pool:
        height, width = min(head.pool, height), min(head.pool, width)
    layers: list[Layer] = []
    index = 0
    for number, layer in enumerate(head.layers):
        flattened = (height, width, channels) if number == 0 else None
        layers.append(Layer((*path, "layers", number, "linear"), f"{name}.{index}", flattened))
        index += 1
        if layer.norm:
            layers.append(Layer((*path, "layers", number, "norm", 0), f"{name}.{index}", count=batch))
            index += 1
        index += layer.relu
    return layers


def block_layers(block: nnx.Module, in_shape: tuple[int, ...], path: Path_, name: str) -> list[Layer]:
    """Layers of a VGGBlock, Stem or Residual for images (B, H, W, C)."""
    batch, height, width, _ = in_shape
    before = batch * height * width
    if isinstance(block, VGGBlock | Stem):
        return [Layer((*path, "conv"), f"{name}.0"), Layer((*path, "norm"), f"{name}.1", count=before)]
    assert isinstance(block, Residual)
    layers = []
    count = before
    for index, convolution in enumerate(block.convs):
        stride = math.prod(np.broadcast_to(convolution.strides, 2))
        count //= stride
        layers.append(Layer((*path, "convs", index), f"{name}.conv{index + 1}.0"))
        layers.append(Layer((*path, "norms", index), f"{name}.conv{index + 1}.1", count=count))
    if block.shortcut:
        layers.append(Layer((*path, "shortcut", 0), f"{name}.shortcut.0"))
        layers.append(Layer((*path, "shortcut", 1), f"{name}.shortcut.1", count=count))
    return layers


def classifier_layers(
    classifier: Classifier, in_shape: tuple[int, ...], path: Path_, names: Iterable[str]
) -> list[Layer]:
    """Layers of a Classifier for features (B, H, W, C)."""
    flattened = None if classifier.pool else in_shape[1:]
    return [
        Layer((*path, "layers", index), name, flattened if index == 0 else None) for index, name in enumerate(names)
    ]


def _here(layer: Layer, leaf: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    if layer.lstm:
        return np.stack([arrays[name].T for name in lstm_names(layer, leaf)])
    value = arrays[f"{layer.name}.{_LEAVES[leaf]}"]
    return kernel_here(value, layer.flattened) if leaf == "kernel" else value


def lstm_names(layer: Layer, leaf: str) -> list[str]:
    """Torch's names of a variable of an LSTM: forward, backward."""
    return [f"{layer.name}.{_LSTM[leaf]}{suffix}" for suffix in ("", "_reverse")]


def load(state: Any, layers: Iterable[Layer], arrays: Mapping[str, np.ndarray]) -> Any:
    """``state`` with every value replaced by torch's."""
    table = {layer.path: layer for layer in layers}
    loaded = []
    for path, variable in nnx.to_flat_state(state):
        value = _here(table[path[:-1]], path[-1], arrays)
        assert value.shape == variable.shape, (path, value.shape, variable.shape)
        loaded.append((path, variable.replace(np.array(value))))
    return nnx.from_flat_state(loaded)


def to_torch(state: Any, layers: Iterable[Layer]) -> dict[str, np.ndarray]:
    """The values of ``state`` by torch's names, in torch's layout."""
    table = {layer.path: layer for layer in layers}
    values = {}
    for path, variable in nnx.to_flat_state(state):
        layer, leaf = table[path[:-1]], path[-1]
        value = np.asarray(variable[...])
        if layer.lstm:
            values |= {name: part.T for name, part in zip(lstm_names(layer, leaf), value, strict=True)}
            continue
        if leaf == "kernel":
            value = kernel_there(value, layer.flattened)
        values[f"{layer.name}.{_LEAVES[leaf]}"] = value
    return values


def statistics_to_torch(rest: Any, layers: Iterable[Layer], before: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Batch statistics after one step as torch has them.

    The running variance of torch takes the unbiased variance of a batch, ours the biased one.
    """
    counts = {f"{layer.name}.running_var": layer.count for layer in layers}
    values = to_torch(rest, layers)
    for name, count in counts.items():
        if name in values:
            old = 0.9 * before[name]
            values[name] = old + (values[name] - old) * count / (count - 1)
    return values


# Comparisons, with the tolerances that the reference numbers' README suggests.


def _assert_close(name: str, actual: Any, expected: Any, rtol: float, scale: float = 0.0) -> None:
    assert_close({name: np.asarray(actual)}, {name: np.asarray(expected, np.float64)}, rtol, scale=scale)


def assert_losses(name: str, actual: Any, expected: Any) -> None:
    _assert_close(name, actual, expected, 1e-5, scale=0.1)


def assert_outputs(name: str, actual: Any, expected: Any) -> None:
    _assert_close(name, actual, expected, 1e-5)


def assert_gradients(name: str, actual: Any, expected: Any, scale: float = 2e-3) -> None:
    """``scale``: the size of other gradients of the network, where this one may be zero but for rounding."""
    _assert_close(name, actual, expected, 5e-5, scale)


def assert_all(check: Any, actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """``check`` for every name; both sides must have the same names."""
    assert set(actual) == set(expected)
    for name, value in expected.items():
        check(name, actual[name], value)


def assert_all_gradients(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Of all parameters. A bias's sums up what its kernel's does, and may be small only because its terms cancel."""

    def check(name: str, mine: Any, other: Any) -> None:
        kernel = expected.get(name.replace("bias", "weight"), other)
        assert_gradients(name, mine, other, max(2e-3, np.abs(kernel).max()))

    assert_all(check, actual, expected)


def is_buffer(name: str) -> bool:
    """Whether a name of a ``state_dict`` is that of a batch statistic."""
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def assert_after(golden: Golden, params: Mapping[str, np.ndarray], statistics: Mapping[str, np.ndarray]) -> None:
    """Parameters, where the first Adam step is well defined, and batch statistics after one training step."""
    after, stable = golden.section("after"), golden.section("stable")
    assert set(params) == {name for name in after if not is_buffer(name)} == set(stable)
    for name, value in params.items():
        # Of a first step of 1e-3 a hundredth.
        moved = value[stable[name]] - after[name][stable[name]]
        _assert_close(name, moved, np.zeros_like(moved), 1e-2, scale=1e-3)
    tracked = {name for name in after if is_buffer(name) and not name.endswith("num_batches_tracked")}
    assert set(statistics) == tracked
    for name, value in statistics.items():
        assert_outputs(name, value, after[name])
