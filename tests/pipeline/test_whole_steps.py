"""States are those of a whole step, whatever interrupts or fails."""

import signal
import threading

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import scpl_jax as scpl
from scpl_jax.pipeline import PipelineBrokenError, Timeline
from scpl_jax.pipeline.signals import held_back
from scpl_jax.training import CheckpointStore
from scpl_jax.training.checkpoints import Progress

X = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
Y = np.arange(8) % 3


class Stop(BaseException):
    """What a handler of these tests raises."""


def pipeline_of(objective=None, **options):
    blocks = [nnx.Linear(6, n, rngs=nnx.Rngs(n)) for n in (6, 6, 3)]
    stages = scpl.decouple(blocks, 2, objective or scpl.SupCon(head="identity"), X, nnx.Rngs(1))
    return scpl.Pipeline(stages, optax.adam(1e-2), jax.devices()[:2], **options)


def values(pipeline):
    # Copies: a view of an array keeps its memory from being donated.
    return jax.tree.map(np.array, [(s.params, s.opt_state, s.totals) for s in pipeline.states])


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, values(one), values(other))


@pytest.fixture
def handler():
    """Sets a handler of SIGUSR1 for the time of the test."""
    before = signal.getsignal(signal.SIGUSR1)
    yield lambda function: signal.signal(signal.SIGUSR1, function)
    signal.signal(signal.SIGUSR1, before)


def stop(*_):
    raise Stop


RULES = {
    "local losses": {},
    "fused": {"fuse": True},
    "backpropagation": {"objective": scpl.CrossEntropy()},
    "gpipe": {"objective": scpl.CrossEntropy(), "micro_batches": 2},
}
every_rule = pytest.mark.parametrize("rule", RULES)


@every_rule
@pytest.mark.parametrize("apart", [False, True])
def test_a_signal_at_any_moment_of_a_step_leaves_a_whole_one(rule, apart, handler, monkeypatch, set_thresholds):
    if apart:
        set_thresholds(update_parameters=0)
        monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
    interrupted, calm = pipeline_of(**RULES[rule]), pipeline_of(**RULES[rule])
    handler(stop)
    tasks = []
    interrupted.record = lambda *about: tasks.append(about[0])
    interrupted.train_step(X, Y)
    calm.train_step(X, Y)
    count = len(tasks)
    assert any(task.startswith("update") for task in tasks) == apart
    for moment in range(count):
        left = iter(range(count))

        def record(*_, left=left, moment=moment):
            if next(left) == moment:
                signal.raise_signal(signal.SIGUSR1)

        interrupted.record = record
        with pytest.raises(Stop):
            interrupted.train_step(X, Y)
        calm.train_step(X, Y)
        assert interrupted.step == calm.step
        assert_equal(interrupted, calm)


def test_the_second_signal_of_a_kind_does_not_wait(handler):
    handler(stop)
    pipeline = pipeline_of()
    pipeline.train_step(X, Y)
    seen = []

    def record(*_):
        seen.append(None)
        signal.raise_signal(signal.SIGUSR1)

    pipeline.record = record
    with pytest.raises(Stop):
        pipeline.train_step(X, Y)
    assert len(seen) == 2  # the second program was the second signal's
    with pytest.raises(PipelineBrokenError, match=r"step 2 failed while it ran \(Stop\).*nothing was saved before"):
        pipeline.train_step(X, Y)


def test_handlers_are_as_before_and_run_once(handler):
    seen = []
    handler(lambda *_: seen.append("handled"))
    own = signal.getsignal(signal.SIGUSR1)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with held_back():
        assert signal.getsignal(signal.SIGUSR1) is not own
        signal.raise_signal(signal.SIGUSR1)
        seen.append("done")
    assert seen == ["done", "handled"]
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


def test_handlers_are_put_back_after_an_error(handler):
    handler(stop)
    usual = signal.getsignal(signal.SIGINT)

    def interrupted_and_failing():
        with held_back():
            signal.raise_signal(signal.SIGUSR1)
            raise KeyError("the block's own error is the context of what the handler raises")

    with pytest.raises(Stop):
        interrupted_and_failing()
    assert signal.getsignal(signal.SIGUSR1) is stop
    assert signal.getsignal(signal.SIGINT) is usual


def test_another_thread_holds_nothing_back():
    found = []

    def step():
        pipeline = pipeline_of()
        pipeline.train_step(X, Y)
        pipeline.wait()
        found.append(pipeline.step)

    thread = threading.Thread(target=step)
    thread.start()
    thread.join()
    assert found == [1]


@every_rule
def test_an_error_of_a_record_is_raised_when_the_step_is_dispatched(rule):
    pipeline, calm = pipeline_of(**RULES[rule]), pipeline_of(**RULES[rule])

    def record(*_):
        raise OSError("no room for the timeline")

    pipeline.record = record
    with pytest.raises(OSError, match="no room for the timeline"):
        pipeline.train_step(X, Y)
    pipeline.record = None
    calm.train_step(X, Y)
    pipeline.train_step(X, Y)
    calm.train_step(X, Y)
    assert_equal(pipeline, calm)


def test_an_error_of_prepare_leaves_everything_as_it_was():
    wrong = [True]

    def prepare(key, images, labels):
        if wrong[0]:
            raise KeyError("not yet")
        return images, labels

    pipeline = pipeline_of(prepare=prepare, key=jax.random.key(0))
    before = values(pipeline)
    with pytest.raises(KeyError):
        pipeline.train_step(X, Y)
    assert pipeline.step == 0
    jax.tree.map(np.testing.assert_array_equal, before, values(pipeline))
    wrong[0] = False
    pipeline.train_step(X, Y)
    pipeline.wait()


class Failing(nnx.Module):
    """A block that fails while it runs, when it is told to."""

    fails = False

    def __init__(self, rngs):
        self.linear = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x):
        def check(y):
            if Failing.fails:
                raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
            return y

        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        noise = jax.pure_callback(check, shape, jax.lax.stop_gradient(x), vmap_method="sequential")
        return self.linear(x) + 0 * jax.lax.stop_gradient(noise)


@pytest.mark.parametrize("devices", [1, 2])
def test_a_step_that_fails_while_it_runs_breaks_the_pipeline(devices, tmp_path, monkeypatch):
    # In the second stage: when it fails the first one has made its step.
    blocks = [nnx.Linear(6, 6, rngs=nnx.Rngs(6)), Failing(nnx.Rngs(0)), nnx.Linear(6, 3, rngs=nnx.Rngs(3))]
    stages = scpl.decouple(blocks, 2, scpl.SupCon(head="identity"), X, nnx.Rngs(1))
    pipeline = scpl.Pipeline(stages, optax.adam(1e-2), jax.devices()[:devices])
    pipeline.train_step(X, Y)
    pipeline.wait()
    store = CheckpointStore(tmp_path / "checkpoints")
    store.save(pipeline, Progress())
    store.wait()
    saved = values(pipeline)
    monkeypatch.setattr(Failing, "fails", True)

    def train_on():
        for _ in range(20):
            pipeline.train_step(X, Y)
        pipeline.wait()

    with pytest.raises(PipelineBrokenError):
        train_on()
    monkeypatch.setattr(Failing, "fails", False)
    calls = {
        "train_step": lambda: pipeline.train_step(X, Y),
        "wait": pipeline.wait,
        "predict": lambda: pipeline.predict(X),
        "predict_exits": lambda: pipeline.predict_exits(X),
        "features": lambda: pipeline.features(X),
        "evaluate": lambda: pipeline.evaluate([(X, Y)]),
        "totals": pipeline.totals,
        "reset_totals": pipeline.reset_totals,
        "compile": lambda: pipeline.compile(X, Y),
        "save": lambda: store.save(pipeline, Progress()),
    }
    for call in calls.values():
        with pytest.raises(PipelineBrokenError) as caught:
            call()
        assert "RESOURCE_EXHAUSTED" in str(caught.value)
        assert f"what was saved last is step 1 in {tmp_path / 'checkpoints'}" in str(caught.value)
        assert "\n" not in str(caught.value)
    store.restore(pipeline)
    jax.tree.map(np.testing.assert_array_equal, saved, values(pipeline))
    pipeline.train_step(X, Y)
    pipeline.wait()
    assert pipeline.step == 2
    store.close()


def test_a_timeline_that_is_stopped_half_way_lets_training_go_on():
    pipeline = pipeline_of()
    timeline = Timeline(pipeline)
    pipeline.train_step(X, Y)
    timeline.stop()
    pipeline.train_step(X, Y)
    pipeline.wait()
    assert pipeline.step == 2
