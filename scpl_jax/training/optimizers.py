"""Learning-rate schedule and optimizers by name."""

import inspect

import jax
import jax.numpy as jnp
import optax

from scpl_jax.training.run_error import RunError

_OTHERS = "try adam, adamw, sgd, lamb, lars, lion or rmsprop"


def cosine_schedule(lr: float, end_lr: float, total_steps: int, every: int = 1) -> optax.Schedule:
    r"""Cosine from ``lr`` at step 0 to ``end_lr`` at step ``total_steps``.

    .. math:: \eta(s) = q \, lr + (1 - q) \, end\_lr, \quad q = (1 + \cos(\pi s / total\_steps)) / 2

    Args:
      lr: learning rate at the start.
      end_lr: learning rate at ``total_steps``.
      total_steps: length of the schedule in steps, at least 1.
      every: the rate changes only at multiples of this many steps. The released PyTorch code sets it once an epoch.

    Example:
      >>> schedule = cosine_schedule(1.0, 0.0, 4)
      >>> [round(float(schedule(step)), 3) for step in (0, 2, 4)]
      [1.0, 0.5, 0.0]
    """

    def schedule(step: jax.Array | int) -> jax.Array:
        position = jnp.asarray(step) // every * every
        q = (1 + jnp.cos(jnp.pi * position / total_steps)) / 2
        return q * lr + (1 - q) * end_lr

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
