"""Data sets, their order and their batches, on the host.

What only images or texts need is in :mod:`scpl_jax.data.images` and :mod:`scpl_jax.data.text`. No network, no training.
"""

from scpl_jax.data.batching import Batch as Batch
from scpl_jax.data.batching import batches as batches
from scpl_jax.data.batching import epoch_order as epoch_order
from scpl_jax.data.batching import eval_batches as eval_batches
from scpl_jax.data.dataset import Dataset as Dataset
from scpl_jax.data.dataset import Examples as Examples
from scpl_jax.data.dataset import add_label_noise as add_label_noise
from scpl_jax.data.dataset import limit as limit
from scpl_jax.data.errors import DataError as DataError
from scpl_jax.data.holding_out import hold_out as hold_out
from scpl_jax.data.images.augment import AUGMENTATIONS as AUGMENTATIONS
from scpl_jax.data.images.augment import make_augment as make_augment
from scpl_jax.data.images.augment import normalise as normalise
from scpl_jax.data.images.image_sets import DATASETS as DATASETS
from scpl_jax.data.images.image_sets import load as load
from scpl_jax.data.text.text_dataset import TextDataset as TextDataset
from scpl_jax.data.text.text_sets import TEXT_DATASETS as TEXT_DATASETS
from scpl_jax.data.text.text_sets import TextRequest as TextRequest
from scpl_jax.data.text.text_sets import load_texts as load_texts
