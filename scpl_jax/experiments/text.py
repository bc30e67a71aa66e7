"""Train a text classifier: ``python -m scpl_jax.experiments.text --stages 4 --dataset imdb --model lstm``.

Without SST-2 at hand it trains on sentences made by rules, which takes a minute or two on two CPU cores.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

_STARTED = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tqdm  # noqa: E402
from flax import nnx  # noqa: E402

from scpl_jax.cli.building import Task, dtype_of  # noqa: E402
from scpl_jax.cli.command_line import run  # noqa: E402
from scpl_jax.cli.run_options import resolved  # noqa: E402
from scpl_jax.cli.task_options import ResolvedTextOptions, TextOptions  # noqa: E402
from scpl_jax.data import TextDataset, TextRequest, load_texts  # noqa: E402
from scpl_jax.data.reading import check_given  # noqa: E402
from scpl_jax.data.text.vectors import read_vectors  # noqa: E402
from scpl_jax.experiments.training_run import train_task  # noqa: E402
from scpl_jax.models import lstm, transformer  # noqa: E402
from scpl_jax.pipeline import processes  # noqa: E402
from scpl_jax.training import RunError  # noqa: E402

_GENERATED_DEFAULTS: dict[str, Any] = {"width": 0.1, "embedding_size": 30, "epochs": 20, "batch_size": 64}
_DEFAULTS: dict[str, Any] = {"width": 1.0, "embedding_size": 300, "epochs": 50, "batch_size": 1024}


def _load(options: TextOptions) -> TextDataset:
    names = [field.name for field in dataclasses.fields(TextRequest) if field.name != "name"]
    dataset = load_texts(TextRequest(options.dataset, **{name: getattr(options, name) for name in names}))
    if options.word_vectors is None:
        return dataset
    path = options.word_vectors
    check_given("--word-vectors", path)
    size = path.stat().st_size
    quiet = not (processes.is_first() and sys.stderr.isatty())
    with tqdm.tqdm(total=size, desc="word vectors", unit="B", unit_scale=True, disable=quiet, leave=False) as bar:
        vectors = read_vectors(path, dataset.words, options.embedding_size, bar.update)
    found = f"{len(vectors):,} of {len(dataset.words):,} words have vectors in {path}; the others begin at random."
    if 2 * len(vectors) < len(dataset.words):
        found += " These are few: check that the vectors are of the language of the texts and of words in lower case."
    return dataclasses.replace(dataset, vectors=vectors, note=" ".join(filter(None, (dataset.note, found))))


def _resolve(options: TextOptions, dataset: TextDataset) -> ResolvedTextOptions:
    defaults = dict(_GENERATED_DEFAULTS if dataset.name == "generated" else _DEFAULTS)
    defaults["dropout"] = 0.1 if options.model == "transformer" else 0.0
    if dataset.vectors:
        defaults["embedding_size"] = len(next(iter(dataset.vectors.values())))
    return resolved(ResolvedTextOptions, options, defaults)


def _blocks(options: ResolvedTextOptions, dataset: TextDataset, rngs: nnx.Rngs) -> list[nnx.Module]:
    if options.model == "transformer" and options.embedding_size % options.heads:
        raise RunError(f"--heads {options.heads} does not divide the {options.embedding_size} values of a word vector")
    common: dict[str, Any] = {
        "vocabulary": dataset.vocabulary,
        "layers": options.layers,
        "size": options.embedding_size,
        "width": options.width,
        "masked": not options.unmasked,
        "dropout": options.dropout,
        "init": options.init,
        "dtype": dtype_of(options.precision),
        "library": options.library,
        "rngs": rngs,
    }
    if options.model == "lstm":
        blocks = lstm(dataset.num_classes, **common)
    else:
        blocks = transformer(dataset.num_classes, heads=options.heads, positions=options.positions, **common)
    embedding: Any = blocks[0]
    if dataset.vectors:
        values = np.array(embedding.vectors[...])
        for index, word in enumerate(dataset.words, start=2):
            values[index] = dataset.vectors.get(word, values[index])
        embedding.vectors[...] = jnp.asarray(values)
    return blocks


def _example(options: ResolvedTextOptions, dataset: TextDataset) -> jax.ShapeDtypeStruct:
    """A batch of texts as long as those of training are on average: on it cut and placement rest."""
    length = next(bucket for bucket in dataset.buckets if bucket >= min(dataset.mean_length, dataset.buckets[-1]))
    return jax.ShapeDtypeStruct((options.batch_size, length), jnp.int32)


def _title(options: ResolvedTextOptions, dataset: TextDataset) -> str:
    lengths = ", ".join(map(str, dataset.buckets))
    return (
        f"{options.method}, {options.model} x {options.width:g} of {options.layers} layers on {dataset.name} "
        f"({len(dataset.train_labels)} train, {len(dataset.test_labels)} test, {dataset.vocabulary} words, padded to "
        f"{lengths}), {options.epochs} epochs, batch {options.batch_size}, {options.precision}"
    )


TASK = Task(
    name="text",
    options=TextOptions,
    load=_load,
    resolve=_resolve,
    blocks=_blocks,
    example=_example,
    paper_cut=lambda options: (1, 2, 3),
    prepare=lambda options, dataset: (None, None),
    title=_title,
    # Bridges of one layer.
    associated={"hidden": 0, "activation": "tanh", "bounded": "first", "first_loss": "cross-entropy"},
    measured=lambda dataset, rate: {"tokens_per_second": rate * dataset.mean_length},
)


def main(arguments: Sequence[str]) -> int:
    """Run the experiment; returns the exit status."""
    return train_task(TASK, arguments, _STARTED)


if __name__ == "__main__":
    sys.exit(run(main))
