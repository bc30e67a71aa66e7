"""An Optax optimizer as a stage uses it: a state of its own that keeps its structure, and the loss's value."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from scpl_jax.stages.variables import named, same_structure


def one_each(
    optimizer: optax.GradientTransformation | Sequence[optax.GradientTransformation], num_stages: int
) -> tuple[optax.GradientTransformation, ...]:
    """An optimizer for each stage.

    Args:
      optimizer: one for all of them, or a sequence with one for each.
      num_stages: their number.

    Raises:
      ValueError: a sequence of another length.

    Example:
      >>> len(one_each(optax.sgd(0.1), 3)), len(one_each([optax.sgd(0.1), optax.adam(0.1)], 2))
      (3, 2)
    """
    # Optax's own optimizers are named tuples.
    if isinstance(optimizer, optax.GradientTransformation) or not isinstance(optimizer, Sequence):
        return (optimizer,) * num_stages
    if len(optimizer) != num_stages:
        raise ValueError(f"optimizer must be one for all or one for each of {num_stages} stages, got {len(optimizer)}")
    return tuple(optimizer)


def initial_optimizer_state(optimizer: optax.GradientTransformation, params: Any) -> Any:
    """The state of an optimizer before the first step, in arrays that nothing else has: steps donate them.

    Args:
      optimizer: any Optax optimizer that needs no more than gradient, parameters and the loss's value.
      params: what is trained; without any there is no state.

    Raises:
      ValueError: it is no such optimizer.
    """
    if not jax.tree.leaves(params):
        return ()
    try:
        # Some keep the parameters' own arrays (averages, Prodigy), or one array twice.
        state = jax.tree.map(jnp.copy, optimizer.init(params))
        updates, after = _shapes(optimizer, params, state)
        if same_structure(state, after) and _difference(state, after):
            # The first update promotes some numbers, of parameters in bfloat16, say: begin with what it ends with.
            state = jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), state, after)
            updates, after = _shapes(optimizer, params, state)
    except Exception as error:
        told = " ".join(str(error).split())
        raise ValueError(
            f"the optimizer can't be used, Optax says {type(error).__name__}: {told[:300]}; its update gets gradient, "
            "state, parameters and the loss's value, no function (line searches, L-BFGS and Sophia need one)"
        ) from error
    different = _difference(state, after) or _difference(params, updates, dtypes=False)
    if different:
        raise ValueError(
            f"the optimizer can't be used: {different} after an update; steps need shapes and dtypes that stay"
        )
    return state


def apply_optimizer(
    optimizer: optax.GradientTransformation, params: Any, state: Any, gradient: Any, value: jax.Array
) -> tuple[Any, Any]:
    """One update.

    Args:
      optimizer: an Optax optimizer (static).
      params: what is trained.
      state: from :func:`initial_optimizer_state` or the update before.
      gradient: a tree like ``params``, as for ``jax.grad``.
      value: what it is the gradient of, a scalar; passed to optimizers that take it.

    Returns:
      (new parameters, new state).
    """
    if not jax.tree.leaves(params):
        return params, state
    updates, state = _update(optimizer, value, params, state, gradient)
    return optax.apply_updates(params, updates), state


def uses_loss(optimizer: optax.GradientTransformation, params: Any) -> bool:
    """Whether updates of these parameters depend on the loss's value.

    Example:
      >>> from optax.contrib import reduce_on_plateau
      >>> params = {"w": jnp.ones(3)}
      >>> uses_loss(optax.adam(0.1), params), uses_loss(optax.chain(optax.sgd(0.1), reduce_on_plateau()), params)
      (False, True)
    """
    if not jax.tree.leaves(params):
        return False
    state = jax.eval_shape(optimizer.init, params)
    program = jax.make_jaxpr(lambda value, *rest: _update(optimizer, value, *rest))(0.0, params, state, params).jaxpr
    value = program.invars[0]
    return any(value is x for equation in program.eqns for x in equation.invars) or value in program.outvars


def _update(optimizer: optax.GradientTransformation, value: Any, params: Any, state: Any, gradient: Any) -> Any:
    """(updates, new state)."""
    # The way down is the conjugate of what jax.grad gives for complex parameters; for others that is the same.
    gradient = jax.tree.map(jnp.conj, gradient)
    try:
        return optimizer.update(gradient, state, params, value=value)
    except TypeError as error:
        if "unexpected keyword argument 'value'" not in str(error):
            raise
    return optimizer.update(gradient, state, params)


def _shapes(optimizer: optax.GradientTransformation, params: Any, state: Any) -> Any:
    """Shapes and dtypes of updates and of the state after them."""
    value = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.eval_shape(lambda *arguments: _update(optimizer, *arguments), value, params, state, params)


def _difference(before: Any, after: Any, *, dtypes: bool = True) -> str | None:
    """What is not as it was, in words."""
    old, new = (
        {name: f"{x.dtype if dtypes else ''}{list(x.shape)}" for name, x in named([tree]).items()}
        for tree in (before, after)
    )
    for name in [*old, *new]:
        if old.get(name) != new.get(name):
            return f"{name} is {old.get(name, 'missing')} before and {new.get(name, 'missing')}"
    return None if same_structure(before, after) else "the structure is another one"
