"""From a command line to a dataclass of options."""

import contextlib
import dataclasses
import functools
import inspect
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from scpl_jax.cli.option_types import check_values, flag, members
from scpl_jax.cli.tyro_errors import in_one_sentence
from scpl_jax.data.paths import expand
from scpl_jax.training.run_error import RunError
from scpl_jax.training.streams import LastingStream
from scpl_jax.training.writing import reason_of

T = TypeVar("T")

# Options that name a file for results, and those of them that are drawn.
_WRITTEN = ("output", "figure", "timeline")
_DRAWN = ("figure", "timeline")
_REGISTRY = ConstructorRegistry()
_READABLE: dict[Any, tuple[str, str]] = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    str: ("STR", "a text"),
    Path: ("PATH", "a path"),
}


class Group:
    """Base of the dataclasses whose fields the help shows together; a dataclass of options inherits from several.

    Args:
      title: names the group; a subclass without one has its base's, and without a docstring that of its base.

    Example:
      >>> @dataclasses.dataclass
      ... class Data(Group, title="data"):
      ...     '''What is read.'''
      ...     folder: str = "."
      >>> @dataclasses.dataclass
      ... class Options(Data):
      ...     '''Count files.'''
      >>> parse_options(Options, ["--folder", "x"], "count", Options())
      Options(folder='x')
    """

    title: ClassVar[str]

    def __init_subclass__(cls, title: str | None = None) -> None:
        if title is not None:
            cls.title = title
        cls.__doc__ = inspect.getdoc(cls)


def parse_options(kind: type[T], arguments: Sequence[str], module: str, default: T) -> T:
    """Parse a command line into a dataclass of options.

    Args:
      kind: the dataclass.
      arguments: without the program's name.
      module: the program's, as ``scpl_jax.experiments.cifar``.
      default: what holds where nothing is given.

    Raises:
      RunError: an unknown option, a value that can't be read or that its annotation rules out, a file that is to be
        written at the end and can't be, or results that there is nowhere to put.
      DataError: a path begins with a home directory that is not known.
      SystemExit: the help is asked for.

    Example:
      >>> @dataclasses.dataclass
      ... class Options:
      ...     batch_size: int = 64
      >>> parse_options(Options, ["--batch-size", "32"], "scpl_jax.train", Options())
      Options(batch_size=32)
    """
    prints_results(True)  # --help
    values = {field.name: getattr(default, field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    known = [*map(flag, values), *(flag(f"no_{name}") for name, value in values.items() if isinstance(value, bool))]
    with in_one_sentence(known), _wide_enough():
        options = _parse(kind, list(arguments), f"python -m {module}", default)
    options = _expanded(options)
    written = [name for name in _WRITTEN if isinstance(getattr(options, name, None), Path)]
    for name in written:
        _check_writable(f"--{name}", getattr(options, name), drawn=name in _DRAWN)
    if prints_results(hasattr(options, "output") and not written) and sys.stdout.absent:  # type: ignore[union-attr]
        raise RunError("standard output is closed, so nobody would see the results; open it or give --output FILE")
    check_values(options)
    return options


def _parse(kind: type[T], arguments: list[str], prog: str, default: T) -> T:
    """Parse by tyro, which shows a group where a field is a dataclass."""
    groups = _groups_of(kind)
    said: dict[str, Any] = {"args": arguments, "prog": prog, "registry": _REGISTRY}
    if not groups:
        return tyro.cli(kind, default=default, **said)
    fields: list[Any] = []
    no_prefix: Any = tyro.conf.OmitArgPrefixes
    for title, group in groups.items():
        values = {field.name: getattr(default, field.name) for field in dataclasses.fields(group)}
        held = dataclasses.field(default_factory=functools.partial(group, **values))
        fields.append((title, no_prefix[group], held))
    grouped = tyro.cli(dataclasses.make_dataclass("Grouped", fields), description=inspect.getdoc(kind), **said)
    found: dict[str, Any] = {}
    for title in groups:
        group_values = getattr(grouped, title)
        found |= {field.name: getattr(group_values, field.name) for field in dataclasses.fields(group_values)}
    return kind(**found)


def _groups_of(kind: type) -> dict[str, Any]:
    """The groups of a dataclass, in the order of its fields: title -> the most special dataclass with this title."""
    found: dict[str, Any] = {}
    for base in kind.__mro__[1:]:
        titles = {vars(one)["title"] for one in base.__mro__ if issubclass(one, Group) and "title" in vars(one)}
        if dataclasses.is_dataclass(base) and len(titles) == 1:
            found.setdefault(titles.pop(), base)
    owner = {field.name: title for title, group in found.items() for field in dataclasses.fields(group)}
    order = dict.fromkeys(owner[field.name] for field in dataclasses.fields(kind) if field.name in owner)
    return {title: found[title] for title in order}


@_REGISTRY.primitive_rule
def _readable(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """Numbers, texts and paths, or None by this word; errors say what is expected of a value."""
    kinds = [kind for kind in members(info.type) if kind is not type(None)]
    if len(kinds) != 1 or kinds[0] not in _READABLE:
        return None
    kind = kinds[0]
    metavar, what = _READABLE[kind]
    may_be_none = kind is not info.type

    def read(words: list[str]) -> Any:
        if may_be_none and words == ["None"]:
            return None
        try:
            return kind(words[0])
        except ValueError:
            raise ValueError(f"expected {what}, got {words[0]!r}") from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None if value is None else isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Let a terminal, or the variable that stands for its width, have at least 40 columns: in few tyro never ends."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < 40:
        os.environ["COLUMNS"] = "40"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def _expanded(options: T) -> T:
    """The options with the home directory in place of ``~`` in every path: a shell leaves it in ``--out-dir=~/run``."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        value, option = getattr(options, field.name), flag(field.name)
        if isinstance(value, Path):
            changed[field.name] = expand(value, option)
        elif isinstance(value, tuple) and value and isinstance(value[0], Path):
            changed[field.name] = tuple(expand(path, option) for path in value)
    return dataclasses.replace(options, **changed)  # type: ignore[type-var]


def prints_results(alone: bool) -> bool:
    """Tell standard output whether what is printed from now on is all that the command gives; whether it does so."""
    if isinstance(sys.stdout, LastingStream):
        sys.stdout.is_result = alone
        return alone
    return False


def _check_writable(option: str, path: Path, *, drawn: bool) -> None:
    """Refuse before a long measurement what could not be written after it."""
    if drawn and path.suffix not in (".svg", ".png"):
        raise RunError(f"{option} {path} is neither SVG nor PNG; give a file whose name ends with .svg or .png")
    try:
        is_folder, has_folder = path.is_dir(), path.parent.is_dir()
    except OSError as error:  # a name that is too long
        raise RunError(f"{option} {path} can't be written ({reason_of(error)}); give another place") from None
    if is_folder:
        raise RunError(f"{option} {path} is a folder; give a file")
    if not has_folder:
        raise RunError(f"{option} {path} can't be written, as there is no folder {path.parent}; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise RunError(f"{option} {path} can't be written (permission denied); give another place")
