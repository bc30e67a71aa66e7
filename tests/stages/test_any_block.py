"""Blocks with variables of any kind train, are saved and restored; what a compiled step can't keep is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import scpl_jax as scpl
from scpl_jax.stages.optimizer import apply_optimizer, initial_optimizer_state
from scpl_jax.training.checkpoints import CheckpointStore, Progress

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.arange(8) % 2
LOCAL = scpl.SupCon(head="identity")
# Flax warns at every call outside of nnx.capture.
pytestmark = pytest.mark.filterwarnings(r"ignore:\s*Using 'Module:DeprecationWarning")


class Block(nnx.Module):
    """A linear layer behind what makes a block special."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.make(rngs)

    def make(self, rngs):
        pass

    def special(self, x):
        return x

    def __call__(self, x):
        return self.linear(self.special(x))


class LazyState(Block):
    def special(self, x):
        if not hasattr(self, "seen"):
            self.seen = nnx.Variable(jnp.zeros(()))
        self.seen[...] += x.mean()
        return x


class LazyLayer(Block):
    def make(self, rngs):
        self.rngs, self.built = rngs, False

    def special(self, x):
        if not self.built:
            self.inner = nnx.Linear(x.shape[-1], 4, rngs=self.rngs)
            self.built = True
        return self.inner(x)


class Sown(Block):
    def special(self, x):
        self.sow(nnx.Intermediate, "features", x)
        return self.perturb("perturbed", x)


class Untrained(Block):
    def make(self, rngs):
        self.scale, self.mask = nnx.Param(jnp.arange(1, 5)), nnx.Param(jnp.array([True, False, True, True]))

    def special(self, x):
        return x * self.scale[...] * self.mask[...]


class Complex(Block):
    def make(self, rngs):
        self.phase = nnx.Param(jnp.ones(4) + 1j)

    def special(self, x):
        return jnp.abs(x * self.phase[...])


class Contents(Block):
    """Variables of all kinds of contents."""

    def make(self, rngs):
        self.tree = nnx.Param({"scale": jnp.ones(4), "more": (jnp.zeros(4),)})
        self.number, self.nothing, self.empty = nnx.Param(0.5), nnx.Param(None), nnx.Variable(None)
        self.key, self.count, self.array = nnx.Variable(jax.random.key(1)), nnx.Variable(3), nnx.data(jnp.zeros(4))

    def special(self, x):
        self.key[...] = jax.random.split(self.key[...])[0]
        self.count[...] += 1
        self.array += x.mean(0)
        return x * self.tree["scale"] + self.tree["more"][0] + self.number[...]


class Mine(nnx.Variable):
    pass


class Types(Block):
    """Types of variables and containers."""

    def make(self, rngs):
        self.cache, self.mine, self.adapter = nnx.Cache(X), Mine(jnp.bfloat16(0)), nnx.LoRA(4, 2, 4, rngs=rngs)
        self.list, self.dict = nnx.List([nnx.Linear(4, 4, rngs=rngs)]), nnx.Dict(a=nnx.BatchNorm(4, rngs=rngs))
        self.twice = self.linear

    def special(self, x):
        self.mine[...] += 1
        return self.twice(self.dict["a"](self.list[0](self.adapter(x))))


class Empty(nnx.Module):
    def __call__(self, x):
        return jnp.tanh(x)


class Stacked(Block):
    def make(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def layers(rngs):
            return nnx.Sequential(nnx.Linear(4, 4, rngs=rngs), nnx.Dropout(0.5, rngs=rngs), nnx.BatchNorm(4, rngs=rngs))

        self.layers = layers(rngs)

    def special(self, x):
        return nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(self.layers, x)


class LinenLayers(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.BatchNorm(use_running_average=False)(linen.Dense(4)(x))


class Linen(Block):
    def make(self, rngs):
        self.layers = nnx.bridge.ToNNX(LinenLayers(), rngs=rngs).lazy_init(X)

    def special(self, x):
        return self.layers(x, mutable=["batch_stats"])


NETWORKS = {
    "made while running": (LazyState, Sown, LazyLayer, Untrained, Complex),
    "made before": (Contents, Types, Stacked, Linen),
    # A stage without anything to be trained comes first.
    "without parameters": (lambda _: Empty(), Block),
}


def pipeline_of(kinds, objective, num_stages, **options):
    rngs = nnx.Rngs(0)
    blocks = [kind(rngs) for kind in kinds] + [nnx.Linear(4, 2, rngs=rngs)]
    stages = scpl.decouple(blocks, num_stages, objective, X, nnx.Rngs(1), cut="even")
    return scpl.Pipeline(stages, optax.adam(0.1), jax.devices()[:num_stages], **options)


def raw(tree):
    def numbers(x):
        return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return jax.device_get(jax.tree.map(numbers, tree))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("objective", "num_stages", "options"),
    [
        pytest.param(LOCAL, 2, {}, id="local"),
        pytest.param(scpl.CrossEntropy(), 2, {"micro_batches": 2}, id="gpipe", marks=pytest.mark.runs),
        pytest.param(scpl.CrossEntropy(), 1, {}, id="backprop", marks=pytest.mark.runs),
    ],
)
def test_they_train_and_resume_to_the_bit(tmp_path, objective, num_stages, options, name):
    pipeline, again = (pipeline_of(NETWORKS[name], objective, num_stages, **options) for _ in range(2))
    structures = [jax.tree.structure(state) for state in pipeline.states]
    for _ in range(2):
        pipeline.train_step(X, Y, with_norms=True)
    store = CheckpointStore(tmp_path)
    store.save(pipeline, Progress())
    assert store.restore(again) is not None
    store.close()
    for one in (pipeline, again):
        one.train_step(X, Y)
    assert pipeline.take_skipped() == []
    assert [jax.tree.structure(state) for state in pipeline.states] == structures
    jax.tree.map(np.testing.assert_array_equal, *(raw(one.states) for one in (pipeline, again)))
    assert 0 <= pipeline.evaluate([(X, Y)])["accuracy"] <= 1


def test_state_of_the_first_call_counts_every_step():
    pipeline = pipeline_of((LazyState, LazyState), LOCAL, 2)
    assert [float(stage.rest["blocks"][0]["seen"][...]) for stage in pipeline.stages] == [0, 0]
    for _ in range(3):
        pipeline.train_step(X, Y)
    np.testing.assert_allclose(pipeline.states[0].rest["blocks"][0]["seen"][...], 3 * X.mean(), rtol=1e-5)


def test_layers_of_the_first_call_are_trained():
    pipeline = pipeline_of((LazyLayer, Block), LOCAL, 2)
    before = raw(pipeline.states[0].params["blocks"][0]["inner"])
    pipeline.train_step(X, Y)
    after = raw(pipeline.states[0].params["blocks"][0]["inner"])
    assert before["kernel"][...].std() > 0.1
    assert (before["kernel"][...] != after["kernel"][...]).all()


def test_parameters_without_gradient_stay_as_they_are():
    pipeline = pipeline_of((Untrained, Block), LOCAL, 2)
    pipeline.train_step(X, Y)
    own = pipeline.states[0].rest["blocks"][0]
    assert own["scale"][...].tolist() == [1, 2, 3, 4]
    assert own["mask"][...].tolist() == [True, False, True, True]
    assert "scale" not in pipeline.states[0].params["blocks"][0]


def test_complex_parameters_go_down():
    z = {"z": jnp.array([1 + 1j, -2j])}
    gradient = jax.grad(lambda z: jnp.sum(jnp.abs(z["z"]) ** 2))(z)
    new, _ = apply_optimizer(optax.sgd(0.1), z, initial_optimizer_state(optax.sgd(0.1), z), gradient, jnp.float32(0))
    np.testing.assert_allclose(new["z"], 0.8 * z["z"], rtol=1e-6)


def test_stacked_layers_of_two_stages_draw_different_masks():
    blocks = [Stacked(nnx.Rngs(0)), Stacked(nnx.Rngs(0))]
    stages = scpl.decouple(blocks, 2, LOCAL, X, nnx.Rngs(1), classifier=False)
    keys = [raw(stage.rest["blocks"][0]["layers"]["layers"][1]["rngs"]["key"][...]) for stage in stages]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 6


class Counting(Block):
    def make(self, rngs):
        self.calls = 0

    def special(self, x):
        self.calls += 1
        return x


class Growing(Block):
    def make(self, rngs):
        self.cache = nnx.Cache(jnp.zeros((2, 4)))

    def special(self, x):
        self.cache.set_value(jnp.concatenate([self.cache[...], x]))
        return x


class Promoting(Block):
    def make(self, rngs):
        self.mean = nnx.BatchStat(jnp.zeros(4, jnp.bfloat16))

    def special(self, x):
        self.mean.set_value(self.mean[...] + x.mean(0))
        return x


class OfData(Block):
    def special(self, x):
        if not hasattr(self, "mean"):
            self.mean = nnx.Variable(x.mean(0))
        return x - self.mean[...]


class SownLoss(Block):
    def special(self, x):
        self.sow("some_losses", "norm", jnp.sum(x))
        return x


class Losing(Block):
    def make(self, rngs):
        self.once = nnx.Variable(jnp.zeros(4))

    def special(self, x):
        del self.once
        return x


class Text(Block):
    def make(self, rngs):
        self.name = nnx.Variable("name")


class Marking(Block):
    def make(self, rngs):
        self.seen = nnx.Variable(jnp.zeros(()), times=0)

    def special(self, x):
        self.seen.set_metadata(times=self.seen.times + 1)
        return x


class Referring(Block):
    def make(self, rngs):
        self.seen = nnx.Variable(jnp.zeros(()), ref=True)


class Hijax(Block):
    def make(self, rngs):
        self.seen = nnx.Variable(jnp.zeros(()), hijax=True)


class Uninitialised(Block):
    def make(self, rngs):
        self.layers = nnx.bridge.ToNNX(LinenLayers(), rngs=rngs)

    def special(self, x):
        return self.layers(x)


REFUSED = {
    Counting: "changes its Python attribute calls from 0 to 1 while it runs",
    Growing: r"changes the variable cache from float32\[2, 4\] to float32\[10, 4\]",
    Promoting: r"changes the variable mean from bfloat16\[4\] to float32\[4\]",
    OfData: "makes the variable mean of its input's values",
    SownLoss: "makes the variable norm.* sow an nnx.Intermediate",
    Losing: "changes the variable once from .* to nothing",
    Text: "the variable name holds a str",
    Marking: "changes types or metadata",
    Referring: "has the variable seen made with hijax or ref",
    Hijax: "has the variable seen made with hijax or ref",
    Uninitialised: r"can't be called with float32\[8, 4\].*lazy_init",
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("where", ["block 1", "the classifier"])
def test_what_no_step_can_keep_is_refused(where, kind):
    rngs = nnx.Rngs(0)
    blocks = [Block(rngs), kind(rngs), Block(rngs)] if where == "block 1" else [Block(rngs), Block(rngs), kind(rngs)]
    named = REFUSED[kind] if kind is Text else rf"^{where} \({kind.__name__}\) {REFUSED[kind]}"
    with pytest.raises(ValueError, match=named) as told:
        scpl.decouple(blocks, 1, LOCAL, X, nnx.Rngs(1))
    assert "\n" not in str(told.value)


def test_local_losses_are_looked_at_like_blocks():
    class Loss(nnx.Module):
        calls = 0

        def __call__(self, features, labels):
            self.calls += 1
            return jnp.mean(features**2)

    class Own(scpl.Objective):
        def build(self, features, *, rngs):
            return Loss()

    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match=r"the local loss of stage 1 .*attribute calls"):
        scpl.decouple([Block(rngs), Block(rngs), nnx.Linear(4, 2, rngs=rngs)], 2, [LOCAL, Own()], X, nnx.Rngs(1))


def test_a_function_is_no_block():
    rngs = nnx.Rngs(0)
    with pytest.raises(ValueError, match=r"block 1 is no nnx\.Module but a function"):
        scpl.decouple([Block(rngs), lambda x: x, nnx.Linear(4, 2, rngs=rngs)], 1, LOCAL, X, nnx.Rngs(1))


@pytest.mark.parametrize("kind", [nnx.BatchStat, nnx.Cache, nnx.Variable, Mine])
def test_any_variable_shared_between_stages_is_refused(kind):
    rngs = nnx.Rngs(0)
    blocks = [Block(rngs) for _ in range(3)]
    blocks[0].shared = blocks[1].shared = kind(jnp.zeros(4))
    assert len(scpl.decouple(blocks, 1, LOCAL, X, nnx.Rngs(1))) == 1
    with pytest.raises(ValueError, match=r"stages 0 and 1 share the variable blocks\.0\.shared"):
        scpl.decouple(blocks, 2, LOCAL, X, nnx.Rngs(1))


@pytest.mark.parametrize("objective", [LOCAL, scpl.CrossEntropy()], ids=str)
def test_state_of_a_batch_needs_batches_of_the_example_s_size(objective):
    class LastBatch(Block):
        def make(self, rngs):
            self.last = nnx.Variable(jnp.zeros((8, 4)))

        def special(self, x):
            self.last.set_value(x)
            return x

    pipeline = pipeline_of((LastBatch, Block), objective, 2)
    pipeline.train_step(X, Y)
    with pytest.raises(ValueError, match=r"changes the variable blocks.0.last from float32\[8, 4\] to float32\[4, 4\]"):
        pipeline.train_step(X[:4], Y[:4])


def test_variables_sown_before_are_left_out_and_blocks_keep_them():
    rngs = nnx.Rngs(0)
    blocks = [Sown(rngs), nnx.Linear(4, 2, rngs=rngs)]
    blocks[0](X)
    (stage,) = scpl.decouple(blocks, 1, LOCAL, X, nnx.Rngs(1))
    assert "features" not in stage.rest.get("blocks", {}).get(0, {})
    assert blocks[0].features.get_value()[0].shape == X.shape
