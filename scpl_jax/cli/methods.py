"""From ``--method`` and the options of a command line, which functions here call ``options``, to objectives."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scpl_jax.cli.option_types import flag, listed
from scpl_jax.cli.recipes import check_recipe
from scpl_jax.cli.rules import TABLE, LearningRule, Rule, Setting, SharedRuleOptions
from scpl_jax.objectives import AUXILIARIES, AuxiliaryNetwork, LocalObjective, Mixture, Objective
from scpl_jax.training.run_error import RunError

RULES = tuple(rule.name for rule in TABLE)
END_TO_END = tuple(rule.name for rule in TABLE if rule.end_to_end)
_TERMS: Mapping[str, Callable[[Any, Setting], Objective]] = dict(rule.term for rule in TABLE if rule.term is not None)
# What mixtures are made of.
TERMS = tuple(_TERMS)

_TERM = re.compile(r"(?:(?P<weight>[0-9.eE-]+)\*)?(?P<name>[a-z][a-z-]*)")


def _options_of(table: Sequence[LearningRule]) -> type[SharedRuleOptions]:
    """The dataclass with the options of all rules in a table; its ``--method`` lists them."""
    named = ", ".join(f"{rule.name} ({rule.help})" if rule.help else rule.name for rule in table)
    terms = listed([rule.term[0] for rule in table if rule.term is not None] or ["none"])
    said = f"{named}; or a mixture of {terms}, such as supcon+0.5*ce, or one for each stage with commas between them."
    own = dict.fromkeys(rule.options for rule in reversed(table) if rule.options is not None)
    # The most special ones come first, as the order of base classes has to be.
    bases = sorted(own, key=lambda kind: -len(kind.__mro__)) or [SharedRuleOptions]
    content: dict[str, Any] = {
        "__doc__": SharedRuleOptions.__doc__,
        "__module__": __name__,
        "__annotations__": {"method": Annotated[str, tyro.conf.arg(help=said, metavar="RULE")]},
        "method": SharedRuleOptions.method,
    }
    return dataclasses.dataclass(frozen=True)(type("RuleOptions", tuple(bases), content))


if TYPE_CHECKING:  # only the rules read the others
    RuleOptions = SharedRuleOptions
else:
    RuleOptions = _options_of(TABLE)


def _parse_mixture(text: str) -> list[tuple[float, str]]:
    """The terms of a mixture such as ``supcon+0.5*ce``: here (1.0, "supcon") and (0.5, "ce")."""
    terms = []
    for part in text.replace(" ", "").split("+"):
        found = _TERM.fullmatch(part)
        if found is None or found["name"] not in TERMS:
            raise RunError(
                f"--method {text} is unknown; choose {', '.join(RULES)}, or a mixture of {', '.join(TERMS)} "
                "such as supcon+0.5*ce, or one for each stage with commas between them"
            )
        try:
            weight = float(found["weight"] or 1)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf"):
            raise RunError(f"--method {text}: the weight {found['weight']} is not a number greater than 0")
        terms.append((weight, found["name"]))
    return terms


def check_method(method: str, stages: int) -> None:
    """Refuse a ``--method`` that does not parse or has not one part for each stage.

    Raises:
      RunError: one sentence.

    Example:
      >>> check_method("supcon,ce", 2)
    """
    if method in RULES:
        return
    parts = method.split(",")
    for part in parts:
        _parse_mixture(part)
    if len(parts) not in (1, stages):
        raise RunError(f"--method {method} has {len(parts)} parts for {stages} stages; give one, or one for each stage")


def check_rule(options: Any) -> None:
    """Refuse options of rules that ``--method`` has no use for, or that contradict one another.

    Raises:
      RunError: one sentence for the first bad option.

    Example:
      >>> from scpl_jax.cli.run_options import RunOptions
      >>> check_rule(RunOptions(method="scpl", al_codes="released"))
      Traceback (most recent call last):
      scpl_jax.training.run_error.RunError: --al-codes is for --method al, got --method scpl
    """
    check_method(options.method, options.stages)
    check_recipe(options)
    owners: dict[str, list[str]] = {}
    for rule in TABLE:
        for name in rule.own:
            owners.setdefault(name, []).append(rule.name)
    defaults = {field.name: field.default for field in dataclasses.fields(RuleOptions)}
    for name, methods in owners.items():
        if options.method not in methods and getattr(options, name) != defaults[name]:
            raise RunError(f"{flag(name)} is for --method {listed(methods)}, got --method {options.method}")
    for rule in TABLE:
        rule.check(options)
    _check_contrastive(options)
    for name in ("aux_side", "aux_depth", "aux_width"):
        if options.aux == "none" and getattr(options, name) != defaults[name]:
            raise RunError(f"{flag(name)} is for an auxiliary network; choose one by --aux {listed(list(AUXILIARIES))}")
    if options.aux != "none" and not row_of(options.method).takes_aux:
        raise RunError(f"--method {options.method} has no local losses that could read through --aux {options.aux}")


def _check_contrastive(options: Any) -> None:
    # What is between the signs of a mixture: names and weights.
    if {"scpl", "dascpl", "supcon"} & set(re.split("[,+*]", options.method.replace(" ", ""))):
        return
    asked = {"--queue": options.queue > 0, "--temperature with several numbers": isinstance(options.temperature, tuple)}
    for what in (name for name, given in asked.items() if given):
        raise RunError(
            f"{what} is for the contrastive loss, got --method {options.method}; choose scpl, dascpl or a mixture with "
            "supcon"
        )


def row_of(method: str) -> LearningRule:
    """The row of a rule by its name; a mixture has one with nothing of its own.

    Example:
      >>> row_of("bp").end_to_end, row_of("supcon+ce").end_to_end
      (True, False)
      >>> from scpl_jax.cli.run_options import RunOptions
      >>> row_of("gpipe").pipeline(RunOptions(method="gpipe"))
      {'micro_batches': 4, 'remat': False}
      >>> row_of("dascpl").joins(RunOptions(method="dascpl", stages=4, epochs=20))
      (1, 3, 6, 8)
    """
    return next((rule for rule in TABLE if rule.name == method), LearningRule(method))


def rule_of(options: Any, num_classes: int, dtype: Any, associated: Mapping[str, Any] = MappingProxyType({})) -> Rule:
    """The rule that ``--method`` and the options of the rules describe.

    Args:
      options: those of the rules count.
      num_classes: of the data set.
      dtype: dtype of the computation; None for float32.
      associated: options of associated learning as in the released code, for ``--al-codes released``.

    Raises:
      ValueError: options do not fit an objective.

    Example:
      >>> from scpl_jax.cli.task_options import Options
      >>> rule_of(Options(method="scpl", stages=2, head="linear"), 10, None).objectives[0].head
      'linear'
    """
    local = {"aux": _auxiliary(options, dtype), "classifier_gradient": options.classifier_gradient}
    setting = Setting(options.stages, num_classes, options.init, options.head_pool, dtype, associated, local)
    each = [_rule_by(options, dataclasses.replace(setting, stage=index)) for index in range(setting.stages)]
    return Rule(tuple(rule.objectives[index] for index, rule in enumerate(each)), each[0].classifier)


def _rule_by(options: Any, setting: Setting) -> Rule:
    """The rule of all stages with the numbers of one."""
    row = row_of(options.method)
    if row.objectives is not None:
        return row.objectives(options, setting)
    parts = options.method.split(",") if row.term is None else [row.term[0]]
    objectives = [_mixture(part, options, setting) for part in parts]
    return Rule(tuple(objectives * (setting.stages if len(objectives) == 1 else 1)))


def _mixture(text: str, options: Any, setting: Setting) -> Objective:
    mixed = [(weight, _TERMS[name](options, setting)) for weight, name in _parse_mixture(text)]
    if len(mixed) == 1 and mixed[0][0] == 1 and isinstance(mixed[0][1], LocalObjective):
        return dataclasses.replace(mixed[0][1], **setting.local)
    return Mixture(tuple(mixed), **setting.local)


def _auxiliary(options: Any, dtype: Any) -> AuxiliaryNetwork | None:
    if options.aux == "none":
        return None
    # Where nothing is said of the library yet, only shapes matter.
    layers = {"init": options.init, "dtype": dtype, "library": options.library or "xla"}
    kind = AUXILIARIES[options.aux]
    return kind(options.aux_side, options.aux_depth, options.aux_width, MappingProxyType(layers))
