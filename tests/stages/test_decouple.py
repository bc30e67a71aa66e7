import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.stages import gradients, initial_state, train_step
from scpl_jax.stages.cost import module_cost


def decouple(blocks, num_stages, batch, **options):
    options.setdefault("objective", scpl.SupCon(head_dims=(8, 6)))
    return scpl.decouple(blocks, num_stages, example=batch[0], rngs=nnx.Rngs(1), **options)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@pytest.mark.parametrize("cut", ["auto", "even"])
def test_stages_cover_all_blocks_in_order(small_vgg, batch, num_stages, cut):
    stages = decouple(small_vgg(), num_stages, batch, cut=cut)
    covered = [block for stage in stages for block in range(*stage.blocks)]
    assert len(stages) == num_stages
    assert covered == [0, 1, 2]


def test_given_positions_are_kept(small_vgg, batch):
    assert [s.blocks for s in decouple(small_vgg(), 2, batch, cut=(1,))] == [(0, 1), (1, 3)]


def test_the_classifier_is_never_a_stage_of_its_own(small_vgg, batch):
    with pytest.raises(ValueError, match="from 1 to 3"):
        decouple(small_vgg(), 4, batch)


def test_without_classifier_every_block_can_be_cut(batch):
    blocks = [nnx.Linear(6, 6, rngs=nnx.Rngs(0)) for _ in range(3)]
    example = (jnp.ones((8, 6)), batch[1])
    stages = decouple(blocks, 3, example, classifier=False, objective=scpl.SupCon(head="identity"))
    pipeline = scpl.Pipeline(stages, optax.sgd(0.1), jax.devices()[:1])
    assert np.isfinite(pipeline.train_step(*example)[2]["loss"])
    with pytest.raises(ValueError, match="no classifier"):
        pipeline.predict(example[0])


def test_the_automatic_cut_counts_the_head(batch):
    """A huge head makes a boundary dear, so that the cut avoids it though the blocks alone are balanced there."""
    blocks = [nnx.Linear(64, 64, rngs=nnx.Rngs(i)) for i in range(4)]
    blocks.insert(2, nnx.Linear(64, 2048, rngs=nnx.Rngs(9)))
    blocks.insert(3, nnx.Linear(2048, 64, rngs=nnx.Rngs(9)))
    blocks.append(nnx.Linear(64, 4, rngs=nnx.Rngs(5)))
    example = (jnp.ones((8, 64)), batch[1])
    (first, _) = decouple(blocks, 2, example, objective=scpl.SupCon(head="linear", head_dims=(2048,)))
    assert first.blocks[1] != 3  # there the head would see 2048 features
    assert first.loss_cost > 0


def test_shared_parameters_between_stages_are_refused(batch):
    shared = nnx.Linear(6, 6, rngs=nnx.Rngs(0))
    example = (jnp.ones((8, 6)), batch[1])
    with pytest.raises(ValueError, match="stages 0 and 1 share the parameter"):
        decouple([shared, shared], 2, example, classifier=False, objective=scpl.SupCon(head="identity"))


def test_cross_entropy_needs_the_classifier(small_vgg, batch):
    with pytest.raises(ValueError, match="stage 0 has no classifier"):
        decouple(small_vgg(), 2, batch, objective=[scpl.CrossEntropy(), scpl.SupCon()])
    with pytest.raises(ValueError, match="stage 0 has no classifier"):
        decouple(small_vgg(), 2, batch, objective=scpl.CrossEntropy(), classifier=False)


def test_cross_entropy_for_all_stages_is_backpropagation(small_vgg, batch):
    together = decouple(small_vgg(), 2, batch, objective=scpl.CrossEntropy())
    mixed = decouple(small_vgg(), 2, batch, objective=[scpl.SupCon(), scpl.CrossEntropy()])
    assert [stage.end_to_end for stage in together] == [True, True]
    assert [stage.end_to_end for stage in mixed] == [False, False]
    # the gradient that is handed back to stage 0 has to be computed
    assert together[1].cost > mixed[1].cost


def test_stages_may_have_different_objectives(small_vgg, batch):
    objectives = [scpl.SupCon(head="identity"), scpl.SupCon(head="linear", head_dims=(5,))]
    stages = decouple(small_vgg(), 2, batch, objective=objectives, cut=(1,))
    assert module_parameters(stages[0], "loss") == 0
    assert module_parameters(stages[1], "loss") > 0
    with pytest.raises(ValueError, match="need one objective or 2, got 3"):
        decouple(small_vgg(), 2, batch, objective=[scpl.SupCon()] * 3)


def module_parameters(stage, part):
    flat = nnx.to_flat_state(stage.params)
    return sum(leaf[...].size for path, leaf in flat if path[0] == part)


def test_dropout_of_two_stages_draws_different_masks(batch):
    """Blocks built from one Rngs start with equal random streams; their stages must not."""
    rngs = nnx.Rngs(0)
    blocks = [nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)]
    example = (jnp.ones((8, 500)), batch[1])
    stages = decouple(blocks, 2, example, classifier=False, objective=scpl.SupCon(head="identity"))
    masks = [gradients(s, s.params, s.rest, example[0], example[1])[1][0] > 0 for s in stages]
    assert bool((masks[0] != masks[1]).any())


def test_dropout_draws_again_at_every_step_and_not_in_evaluation(batch):
    blocks = [nnx.Dropout(0.5, rngs=nnx.Rngs(0)), nnx.Linear(500, 4, rngs=nnx.Rngs(1))]
    images = jnp.ones((8, 500))
    (stage,) = decouple(blocks, 1, (images, batch[1]), objective=scpl.SupCon(head="identity"))
    optimizer = optax.sgd(0.0)
    state = initial_state(stage, optimizer)
    state, first, _ = train_step(stage, optimizer, state, images, batch[1])
    state, second, _ = train_step(stage, optimizer, state, images, batch[1])
    assert bool((first != second).any())
    pipeline = scpl.Pipeline([stage], optimizer, jax.devices()[:1])
    np.testing.assert_array_equal(pipeline.predict(images), pipeline.predict(images))


def test_cost_counts_the_arithmetic():
    cost = module_cost(nnx.Linear(10, 20, rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((5, 10), jnp.float32))
    assert 2 * 5 * 10 * 20 <= cost.operations <= 2 * 5 * 10 * 20 + 5 * 20
    assert cost.training(input_gradient=False) < cost.training()


def test_an_objective_of_ones_own_need_not_be_hashable(small_vgg, batch):
    @dataclasses.dataclass
    class Own(scpl.Objective):
        sizes: list[int]

        def build(self, features, *, rngs):
            return scpl.SupCon(head_dims=tuple(self.sizes)).build(features, rngs=rngs)

    assert len(decouple(small_vgg(), 2, batch, objective=Own([8, 6]))) == 2
