"""One rule for the labels that files hold: which are missing, and which spellings are one class."""

import collections
import decimal
import re
from collections.abc import Iterable

import numpy as np

from scpl_jax.data.text.words import composed

# What pandas writes for, and reads as, a missing value; each spelling of not-a-number besides (see `class_of`).
_WORDS = " #N/A #NA -1.#IND -1.#QNAN 1.#IND 1.#QNAN <NA> N/A NA NULL None n/a null"
MISSING_WORDS = frozenset((*_WORDS.split(" "), "#N/A N/A"))  # nothing is one of them
_NOT_A_NUMBER = re.compile(r"[+-]?nan", re.IGNORECASE)
_INFINITY = re.compile(r"([+-]?)inf(?:inity)?", re.IGNORECASE)
# Zeros in front belong to codes: 007 and 7 may be two classes.
_NUMBER = re.compile(r"([+-]?)((?:0|[1-9][0-9]*)?)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,9}))?")
_PLAIN_DIGITS = 40


def class_of(label: str) -> str | None:
    """The name of the class that a label spells, or None where the label is missing.

    Missing are blank labels, not-a-number and the words that pandas takes for missing values. Numbers that are equal
    are one class, to the last digit, and so are booleans in capitals or not, and labels that differ only in how Unicode
    composes their characters. Zeros in front make a code, not a number. `-1` is a label like any other.

    Example:
        >>> class_of("1.0"), class_of("1e0"), class_of("007"), class_of("True"), class_of(" spam "), class_of("NaN")
        ('1', '1', '007', 'true', 'spam', None)
        >>> class_of("9007199254740993"), class_of("9007199254740992.0")
        ('9007199254740993', '9007199254740992')
    """
    label = composed(label.strip())
    if label in MISSING_WORDS or _NOT_A_NUMBER.fullmatch(label):
        return None
    if label.lower() in ("true", "false"):
        return label.lower()
    if found := _INFINITY.fullmatch(label):
        return "-inf" if found[1] == "-" else "inf"
    if (found := _NUMBER.fullmatch(label)) and (found[2] or found[3]):
        return _plain(found[1] == "-", found[2], found[3] or "", int(found[4] or 0))
    return label


def _plain(negative: bool, whole: str, fraction: str, exponent: int) -> str:
    """The one spelling of a number: without needless zeros, and without an exponent unless it is a large one."""
    digits = (whole + fraction).rstrip("0")
    exponent += len(whole) - len(digits)  # of the last digit that is not 0
    digits = digits.lstrip("0")
    if not digits:
        return "0"
    sign, point = "-" if negative else "", len(digits) + exponent
    if not -_PLAIN_DIGITS < point <= max(_PLAIN_DIGITS, len(digits)):
        return f"{sign}{digits}e{exponent}"
    if exponent >= 0:
        return sign + digits + "0" * exponent
    digits = digits.rjust(len(digits) - min(point - 1, 0), "0")
    return f"{sign}{digits[:exponent]}.{digits[exponent:]}"


def in_order(names: Iterable[str]) -> list[str]:
    """Names of classes: numbers by value, then the others by the alphabet.

    Example:
        >>> in_order(["b", "10", "9", "a", "1e99", "-inf"])
        ['-inf', '9', '10', '1e99', 'a', 'b']
    """

    def key(name: str) -> tuple[bool, decimal.Decimal, str]:
        if _NUMBER.fullmatch(name.lstrip("0") or "0") or _INFINITY.fullmatch(name):
            try:
                return False, decimal.Decimal(name), name
            except decimal.InvalidOperation:  # a dot alone
                pass
        return True, decimal.Decimal(0), name

    return sorted(names, key=key)


class LabelReader:
    """Reads the labels of one data set and keeps what its user should know of them."""

    def __init__(self) -> None:
        self._missing: collections.Counter[str] = collections.Counter()
        self._spellings: dict[str, dict[str, None]] = {}

    def read(self, label: str | None, unless: str | None = None) -> str | None:
        """The class of a label, or None for a missing one, which is counted.

        Args:
            label: as a file has it; None where the file has none.
            unless: a class that stands for a missing label, too.
        """
        found = None if label is None else class_of(label)
        spelling = "null or absent" if label is None else label.strip()
        if found is None or found == unless:
            self.leave_out(spelling or "empty")
            return None
        self._spellings.setdefault(found, {})[spelling] = None
        return found

    def leave_out(self, spelling: str, count: int = 1) -> None:
        """Count labels that are missing."""
        self._missing[spelling] += count

    def missing(self, unit: str) -> str:
        """How many labels are missing, and as what; empty when none is."""
        kinds = ", ".join(f"{count:,} {kind:.40}" for kind, count in self._missing.most_common(5))
        return f"{self._missing.total():,} {unit} without a label were left out ({kinds})" if kinds else ""

    def note(self, unit: str) -> str:
        """What a user should know; empty when nothing.

        Args:
            unit: what is labelled, in the plural.
        """
        several = [list(some)[:3] for some in self._spellings.values() if len(some) > 1]
        merged = [" and ".join(f"{spelling!r:.40}" for spelling in some) for some in several]
        parts = [f"{missing}."] if (missing := self.missing(unit)) else []
        if merged:
            parts.append(f"Equal labels are one class: {'; '.join(merged[:3])}{' ...' if len(merged) > 3 else ''}.")
        return " ".join(parts)


def class_numbers(labels: np.ndarray) -> np.ndarray | None:
    """Class numbers of an array, `(N,)` int64 with -1 for missing labels, or None when it holds none.

    Whole numbers of any type are class numbers, booleans too; -1 and not-a-number are missing labels. Numbers that are
    no class stay none: those below -1 become -2, and those beyond 31 bits 2**31.

    Args:
        labels: `(N,)`.

    Example:
        >>> class_numbers(np.array([0.0, np.nan, 2.0])).tolist(), class_numbers(np.array([0.5]))
        ([0, -1, 2], None)
    """
    if labels.dtype.kind not in "biuf":
        return None
    if labels.dtype.kind == "f":
        labels = np.where(np.isnan(labels), -1.0, labels.astype(np.float64))
        if not (np.isfinite(labels) & (labels == np.floor(labels))).all():
            return None
    if labels.dtype in (np.float64, np.uint64, np.int64):  # others fit
        labels = labels.clip(0 if labels.dtype == np.uint64 else -2, 2**31)
    return labels.astype(np.int64)
