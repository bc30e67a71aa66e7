"""What a stage's features are worth without a classifier of its own: nearest neighbours and a linear probe."""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from scpl_jax.data import Batch, Examples
from scpl_jax.pipeline import Pipeline, processes
from scpl_jax.pipeline.placement import is_local
from scpl_jax.pipeline.placement import processes as processes_of

NEIGHBOURS = 20


def probe_stages(
    pipeline: Pipeline, dataset: Examples, count: int, batch_size: int, side: int = 2
) -> list[dict[str, float]]:
    """Test accuracy of simple classifiers on the features of each stage, which stay as they are.

    Nearest neighbours: the most frequent class among the 20 training examples with the largest cosine similarity.
    Linear probe: multinomial logistic regression with scikit-learn's L2 penalty, on features of mean 0 and deviation 1.
    Both are fitted to the first ``count`` training examples, not augmented, with the labels of the training. Where the
    training has diverged and features are not finite, nothing can be fitted: both then name the most frequent class.

    Args:
      pipeline: the network.
      dataset: training and test examples.
      count: how many training examples to fit to; all are used if there are fewer.
      batch_size: examples a forward pass.
      side: feature maps are averaged down to side x side, in pixels; 0: not at all.

    Returns:
      For each stage ``stage``, ``neighbours_accuracy`` and ``linear_accuracy``, fractions. Each process computes those
      of its own stages, and gets all of them.
    """
    train, train_labels = _features(pipeline, dataset.every("train", batch_size, count), side)
    test, test_labels = _features(pipeline, dataset.every("test", batch_size), side)
    # With data parallelism several processes have a stage; the first of them is enough.
    owners = [processes_of(mesh)[0] for mesh in pipeline.meshes]
    own = [
        None if a is None or b is None or owner != jax.process_index() else _accuracies(a, train_labels, b, test_labels)
        for a, b, owner in zip(train, test, owners, strict=True)
    ]
    everywhere = processes.gather(own)
    return [{"stage": index, **everywhere[owner][index]} for index, owner in enumerate(owners)]


def _features(pipeline: Pipeline, batches: Iterable[Batch], side: int) -> tuple[list[np.ndarray | None], np.ndarray]:
    """(N, D) of each stage that this process has, and the labels (N,)."""
    found: list[list[np.ndarray]] = [[] for _ in pipeline.stages]
    known = []
    for inputs, labels in batches:
        real = labels >= 0
        known.append(labels[real])
        for parts, mesh, features in zip(found, pipeline.meshes, pipeline.features(inputs, side), strict=True):
            if is_local(mesh):
                parts.append(np.asarray(features.addressable_data(0))[real])
    return [np.concatenate(parts) if parts else None for parts in found], np.concatenate(known)


def _accuracies(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray
) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes, counts = np.unique(train_labels, return_counts=True)
    if len(classes) == 1 or not (np.isfinite(train).all() and np.isfinite(test).all()):  # there is nothing to fit
        share = float(np.mean(test_labels == classes[np.argmax(counts)]))
        return {"neighbours_accuracy": share, "linear_accuracy": share}
    nearest = KNeighborsClassifier(min(NEIGHBOURS, len(train)), algorithm="brute", metric="cosine")
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return {
        "neighbours_accuracy": float(
            nearest.fit(_of_size_one(train), train_labels).score(_of_size_one(test), test_labels)
        ),
        "linear_accuracy": float(linear.fit(train, train_labels).score(test, test_labels)),
    }


def _of_size_one(features: np.ndarray) -> np.ndarray:
    """Rows scaled by powers of two: cosines are the same to the bit, and no square overflows or vanishes."""
    exponents = np.frexp(np.abs(features).max(axis=1, keepdims=True))[1]
    return np.ldexp(features, -exponents)
