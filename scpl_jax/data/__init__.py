"""Data sets, their order and their batches."""

from scpl_jax.data.augment import AUGMENTATIONS, make_augment, normalise
from scpl_jax.data.batching import Batch, batches, epoch_order, eval_batches
from scpl_jax.data.dataset import Dataset, Examples, add_label_noise, limit
from scpl_jax.data.errors import DataError
from scpl_jax.data.registry import DATASETS, load
from scpl_jax.data.text_dataset import TextDataset
from scpl_jax.data.text_registry import TEXT_DATASETS, TextRequest, load_texts

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "TEXT_DATASETS",
    "Batch",
    "DataError",
    "Dataset",
    "Examples",
    "TextDataset",
    "TextRequest",
    "add_label_noise",
    "batches",
    "epoch_order",
    "eval_batches",
    "limit",
    "load",
    "load_texts",
    "make_augment",
    "normalise",
]
