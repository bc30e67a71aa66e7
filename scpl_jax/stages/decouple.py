"""Cut a list of blocks into stages, each with its local objective."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from scpl_jax.objectives import Objective
from scpl_jax.objectives.base import Accompanied, Place, classes_of, common_classes
from scpl_jax.stages.cost import Prices, build_loss
from scpl_jax.stages.cuts import balanced_cut, check_cut, check_num_stages, even_cut
from scpl_jax.stages.first_call import output_of
from scpl_jax.stages.inputs import admit_inputs
from scpl_jax.stages.variables import separate_rngs, split


class StageModule(nnx.Module):
    """The modules of one stage: its blocks, its local loss or None, the classifier (in the last stage) or None."""

    def __init__(self, blocks: Sequence[nnx.Module], loss: nnx.Module | None, classifier: nnx.Module | None):
        self.blocks = nnx.List(blocks)
        self.loss = loss
        self.classifier = classifier


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """One stage: static structure and initial values; the functions of ``scpl_jax.stages`` do the rest.

    Attributes:
      index: number of the stage, from 0.
      blocks: (first, last + 1) of its blocks in the network.
      train_graph: structure of its :class:`StageModule` in training mode.
      eval_graph: the same in evaluation mode (batch norm by running averages, no dropout).
      params: initial parameters: every ``nnx.Param`` of floating or complex numbers.
      rest: initial batch statistics, random state and all other variables.
      objective: what it minimises.
      end_to_end: whether all stages are trained together by the classifier's loss, each getting the gradient of its
        message back from the next, instead of each by its own local loss.
      classes: number of classes of the network's labels; None where neither classifier nor objectives know it.
      example: shapes and dtypes of its own message, for the batch that the network was made with.
      cost: cost of a training step, local loss and update included: floating-point operations by the compiler's
        estimate, or measured seconds.
      loss_cost: the part of ``cost`` that the local loss has.
      message_bytes: size of what its blocks hand on for the example batch, in bytes.
    """

    index: int
    blocks: tuple[int, int]
    train_graph: Any
    eval_graph: Any
    params: Any
    rest: Any
    objective: Objective
    end_to_end: bool
    classes: int | None
    example: Any
    cost: float
    loss_cost: float
    message_bytes: int

    @property
    def num_parameters(self) -> int:
        """Number of trained values, head and classifier included."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))


def _number_of_classes(logits: Any) -> int:
    """Number of classes of the network's own classifier, by what it returns, which must be logits (N, classes)."""
    leaves = jax.tree.leaves(logits)
    if len(leaves) != 1 or leaves[0].ndim != 2:
        raise ValueError(
            f"the last block must be a classifier that returns logits (N, classes), got {[x.shape for x in leaves]}; "
            "add one, or pass classifier=False"
        )
    return int(leaves[0].shape[1])


def _check_unshared(groups: Sequence[StageModule]) -> None:
    """A variable in two stages would be silently copied, and its copies would drift apart.

    Random streams may be shared: they are made to differ, see :func:`~scpl_jax.stages.variables.separate_rngs`.
    """
    owner: dict[int, int] = {}
    for index, module in enumerate(groups):
        for path, variable in nnx.iter_graph(module):
            if not isinstance(variable, nnx.Variable) or isinstance(variable, nnx.RngState | nnx.Intermediate):
                continue
            if owner.setdefault(id(variable), index) != index:
                kind = "parameter" if isinstance(variable, nnx.Param) else "variable"
                raise ValueError(
                    f"stages {owner[id(variable)]} and {index} share the {kind} "
                    f"{'.'.join(map(str, path))}; stages are trained separately, so put the blocks that share it "
                    "into one stage or give each its own"
                )


def _structure(index: int, module: StageModule) -> dict[str, Any]:
    """What a stage keeps of its module, by attribute."""
    module.eval()
    eval_graph, *_ = split(module)
    module.train()
    train_graph, params, rest = split(module)
    rest = separate_rngs(rest, index)
    return {"train_graph": train_graph, "eval_graph": eval_graph, "params": params, "rest": rest}


def decouple(
    blocks: Sequence[nnx.Module],
    num_stages: int,
    objective: Objective | Sequence[Objective],
    example: Any,
    rngs: nnx.Rngs,
    *,
    cut: str | Sequence[int] = "auto",
    classifier: bool = True,
    costs: str = "estimate",
) -> tuple[Stage, ...]:
    """Cut a network into stages that are trained separately, each by its local objective.

    Args:
      blocks: NNX modules, each called with what the one before returns (any pytree, batch first); the last one is the
        classifier and returns logits (N, classes). The classifier is never a stage of its own: it belongs to the last
        stage, is trained by the cross-entropy of its logits, and under local objectives its input is detached.
      num_stages: from 1 to the number of blocks, the classifier not counted.
      objective: what every stage minimises, or one objective for each stage. :class:`~scpl_jax.CrossEntropy` for all of
        them is backpropagation over several stages.
      example: an input batch, arrays or ``jax.ShapeDtypeStruct``; only shapes and dtypes are used.
      rngs: source of randomness for the parameters of the objectives.
      cut: "auto" (the dearest stage as cheap as possible, by the compiler's estimate, local loss and optimizer
        included), "even" (equal numbers of blocks), or the blocks at which stages 1, 2, ... begin.
      costs: what "auto" and the stages' costs rest on: "estimate" (the compiler's, which is the same at every start) or
        "measured" (times of each block and local loss on the default device).
      classifier: False if the network has none: then every block can be cut, and no accuracy is measured.

    Returns:
      The stages in order. The blocks passed in are not changed by training: a stage holds copies of their values. They
      are in training mode afterwards, and have what they make at their first call, by the values it is created with.
      Intermediates that they sow are dropped after each step.

    Raises:
      ValueError: a number of stages or a cut that does not fit the blocks, an example that is no batch of arrays, a
        last block that returns no logits, numbers of classes that differ, an objective that can't serve a stage, a
        variable shared between stages, or a module that changes more than the values of its variables while it runs.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flax import nnx
      >>> from scpl_jax.objectives import SupCon
      >>> blocks = [nnx.Linear(8, 8, rngs=nnx.Rngs(0)) for _ in range(4)] + [nnx.Linear(8, 3, rngs=nnx.Rngs(1))]
      >>> example = jax.ShapeDtypeStruct((16, 8), jnp.float32)
      >>> stages = decouple(blocks, 2, SupCon(head="identity"), example, nnx.Rngs(2))
      >>> [stage.blocks for stage in stages]
      [(0, 2), (2, 4)]
    """
    blocks = list(blocks)
    last = blocks.pop() if classifier and blocks else None
    objectives, end_to_end = _checked(blocks, last, num_stages, objective, costs)
    inputs, classes = _traced(blocks, last, objectives, example)
    prices = Prices(blocks, last, inputs, end_to_end=end_to_end, measured=costs == "measured")
    companion = jax.eval_shape(objectives[0].accompany, inputs[0], prices.labels)
    architectures = tuple(getattr(block, "architecture", None) for block in blocks)

    def at(index: int, stop: int) -> Objective:
        return objectives[index].at(Place(index, num_stages, architectures[stop:], inputs[0]))

    def price(index: int, start: int, stop: int) -> float:
        # What comes along to a stage depends on the cut before it: all stages are then taken to cost like the first.
        index = index if companion is None else 0
        return prices.of_stage(start, stop, at(index, stop), index, companion)

    bounds = (0, *_positions(cut, price, len(blocks), num_stages), len(blocks))
    modules, descriptions = [], []
    for index, (start, stop) in enumerate(itertools.pairwise(bounds)):
        objective = at(index, stop)
        of_stage = objective, index, companion
        about = {
            "blocks": (start, stop),
            "objective": objective,
            "example": inputs[start] if index == 0 or companion is None else Accompanied(inputs[start], companion),
            "cost": prices.of_stage(start, stop, *of_stage),
            "loss_cost": prices.of_loss(stop, *of_stage),
            "message_bytes": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(inputs[stop])),
        }
        loss = build_loss(objective, inputs[stop], rngs, companion if index else None)
        if loss is not None:
            given = objective.seen(inputs[stop]), prices.labels, companion
            _, companion = output_of(f"the local loss of stage {index}", loss, *given, call=objective.local_loss)
        modules.append(StageModule(blocks[start:stop], loss, last if stop == len(blocks) else None))
        descriptions.append(about)
    _check_unshared(modules)
    return tuple(
        Stage(index, **_structure(index, module), end_to_end=end_to_end, classes=classes, **about)
        for index, (module, about) in enumerate(zip(modules, descriptions, strict=True))
    )


def _checked(
    blocks: Sequence[Any], last: Any, num_stages: int, objective: Objective | Sequence[Objective], costs: str
) -> tuple[list[Objective], bool]:
    """(one objective for each stage; whether stages are trained together), of arguments that go together."""
    if not blocks:
        raise ValueError("a network needs at least one block besides its classifier")
    check_num_stages(num_stages, len(blocks))
    objectives = [objective] * num_stages if isinstance(objective, Objective) else list(objective)
    if len(objectives) != num_stages:
        raise ValueError(f"{num_stages} stages need one objective or {num_stages}, got {len(objectives)}")
    # Without any local loss by backpropagation.
    end_to_end = last is not None and not any(one.local for one in objectives)
    for index, one in enumerate(objectives):
        name = type(one).__name__
        if not one.local and not end_to_end and not (index == num_stages - 1 and last is not None):
            raise ValueError(
                f"{name} is the classifier's loss and stage {index} has no classifier; "
                "use it for all stages, or a local objective such as SupCon"
            )
        if one.sends is not None and any(other.sends != one.sends for other in objectives if other.local):
            raise ValueError(f"{name} sends something along from stage to stage, so all stages need it or none")
        if not one.takes_classifier and last is not None:
            raise ValueError(f"{name} has no use for the network's classifier; leave it out: classifier=False")
    for index, module in enumerate([*blocks, last]):
        if not isinstance(module, nnx.Module | None):
            raise ValueError(
                f"block {index} is no nnx.Module but a {type(module).__name__}; of a function, nnx.Sequential(f) is one"
            )
    if costs not in ("estimate", "measured"):
        raise ValueError(f"costs must be estimate or measured, got {costs!r}")
    return objectives, end_to_end


def _traced(
    blocks: Sequence[nnx.Module], last: nnx.Module | None, objectives: Sequence[Objective], example: Any
) -> tuple[list[Any], int | None]:
    """(shapes and dtypes of what each block and the classifier are given, number of classes or None)."""
    StageModule(blocks, None, last).train()
    inputs = [jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), admit_inputs(example))]
    for index, block in enumerate(blocks):
        inputs.append(output_of(f"block {index} ({type(block).__name__})", block, inputs[-1]))
    of_classifier = None
    if last is not None:
        logits = output_of(f"the classifier ({type(last).__name__})", last, inputs[-1])
        of_classifier = _number_of_classes(logits)
    return inputs, common_classes([of_classifier, *(classes_of(one) for one in objectives)])


def _positions(
    cut: str | Sequence[int], price: Callable[[int, int, int], float], num_blocks: int, num_stages: int
) -> tuple[int, ...]:
    """The blocks at which stages 1, 2, ... begin."""
    if cut == "auto":
        return balanced_cut(price, num_blocks, num_stages)
    if cut == "even":
        return even_cut(num_blocks, num_stages)
    if isinstance(cut, str):
        raise ValueError(f"unknown cut {cut!r}; give auto, even, or the blocks at which stages begin")
    return check_cut(cut, num_stages, num_blocks)
