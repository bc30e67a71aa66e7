"""Running averages of batch norm are weighted means of the batches' statistics, from the first batch on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from scpl_jax import InfoReg, SupCon
from scpl_jax.kernels.norm import BatchNorm
from scpl_jax.models import resnet18, resnet50, vgg8

MOMENTA = [0.0, 0.3, 0.9, 0.99, 0.9999]
# The ways into the layer. The pooled ones have a form of their own for even sides, and none for odd ones.
WAYS = {
    "plain": ((6, 5), lambda layer, x: layer(x)),
    "pooled": ((3, 4, 4, 5), lambda layer, x: layer.and_max_pool(x)),
    "pooled, odd": ((3, 3, 5, 5), lambda layer, x: layer.and_max_pool(x)),
    "masked": ((6, 5), lambda layer, x: layer(x, mask=jnp.arange(6)[:, None] < 4)),
    "told to train": ((6, 5), lambda layer, x: layer(x, use_running_average=False)),
}


def batches(count, shape):
    """Whose statistics change from batch to batch."""
    rng = np.random.default_rng(0)
    return [(rng.normal(size=shape) * (1 + i) + 10 * i).astype(np.float32) for i in range(count)]


def statistics(x, examples=None):
    rows = np.asarray(x, np.float64)[:examples].reshape(-1, x.shape[-1])
    return rows.mean(0), rows.var(0)


def averages(layer):
    return layer.mean[...], layer.var[...]


def after_each(layer, inputs, apply=WAYS["plain"][1]):
    """The layer after every batch, in training mode."""
    graph, state = nnx.split(layer)

    @jax.jit
    def step(state, x):
        module = nnx.merge(graph, state, copy=True)
        apply(module, x)
        return nnx.state(module)

    for x in inputs:
        state = step(state, x)
        yield nnx.merge(graph, state, copy=True)


def after(*arguments):
    """The layer after the last batch."""
    return list(after_each(*arguments))[-1]


@pytest.mark.parametrize(("momentum", "way"), [(m, "plain") for m in MOMENTA] + [(0.9, way) for way in WAYS])
def test_they_are_the_weighted_mean_of_the_batches(momentum, way):
    shape, apply = WAYS[way]
    inputs = batches(12, shape)
    found = [statistics(x, 4 if way == "masked" else None) for x in inputs]
    layers = after_each(BatchNorm(5, momentum=momentum, rngs=nnx.Rngs(0)), inputs, apply)
    for count, layer in enumerate(layers, start=1):
        weights = momentum ** np.arange(count - 1, -1.0, -1)
        for a, b in zip(averages(layer), zip(*found[:count], strict=True), strict=True):
            expected = np.average(b, axis=0, weights=weights)
            np.testing.assert_allclose(a, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
        assert layer.updates[...].item() == count


@pytest.mark.parametrize("momentum", MOMENTA)
def test_the_first_step_leaves_the_batchs_own_to_the_bit(momentum):
    (x,) = batches(1, (6, 5))
    own = after(BatchNorm(5, momentum=0.0, bias_correction=False, rngs=nnx.Rngs(0)), [x])
    layer = after(BatchNorm(5, momentum=momentum, rngs=nnx.Rngs(0)), [x])
    for a, b in zip(averages(layer), averages(own), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", ["plain", "pooled"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_evaluation_gives_after_equal_batches_is_what_training_gives(count, way):
    shape, apply = WAYS[way]
    x = batches(2, shape)[1]
    layer = after(BatchNorm(5, momentum=0.9, rngs=nnx.Rngs(0)), [x] * count, apply)
    trained = apply(layer, x)
    layer.eval()
    np.testing.assert_allclose(apply(layer, x), trained, rtol=1e-5, atol=1e-5)


def test_after_many_steps_the_correction_is_gone():
    inputs = batches(3, (6, 5))
    layers = [BatchNorm(5, momentum=0.9, bias_correction=some, rngs=nnx.Rngs(0)) for some in (True, False)]
    for layer in layers:
        layer.mean[...], layer.var[...] = jnp.full(5, 3.0), jnp.full(5, 7.0)
    layers[0].updates[...] = jnp.int32(100_000)
    for a, b in zip(*(averages(after(layer, inputs)) for layer in layers), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_before_any_step_evaluation_takes_mean_0_and_variance_1():
    (x,) = batches(1, (6, 5))
    layer = BatchNorm(5, rngs=nnx.Rngs(0))
    layer.eval()
    np.testing.assert_allclose(layer(x), x / np.sqrt(1 + 1e-5), rtol=1e-6)
    assert layer.updates[...].item() == 0


def test_evaluation_moves_nothing():
    x, other = batches(2, (6, 5))
    layer = after(BatchNorm(5, rngs=nnx.Rngs(0)), [x])
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(layer))]
    layer(other, use_running_average=True)
    layer.eval()
    layer(other)
    for a, b in zip(jax.tree.leaves(nnx.state(layer)), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.float64])
def test_types_do_not_change_from_step_to_step(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        x = jnp.asarray(batches(1, (6, 5))[0], dtype)
        layer = BatchNorm(5, momentum=0.9, dtype=x.dtype, param_dtype=x.dtype, rngs=nnx.Rngs(0))
        types = []
        for _ in range(3):
            layer = after(layer, [x])
            types.append([leaf.dtype for leaf in jax.tree.leaves(nnx.state(layer))])
        assert types[0] == types[1] == types[2]
        expected = statistics(np.asarray(x, np.float64))
        for a, b in zip(averages(layer), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
        assert layer.updates[...].item() == 3


def test_without_correction_there_is_no_variable_more_than_in_flax():
    ours = BatchNorm(5, bias_correction=False, rngs=nnx.Rngs(0))
    theirs = nnx.BatchNorm(5, rngs=nnx.Rngs(0))
    assert jax.tree.structure(nnx.state(ours)) == jax.tree.structure(nnx.state(theirs))


@pytest.mark.parametrize("momentum", [-0.1, 1, 1.5, float("nan")])
def test_a_momentum_without_a_correction_is_refused(momentum):
    with pytest.raises(ValueError, match=f"momentum of batch norm must be at least 0 and less than 1, got {momentum}"):
        BatchNorm(5, momentum=momentum, rngs=nnx.Rngs(0))
    BatchNorm(5, momentum=momentum, bias_correction=False, rngs=nnx.Rngs(0))


def networks():
    image = {"num_classes": 4, "width": 0.05, "rngs": nnx.Rngs(0)}
    features = jax.ShapeDtypeStruct((8, 4, 4, 6), np.float32)
    yield from (vgg8(**image), resnet18(**image), resnet50(**image), resnet18(**image, shortcut="3x3"))
    for head in ("mlp-bn", "simsiam"):
        yield [SupCon(head=head, head_dims=(8, 6)).build(features, rngs=nnx.Rngs(0))]
    yield [InfoReg(4, (8, 6)).build(features, rngs=nnx.Rngs(0))]


def test_every_batch_norm_of_networks_and_heads_is_corrected():
    for network in networks():
        norms = [node for _, node in nnx.iter_graph(nnx.List(network)) if isinstance(node, nnx.BatchNorm)]
        assert norms
        assert all(isinstance(norm, BatchNorm) and norm.updates is not None for norm in norms)
