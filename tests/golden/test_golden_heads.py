"""The projection heads of the released code, number for number."""

import jax
import numpy as np
import pytest
from flax import nnx
from torch_layout import (
    Golden,
    assert_all,
    assert_all_gradients,
    assert_gradients,
    assert_losses,
    assert_outputs,
    head_layers,
    images_here,
    images_there,
    is_buffer,
    load,
    statistics_to_torch,
    to_torch,
)

from scpl_jax import SupCon


def flat_there(y, golden):
    """The identity head's output is a flattened feature map: (B, H W C) to (B, C H W)."""
    if golden.meta["proj_type"] != "i":
        return y
    _, channels, height, width = golden["in/x"].shape
    return images_there(np.asarray(y).reshape(-1, height, width, channels)).reshape(len(y), -1)


def flat_here(y, golden):
    """The inverse of :func:`flat_there`."""
    if golden.meta["proj_type"] != "i":
        return y
    return images_here(y.reshape(golden["in/x"].shape)).reshape(len(y), -1)


@pytest.mark.parametrize("kind", ["i", "l", "m", "m_avg", "mb", "simsiam"])
def test_head(kind):
    golden = Golden(f"heads_{kind}")
    x, y = images_here(golden["in/x"]), golden["in/y"].astype(np.int32)
    cotangent = flat_here(golden["in/cotangent"], golden)
    objective = SupCon(**golden.head()).build(jax.ShapeDtypeStruct(x.shape, x.dtype), rngs=nnx.Rngs(0))
    layers = head_layers(objective.head, x.shape, ("head",), "projector.layer.1")
    before = golden.section("before")
    graph, params, rest = nnx.split(objective, nnx.Param, ...)
    objective.eval()
    eval_graph = nnx.graphdef(objective)
    params, rest = load(params, layers, before), load(rest, layers, before)

    @jax.jit
    def run(params, rest, x):
        def product(params, x):
            module = nnx.merge(graph, params, rest, copy=True)
            z = module.head(x)
            return (z * cotangent).sum(), (z, nnx.split(module, nnx.Param, ...)[2])

        def loss(params, x):
            return nnx.merge(graph, params, rest, copy=True)(x, y)

        gradients, (z, statistics) = jax.grad(product, argnums=(0, 1), has_aux=True)(params, x)
        return z, statistics, gradients, jax.value_and_grad(loss, argnums=(0, 1))(params, x)

    z, statistics, gradients, (loss, loss_gradients) = run(params, rest, x)
    assert_outputs("y_train", flat_there(z, golden), golden["out/y_train"])
    assert_losses("loss", loss, golden["out/loss"])
    for prefix, (to_params, to_x) in {"": gradients, "loss_": loss_gradients}.items():
        assert_all_gradients(to_torch(to_params, layers), golden.section(f"{prefix}grad"))
        assert_gradients(f"{prefix}grad_in/x", images_there(to_x), golden[f"{prefix}grad_in/x"])

    expected = golden.section("buffers_after")
    tracked = {name: value for name, value in expected.items() if not name.endswith("num_batches_tracked")}
    assert all(map(is_buffer, tracked))
    assert_all(assert_outputs, statistics_to_torch(statistics, layers, before), tracked)

    rest = load(rest, layers, expected)
    z = jax.jit(lambda params, rest, x: nnx.merge(eval_graph, params, rest, copy=True).head(x))(params, rest, x)
    assert_outputs("y_eval_after", flat_there(z, golden), golden["out/y_eval_after"])
