"""How far gradients travel, what local and global ones share, and measures of features with known answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl
from scpl_jax.analysis.features import effective_rank, principal_components, separability
from scpl_jax.analysis.gradient_paths import gradient_paths, longest_path
from scpl_jax.analysis.gradients import global_gradients, gradient_norms, layer_cosines, local_gradients
from scpl_jax.losses import cross_entropy
from scpl_jax.training import build_optimizer


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.linear = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x):
        return jnp.tanh(self.linear(x))


def network(depth, width=6, classes=3):
    rngs = nnx.Rngs(0)
    return [*(Block(width, rngs) for _ in range(depth)), nnx.Linear(width, classes, rngs=rngs)]


INPUTS = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
LABELS = np.arange(9) % 3


def staged(depth, count, objective):
    return scpl.decouple(network(depth), count, objective, INPUTS, nnx.Rngs(1), cut="even")


def test_a_loop_counts_as_often_as_it_runs():
    def looped(w, x):
        return jnp.sum(jax.lax.scan(lambda c, _: (jnp.tanh(c * w), c), x, None, length=5)[0])

    def written_out(w, x):
        for _ in range(5):
            x = jnp.tanh(x * w)
        return jnp.sum(x)

    w = jnp.ones(3)
    assert longest_path(looped, w, w) == longest_path(written_out, w, w) == 11
    # By its own outputs the first round's value goes out at once.
    assert longest_path(lambda w, x: jnp.sum(jax.lax.scan(lambda c, _: (c, c * w), x, None, length=5)[1]), w, w) == 2


def test_what_moves_values_counts_nothing_and_what_stops_them_ends_the_way():
    x = jnp.ones((2, 3))
    assert longest_path(lambda x: jnp.sum(x), x) == 1
    assert longest_path(lambda x: jnp.sum(x.T.reshape(-1)[None]), x) == 1
    found = longest_path(lambda p: jnp.sum(p["a"] * jax.lax.stop_gradient(p["b"] * 3)), {"a": x, "b": x})
    assert found == {"a": 2, "b": None}
    assert longest_path(lambda x: jnp.float32(jnp.argmax(x)), x) is None
    assert longest_path(lambda x: jnp.sum(jax.nn.relu(x)) + jnp.sum(x * 2 * 2), x) == 4
    assert longest_path(lambda x: jax.lax.cond(True, jnp.sum, lambda x: jnp.sum(x * x), x), x) == 2
    with pytest.raises(ValueError, match="one scalar result"):
        longest_path(lambda x: x, x)


def test_local_losses_keep_the_way_short_whatever_the_depth():
    objective = scpl.SupCon(head="linear", head_dims=(4,))

    def ways(depth, count, objective):
        found = gradient_paths(staged(depth, count, objective), INPUTS, LABELS)
        return [(way.stage, way.blocks, way.operations) for way in found if way.layer.startswith("blocks")]

    short, deep = ways(4, 2, objective), ways(8, 4, objective)
    assert [blocks for _, blocks, _ in short] == [3, 2, 3, 2]
    assert deep[:2] == short[:2]
    assert max(operations for *_, operations in deep) == max(operations for *_, operations in short)
    whole = ways(8, 4, scpl.CrossEntropy())
    assert [blocks for _, blocks, _ in whole] == [9, 8, 7, 6, 5, 4, 3, 2]
    # Each block adds a product, a bias and a tanh.
    assert (np.diff([operations for *_, operations in whole]) == -3).all()
    assert [stage for stage, *_ in whole] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_head_and_classifier_are_one_block_from_their_loss():
    stages = staged(2, 1, scpl.SupCon(head="linear", head_dims=(4,)))
    found = {way.layer: way.blocks for way in gradient_paths(stages, INPUTS, LABELS)}
    assert found == {"blocks.0.linear": 3, "blocks.1.linear": 2, "classifier": 1, "loss.head.layers.0.linear": 1}


@pytest.mark.numeric
def test_global_gradients_are_those_of_the_whole_network():
    stages = staged(4, 2, scpl.SupCon(head="linear", head_dims=(4,)))
    params = [stage.params for stage in stages]
    found = global_gradients(stages, params, INPUTS, LABELS)
    blocks = network(4)
    graph, state = nnx.split(nnx.List(blocks))

    def loss(state):
        x = INPUTS
        for block in nnx.merge(graph, state):
            x = block(x)
        return cross_entropy(x, LABELS)

    expected = jax.grad(loss)(state)
    for index, stage in enumerate((0, 0, 1, 1)):
        mine, other = found[stage]["blocks"][index % 2], expected[index]
        assert_close(mine["linear"]["kernel"][...], other["linear"]["kernel"][...], 1e-5)
    assert float(jnp.abs(found[0]["loss"]["head"]["layers"][0]["linear"]["kernel"][...]).max()) == 0
    bare = scpl.decouple(network(2)[:-1], 1, scpl.Associated(3), INPUTS, nnx.Rngs(1), classifier=False)
    with pytest.raises(ValueError, match="no classifier"):
        global_gradients(bare, [bare[0].params], INPUTS, LABELS)


def test_local_gradients_are_those_that_a_step_follows_and_cosines_compare_them():
    stages = staged(4, 2, scpl.SupCon(head="linear", head_dims=(4,)))
    params = [stage.params for stage in stages]
    local = local_gradients(stages, params, INPUTS, LABELS)
    norms = gradient_norms(local)
    pipeline = scpl.Pipeline(stages, build_optimizer("sgd", 0.1))
    metrics = pipeline.train_step(INPUTS, LABELS, with_norms=True)
    for mine, step in zip(norms, metrics, strict=True):
        assert set(mine) == {"blocks.0.linear", "blocks.1.linear"}
        for name, norm in mine.items():
            assert_close(float(step["gradient_norms"][name]), float(norm), 1e-5)
    minus = [jax.tree.map(lambda x: -2 * x, tree) for tree in local]
    nothing = [jax.tree.map(jnp.zeros_like, tree) for tree in local]
    for other, expected in ((local, 1.0), (minus, -1.0), (nothing, 0.0)):
        for one in layer_cosines(local, other):
            assert_close([float(value) for value in one.values()], [expected] * 2, 1e-5, scale=1)
    between = layer_cosines(local, global_gradients(stages, params, INPUTS, LABELS))
    assert all(-1 <= cosine < 0.999 for one in between for cosine in one.values())


def test_effective_rank_of_known_clouds():
    rng = np.random.default_rng(0)
    line = rng.normal(size=(50, 1)) @ rng.normal(size=(1, 8))
    assert effective_rank(line) == pytest.approx(1, abs=1e-6)
    assert effective_rank(line + 1e6) == pytest.approx(1, abs=0.01)
    assert effective_rank(rng.normal(size=(5000, 8))) == pytest.approx(8, rel=0.01)
    # Singular values 3 and 1: their shares are 3/4 and 1/4.
    uneven = np.array([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert effective_rank(uneven) == pytest.approx(4 / 3**0.75)
    assert effective_rank(np.ones((4, 3))) == 0
    with pytest.raises(ValueError, match="expected features"):
        effective_rank(np.ones(3))


def test_separability_goes_from_no_to_all_variance():
    rng = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    noise = rng.normal(size=(3000, 4))
    assert separability(noise, labels) < 0.01
    means = np.eye(3, 4)[labels]
    assert separability(means, labels + 5) == pytest.approx(1)
    # Between: 2/3 (three corners of a unit simplex); within: 4 values of variance 0.25.
    assert separability(means + noise / 2, labels) == pytest.approx((2 / 3) / (2 / 3 + 1), abs=0.02)
    with pytest.raises(ValueError, match="a label for each"):
        separability(noise, labels[:5])


def test_principal_components_keep_distances_and_their_sign():
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 7))
    found = principal_components(flat)
    distances = [np.linalg.norm(x[:, None] - x[None], axis=-1) for x in (flat, found)]
    assert_close(*distances, 1e-9)
    assert_close(principal_components(flat[:, ::-1]), found, 1e-9)
    assert found.var(axis=0)[0] >= found.var(axis=0)[1]
    for one in (found, principal_components(-flat)):
        assert (one.max(axis=0) == np.abs(one).max(axis=0)).all()
    with pytest.raises(ValueError, match="expected 1 to 7 components, got 8"):
        principal_components(flat, 8)
