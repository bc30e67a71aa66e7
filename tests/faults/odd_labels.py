"""Odd labels and batches for losses and pipelines: trained on as they mean, or refused in one sentence."""

import contextlib
import functools
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

N, WIDTH, CLASSES = 8, 6, 4
VALUES = (0, 1, 2, 3, -1, 4, -2, 255, 2**31 - 1, 2**31, -(2**31), 2**32 - 1, 2**63 - 1)
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "bool", "float16", "float32",
          "float64", "complex64", "object", "str", "datetime64[s]")  # fmt: skip


def odd_labels(chance: random.Random) -> Any:
    """Labels, more or less."""
    import jax.numpy as jnp
    import numpy as np

    values: Any = [chance.randrange(CLASSES) for _ in range(N)]
    for _ in range(chance.choice((0, 0, 1, 2, N))):
        values[chance.randrange(N)] = chance.choice((*VALUES, 0.5, float("nan"), None, "x", [0]))
    if chance.random() < 0.2:
        values = values[: chance.randrange(N)] if chance.random() < 0.5 else [*values, 0]
    if chance.random() < 0.15:
        return chance.choice((values, tuple(values), None, 3, "labels", {"labels": values}, iter(values)))
    try:
        labels = np.array(values)
        with np.errstate(all="ignore"):
            labels = labels.astype(chance.choice(DTYPES)) if chance.random() < 0.7 else labels
    except (ValueError, TypeError, OverflowError):
        labels = np.array(values, object)
    shape = chance.choice(((-1,), (-1,), (-1, 1), (1, -1), (-1, 2), (-1, 1, 1)))
    if labels.ndim == 1 and labels.size % 2 == 0:
        labels = labels.reshape(shape)
    if chance.random() < 0.1:
        labels = np.eye(CLASSES)[np.arange(N) % CLASSES]
    if labels.dtype.kind in "iufb" and chance.random() < 0.3:
        return jnp.asarray(labels)
    return labels


def odd_inputs(chance: random.Random) -> Any:
    """A batch of inputs, mostly as it should be."""
    import jax.numpy as jnp
    import numpy as np

    inputs: Any = np.linspace(-1, 1, N * WIDTH, dtype=np.float32).reshape(N, WIDTH)
    if chance.random() < 0.6:
        return inputs
    changes: tuple[Callable[[Any], Any], ...] = (
        lambda x: x.tolist(),
        lambda x: x.astype(chance.choice(DTYPES)),
        lambda x: x[: chance.randrange(N)],
        lambda x: x[:, None],
        lambda x: x[:, :-1],
        lambda x: x.T,
        lambda x: {"x": x, "y": chance.choice((x, x[1:], 1, None))},
        lambda x: [x, x],
        lambda x: chance.choice((None, (), 1.0, "x", object)),
        jnp.asarray,
        lambda x: x.astype(np.float64),
        lambda x: np.asfortranarray(x),
        lambda x: x[::-1],
    )
    try:
        return chance.choice(changes)(inputs)
    except (ValueError, TypeError):
        return inputs


@functools.cache
def pipeline_of(rule: str) -> Any:
    """A small pipeline, kept from case to case."""
    import jax
    import numpy as np
    import optax
    from flax import nnx

    import scpl_jax as scpl

    objective = {"scpl": scpl.SupCon(head="identity"), "ce": scpl.LocalClassifier(CLASSES), "bp": scpl.CrossEntropy()}
    blocks = [nnx.Linear(WIDTH, n, rngs=nnx.Rngs(n)) for n in (WIDTH, CLASSES)]
    stages = scpl.decouple(blocks, 1, objective[rule], np.zeros((N, WIDTH), np.float32), nnx.Rngs(0))
    return scpl.Pipeline(stages, optax.sgd(1e-3), jax.devices()[:1])


@contextlib.contextmanager
def writing_no_cache() -> Iterator[None]:
    """Keep no program that is compiled: a case writes nowhere but in its own folder."""
    import jax

    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, math.inf)
    try:
        yield
    finally:
        jax.config.update(name, before)


@writing_no_cache()
def batches(folder: Path, chance: random.Random) -> None:
    """Train on an odd batch, or evaluate it; a pipeline must go on as before."""
    import jax
    import numpy as np

    pipeline = pipeline_of(chance.choice(("scpl", "ce", "bp")))
    inputs, labels = odd_inputs(chance), odd_labels(chance)
    try:
        if chance.random() < 0.7:
            pipeline.train_step(inputs, labels)
            pipeline.wait()
        else:
            pipeline.evaluate([(inputs, labels)])
    finally:
        pipeline.wait()
        parameters = jax.device_get([leaf for state in pipeline.states for leaf in jax.tree.leaves(state.params)])
        assert all(np.isfinite(leaf).all() for leaf in parameters)


@writing_no_cache()
def losses(folder: Path, chance: random.Random) -> None:
    """Call a loss with odd labels."""
    import numpy as np

    from scpl_jax import losses

    features = np.linspace(-1, 1, N * CLASSES, dtype=np.float32).reshape(N, CLASSES) ** 3
    labels = odd_labels(chance)
    shape = getattr(labels, "shape", None)
    if shape is None or shape[:1] != (N,):
        return  # a loss sees arrays, of one length
    which = chance.choice(("cross_entropy", "supervised_contrastive", "similarity_matching"))
    extra = (CLASSES,) if which == "similarity_matching" else ()
    loss = float(getattr(losses, which)(features, labels, *extra))
    values = np.asarray(labels).reshape(-1).astype(float)
    known = ((values >= -1) & (values < CLASSES)).all()
    assert np.isfinite(loss) == (which == "supervised_contrastive" or known), (loss, labels)


TARGETS: dict[str, tuple[int, Callable[[Path, random.Random], None]]] = {
    "labels and batches": (20, batches),
    "labels of losses": (5, losses),
}
