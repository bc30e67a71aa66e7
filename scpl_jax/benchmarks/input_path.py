"""The data path alone: examples drawn from memory, brought to the device and prepared there, as in training."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from scpl_jax.benchmarks.throughput_options import Options
from scpl_jax.cli.building import dtype_of
from scpl_jax.data import Dataset, TextDataset, make_augment
from scpl_jax.data.dataset import Examples
from scpl_jax.data.text.buckets import Texts

# So much that it doesn't stay in the processor's cache; with more a batch takes no longer.
_BYTES_OF_IMAGES, _TEXTS = 32 << 20, 25_000
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def data_paths(options: Options) -> dict[str, Callable[[], None]]:
    """What feeds a training step of these options, without the step.

    Args:
      options: model, image_size, length, vocabulary, batch_size, steps and precision count.

    Returns:
      By name a function that draws ``steps`` batches in an epoch's random order, brings them to the device and prepares
      them as a training run does, and waits for the last one: for images with each augmentation that changes them, for
      texts padding to the buckets.

    Example:
      >>> paths = data_paths(Options(batch_size=4, steps=2, image_size=8))
      >>> list(paths)
      ['input, basic augmentation', 'input, strong augmentation']
      >>> paths["input, strong augmentation"]()
    """
    dataset: Examples = _texts(options) if options.is_text else _images(options)

    def several(prepare: Callable[..., Any]) -> Callable[[], None]:
        epochs = (dataset.train_batches(options.batch_size, seed=0, epoch=epoch) for epoch in itertools.count())
        batches = itertools.chain.from_iterable(epochs)

        def take() -> None:
            ready: Any = None
            for step in range(options.steps):
                ready = prepare(np.int32(step), *next(batches))
            jax.block_until_ready(ready)

        return take

    if options.is_text:
        return {"input": several(lambda step, *batch: jax.device_put(batch))}
    dtype = dtype_of(options.precision) or jnp.float32
    return {
        f"input, {kind} augmentation": several(_folded(make_augment(kind, mean=_MEAN, std=_STD, dtype=dtype)))
        for kind in ("basic", "strong")
    }


def _folded(augment: Callable[..., Any]) -> Callable[..., Any]:
    """A program that takes what the host has and folds the key within, as that of ``Pipeline.train_step``."""
    folded = jax.jit(lambda key, step, images, labels: augment(jax.random.fold_in(key, step), images, labels))
    return functools.partial(folded, jax.random.key(0))


def _images(options: Options) -> Dataset:
    """Images of noise."""
    rng = np.random.default_rng(0)
    count = max(_BYTES_OF_IMAGES // (3 * options.image_size**2), options.batch_size)
    images = rng.integers(0, 256, (count, options.image_size, options.image_size, 3), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.int32)
    names = tuple(map(str, range(10)))
    return Dataset("noise", "noise", images, labels, images[:1], labels[:1], names, _MEAN, _STD)


def _texts(options: Options) -> TextDataset:
    """Texts of random words and lengths, padded to as many lengths as real ones are."""
    rng = np.random.default_rng(0)
    count = max(_TEXTS, options.batch_size)
    lengths = rng.integers(1, options.length + 1, count)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    texts = Texts(rng.integers(2, options.vocabulary, starts[-1]).astype(np.int32), starts)
    labels = (np.arange(count) % 2).astype(np.int32)
    buckets = tuple(sorted({-(-options.length * part // 4) for part in (1, 2, 3, 4)}))
    words = tuple(map(str, range(options.vocabulary - 2)))
    test = texts.first(1), labels[:1]
    return TextDataset("noise", "noise", texts, labels, *test, ("0", "1"), words, options.length, buckets)
