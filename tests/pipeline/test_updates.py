"""Updates compiled as programs of their own change nothing but the time."""

import jax
import numpy as np
import optax
import pytest
from closeness import assert_close
from flax import nnx

import scpl_jax as scpl

OPTIMIZER = optax.adam(1e-3)
# As many parameters as it takes.
WIDE = 512, 1024
BAD = 2  # the step whose batch is


def batch(seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(8, WIDE[0])).astype(np.float32), rng.integers(0, 3, 8).astype(np.int32)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.wide = nnx.Linear(*WIDE, use_bias=False, rngs=rngs)  # batch norm takes a bias away
        self.norm = nnx.BatchNorm(WIDE[1], rngs=rngs)
        self.back = nnx.Linear(*WIDE[::-1], rngs=rngs)

    def __call__(self, x):
        return x + self.back(nnx.relu(self.norm(self.wide(x))))


def programs_and_results(objective, monkeypatch, compilations, flags, **options):
    """Names of the programs; metrics of four steps, states after them, skipped updates, bytes."""
    monkeypatch.setenv("XLA_FLAGS", flags)
    rngs = nnx.Rngs(0)
    blocks = [Block(rngs), Block(rngs), nnx.Linear(WIDE[0], 3, rngs=rngs)]
    pipeline = scpl.Pipeline(scpl.decouple(blocks, 2, objective, batch(0)[0], nnx.Rngs(1)), OPTIMIZER, **options)
    with compilations() as compiled:
        pipeline.compile(*batch(0))
    metrics = []
    for step in range(4):
        x, y = batch(step)
        if step == BAD:
            x = np.full_like(x, np.nan)
        metrics.append(jax.device_get(pipeline.train_step(x, y, with_norms=step == 1)))
    pipeline.wait()
    return (
        compiled,
        metrics,
        jax.device_get(pipeline.states),
        [(skip.step, skip.stage) for skip in pipeline.take_skipped()],
        pipeline.temporary_bytes(*batch(0)),
    )


@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (scpl.SupCon(head="linear", head_dims=(4,)), {}),
        (scpl.SupCon(head="linear", head_dims=(4,)), {"devices": 1, "fuse": True}),
        (scpl.CrossEntropy(), {"devices": 1}),
        (scpl.CrossEntropy(), {"micro_batches": 2, "remat": True, "data_parallel": 2}),
        *(
            pytest.param(objective, options, marks=pytest.mark.runs)
            for objective, options in (
                (scpl.SupCon(head="linear", head_dims=(4,)), {"devices": 1}),
                (scpl.SupCon(head="linear", head_dims=(4,)), {"data_parallel": 2}),
                (scpl.CrossEntropy(), {"devices": 1, "micro_batches": 4}),
                (scpl.CrossEntropy(), {}),
                (scpl.CrossEntropy(), {"micro_batches": 4}),
            )
        ),
    ],
    ids=str,
)
def test_updates_of_their_own_are_the_same(monkeypatch, compilations, objective, options):
    options = {**options, "devices": jax.devices()[: options.get("devices", 4)]}
    together = programs_and_results(objective, monkeypatch, compilations, "", **options)
    flags = "--xla_cpu_use_fusion_emitters=false"
    apart = programs_and_results(objective, monkeypatch, compilations, flags, **options)
    assert [any("update" in name for name in some) for some in (together[0], apart[0])] == [False, True]
    assert apart[3] == together[3]
    assert min(apart[4]) > 4 * 2 * WIDE[0] * WIDE[1]  # the gradients of a block, which stay
    assert {step for step, _ in apart[3]} == {BAD}
    finite = [([one for step, one in enumerate(found[1]) if step != BAD], found[2]) for found in (apart, together)]
    assert_close(*finite, 1e-4)
    norms = [[max(one["gradient_norms"].values()) for one in step] for step in apart[1]]
    assert [min(step) > 0 for step in norms] == [False, True, False, False]
