"""What XLA is given for a GPU where none is at hand: steps are lowered for CUDA, but neither compiled nor run."""

import collections
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.kernels import onednn
from scpl_jax.stages import initial_state, train_step

IMAGES, TEXTS = np.zeros((8, 16, 16, 3), np.float32), np.ones((8, 6), np.int32)
LABELS = np.arange(8, dtype=np.int32) % 3
NETWORKS = {
    "vgg8": (IMAGES, functools.partial(scpl.models.vgg8, 3, width=0.25, image_shape=IMAGES.shape[1:])),
    "resnet18": (IMAGES, functools.partial(scpl.models.resnet18, 3, width=0.25)),
    "lstm": (TEXTS, functools.partial(scpl.models.lstm, 3, vocabulary=9, size=16, hidden=16, dropout=0.1)),
    "transformer": (TEXTS, functools.partial(scpl.models.transformer, 3, vocabulary=9, size=16, hidden=16, heads=4)),
}
OPTIMIZER = optax.adam(1e-3)
PRODUCT = re.compile(
    r"stablehlo\.(?:dot_general|convolution)\b.*?: \(tensor<(?:\w*x)?(\w+)>, tensor<(?:\w*x)?(\w+)>\) -> "
)

# The others take long to lower.
OTHERS = ("resnet18", "lstm", "transformer")
every_network = pytest.mark.parametrize(
    "name", ["vgg8", *(pytest.param(name, marks=pytest.mark.runs) for name in OTHERS)]
)


@functools.cache
def steps_of(name, platform, library="xla", dtype=None):
    """Of each stage its state before the step, what a step returns, and the step as text, lowered for the platform."""
    message, make = NETWORKS[name]
    blocks = make(dtype=dtype, library=library, rngs=nnx.Rngs(0))
    objective = scpl.SupCon(head_dims=(12, 10), head_pool=2, dtype=dtype)
    found = []
    for stage in scpl.decouple(blocks, 3, objective, message, nnx.Rngs(1), cut="even"):
        state = initial_state(stage, OPTIMIZER)
        step = jax.jit(functools.partial(train_step, stage, OPTIMIZER), donate_argnums=0)
        traced = step.trace(state, message, LABELS, False)
        found.append((state, traced.out_info, traced.lower(lowering_platforms=(platform,)).as_text()))
        message = traced.out_info[1]
    return found


def products_in(text):
    """How many products and convolutions there are of each pair of dtypes."""
    return collections.Counter(match.groups() for match in PRODUCT.finditer(text))


@every_network
@pytest.mark.usefixtures("onednn_at_any_size")
@pytest.mark.skipif(not onednn.available(), reason=onednn.requirement())
def test_nothing_made_for_cpus_is_in_a_program_for_a_gpu(name):
    by_xla, by_onednn = ("\n".join(text for *_, text in steps_of(name, "cuda", lib)) for lib in ("xla", "onednn"))
    assert "custom_call" not in by_onednn
    # each product once, in the form that XLA has for it
    assert products_in(by_onednn) == products_in(by_xla)
    assert "onednn" in "\n".join(text for *_, text in steps_of(name, "cpu", "onednn"))


@every_network
def test_a_step_takes_the_place_of_its_state(name):
    for state, _, text in steps_of(name, "cuda"):
        assert text.count("tf.aliasing_output") == len(jax.tree.leaves(state))


@every_network
def test_bfloat16_is_for_products_of_layers_and_never_for_state_or_losses(name):
    for state, (new, message, metrics), text in steps_of(name, "cuda", dtype=jnp.bfloat16):
        assert jnp.bfloat16 not in {x.dtype for x in jax.tree.leaves((state, new, metrics))}
        floating = {x.dtype for x in jax.tree.leaves(message) if jnp.issubdtype(x.dtype, jnp.floating)}
        assert floating == {jnp.dtype(jnp.bfloat16)}
        # the similarity of all pairs of rows, and its gradient to the rows and to the columns
        assert products_in(text).pop(("f32", "f32")) == 3
        assert set(products_in(text)) == {("f32", "f32"), ("bf16", "bf16")}
