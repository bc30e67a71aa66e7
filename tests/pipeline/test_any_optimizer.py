"""Any Optax optimizer trains stages, or is refused in one sentence before anything is trained."""

import contextlib
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.stages.optimizer import apply_optimizer, initial_optimizer_state, uses_loss
from scpl_jax.training import RunError, build_optimizer
from scpl_jax.training.checkpoints import CheckpointStore, Progress

X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
Y = np.arange(8) % 2
SGD = optax.sgd(0.1)


def all_of(params, value=True):
    return jax.tree.map(lambda _: value, params)


# What factories are called with, by the names of those arguments that have no default.
ARGUMENTS = {
    "learning_rate": 0.1,
    **dict.fromkeys(("inner", "base_optimizer", "optimizer", "adv_optimizer", "tx"), SGD),
    **dict.fromkeys(("fast_optimizer", "opt"), SGD),
    **dict.fromkeys(("clipping", "max_delta", "threshold", "max_norm", "l2_norm_clip", "noise_multiplier"), 1.0),
    **dict.fromkeys(("eta", "gamma", "step_size", "slow_step_size"), 0.1),
    **dict.fromkeys(("max_consecutive_errors", "sync_period", "every_k_schedule"), 2),
    **dict.fromkeys(("max_backtracking_steps", "max_linesearch_steps"), 2),
    **dict.fromkeys(("mask", "freeze_mask"), all_of),
    "seed": 0,
    "key": jax.random.key(0),
    "decay": 0.9,
    "should_transform_fn": lambda step: step % 2 == 0,
    "step_size_fn": optax.constant_schedule(0.1),
    "measure": optax.tree.norm,
    "measure_name": "norm",
    "measures": {"norm": optax.tree.norm},
    "transforms": {"all": SGD},
    "param_labels": lambda params: all_of(params, "all"),
    "inner_factory": optax.sgd,
    "f": lambda updates, params=None: updates,
}
# Those that get more than that.
MORE = {name: {"key": 0} for name in ("add_noise", "noisy_sgd", "differentially_private_aggregate")}
# They need something else than gradient, parameters and the loss's value; and a word of what the sentence says of it.
REFUSED = {
    **dict.fromkeys(("lbfgs", "scale_by_backtracking_linesearch", "scale_by_zoom_linesearch"), "value_fn"),
    **dict.fromkeys(("sophia", "hutchinson_estimator_diag_hessian"), "obj_fn"),
    **dict.fromkeys(("dpsgd", "differentially_private_aggregate"), "batch dimension"),
    "lookahead": "fast",  # parameters in its own class
    "measure_with_ema": "missing",  # gives a number in place of updates
    "monitor": "missing",  # its state is another one after the first step
    "scale_by_muon": "structure",  # asks for dimensions, for which it has no default that serves
}
# Annotated as factories, but no optimizers.
NONE = {"apply_updates", "init_empty_state", "chain", "named_chain"}
WANTING_THE_LOSS = {"polyak_sgd", "scale_by_polyak", "momo", "momo_adam", "reduce_on_plateau"}


def factories():
    """Name -> whatever Optax has that speaks of a gradient transformation, also where it is not annotated."""
    found = {}
    for module in (optax, optax.contrib, optax.transforms):
        for name, one in inspect.getmembers(module, inspect.isfunction):
            annotated = "GradientTransformation" in str(inspect.signature(one).return_annotation)
            if not name.startswith("_") and (annotated or "GradientTransformation" in inspect.getsource(one)):
                found[name] = one
    return {name: one for name, one in found.items() if name not in NONE}


FACTORIES = factories()


def build(name):
    parameters = inspect.signature(FACTORIES[name]).parameters.values()
    required = [
        p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    unknown = [one for one in required if one not in ARGUMENTS]
    assert not unknown, f"optax.{name} is new and needs {unknown}: say in ARGUMENTS what it is called with"
    made = FACTORIES[name](**{one: ARGUMENTS[one] for one in required}, **MORE.get(name, {}))
    return made if hasattr(made, "init") else made(learning_rate=0.1)  # inject_hyperparams


def decouple(objective, num_stages=1):
    rngs = nnx.Rngs(0)
    blocks = [nnx.Linear(4, 4, rngs=rngs) for _ in range(num_stages)] + [nnx.Linear(4, 2, rngs=rngs)]
    return scpl.decouple(blocks, num_stages, objective, X, nnx.Rngs(1))


@pytest.fixture(scope="module")
def stage():
    return decouple(LOCAL)[0]


def test_the_walk_finds_optimizers():
    assert len(FACTORIES) > 80
    assert set(REFUSED) | WANTING_THE_LOSS < set(FACTORIES)


@pytest.mark.parametrize("part", range(4))
def test_any_optimizer_updates_a_stage(stage, part):
    """All of them in a few programs, which donate the states; what no update can do without is refused."""
    optimizers = {name: build(name) for name in sorted(FACTORIES)[part::4] if name not in REFUSED}
    params = {name: jax.tree.map(jnp.copy, stage.params) for name in optimizers}
    states = {name: initial_optimizer_state(one, params[name]) for name, one in optimizers.items()}
    structures = {name: jax.tree.structure(state) for name, state in states.items()}

    def updates(params, states, gradient):
        new = {n: apply_optimizer(o, params[n], states[n], gradient, jnp.float32(2)) for n, o in optimizers.items()}
        return {name: one for name, (one, _) in new.items()}, {name: one for name, (_, one) in new.items()}

    gradient = jax.tree.map(jnp.ones_like, stage.params)
    run = jax.jit(updates, donate_argnums=(0, 1)).lower(params, states, gradient).compile()
    for _ in range(2):  # of the same shapes and dtypes again
        params, states = run(params, states, gradient)
    for name, one in optimizers.items():
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(params[name])), name
        assert jax.tree.structure(states[name]) == structures[name], name
        assert uses_loss(one, stage.params) == (name in WANTING_THE_LOSS), name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_needs_more_is_refused_before_training(stage, name):
    with pytest.raises(ValueError, match=rf"the optimizer can't be used.*{REFUSED[name]}") as told:
        scpl.Pipeline([stage], build(name), jax.devices()[:1])
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600


def test_no_optimizer_at_all_is_refused(stage):
    with pytest.raises(ValueError, match=r"the optimizer can't be used.*has no attribute 'init'"):
        scpl.Pipeline([stage], optax.adam, jax.devices()[:1])


def tell_value():
    """An optimizer whose state is the loss that it was told last."""

    def update(gradient, state, params, *, value):
        return jax.tree.map(lambda g: -0.1 * g, gradient), value

    return optax.GradientTransformationExtraArgs(lambda _: jnp.float32(0), update)


@pytest.fixture
def updates(request, monkeypatch, set_thresholds):
    """Whether updates are programs of their own."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false" if request.param == "apart" else "")
    set_thresholds(update_parameters=0)


LOCAL = scpl.SupCon(head="identity")


@pytest.mark.parametrize("updates", ["together", "apart"], indirect=True)
@pytest.mark.parametrize(
    ("objective", "devices", "options"),
    [
        (LOCAL, 3, {}),
        ([LOCAL, LOCAL, scpl.CrossEntropy()], 1, {"fuse": True}),
        (scpl.CrossEntropy(), 1, {}),
        (scpl.CrossEntropy(), 3, {}),
        (scpl.CrossEntropy(), 4, {"micro_batches": 2, "remat": True, "data_parallel": 2}),
    ],
)
def test_the_value_is_what_the_gradient_is_of(updates, objective, devices, options):
    pipeline = scpl.Pipeline(decouple(objective, 3), tell_value(), jax.devices()[:devices], **options)
    for _ in range(2):
        metrics = jax.device_get(pipeline.train_step(X, Y))
        told = [float(state.opt_state) for state in pipeline.states]
        last = float(metrics[-1]["loss"])
        if pipeline.end_to_end:
            expected = [last] * 3
        else:
            both = isinstance(objective, scpl.SupCon)  # its loss and the classifier's
            expected = [float(one["loss"]) for one in metrics[:-1]]
            expected += [last + both * float(metrics[-1]["classifier_loss"])]
        np.testing.assert_allclose(told, expected, rtol=1e-6)
        assert all("objective" not in one for one in metrics)


CHOSEN = {
    "keeps parameters": optax.contrib.prodigy(),
    "wants the loss": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=1)),
    "takes no loss": optax.contrib.sam(optax.adam(0.1), SGD),
    "random": optax.chain(optax.add_noise(0.1, 0.1, key=jax.random.key(3)), optax.sgd(0.1)),
    "several steps": optax.MultiSteps(optax.polyak_sgd(), 2),
    "parts": optax.multi_transform(
        {"kernel": optax.adamw(1e-2), "bias": optax.set_to_zero()},
        lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: "bias" if "bias" in jax.tree_util.keystr(path) else "kernel", params
        ),
    ),
    "hyperparameters": optax.inject_hyperparams(optax.sgd)(optax.cosine_decay_schedule(0.1, 3), momentum=0.9),
    "finite": optax.apply_if_finite(optax.masked(optax.lion(0.1), all_of), 3),
    "schedule-free": optax.contrib.schedule_free_sgd(0.1),
}


@pytest.mark.parametrize(
    ("objective", "updates", "name"),
    [
        *((LOCAL, "apart", name) for name in CHOSEN),
        *((scpl.CrossEntropy(), "together", name) for name in ("wants the loss", "random", "several steps")),
    ],
    indirect=["updates"],
)
def test_optimizers_train_and_resume_to_the_bit(tmp_path, updates, objective, name):
    def make():
        return scpl.Pipeline(decouple(objective, 2), CHOSEN[name], jax.devices()[:2])

    pipeline, again = make(), make()
    start = jax.device_get([stage.params for stage in pipeline.stages])
    pipeline.train_step(X, Y)
    pipeline.train_step(X, Y)
    store = CheckpointStore(tmp_path)
    store.save(pipeline, Progress())
    assert store.restore(again) is not None
    store.close()
    assert store.failed is None
    for one in (pipeline, again):
        one.train_step(X, Y)
    first, second = (jax.device_get(one.states) for one in (pipeline, again))
    jax.tree.map(np.testing.assert_array_equal, *(jax.tree.map(_raw, tree) for tree in (first, second)))
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), start, [s.params for s in first])
    assert all(any(jax.tree.leaves(stage)) for stage in moved)
    assert 0 <= pipeline.evaluate([(X, Y)])["accuracy"] <= 1


def _raw(x):
    return np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def test_stages_train_as_by_optax_alone(stage):
    """Numbers in bfloat16 that Optax promotes in its first step keep what it makes of them."""
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), stage.params)
    gradient = jax.tree.map(jnp.ones_like, params)
    for optimizer in (
        optax.contrib.reduce_on_plateau(),
        optax.contrib.momo(),
        optax.scale_by_distance_over_gradients(),
    ):
        own, state = params, initial_optimizer_state(optimizer, params)
        plain, plain_state = params, optimizer.init(params)
        for _ in range(2):
            own, state = apply_optimizer(optimizer, own, state, gradient, jnp.float32(2))
            updates, plain_state = optax.with_extra_args_support(optimizer).update(
                gradient, plain_state, plain, value=jnp.float32(2)
            )
            plain = optax.apply_updates(plain, updates)
        jax.tree.map(np.testing.assert_array_equal, (own, state), (plain, plain_state))


def test_optimizers_of_the_command_take_a_schedule_or_are_refused(stage):
    built = set()
    for name in dir(optax):
        with contextlib.suppress(RunError, ValueError):
            initial_optimizer_state(build_optimizer(name, optax.cosine_decay_schedule(0.1, 3)), stage.params)
            built.add(name)
    assert {"adam", "sgd", "lars", "adabelief", "noisy_sgd"} < built
    assert not {"sm3", "lbfgs", "polyak_sgd", "chain"} & built
