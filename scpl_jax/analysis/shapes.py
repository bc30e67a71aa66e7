"""Whether a JSON value has the shape that is expected of it."""

import math
from typing import Any

#: A finite number.
NUMBER = float


def mismatch(value: Any, shape: Any, name: str = "") -> str | None:
    """Where a value differs from a shape, in a few words; None if it does not.

    Args:
      value: what ``json.loads`` gave.
      shape: a type (``float`` takes whole numbers too, and none that is not finite); None; a tuple of shapes, any of
        which will do; a list of one shape for a list of any length; or a dict of shapes by name, where a name with a
        question mark may be missing. Other names are not looked at.
      name: of the value, for the answer.

    Example:
      >>> shape = {"epoch": int, "losses?": [(float, None)]}
      >>> mismatch({"epoch": 1, "losses": [0.5, None]}, shape)
      >>> mismatch({"epoch": 1, "losses": [0.5, "x"]}, shape)
      "losses[1] is 'x'"
      >>> mismatch({"losses": []}, shape)
      'epoch is missing'
    """
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return _wrong(value, name)
        for key, inner in shape.items():
            plain = key.removesuffix("?")
            inside = f"{name}.{plain}" if name else plain
            if plain not in value:
                if plain == key:
                    return f"{inside} is missing"
            elif (found := mismatch(value[plain], inner, inside)) is not None:
                return found
        return None
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _wrong(value, name)
        pairs = ((one, f"{name}[{index}]") for index, one in enumerate(value))
        return next((found for one, inside in pairs if (found := mismatch(one, shape[0], inside)) is not None), None)
    if isinstance(shape, tuple):
        fits = any(mismatch(value, one) is None for one in shape)
    elif isinstance(value, bool):
        fits = shape is bool
    elif shape is None:
        fits = value is None
    elif shape is float:
        fits = isinstance(value, int | float) and abs(value) < 1e300 and math.isfinite(value)
    else:
        fits = isinstance(value, shape)
    return None if fits else _wrong(value, name)


def _wrong(value: Any, name: str) -> str:
    shown = repr(value)
    return f"{name or 'it'} is {shown if len(shown) < 40 else shown[:36] + ' ...'}"
