"""Data sets, their order and their batches, on the host.

What only images or texts need is in :mod:`scpl_jax.data.images` and :mod:`scpl_jax.data.text`. No network, no training.
"""

from scpl_jax.data.batching import Batch, batches, epoch_order, eval_batches
from scpl_jax.data.dataset import Dataset, Examples, add_label_noise, limit
from scpl_jax.data.errors import DataError
from scpl_jax.data.images.augment import AUGMENTATIONS, make_augment, normalise
from scpl_jax.data.images.image_sets import DATASETS, load
from scpl_jax.data.text.text_dataset import TextDataset
from scpl_jax.data.text.text_sets import TEXT_DATASETS, TextRequest, load_texts

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
