"""What the features of a stage are like: how many directions they use, and how well they part the classes."""

import numpy as np


def effective_rank(features: np.ndarray) -> float:
    r"""The effective rank of centred features (Roy and Vetterli 2007).

    .. math::

        \exp\left(-\sum_k p_k \log p_k\right), \quad p_k = \sigma_k / \sum_j \sigma_j

    with the singular values :math:`\sigma`. It is 1 when all examples lie on a line, and the number of dimensions when
    they are spread evenly over all of them.

    Args:
      features: (N, D), floating.

    Returns:
      At least 1; 0 where all examples are equal.

    Raises:
      ValueError: not two dimensions, or fewer than 2 examples.

    Example:
      >>> round(effective_rank(np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])), 6)
      2.0
    """
    values = np.linalg.svd(_centred(features), compute_uv=False)
    if values[0] <= np.finfo(np.float32).eps * np.abs(features).max():
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-np.sum(shares * np.log(shares))))


def separability(features: np.ndarray, labels: np.ndarray) -> float:
    r"""The part of the features' variance that lies between classes.

    .. math::

        \frac{\sum_c N_c \|\mu_c - \mu\|^2}{\sum_i \|x_i - \mu\|^2}

    Args:
      features: (N, D), floating.
      labels: (N,), integer.

    Returns:
      0 (the classes' means are equal) to 1 (every class is one point).

    Raises:
      ValueError: shapes that do not fit, or fewer than 2 examples.

    Example:
      >>> separability(np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 0, 1, 1]))
      1.0
    """
    centred, labels = _centred(features), np.asarray(labels)
    if labels.shape != centred.shape[:1]:
        raise ValueError(f"expected a label for each of {len(centred)} examples, got labels of shape {labels.shape}")
    classes, index = np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), centred.shape[1]))
    np.add.at(sums, index, centred)
    between = np.sum(sums**2 / np.bincount(index)[:, None])
    total = np.sum(centred**2)
    return float(between / total) if total else 0.0


def principal_components(features: np.ndarray, count: int = 2) -> np.ndarray:
    """Features projected to their first principal components: (N, D) to (N, count), float64.

    The sign of each component is such that its largest value in size is positive.

    Raises:
      ValueError: not two dimensions, fewer than 2 examples, or more components than there are.

    Example:
      >>> principal_components(np.array([[0.0, 1.0], [0.0, 3.0]]), 1).tolist()
      [[1.0], [-1.0]]
    """
    centred = _centred(features)
    if not 1 <= count <= min(centred.shape):
        raise ValueError(f"expected 1 to {min(centred.shape)} components, got {count}")
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = left[:, :count] * values[:count]
    largest = found[np.abs(found).argmax(axis=0), np.arange(count)]
    return np.asarray(found * np.where(largest < 0, -1.0, 1.0))


def _centred(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"expected features (N, D) of at least 2 examples, got shape {features.shape}")
    return np.asarray(features - features.mean(axis=0))
