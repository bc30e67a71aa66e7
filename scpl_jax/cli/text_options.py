"""The options of text classification."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from scpl_jax.cli.run_options import RunOptions


@dataclasses.dataclass
class TextOptions(RunOptions):
    """Train a text classifier in stages with local supervised-contrastive losses.

    Without --dataset, SST-2 is used if it is at hand, otherwise sentences made by rules, which need no download.
    """

    dataset: str = "auto"
    """auto, sst2, imdb, ag-news, dbpedia, file (with --data-file) or generated."""
    data_file: Path | None = None
    """CSV, TSV or JSON-lines file with one training text a row, for --dataset file."""
    test_file: Path | None = None
    """The same with the test texts. Default: a stratified fifth of the training texts is held out."""
    text_column: str = "text"
    """Column of these files with the text."""
    label_column: str = "label"
    """Column of these files with the label."""
    vocabulary: int = 30000
    """Most token ids: the most frequent words of the training texts, padding and unknown."""
    max_length: int | None = None
    """Tokens of a text that count. Default: sst2 15, generated and ag-news 60, imdb 350, dbpedia and files 400."""
    keep_stop_words: bool = False
    """Leave English stop words in the texts."""
    buckets: int | None = None
    """Most lengths to which texts are padded; a batch has texts of one bucket, and 1 pads all to the longest. Default:
    4; for generated texts 1."""
    word_vectors: Path | None = None
    """File of word vectors in the text format of GloVe or fastText, with which the embedding begins."""
    model: str = "lstm"
    """lstm (bidirectional) or transformer (pre-norm encoder)."""
    layers: int = 4
    """Blocks besides the classifier, the embedding included."""
    width: float | None = None
    """Multiplier of the numbers of hidden units. Default: 1.0; for generated texts 0.1."""
    embedding_size: int | None = None
    """Length of the word vectors. Default: that of --word-vectors, else 300; for generated texts 30."""
    heads: int = 6
    """transformer: attention heads; they must divide the length of the word vectors."""
    positions: str = "sinusoidal"
    """transformer: sinusoidal, or none as in the released PyTorch code."""
    unmasked: bool = False
    """Let padding count like words, as the released PyTorch code does (lstm; transformer: in the embedding's mean)."""
    dropout: float | None = None
    """Share of the values that training sets to 0, from 0 to 1. Default: lstm 0, transformer 0.1."""
    head: str = "identity"
    """Projection head: identity, linear, mlp, mlp-bn or simsiam."""
    epochs: int | None = None
    """Number of epochs. Default: 50; for generated texts 20."""
    batch_size: int | None = None
    """Texts a batch. Default: 1024; for generated texts 64."""
    end_lr: float = 1e-3
    """Learning rate at the end of the cosine schedule; by default it stays as it is."""
    limit_train: int | None = None
    """Train on the first N texts only."""
    limit_test: int | None = None
    """Test on the first N texts only."""
    out_dir: Path | None = None
    """Run directory. Default: runs/text/DATE-TIME."""

    #: Sequences have no image to average over.
    head_pool: ClassVar[int] = 0

    def choices(self) -> dict[str, tuple[str, ...]]:
        """Kinds of positions."""
        return {"model": ("lstm", "transformer"), "positions": ("sinusoidal", "none")}

    def least(self) -> dict[str, int]:
        """Sizes."""
        sizes = ("max_length", "buckets", "embedding_size", "heads")
        return {**dict.fromkeys(sizes, 1), "layers": 2, "vocabulary": 3}
