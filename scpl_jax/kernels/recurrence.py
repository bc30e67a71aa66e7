"""The loop of LSTM layers over time, with a derivative of its own.

Differentiated step by step, the loop would add to the gradients of the weights at every step, sums as large as the
weights themselves. Here the loop backward only hands on the cotangents of the states and collects those of the gates;
the gradients of weights and inputs are then one product each over all steps. Forward, with many rows a step, inputs and
states go through one product a step, so that what all inputs give to the gates is never held; with few rows that
product would be too small to be fast, and the inputs of all steps go through theirs before the loop.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from scpl_jax.kernels import thresholds
from scpl_jax.kernels.products import dot_general

# Inputs (L, N, D), kernel (D, 4H), recurrent kernel (H, 4H), bias (4H,), state h and c (N, H) each, and which steps are
# real, (L, N) bool.
Direction = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]


def _product(library: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The product of two matrices by this library."""
    return functools.partial(dot_general(library), dimension_numbers=(((1,), (0,)), ((), ())))


def _loop(directions: list[Direction], keep: bool, library: str) -> Any:
    """Outputs (L, N, H) and last h and c of each direction; with ``keep`` also gates and states before each step."""
    product = _product(library)
    early = directions[0][0].shape[1] < thresholds.here().lstm_rows
    if early:
        fed = [x @ kernel + bias for x, kernel, _, bias, *_ in directions]
        kernels = [recurrent for _, _, recurrent, *_ in directions]
    else:
        fed = [x for x, *_ in directions]
        kernels = [jnp.concatenate([kernel, recurrent]) for _, kernel, recurrent, *_ in directions]

    def step(states: Any, inputs: Any) -> Any:
        after, kept = [], []
        for (_, _, _, bias, *_), kernel, (h, c), (x, real) in zip(directions, kernels, states, inputs, strict=True):
            if early:
                z = h @ kernel + x
            else:
                z = product(jnp.concatenate([x, h], axis=-1), kernel) + bias
            i, f, g, o = jnp.split(z, 4, axis=-1)
            i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
            new_c = f * c + i * g
            new_h, there = o * jnp.tanh(new_c), real[:, None]
            after.append((jnp.where(there, new_h, h), jnp.where(there, new_c, c)))
            saved = ((i, f, g, o), h, c) if keep else ()
            kept.append((jnp.where(there, new_h, 0), *saved))
        return after, kept

    first = [(h, c) for *_, h, c, _ in directions]
    return jax.lax.scan(step, first, [(x, real) for x, (*_, real) in zip(fed, directions, strict=True)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def recurrence(directions: list[Direction], library: str = "xla") -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    r"""LSTM layers over time, one for each direction, side by side in one loop.

    .. math::

        z = x W + h U + b, \quad i, f, o = \sigma(z), \quad g = \tanh(z), \quad c' = f c + i g, \quad h' = o \tanh c'

    with the gates in torch's order i, f, g, o. Where a step is not real its output is 0 and the state stays. There is a
    reverse-mode derivative only.

    Args:
      directions: of each direction

        - the inputs x, (L, N, D), in the order in which the steps are taken,
        - kernel W, (D, 4H), recurrent kernel U, (H, 4H), and bias b, (4H,),
        - the state before the first step, h and c, (N, H),
        - which steps are real, (L, N), bool; all others are padding.

        All floating arrays have the same dtype.
      library: what computes the products of each step and the gradient of the inputs on the CPU, one of
        ``scpl_jax.models.LIBRARIES``. Small products are XLA's, and forward all with fewer than 256 rows a step.

    Returns:
      Of each direction outputs (L, N, H) and the state after the last step, h and c, (N, H).

    Example:
      >>> import jax.numpy as jnp
      >>> zero, real = jnp.zeros((1, 2)), jnp.array([[True], [True], [False]])
      >>> one = (jnp.ones((3, 1, 5)), jnp.full((5, 8), 0.2), jnp.zeros((2, 8)), jnp.zeros(8), zero, zero, real)
      >>> ((outputs, h, c),) = recurrence([one])
      >>> [round(float(x), 3) for x in (outputs[0, 0, 0], outputs[1, 0, 0], outputs[2, 0, 0], h[0, 0], c[0, 0])]
      [0.37, 0.545, 0.0, 0.545, 0.964]
    """
    states, kept = _loop(directions, False, library)
    return [(outputs, h, c) for (h, c), (outputs,) in zip(states, kept, strict=True)]


def _recurrence_fwd(directions: list[Direction], library: str) -> Any:
    states, kept = _loop(directions, True, library)
    saved = [
        (x, kernel, recurrent, real, *rest)
        for (x, kernel, recurrent, *_, real), (_, *rest) in zip(directions, kept, strict=True)
    ]
    return [(outputs, h, c) for (h, c), (outputs, *_) in zip(states, kept, strict=True)], saved


def _recurrence_bwd(library: str, saved: Any, cotangents: Any) -> Any:
    product = _product(library)

    # Turned round in the loop, XLA would copy them at every step.
    turned = [recurrent.T for _, _, recurrent, *_ in saved]

    def step(states: Any, inputs: Any) -> Any:
        before, found = [], []
        for kernel, (dh, dc), (dy, real, (i, f, g, o), c) in zip(turned, states, inputs, strict=True):
            there, t = real[:, None], jnp.tanh(f * c + i * g)
            # Cotangents of the new h and the new c, and then of what the gates are made of.
            of_h = jnp.where(there, dh + dy, 0)
            of_c = jnp.where(there, dc, 0) + of_h * o * (1 - t * t)
            parts = (of_c * g * i * (1 - i), of_c * c * f * (1 - f), of_c * i * (1 - g * g), of_h * t * o * (1 - o))
            gate = jnp.concatenate(parts, axis=-1)
            before.append((product(gate, kernel) + jnp.where(there, 0, dh), of_c * f + jnp.where(there, 0, dc)))
            found.append(gate)
        return before, found

    last = [(dh, dc) for _, dh, dc in cotangents]
    inputs = [(dy, real, gates, c) for (dy, _, _), (_, _, _, real, gates, _, c) in zip(cotangents, saved, strict=True)]
    first, found = jax.lax.scan(step, last, inputs, reverse=True)
    gradients = []
    for gate, (x, kernel, _, _, _, h, _), (dh, dc) in zip(found, saved, first, strict=True):
        flat = gate.reshape(-1, gate.shape[-1])
        of_x = product(flat, kernel.T).reshape(x.shape)
        of_kernels = (x.reshape(-1, x.shape[-1]).T @ flat, h.reshape(-1, h.shape[-1]).T @ flat)
        gradients.append((of_x, *of_kernels, flat.sum(0), dh, dc, None))
    return (gradients,)


recurrence.defvjp(_recurrence_fwd, _recurrence_bwd)
