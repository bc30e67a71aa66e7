"""Schedules as plain data: what each stage does, in which order, for backpropagation over several stages.

A schedule is a tuple of tasks in the order in which they are dispatched. A device works through its tasks in that
order; a task waits for the tasks of the stages beside it whose output it needs. Who runs a schedule (the executor, the
simulator) needs no other knowledge of the method. Local losses need no schedule: their stages only go forward.
"""

import dataclasses
from typing import Literal

Kind = Literal["forward", "backward", "forward_backward"]


@dataclasses.dataclass(frozen=True)
class Task:
    """One piece of work of one stage for one micro-batch.

    Attributes:
      kind: "forward" needs the message of the stage before; "backward" needs the gradient that the stage behind hands
        back, and its own forward; "forward_backward" is both in one program, which only the last stage can do.
      stage: number of the stage.
      micro_batch: number of the micro-batch, from 0.
    """

    kind: Kind
    stage: int
    micro_batch: int


def gpipe(stages: int, micro_batches: int) -> tuple[Task, ...]:
    """GPipe (Huang et al. 2019): every micro-batch forward, then every one backward, then the update.

    The last stage takes each micro-batch forward and backward in one program, so gradients come back in the order of
    the micro-batches. With one micro-batch this is ordinary backpropagation over several devices: naive model
    parallelism.

    Args:
      stages: number of stages, at least 1.
      micro_batches: number of micro-batches, at least 1.

    Raises:
      ValueError: fewer than one of either.

    Example:
      >>> [(task.kind, task.stage, task.micro_batch) for task in gpipe(2, 1)]
      [('forward', 0, 0), ('forward_backward', 1, 0), ('backward', 0, 0)]
    """
    _check(stages, micro_batches)
    last = stages - 1
    tasks: list[Task] = []
    for micro_batch in range(micro_batches):
        tasks += [Task("forward", stage, micro_batch) for stage in range(last)]
        tasks.append(Task("forward_backward", last, micro_batch))
    for micro_batch in range(micro_batches):
        tasks += [Task("backward", stage, micro_batch) for stage in reversed(range(last))]
    return tuple(tasks)


def one_forward_one_backward(stages: int, micro_batches: int) -> tuple[Task, ...]:
    """1F1B with a flush (PipeDream-flush, Narayanan et al. 2021): backward as soon as a gradient is there.

    Stage s goes forward for at most ``stages - s`` micro-batches before it takes the first one backward, so it stores
    the activations of that many only, where GPipe stores those of all. The bubble is the same as GPipe's.

    Arguments and errors are those of :func:`gpipe`.

    Example:
      >>> [(task.kind[0], task.stage, task.micro_batch) for task in one_forward_one_backward(2, 3) if task.stage == 0]
      [('f', 0, 0), ('f', 0, 1), ('b', 0, 0), ('f', 0, 2), ('b', 0, 1), ('b', 0, 2)]
    """
    _check(stages, micro_batches)
    last = stages - 1
    orders: list[list[Task]] = []
    for stage in range(last):
        ahead = min(stages - stage, micro_batches)
        order = [Task("forward", stage, micro_batch) for micro_batch in range(ahead)]
        for micro_batch in range(micro_batches):
            order.append(Task("backward", stage, micro_batch))
            if micro_batch + ahead < micro_batches:
                order.append(Task("forward", stage, micro_batch + ahead))
        orders.append(order)
    orders.append([Task("forward_backward", last, micro_batch) for micro_batch in range(micro_batches)])
    return _merge(orders)


def needs(task: Task, stages: int) -> tuple[Task, ...]:
    """The tasks of other stages, and of its own, whose output a task takes.

    Example:
      >>> needs(Task("backward", 0, 1), stages=2)
      (Task(kind='forward', stage=0, micro_batch=1), Task(kind='forward_backward', stage=1, micro_batch=1))
    """
    if task.kind == "backward":
        behind: Kind = "forward_backward" if task.stage + 1 == stages - 1 else "backward"
        return Task("forward", task.stage, task.micro_batch), Task(behind, task.stage + 1, task.micro_batch)
    return (Task("forward", task.stage - 1, task.micro_batch),) if task.stage else ()


def _merge(orders: list[list[Task]]) -> tuple[Task, ...]:
    """One order of dispatch that keeps each stage's own and puts every task behind what it needs."""
    done: set[Task] = set()
    merged: list[Task] = []
    positions = [0] * len(orders)
    while len(merged) < sum(map(len, orders)):
        before = len(merged)
        for stage, order in enumerate(orders):
            while positions[stage] < len(order) and done.issuperset(needs(order[positions[stage]], len(orders))):
                done.add(order[positions[stage]])
                merged.append(order[positions[stage]])
                positions[stage] += 1
        assert len(merged) > before, "the orders of the stages wait for each other"
    return tuple(merged)


def _check(stages: int, micro_batches: int) -> None:
    if stages < 1 or micro_batches < 1:
        raise ValueError(f"a schedule needs at least 1 stage and 1 micro-batch, got {stages} and {micro_batches}")
