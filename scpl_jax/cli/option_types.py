"""What the values of options may be, said in their annotations: choices, bounds, defaults in words; and the checks.

A field of a dataclass of options is annotated with what it may be, for example ``stages: Count = 4``. The help of the
command line, :func:`check_values` and :func:`is_of_type` read the annotation; nothing else says it again.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from scpl_jax.training.run_error import RunError

T = TypeVar("T")
_ARGUMENT = re.compile("`([a-z]+(?:_[a-z]+)*)`")
# Arguments of functions in scpl_jax.data that the options call otherwise.
_OTHER_NAMES = {"name": "dataset", "rate": "label_noise", "share": "validation"}
_OTHER_NAMES |= {"path": "word_vectors", "size": "embedding_size"}
_WORDS = {"yes": True, "no": False, "auto": None}


@dataclasses.dataclass(frozen=True)
class _Bound:
    """Values within bounds: what a value must be, for the error, and whether it is that."""

    must: str
    fits: Callable[[Any], bool]

    def problem(self, value: Any) -> str | None:
        return None if self.fits(value) else f"{self.must}, got {value}"


class OneOf(PrimitiveConstructorSpec[str | None]):
    """Names of which the value is one; where the library has the names, ``Literal`` can't list them.

    The command line takes any text, so that :func:`check_values` refuses a name wherever it comes from.

    Args:
      names: in the order in which help and errors list them.

    Example:
      >>> OneOf(("xla", "onednn")).problem("mkl")
      'mkl is unknown; choose xla or onednn'
    """

    def __init__(self, names: Sequence[str]):
        super().__init__(
            nargs=1,
            metavar=f"{{{','.join(names)}}}",
            instance_from_str=lambda words: None if words == ["None"] else words[0],
            is_instance=lambda value: value is None or isinstance(value, str),
            str_from_instance=lambda value: [str(value)],
        )
        object.__setattr__(self, "names", tuple(names))

    names: tuple[str, ...]

    def problem(self, value: Any) -> str | None:
        """What is wrong with a value that is not None, as a sentence without the option; None if it is right."""
        return None if value in self.names else f"{value} is unknown; choose {listed(self.names)}"


def at_least(low: int) -> _Bound:
    """Numbers of at least this.

    Example:
      >>> at_least(1).problem(0)
      'must be at least 1, got 0'
    """
    return _Bound(f"must be at least {low}", lambda value: value >= low)


class OneEach(PrimitiveConstructorSpec[float | tuple[float, ...]]):
    """A number for all stages, or one for each, with commas between them.

    Args:
      bound: of each number.

    Example:
      >>> OneEach(at_least(1)).problem((2.0, 0.5)), OneEach(at_least(1)).problem(2.0)
      ('must be at least 1, got 0.5', None)
    """

    def __init__(self, bound: _Bound):
        super().__init__(
            nargs=1,
            metavar="FLOAT[,FLOAT...]",
            instance_from_str=lambda words: _one_or_more(words[0]),
            is_instance=lambda value: isinstance(value, float | int | tuple),
            str_from_instance=lambda value: [shown(value)],
        )
        object.__setattr__(self, "bound", bound)

    bound: _Bound

    def problem(self, value: Any) -> str | None:
        """As for :class:`_Bound`."""
        each = value if isinstance(value, tuple) else (value,)
        return next((said for one in each if (said := self.bound.problem(one)) is not None), None)


def _one_or_more(text: str) -> float | tuple[float, ...]:
    try:
        first, *others = map(float, text.split(","))
    except ValueError:
        raise ValueError(f"expected a number, got {text!r}") from None
    return (first, *others) if others else first


def shown(value: Any) -> str:
    """A value as a command line has it.

    Example:
      >>> shown((0.5, 0.1)), shown(0.1)
      ('0.5,0.1', '0.1')
    """
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def of_stage(value: float | tuple[float, ...], index: int) -> float:
    """The number of one stage.

    Example:
      >>> of_stage((0.2, 0.3), 1), of_stage(0.1, 1)
      (0.3, 0.1)
    """
    return value[index] if isinstance(value, tuple) else value


def check_one_each(options: Any) -> None:
    """Refuse numbers for stages that are not one for each of ``options.stages``.

    Raises:
      RunError: one sentence for the first bad option.

    Example:
      >>> @dataclasses.dataclass
      ... class Options:
      ...     lr: PositiveEach = 0.1
      ...     stages: int = 3
      >>> check_one_each(Options(lr=(0.2, 0.3)))
      Traceback (most recent call last):
      scpl_jax.training.run_error.RunError: --lr 0.2,0.3 has 2 numbers for 3 stages; give one, or one for each stage
    """
    for option, value, constraints in _constrained(options):
        of_stages = any(isinstance(one, OneEach) for one in constraints)
        if of_stages and isinstance(value, tuple) and len(value) != options.stages:
            raise RunError(
                f"{option} {shown(value)} has {len(value)} numbers for {options.stages} stages; give one, or "
                "one for each stage"
            )


_POSITIVE = _Bound("must be a number greater than 0", lambda value: 0 < value < math.inf)
_NOT_NEGATIVE = _Bound("must be a number of at least 0", lambda value: 0 <= value < math.inf)
Natural = Annotated[int, at_least(0)]
Count = Annotated[int, at_least(1)]
Positive = Annotated[float, _POSITIVE]
NotNegative = Annotated[float, _NOT_NEGATIVE]
PositiveEach = Annotated[float | tuple[float, ...], OneEach(_POSITIVE)]
NotNegativeEach = Annotated[float | tuple[float, ...], OneEach(_NOT_NEGATIVE)]
Share = Annotated[float, _Bound("must lie between 0 and 1", lambda value: 0 <= value <= 1)]
Fraction = Annotated[float, _Bound("must be at least 0 and less than 1", lambda value: 0 <= value < 1)]
Certainty = Annotated[float, _Bound("must be greater than 0 and at most 1", lambda value: 0 < value <= 1)]


def default(words: str = "") -> Any:
    """The default of an option whose field holds None until something is given, for its help.

    Args:
      words: what holds then; empty where there is nothing to say.

    Example:
      >>> devices: Annotated[Count | None, default("all")] = None  # its help ends with "(default: all)"
    """

    def hint(value: str) -> str:
        shown = words if value == "None" else value
        return f"(default: {shown})" if shown else ""

    return tyro.conf.arg(help_behavior_hint=hint)


# A value that is None unless it is given, and then means nothing.
Unset = Annotated[T | None, default()]


def _switched(words: list[str]) -> bool | None:
    word = " ".join(words) or "yes"
    if word not in _WORDS:
        raise ValueError(f"{word} is unknown; choose {listed(list(_WORDS))}")
    return _WORDS[word]


# On where the option stands alone; None is "auto".
Switch = Annotated[
    bool | None,
    PrimitiveConstructorSpec(
        nargs=(0, 1),
        metavar="[{yes,no,auto}]",
        instance_from_str=_switched,
        is_instance=lambda value: value is None or isinstance(value, bool),
        str_from_instance=lambda value: ["auto" if value is None else "yes" if value else "no"],
    ),
]


def listed(names: Sequence[str]) -> str:
    """Names to choose from, for a sentence.

    Example:
      >>> listed(["step", "epoch"]), listed(["float32", "tf32", "bfloat16"])
      ('step or epoch', 'float32, tf32 or bfloat16')
    """
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last


def flag(name: str) -> str:
    """The option of a field.

    Example:
      >>> flag("head_dims")
      '--head-dims'
    """
    return "--" + name.replace("_", "-")


def integers(text: str | None, option: str, least: int | None = None) -> tuple[int, ...]:
    """Numbers separated by commas, none for None.

    Raises:
      RunError: something else, or a number below ``least``.

    Example:
      >>> integers("2,4,5", "--cut"), integers(None, "--head-dims")
      ((2, 4, 5), ())
    """
    if text is None:
        return ()
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        also = "auto, even, paper or " if option == "--cut" else ""
        raise RunError(f"{option} takes {also}whole numbers separated by commas, got {text!r}") from None
    if least is not None and min(numbers) < least:
        raise RunError(f"{option} must be numbers of at least {least}, got {text}")
    return numbers


def as_options(text: str) -> str:
    """What the library says of its arguments, said of the options that stand for them.

    Args:
      text: a sentence with arguments between backticks.

    Example:
      >>> as_options("`name` npz needs `data_dir`, which was not given")
      '--dataset npz needs --data-dir, which was not given'
    """
    return _ARGUMENT.sub(lambda found: flag(_OTHER_NAMES.get(found[1], found[1])), text)


def check_values(options: Any) -> None:
    """Refuse values that their annotations rule out.

    Args:
      options: a dataclass of options, from whatever source.

    Raises:
      RunError: one sentence for the first bad option.

    Example:
      >>> @dataclasses.dataclass
      ... class Options:
      ...     batch_size: Count = 64
      >>> check_values(Options(batch_size=0))
      Traceback (most recent call last):
      scpl_jax.training.run_error.RunError: --batch-size must be at least 1, got 0
    """
    for option, value, constraints in _constrained(options):
        problems = (one.problem(value) for one in constraints if value is not None)
        if (problem := next(filter(None, problems), None)) is not None:
            raise RunError(f"{option} {problem}")


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value, as from JSON, is of a type; whole numbers are numbers, but true and false are not.

    Args:
      value: anything.
      hint: the annotation of a field.

    Example:
      >>> is_of_type(3, Positive | None), is_of_type(None, Positive | None), is_of_type(True, Count)
      (True, True, False)
      >>> is_of_type((0.5, 1), PositiveEach), is_of_type(("a",), PositiveEach)
      (True, False)
    """
    if isinstance(value, tuple):
        inner = [typing.get_args(one)[0] for one in members(hint) if typing.get_origin(one) is tuple]
        return any(all(is_of_type(part, kind) for part in value) for kind in inner)
    kinds = {str if typing.get_origin(one) is Literal else typing.get_origin(one) or one for one in members(hint)}
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, tuple({*kinds, int} if float in kinds else kinds))


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, the type itself where it is none; without what annotations say besides.

    Example:
      >>> members(Count | None)
      (<class 'int'>, <class 'NoneType'>)
    """
    if typing.get_origin(hint) is Annotated:
        return members(typing.get_args(hint)[0])
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return tuple(kind for one in typing.get_args(hint) for kind in members(one)) if is_union else (hint,)


def _constrained(options: Any) -> Iterator[tuple[str, Any, list[_Bound | OneOf | OneEach]]]:
    """Of each field the option, the value, and what the annotation asks of it."""
    hints = typing.get_type_hints(type(options), include_extras=True)
    for field in dataclasses.fields(options):
        yield flag(field.name), getattr(options, field.name), list(_constraints(hints[field.name]))


def _constraints(hint: Any) -> Iterator[_Bound | OneOf | OneEach]:
    if typing.get_origin(hint) is Literal:
        yield OneOf(typing.get_args(hint))
    elif typing.get_origin(hint) is Annotated:
        inner, *said = typing.get_args(hint)
        yield from _constraints(inner)
        yield from (one for one in said if isinstance(one, _Bound | OneOf | OneEach))
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for one in typing.get_args(hint):
            yield from _constraints(one)
