"""The learning rules of ``--method``: what one consists of, and of each its options, help, checks and objectives."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from scpl_jax.cli.option_types import (
    Certainty,
    Count,
    Natural,
    OneOf,
    Positive,
    PositiveEach,
    Unset,
    default,
    integers,
    of_stage,
)
from scpl_jax.cli.parsing import Group
from scpl_jax.cli.recipes import RECIPES
from scpl_jax.objectives import (
    AUXILIARIES,
    HEADS,
    Associated,
    CrossEntropy,
    InfoReg,
    LocalClassifier,
    Mixture,
    Objective,
    PredSim,
    Reconstruction,
    SupCon,
)
from scpl_jax.training.run_error import RunError


@dataclasses.dataclass(frozen=True)
class SharedRuleOptions(Group, title="rule"):
    """How the stages learn."""

    recipe: Annotated[str | None, OneOf(tuple(RECIPES)), default("none")] = None
    """A set of options: paper (the settings released with the paper), accurate (local cross-entropy through auxiliary
    blocks, all exits answering together) or fast (the same, the blocks reading maps of 4 x 4). Options that are given
    win; --method must be the recipe's."""
    method: str = "scpl"
    head: Annotated[str, OneOf(HEADS)] = "mlp"
    """Projection head."""
    head_dims: Annotated[str | None, default("512,1024; linear: 1024")] = None
    """Layer sizes of the head, as 512,1024."""
    classifier_gradient: bool = False
    """Let the classifier's gradient into the last stage; dascpl: that of every local classifier into its stage."""
    aux: Annotated[str, OneOf(("none", *AUXILIARIES))] = "none"
    """Auxiliary network between a stage's features and its local loss: dgl (1x1 convolutions and linear layers on few
    pixels), conv (one convolution) or blocks (like the network's own later ones). It is trained with the stage and not
    handed on."""
    aux_side: Annotated[Natural | None, default("blocks: 8; dgl: a quarter; conv: 0")] = None
    """Average a feature map to this side before the auxiliary network, in pixels; 0: not at all."""
    aux_depth: Annotated[Count | None, default("blocks: 2; dgl: 3; conv: 1")] = None
    """Its convolutions or blocks; of blocks in the first stage, falling to 1 in the last."""
    aux_width: Positive = 1.0
    """Multiplier of its channels or hidden units."""
    joint_answer: bool = False
    """Answer with the mean of the probabilities of all exits, not with the last one alone."""
    exit_threshold: Unset[Certainty] = None
    """At evaluation an example stops at the first exit whose confidence is at least this, from 0 to 1."""
    exit_patience: Unset[Count] = None
    """At evaluation an example stops when this many exits in a row agreed with the one before."""
    exit_similarity: Certainty = 0.95
    """Cosine similarity of the probabilities from which on two exits agree."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What objectives depend on besides the options of their rule.

    Args:
      stages: their number.
      num_classes: of the data set.
      init: initial distribution, one of ``scpl_jax.models.INITIALISERS``.
      pool: side to which a feature map is averaged before a head; 0: not at all.
      dtype: of the computation; None for float32.
      associated: options of associated learning as in its authors' code, for ``--al-codes released``.
      local: what a stage's objective, but no term of a mixture, gets besides: ``aux`` and ``classifier_gradient``.
      stage: whose own numbers hold, where an option has one for each stage.

    Example:
      >>> Setting(stages=2, num_classes=10, init="torch", pool=2).pooled
      {'pool': 2, 'init': 'torch', 'dtype': None}
    """

    stages: int
    num_classes: int
    init: str
    pool: int
    dtype: Any = None
    associated: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    local: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stage: int = 0

    @property
    def layers(self) -> dict[str, Any]:
        """Arguments of objectives that have layers of their own."""
        return {"init": self.init, "dtype": self.dtype}

    @property
    def pooled(self) -> dict[str, Any]:
        """The same, of objectives that average feature maps."""
        return {"pool": self.pool, **self.layers}


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the stages of a run learn.

    Attributes:
      objectives: one for each stage.
      classifier: whether the network's own classifier is part of it.
    """

    objectives: tuple[Objective, ...]
    classifier: bool = True


@dataclasses.dataclass(frozen=True)
class LearningRule:
    """A row of the table of rules; every function gets all options of the command line.

    Attributes:
      name: as for ``--method``.
      help: says in a few words what it is; empty where the name says it.
      options: dataclass of the options that the rule brings, a :class:`scpl_jax.cli.parsing.Group`; None for none.
      own: fields of the options that no other rule reads; they are refused with another ``--method``.
      objectives: (options, setting) to objectives; None for a rule that is a mixture of its own term alone.
      term: (name in mixtures, function of options and setting to its objective); None where it is no part of mixtures.
      check: refuses the rule's options, whatever the ``--method``, that can't be read or contradict one another.
      joins: options as they hold in a run to the epoch from which each stage is trained, none where all are from the
        start; refuses epochs after the end of the run.
      pipeline: options to arguments of :class:`scpl_jax.Pipeline`.
      end_to_end: whether one loss trains all stages.
      takes_aux: whether its local losses may read features through an auxiliary network.

    Example:
      >>> from scpl_jax.objectives import CrossEntropy
      >>> row = LearningRule("bp", objectives=lambda options, setting: Rule((CrossEntropy(),) * setting.stages))
      >>> len(row.objectives(SharedRuleOptions(), Setting(3, 10, "torch", 2)).objectives)
      3
    """

    name: str
    help: str = ""
    options: type[Group] | None = None
    own: tuple[str, ...] = ()
    objectives: Callable[[Any, Setting], Rule] | None = None
    term: tuple[str, Callable[[Any, Setting], Objective]] | None = None
    check: Callable[[Any], object] = lambda options: None
    joins: Callable[[Any], tuple[int, ...]] = lambda options: ()
    pipeline: Callable[[Any], dict[str, Any]] = lambda options: {}
    end_to_end: bool = False
    takes_aux: bool = True


@dataclasses.dataclass(frozen=True)
class _ScplOptions(SharedRuleOptions):
    temperature: PositiveEach = 0.1
    """Temperature of the contrastive loss, one for all stages, or one for each, as 0.5,0.3,0.1,0.1."""
    queue: Natural = 0
    """Projections of earlier batches, the last N with a label, to which a stage's contrastive loss compares, too; 0:
    none."""
    count_anchor: bool = False
    """Divide the contrastive loss by the positives and the anchor, as the released PyTorch code does."""


def _contrastive(options: _ScplOptions, setting: Setting) -> SupCon:
    return SupCon(
        temperature=of_stage(options.temperature, setting.stage),
        head=options.head,
        head_dims=integers(options.head_dims, "--head-dims") or None,
        head_pool=setting.pool,
        queue=options.queue,
        count_anchor=options.count_anchor,
        **setting.layers,
    )


SCPL = LearningRule(
    "scpl",
    "local supervised-contrastive losses",
    options=_ScplOptions,
    term=("supcon", _contrastive),
    check=lambda options: integers(options.head_dims, "--head-dims"),
)


@dataclasses.dataclass(frozen=True)
class _BpOptions(SharedRuleOptions):
    remat: bool = False
    """bp, gpipe: compute activations again in the backward pass instead of keeping them (not for the last device);
    with local losses a stage keeps none."""


def _end_to_end(options: _BpOptions, setting: Setting) -> Rule:
    """The network's own loss alone."""
    return Rule((CrossEntropy(),) * setting.stages)


BP = LearningRule(
    "bp",
    "backpropagation; over several devices naive model parallelism",
    options=_BpOptions,
    own=("remat",),
    objectives=_end_to_end,
    pipeline=lambda options: {"remat": options.remat},
    end_to_end=True,
    takes_aux=False,
)


@dataclasses.dataclass(frozen=True)
class _GpipeOptions(_BpOptions):
    micro_batches: Annotated[Count | None, default("4")] = None
    """gpipe: parts that a batch is worked through in."""


GPIPE = LearningRule(
    "gpipe",
    "backpropagation pipelined by micro-batches",
    options=_GpipeOptions,
    own=("micro_batches", "remat"),
    objectives=_end_to_end,
    pipeline=lambda options: {"micro_batches": options.micro_batches or 4, "remat": options.remat},
    end_to_end=True,
    takes_aux=False,
)


@dataclasses.dataclass(frozen=True)
class _EarlyExitOptions(SharedRuleOptions):
    exit_hidden: Annotated[str | None, default("none, they are linear")] = None
    """Hidden layer sizes of the local classifiers of early-exit and ce, as 512."""


def _hidden_sizes(options: _EarlyExitOptions) -> tuple[int, ...]:
    return integers(options.exit_hidden, "--exit-hidden", least=1)


def _local_classifier(options: _EarlyExitOptions, setting: Setting) -> LocalClassifier:
    return LocalClassifier(setting.num_classes, _hidden_sizes(options), **setting.pooled)


def _early_exit(options: _EarlyExitOptions, setting: Setting) -> Rule:
    # The last stage has the network's own classifier.
    local = dataclasses.replace(_local_classifier(options, setting), **setting.local)
    return Rule((*(local,) * (setting.stages - 1), CrossEntropy()))


EARLY_EXIT = LearningRule(
    "early-exit",
    "a classifier in every stage",
    options=_EarlyExitOptions,
    objectives=_early_exit,
    check=_hidden_sizes,
    term=("ce", _local_classifier),
)


@dataclasses.dataclass(frozen=True)
class _AlOptions(SharedRuleOptions):
    al_codes: Literal["plain", "released"] = "plain"
    """al: how codes of the label are learned: plain (tanh, cross-entropy of the label) or released (as in its authors'
    code, for images by sigmoids and squares, which takes much longer to learn)."""


def _associated(options: _AlOptions, setting: Setting) -> Rule:
    released = setting.associated if options.al_codes == "released" else {}
    objective = Associated(setting.num_classes, **setting.pooled, **released)
    return Rule((objective,) * setting.stages, classifier=False)


AL = LearningRule(
    "al", "associated learning", options=_AlOptions, own=("al_codes",), objectives=_associated, takes_aux=False
)


def _predsim(options: SharedRuleOptions, setting: Setting) -> PredSim:
    return PredSim(setting.num_classes, **setting.pooled)


def _reconstruction(options: SharedRuleOptions, setting: Setting) -> Reconstruction:
    return Reconstruction(**setting.layers)


RECON = LearningRule("recon", "reconstruction of the input, for mixtures", term=("recon", _reconstruction))
PREDSIM = LearningRule("predsim", "local prediction and similarity matching", term=("predsim", _predsim))


def _inforeg(options: SharedRuleOptions, setting: Setting) -> InfoReg:
    sizes = integers(options.head_dims, "--head-dims") or (512, 1024)
    return InfoReg(setting.num_classes, sizes, **setting.pooled)


INFOREG = LearningRule("inforeg", "information regularisation", term=("inforeg", _inforeg))


@dataclasses.dataclass(frozen=True)
class _DascplOptions(_EarlyExitOptions, _ScplOptions):
    join_epochs: Annotated[str | None, default("spread over the first half")] = None
    """dascpl: the epoch from which each stage is trained, as 1,3,5,7."""


def _read_everywhere(options: _DascplOptions, setting: Setting) -> Rule:
    read = dataclasses.replace(_local_classifier(options, setting), detach=not options.classifier_gradient)
    terms = ((1.0, _contrastive(options, setting)), (1.0, read))
    return Rule((Mixture(terms, **setting.local),) * setting.stages)


def _check_joins(options: Any) -> None:
    joins = integers(options.join_epochs, "--join-epochs")
    if joins and (len(joins) != options.stages or joins[0] != 1 or list(joins) != sorted(joins)):
        raise RunError(
            f"--join-epochs must be {options.stages} ascending epochs from 1, one a stage, got {options.join_epochs}"
        )


def _joins(options: Any) -> tuple[int, ...]:
    spread = tuple(1 + index * options.epochs // (2 * options.stages) for index in range(options.stages))
    joins = integers(options.join_epochs, "--join-epochs") or spread
    if joins[-1] > options.epochs:
        raise RunError(f"--join-epochs {options.join_epochs}: a stage would join after the {options.epochs} epochs")
    return joins


DASCPL = LearningRule(
    "dascpl",
    "scpl with a classifier that reads every stage, and stages that join one after another",
    options=_DascplOptions,
    own=("join_epochs",),
    objectives=_read_everywhere,
    check=_check_joins,
    joins=_joins,
)

# A new rule is a row here: its options, its help and its checks follow.
TABLE = (SCPL, BP, GPIPE, EARLY_EXIT, AL, PREDSIM, INFOREG, DASCPL, RECON)
