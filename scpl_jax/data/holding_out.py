"""Training examples that are held out to choose by: learning rates and epochs must not be chosen on test examples."""

import numpy as np

from scpl_jax.data.dataset import AnyExamples
from scpl_jax.data.errors import DataError

# No run's seed has a part in the choice: the same examples are held out whatever is compared.
_KEY = 62


def hold_out(dataset: AnyExamples, share: float) -> tuple[AnyExamples, AnyExamples]:
    """Take a share of each class out of the training examples.

    Of a class with n training examples `round(share * n)` are held out, drawn without replacement by a fixed key; so
    the choice depends on nothing but the training labels and the share. A class without training examples stays
    without.
    What was found on all training examples stays as it is: `mean` and `std` of images, words and buckets of texts.

    Args:
        dataset: the data set to part, N training examples.
        share: what to hold out of each class, greater than 0 and less than 1.

    Returns:
        The data set without the M examples that are held out, its training labels `(N - M,)` int32; and the same with
        these in place of its test examples, test labels `(M,)` int32. Both keep the order of the examples.

    Raises:
        DataError: when `share` is out of range, or a class would have no example left on one side.

    Example:
        >>> from scpl_jax.data import hold_out, load
        >>> digits = load("digits")
        >>> rest, validation = hold_out(digits, share=0.1)
        >>> len(digits.train_labels), len(rest.train_labels), len(validation.test_labels)
        (1437, 1295, 142)
    """
    if not 0 < share < 1:
        raise DataError(f"`share` is {share}, expected more than 0 and less than 1; choose a share such as 0.1.")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence(_KEY)))
    held = np.zeros(len(dataset.train_labels), bool)
    for label, name in enumerate(dataset.class_names):
        members = np.flatnonzero(dataset.train_labels == label)
        count = round(share * len(members))
        if len(members) and not 0 < count < len(members):
            raise DataError(
                f"data set {dataset.name}: `share` {share} holds out {count} of the {len(members)} training "
                f"{dataset.unit} of the class {name}, expected at least 1 held out and 1 left; choose another share, "
                f"or supply more {dataset.unit} of this class."
            )
        held[generator.permutation(members)[:count]] = True
    parts: tuple[AnyExamples, AnyExamples] = dataset.parted(held)
    return parts
