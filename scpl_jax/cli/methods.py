"""The learning rules of ``--method``: from its text and the options to one objective a stage."""

import dataclasses
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from scpl_jax.objectives import Associated, CrossEntropy, InfoReg, LocalClassifier, Mixture, Objective, PredSim, SupCon
from scpl_jax.training.run_error import RunError

END_TO_END = ("bp", "gpipe")
RULES = ("scpl", *END_TO_END, "early-exit", "al", "predsim", "inforeg", "dascpl")
# What mixtures are made of.
TERMS = ("supcon", "ce", "predsim", "inforeg")

_TERM = re.compile(r"(?:(?P<weight>[0-9.eE-]+)\*)?(?P<name>[a-z][a-z-]*)")


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the stages of a run learn.

    Attributes:
      objectives: one for each stage.
      classifier: whether the network's own classifier is part of it.
    """

    objectives: tuple[Objective, ...]
    classifier: bool = True


def parse_mixture(text: str) -> list[tuple[float, str]]:
    """The terms of a mixture such as ``supcon+0.5*ce``: pairs of a weight and a name.

    Raises:
      RunError: it is none.

    Example:
      >>> parse_mixture("supcon+0.5*ce")
      [(1.0, 'supcon'), (0.5, 'ce')]
    """
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
    """
    if method in RULES:
        return
    parts = method.split(",")
    for part in parts:
        parse_mixture(part)
    if len(parts) not in (1, stages):
        raise RunError(f"--method {method} has {len(parts)} parts for {stages} stages; give one, or one for each stage")


def rule_of(
    options: Any,
    num_classes: int,
    head_dims: tuple[int, ...] | None,
    dtype: Any,
    associated: Mapping[str, Any] = MappingProxyType({}),
) -> Rule:
    """The rule that ``--method`` and the options of the heads describe.

    Args:
      options: of the command line.
      num_classes: of the data set.
      head_dims: layer sizes of the projection head, None for its own.
      dtype: dtype of the computation; None for float32.
      associated: options of associated learning as in the released code, for ``--al-codes released``.
    """
    common: dict[str, Any] = {"init": options.init, "dtype": dtype}
    pooled: dict[str, Any] = {"pool": options.head_pool, **common}
    exit_ = LocalClassifier(num_classes, _sizes(options.exit_hidden), **pooled)
    supcon = SupCon(
        temperature=options.temperature,
        head=options.head,
        head_dims=head_dims,
        head_pool=options.head_pool,
        count_anchor=options.count_anchor,
        classifier_gradient=options.classifier_gradient,
        **common,
    )
    terms: dict[str, Objective] = {
        "supcon": supcon,
        "ce": exit_,
        "predsim": PredSim(num_classes, **pooled),
        "inforeg": InfoReg(num_classes, head_dims or (512, 1024), **pooled),
    }
    count, method = options.stages, options.method
    if method in END_TO_END:
        return Rule((CrossEntropy(),) * count)
    if method == "al":
        released = associated if options.al_codes == "released" else {}
        return Rule((Associated(num_classes, **pooled, **released),) * count, classifier=False)
    if method == "early-exit":
        # The last stage has the network's own classifier.
        return Rule((*(exit_,) * (count - 1), CrossEntropy()))
    if method == "dascpl":
        read = dataclasses.replace(exit_, detach=not options.classifier_gradient)
        return Rule((Mixture(((1.0, supcon), (1.0, read)), options.classifier_gradient),) * count)
    parts = {"scpl": ["supcon"]}.get(method, method.split(","))
    objectives = [_mixture(part, terms, options.classifier_gradient) for part in parts]
    return Rule(tuple(objectives * (count if len(objectives) == 1 else 1)))


def _mixture(text: str, terms: dict[str, Objective], classifier_gradient: bool) -> Objective:
    mixed = [(weight, terms[name]) for weight, name in parse_mixture(text)]
    if len(mixed) == 1 and mixed[0][0] == 1 and (isinstance(mixed[0][1], SupCon) or not classifier_gradient):
        return mixed[0][1]
    return Mixture(tuple(mixed), classifier_gradient)


def _sizes(text: str | None) -> tuple[int, ...]:
    return () if text is None else tuple(int(part) for part in text.split(","))
