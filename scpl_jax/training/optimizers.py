"""Learning-rate schedule and optimizers by name."""

import inspect

import jax
import jax.numpy as jnp
import optax

from scpl_jax.training.run_error import RunError

_OTHERS = "try adam, adamw, sgd, lamb, lars, lion or rmsprop"


def cosine_schedule(
    lr: float, end_lr: float, total_steps: int, every: int = 1, warmup_steps: int = 0
) -> optax.Schedule:
    r"""Linear up to ``lr`` at step ``warmup_steps`` (w), then cosine to ``end_lr`` at step ``total_steps`` (t).

    .. math::
      \eta(s) = lr \, (s + 1) / (w + 1) \quad (s < w), \qquad
      \eta(s) = q \, lr + (1 - q) \, end\_lr, \quad q = (1 + \cos(\pi (s - w) / (t - w))) / 2

    Args:
      lr: learning rate at the start, or when the warm-up is over.
      end_lr: learning rate at ``total_steps``.
      total_steps: length of the schedule in steps, at least 1.
      every: the cosine changes only at multiples of this many steps; the warm-up changes with every step. The released
        PyTorch code sets the rate once an epoch.
      warmup_steps: steps before the cosine begins, fewer than ``total_steps``; no step has the rate 0.

    Raises:
      RunError: ``warmup_steps`` is negative, or leaves no step for the cosine.

    Example:
      >>> schedule = cosine_schedule(1.0, 0.0, 4)
      >>> [round(float(schedule(step)), 3) for step in (0, 2, 4)]
      [1.0, 0.5, 0.0]
      >>> schedule = cosine_schedule(1.0, 0.0, 5, warmup_steps=3)
      >>> [round(float(schedule(step)), 3) for step in range(6)]
      [0.25, 0.5, 0.75, 1.0, 0.5, 0.0]
    """
    if warmup_steps and not 0 <= warmup_steps < total_steps:
        raise RunError(
            f"`warmup_steps` must be at least 0 and fewer than the {total_steps} steps of the run, got {warmup_steps}; "
            "take fewer, or more `epochs`"
        )

    def schedule(step: jax.Array | int) -> jax.Array:
        position = jnp.asarray(step) // every * every
        if warmup_steps:
            position = jnp.maximum(position - warmup_steps, 0)
        q = (1 + jnp.cos(jnp.pi * position / (total_steps - warmup_steps))) / 2
        rate = q * lr + (1 - q) * end_lr
        if warmup_steps:
            rate = jnp.where(step < warmup_steps, lr * (step + 1) / (warmup_steps + 1), rate)
        return rate

    return schedule


def build_optimizer(name: str, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The Optax optimizer called ``name`` with a schedule as its learning rate and its own defaults otherwise.

    Raises:
      RunError: Optax has no optimizer of this name that needs nothing but a learning rate, which may change.

    Example:
      >>> import optax
      >>> build_optimizer("sgd", optax.constant_schedule(0.1)).init is not None
      True
    """
    factory = getattr(optax, name, None) if name.isidentifier() else None
    parameters = inspect.signature(factory).parameters if inspect.isfunction(factory) else {}
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if next(iter(parameters), None) != "learning_rate" or required not in ([], ["learning_rate"]):
        raise RunError(f"`optimizer` {name} is not an Optax optimizer that needs only a learning rate; {_OTHERS}")
    assert factory is not None
    try:
        optimizer: optax.GradientTransformation = factory(learning_rate=schedule)
    except (TypeError, ValueError) as error:
        raise RunError(
            f"`optimizer` {name} does not take a learning rate that changes with the steps ({error}); {_OTHERS}"
        ) from error
    return optimizer
