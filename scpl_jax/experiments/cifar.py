"""Train an image classifier: ``python -m scpl_jax.experiments.cifar --stages 4``.

On CIFAR-10 at full size (VGG8, 200 epochs, batch 1024) this wants a GPU; without CIFAR-10 at hand it trains on
scikit-learn's digits, which takes about two minutes on two CPU cores.
"""

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

_STARTED = time.perf_counter()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402

from scpl_jax.cli.building import Task, dtype_of  # noqa: E402
from scpl_jax.cli.command_line import run  # noqa: E402
from scpl_jax.cli.run_options import resolved  # noqa: E402
from scpl_jax.cli.task_options import Options, ResolvedImageOptions  # noqa: E402
from scpl_jax.data import Dataset, load, make_augment, normalise  # noqa: E402
from scpl_jax.experiments.training_run import train_task  # noqa: E402
from scpl_jax.models import build_model, paper_cut  # noqa: E402

_DIGITS_DEFAULTS: dict[str, Any] = {"width": 0.125, "epochs": 20, "batch_size": 128, "augment": "none"}
_DEFAULTS: dict[str, Any] = {"width": 1.0, "epochs": 200, "batch_size": 1024, "augment": "strong"}


def _load(options: Options) -> Dataset:
    places = {"data_dir": options.data_dir, "cache_dir": options.cache_dir}
    return load(options.dataset, image_size=options.image_size, **places)


def _resolve(options: Options, dataset: Dataset) -> ResolvedImageOptions:
    return resolved(ResolvedImageOptions, options, _DIGITS_DEFAULTS if dataset.name == "digits" else _DEFAULTS)


def _blocks(options: ResolvedImageOptions, dataset: Dataset, rngs: nnx.Rngs) -> list[nnx.Module]:
    extra = {"shortcut": options.shortcut} if options.model.startswith("resnet") else {}
    return build_model(
        options.model,
        dataset.num_classes,
        width=options.width,
        image_shape=dataset.image_shape,
        init=options.init,
        dtype=dtype_of(options.precision),
        library=options.library,
        rngs=rngs,
        **extra,
    )


def _example(options: ResolvedImageOptions, dataset: Dataset) -> jax.ShapeDtypeStruct:
    views = 2 if options.augment == "strong" else 1
    return jax.ShapeDtypeStruct(
        (options.batch_size * views, *dataset.image_shape), dtype_of(options.precision) or jnp.float32
    )


def _prepare(options: ResolvedImageOptions, dataset: Dataset) -> tuple[Callable[..., Any], Callable[..., Any]]:
    dtype = dtype_of(options.precision) or jnp.float32
    augment = make_augment(options.augment, mean=dataset.mean, std=dataset.std, dtype=dtype)
    return augment, lambda images: normalise(images, dataset.mean, dataset.std, dtype)


def _title(options: ResolvedImageOptions, dataset: Dataset) -> str:
    return (
        f"{options.method}, {options.model} x {options.width:g} on {dataset.name} "
        f"({len(dataset.train_labels)} train, {len(dataset.test_labels)} test), {options.epochs} epochs, "
        f"batch {options.batch_size}, augmentation {options.augment}, {options.precision}"
    )


TASK = Task(
    name="cifar",
    options=Options,
    load=_load,
    resolve=_resolve,
    blocks=_blocks,
    example=_example,
    paper_cut=lambda options: paper_cut(options.model),
    prepare=_prepare,
    title=_title,
    associated={"activation": "sigmoid", "bounded": "all", "first_loss": "mse"},
)


def main(arguments: Sequence[str]) -> int:
    """Run the experiment; returns the exit status."""
    return train_task(TASK, arguments, _STARTED)


if __name__ == "__main__":
    sys.exit(run(main))
