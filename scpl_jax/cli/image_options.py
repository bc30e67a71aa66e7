"""The options of image classification."""

import dataclasses
from typing import Annotated, Literal

from scpl_jax.cli.methods import RuleOptions
from scpl_jax.cli.option_types import Count, Natural, OneOf, Positive, default
from scpl_jax.cli.run_options import DataOptions, NetworkOptions, ResolvedOptions, RunOptions, TrainingOptions
from scpl_jax.data import AUGMENTATIONS, DATASETS
from scpl_jax.models import MODELS


@dataclasses.dataclass(frozen=True)
class _Network(NetworkOptions):
    model: Annotated[str, OneOf(MODELS)] = "vgg8"
    """The network."""
    width: Annotated[Positive | None, default("1.0; for the digits 0.125")] = None
    """Multiplier of the numbers of channels and hidden units."""
    shortcut: Literal["1x1", "3x3"] = "1x1"
    """ResNets: kernel of the shortcut convolutions; 3x3 as in the reference's ResNet-18."""


@dataclasses.dataclass(frozen=True)
class _Rule(RuleOptions):
    head_pool: Natural = 2
    """Average a feature map to this side before the head, in pixels; 0: not at all, as in the paper."""


@dataclasses.dataclass(frozen=True)
class _Training(TrainingOptions):
    epochs: Annotated[Count | None, default("200; for the digits 20")] = None
    """Number of epochs."""
    batch_size: Annotated[Count | None, default("1024; for the digits 128")] = None
    """Source images a batch; strong augmentation trains on twice as many views."""


@dataclasses.dataclass(frozen=True)
class _Data(DataOptions):
    dataset: Annotated[str, OneOf(DATASETS)] = "auto"
    """The data set; auto is CIFAR-10 where its files are found, otherwise scikit-learn's digits."""
    image_size: Annotated[Count | None, default("as they come; tiny-imagenet 32")] = None
    """Resize images to this side, in pixels."""
    augment: Annotated[str | None, OneOf(AUGMENTATIONS), default("strong; for the digits none")] = None
    """Augmentation: none, basic (crop, flip) or strong (two views, one with colour jitter)."""


@dataclasses.dataclass(frozen=True)
class Options(_Data, _Training, _Rule, _Network, RunOptions):
    """Train an image classifier in stages with local supervised-contrastive losses.

    Without --dataset, CIFAR-10 is used where its files are found, otherwise scikit-learn's digits, which need no
    download.
    """


@dataclasses.dataclass(frozen=True)
class ResolvedImageOptions(ResolvedOptions, Options):
    """The options of image classification as they hold in a run."""

    augment: str = dataclasses.field(kw_only=True)
