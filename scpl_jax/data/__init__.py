"""Data sets, their order and their batches."""

from scpl_jax.data.augment import AUGMENTATIONS, make_augment, normalise
from scpl_jax.data.batching import batches, epoch_order, eval_batches
from scpl_jax.data.dataset import Dataset, add_label_noise, limit
from scpl_jax.data.errors import DataError
from scpl_jax.data.registry import DATASETS, load

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "DataError",
    "Dataset",
    "add_label_noise",
    "batches",
    "epoch_order",
    "eval_batches",
    "limit",
    "load",
    "make_augment",
    "normalise",
]
