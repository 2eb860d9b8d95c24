"""Integers of a jaxpr that depend on none of its arguments: the numbers of blocks, bounds of loops.

Followed are integers and booleans of at most one dim and `MOST` elements, through arithmetic and changes of shape.
What is not known is None.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

Value = np.ndarray | None
"""Integers or booleans, of no dims or one; None for what is not known."""


class Known:
    """Values of a jaxpr's variables, as far as they are known."""

    def __init__(self):
        self.values: dict[core.Var, np.ndarray] = {}

    def value(self, atom: Any) -> Value:
        return constant(atom.val) if isinstance(atom, core.Literal) else self.values.get(atom)

    def put(self, variables: Sequence[core.Var], values: Sequence[Value]) -> None:
        for variable, value in zip(variables, values, strict=False):  # values of the first ones alone may be known
            aval: Any = variable.aval
            if value is not None and value.shape == aval.shape and is_followed(value):
                self.values[variable] = value

    def compute(self, equation: core.JaxprEqn, operands: Sequence[Any]) -> None:
        """The result of an equation whose operands are known, if it is one that is followed."""
        name = equation.primitive.name
        if (name not in _ELEMENTWISE and name not in _SHAPED) or any(value is None for value in operands):
            return
        (out,) = equation.outvars
        array: Any = out.aval
        if is_followed(array):
            with np.errstate(all="ignore"):
                made = _ELEMENTWISE[name](*operands) if name in _ELEMENTWISE else _SHAPED[name](array.shape, *operands)
            self.values[out] = np.asarray(made).astype(array.dtype)


MOST = 2**12
"""Elements of an array that is followed."""


def is_followed(array: Any) -> bool:
    """Whether an array, or what is known of it, is integers of at most one dim."""
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if shape is None or dtype is None or len(shape) > 1 or math.prod(shape) > MOST:
        return False
    return jax.numpy.issubdtype(dtype, np.integer) or jax.numpy.issubdtype(dtype, np.bool_)


def constant(value: Any) -> Value:
    """A literal, or a constant of a jaxpr."""
    if isinstance(value, int | bool):
        return np.asarray(value)
    there = getattr(value, "is_fully_addressable", True)
    return np.asarray(value) if there and is_followed(value) else None


def stacked(values: Sequence[Value]) -> Value:
    """What a scan makes of its turns."""
    known = [value for value in values if value is not None]
    return np.stack(known) if len(known) == len(values) else None


# fmt: off
_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative, "sign": np.sign, "rem": np.fmod,
    "div": lambda a, b: (a - np.fmod(a, b)) // b, "max": np.maximum, "min": np.minimum,
    "clamp": lambda low, x, high: np.clip(x, low, high), "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or,
    "not": np.invert, "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
    "convert_element_type": np.asarray, "copy": np.asarray, "pvary": np.asarray,
}
# fmt: on
_SHAPED: dict[str, Callable[..., Any]] = {
    "broadcast_in_dim": lambda shape, x: np.broadcast_to(x, shape),
    "iota": lambda shape: np.arange(math.prod(shape)),
    "reshape": lambda shape, x: x.reshape(shape),
    "squeeze": lambda shape, x: x.reshape(shape),
}
"""Given the shape of the result too."""


def turns(loop: core.JaxprEqn, values: Sequence[Value]) -> int | None:
    """How often a `while` that counts up runs, i += step while i < end, as `fori_loop` makes it: of rows side by side
    (`vmap`) as often as the longest. None where that is not known; `values` are those of its operands."""
    params = loop.params
    test, body = params["cond_jaxpr"].jaxpr, params["body_jaxpr"].jaxpr
    consts, skipped = params["cond_nconsts"], params["body_nconsts"]
    begun = dict(zip(test.invars, [*values[:consts], *values[consts + skipped :]], strict=True))
    new = dict(zip(test.invars[consts:], zip(body.invars[skipped:], body.outvars, strict=True), strict=True))
    compared = _maker(test, test.outvars[0], "lt")
    index, last = (_source(test, v) for v in compared.invars) if compared else (None, None)
    if not isinstance(index, core.Var) or index not in new:
        return None
    before, after = new[index]
    added = _maker(body, after, "add")
    others = [v for v in added.invars if v is not before] if added else []
    step = constant(others[0].val) if len(others) == 1 and isinstance(others[0], core.Literal) else None
    if isinstance(last, core.Literal):
        end = constant(last.val)
    else:
        kept = new.get(last, (None, None))
        end = begun.get(last) if kept[0] is kept[1] else None
    start = begun[index]
    if step is None or step.ndim or int(step) < 1 or start is None or end is None:
        return None
    return max(0, int(np.max(-((start.astype(np.int64) - end) // int(step)))))


def _maker(jaxpr: core.Jaxpr, result: Any, primitive: str) -> core.JaxprEqn | None:
    """The equation that makes `result`, if it is of this primitive."""
    found = (e for e in jaxpr.eqns if e.primitive.name == primitive)
    return next((e for e in found if any(out is result for out in e.outvars)), None)


def _source(jaxpr: core.Jaxpr, atom: Any) -> Any:
    """What an atom is converted from, or itself."""
    while made := _maker(jaxpr, atom, "convert_element_type"):
        (atom,) = made.invars
    return atom
