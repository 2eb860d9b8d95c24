"""What the backward pass keeps of the forward pass, read from a step's jaxpr before any compiler touches it.

A value counts that an equation of the forward pass makes and one of the backward pass (or of what is recomputed there)
reads. Reshaped, transposed, broadcast and converted forms of one value count once, in the smallest form. A compiler
keeps fewer, where it computes cheap ones again, or more, where it copies: an estimate.
"""

import math
import re
from collections import Counter, defaultdict
from typing import Any

import jax
import numpy as np
from jax.extend import core

from flashjax.analysis.flops import bodies_of, stack_of
from flashjax.analysis.modules import place

_FORMS = frozenset(
    {"reshape", "squeeze", "expand_dims", "transpose", "copy", "convert_element_type", "broadcast_in_dim"}
)
_BLOCK = re.compile(r".*_\d+(?=/|$)")


def kept(closed: core.ClosedJaxpr) -> Counter[str]:
    """Bytes by module, on all devices together, of a step that holds both passes. A scan's are those of all its turns.

    Micro-batches count once: they come one after the other.
    """
    found: Counter[str] = Counter()
    for (module, _), size in _kept(closed.jaxpr, "").items():
        found[module] += size
    return found


def of_one_block(closed: core.ClosedJaxpr) -> int:
    """The bytes of that block which keeps most, of a scan those of one turn: what is there at once where blocks are
    computed again one by one. A block is what ends in a number (`layer_3`, `stage_0/block_1`), the last such name of a
    path, or a scan's turn."""
    blocks: Counter[str] = Counter()
    for (module, turns), size in _kept(closed.jaxpr, "").items():
        block = _BLOCK.match(module)
        blocks[block[0] if block else module.split("/")[0] if turns > 1 else module] += size // turns
    return max(blocks.values(), default=0)


def _kept(jaxpr: core.Jaxpr, above: str) -> Counter[tuple[str, int]]:
    """By module, and by the turns of the scan that its bytes are of."""
    made: dict[core.Var, tuple[str, int]] = {}
    source: dict[core.Var, core.Var] = {}
    forms: dict[core.Var, list[core.Var]] = defaultdict(list)
    inner: Counter[tuple[str, int]] = Counter()

    def root(variable: core.Var) -> core.Var:
        while variable in source:
            variable = source[variable]
        return variable

    for equation in jaxpr.eqns:
        stack = stack_of(equation, above)
        module, part = place(stack)
        variables = [v for v in equation.invars if isinstance(v, core.Var)]
        if part == "forward":
            for out in equation.outvars:
                made[out] = module, 1
            if equation.primitive.name == "scan":
                made |= _stacked(equation, stack)
            if equation.primitive.name in _FORMS and variables and variables[0] in made:
                source[equation.outvars[0]] = variables[0]
        elif part != "other":
            for variable in variables:
                if variable in made:
                    forms[root(variable)].append(variable)
        if part == "other":  # both passes may stand inside: micro-batches, jit
            for body in bodies_of(equation):
                inner |= _kept(body.jaxpr if isinstance(body, core.ClosedJaxpr) else body, stack)
    for first, variables in forms.items():
        inner[made[first]] += min(_bytes(v) for v in variables)
    return inner


def _stacked(equation: core.JaxprEqn, stack: str) -> dict[core.Var, tuple[str, int]]:
    """What a scan stacks, each by the module of its body that makes it."""
    body, first = equation.params["jaxpr"].jaxpr, equation.params["num_carry"]
    makers = {out: place(stack_of(inner, stack)).module for inner in body.eqns for out in inner.outvars}
    pairs = zip(equation.outvars[first:], body.outvars[first:], strict=True)
    own, turns = place(stack).module, equation.params["length"]
    return {out: (makers.get(of, own) if isinstance(of, core.Var) else own, turns) for out, of in pairs}


def _bytes(variable: core.Var) -> int:
    aval: Any = variable.aval
    if not hasattr(aval, "shape"):
        return 0
    if jax.numpy.issubdtype(aval.dtype, jax.dtypes.extended):  # random keys
        return 16 * math.prod(aval.shape)
    return np.dtype(aval.dtype).itemsize * math.prod(aval.shape)
