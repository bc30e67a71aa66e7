"""The options of image classification, and those of text classification."""

import dataclasses
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from scpl_jax.cli.methods import RuleOptions
from scpl_jax.cli.option_types import Count, Natural, NotNegativeEach, OneOf, Positive, Unset, at_least, default
from scpl_jax.cli.run_options import DataOptions, NetworkOptions, ResolvedOptions, RunOptions, TrainingOptions
from scpl_jax.data import AUGMENTATIONS, DATASETS, TEXT_DATASETS
from scpl_jax.models import MODELS
from scpl_jax.objectives import HEADS

TEXT_MODELS = ("lstm", "transformer")


@dataclasses.dataclass(frozen=True)
class _ImageNetwork(NetworkOptions):
    model: Annotated[str, OneOf(MODELS)] = "vgg8"
    """The network."""
    width: Annotated[Positive | None, default("1.0; for the digits 0.125")] = None
    """Multiplier of the numbers of channels and hidden units."""
    shortcut: Literal["1x1", "3x3"] = "1x1"
    """ResNets: kernel of the shortcut convolutions; 3x3 as in the reference's ResNet-18."""


@dataclasses.dataclass(frozen=True)
class _ImageRule(RuleOptions):
    head_pool: Natural = 2
    """Average a feature map to this side before the head, in pixels; 0: not at all, as in the paper."""


@dataclasses.dataclass(frozen=True)
class _ImageTraining(TrainingOptions):
    epochs: Annotated[Count | None, default("200; for the digits 20")] = None
    """Number of epochs."""
    batch_size: Annotated[Count | None, default("1024; for the digits 128")] = None
    """Source images a batch; strong augmentation trains on twice as many views."""


@dataclasses.dataclass(frozen=True)
class _ImageData(DataOptions):
    dataset: Annotated[str, OneOf(DATASETS)] = "auto"
    """The data set; auto is CIFAR-10 where its files are found, otherwise scikit-learn's digits."""
    image_size: Annotated[Count | None, default("as they come; tiny-imagenet 32")] = None
    """Resize images to this side, in pixels."""
    augment: Annotated[str | None, OneOf(AUGMENTATIONS), default("strong; for the digits none")] = None
    """Augmentation: none, basic (crop, flip) or strong (two views, one with colour jitter)."""


@dataclasses.dataclass(frozen=True)
class Options(_ImageData, _ImageTraining, _ImageRule, _ImageNetwork, RunOptions):
    """Train an image classifier in stages with local supervised-contrastive losses.

    Without --dataset, CIFAR-10 is used where its files are found, otherwise scikit-learn's digits, which need no
    download.
    """


@dataclasses.dataclass(frozen=True)
class ResolvedImageOptions(ResolvedOptions, Options):
    """The options of image classification as they hold in a run."""

    augment: str = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class _TextNetwork(NetworkOptions):
    model: Annotated[str, OneOf(TEXT_MODELS)] = "lstm"
    """The network: a bidirectional LSTM, or a pre-norm transformer encoder."""
    layers: Annotated[int, at_least(2)] = 4
    """Blocks besides the classifier, the embedding included."""
    width: Annotated[Positive | None, default("1.0; for generated texts 0.1")] = None
    """Multiplier of the numbers of hidden units."""
    embedding_size: Annotated[Count | None, default("that of --word-vectors, else 300; for generated texts 30")] = None
    """Length of the word vectors."""
    word_vectors: Unset[Path] = None
    """File of word vectors in the text format of GloVe or fastText, with which the embedding begins."""
    heads: Count = 6
    """transformer: attention heads; they must divide the length of the word vectors."""
    positions: Literal["sinusoidal", "none"] = "sinusoidal"
    """transformer: what tells positions apart; none as in the released PyTorch code."""
    unmasked: bool = False
    """Let padding count like words, as the released PyTorch code does (lstm; transformer: in the embedding's mean)."""
    dropout: Annotated[float | None, default("lstm 0, transformer 0.1")] = None
    """Share of the values that training sets to 0, from 0 to 1."""


@dataclasses.dataclass(frozen=True)
class _TextRule(RuleOptions):
    head: Annotated[str, OneOf(HEADS)] = "identity"
    """Projection head."""


@dataclasses.dataclass(frozen=True)
class _TextTraining(TrainingOptions):
    epochs: Annotated[Count | None, default("50; for generated texts 20")] = None
    """Number of epochs."""
    batch_size: Annotated[Count | None, default("1024; for generated texts 64")] = None
    """Texts a batch."""
    end_lr: NotNegativeEach = 1e-3
    """Learning rate at the end of the cosine schedule, one or one for each stage; unless it is given, the default rate
    stays as it is."""


@dataclasses.dataclass(frozen=True)
class _TextData(DataOptions):
    dataset: Annotated[str, OneOf(TEXT_DATASETS)] = "auto"
    """The data set; auto is SST-2 where its files are found, otherwise generated; file needs --data-file."""
    data_file: Unset[Path] = None
    """CSV, TSV or JSON-lines file with one training text a row, for --dataset file."""
    test_file: Annotated[Path | None, default("a stratified fifth of the training texts is held out")] = None
    """The same with the test texts."""
    text_column: str = "text"
    """Column of these files with the text."""
    label_column: str = "label"
    """Column of these files with the label."""
    vocabulary: Annotated[int, at_least(3)] = 30000
    """Most token ids: the most frequent words of the training texts, padding and unknown."""
    max_length: Annotated[
        Count | None, default("sst2 15, generated and ag-news 60, imdb 350, dbpedia and files 400")
    ] = None
    """Tokens of a text that count."""
    keep_stop_words: bool = False
    """Leave English stop words in the texts."""
    buckets: Annotated[Count | None, default("4; for generated texts 1")] = None
    """Most lengths to which texts are padded; a batch has texts of one bucket, and 1 pads all to the longest."""


@dataclasses.dataclass(frozen=True)
class TextOptions(_TextData, _TextTraining, _TextRule, _TextNetwork, RunOptions):
    """Train a text classifier in stages with local supervised-contrastive losses.

    Without --dataset, SST-2 is used where its files are found, otherwise sentences made by rules, which need no
    download.
    """

    #: Sequences have no image to average over.
    head_pool: ClassVar[int] = 0


@dataclasses.dataclass(frozen=True)
class ResolvedTextOptions(ResolvedOptions, TextOptions):
    """The options of text classification as they hold in a run."""

    embedding_size: Count = dataclasses.field(kw_only=True)
    dropout: float = dataclasses.field(kw_only=True)
