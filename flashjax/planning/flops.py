"""FLOPs counted from a jaxpr: what the program asks for, before any compiler touches it.

A compiled program's cost analysis counts a scanned body once, and its counts depend on the backend; the jaxpr has the
length of each scan, and is the same everywhere. A multiply-add is two FLOPs. Nothing is divided by the devices of a
mesh: the count is of the whole computation. Recomputation under remat is in the jaxpr and is counted, so utilisation
from these counts is of the hardware, not of the model, wherever something is recomputed.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

# fmt: off
ELEMENTWISE = frozenset({
    "abs", "add", "add_any", "atan2", "cbrt", "ceil", "clamp", "cos", "cosh", "div", "erf", "erf_inv", "erfc", "exp",
    "exp2", "expm1", "floor", "integer_pow", "lgamma", "log", "log1p", "logistic", "max", "min", "mul", "neg",
    "nextafter", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "sub", "tan",
    "tanh",
})
"""One FLOP an element of the result, whatever the function."""
REDUCTIONS = frozenset({
    "argmax", "argmin", "cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum", "reduce_max", "reduce_min",
    "reduce_prod", "reduce_sum",
})
"""One FLOP an element of the operand."""
# fmt: on


def flops_by_primitive(
    fn: Callable[..., Any], *args: Any, elementwise: bool = False, while_iterations: int = 1
) -> dict[str, int]:
    """FLOPs of `fn(*args)` by primitive name, the largest first.

    `args` may be arrays or `jax.ShapeDtypeStruct`s, with any tree around them; nothing is run. Counted are
    `dot_general` and `conv_general_dilated`, and with `elementwise` also `ELEMENTWISE` and `REDUCTIONS`. Bodies count
    thus: scan times its length; cond as its most expensive branch; a loop of unknown length (`while`, which is also
    what `fori_loop` with traced bounds becomes) times `while_iterations`; shard_map times the devices that it runs on;
    a Pallas kernel times its grid; jit, remat and custom derivatives once. Factorisations, FFTs, sorts and whatever
    foreign calls hide are not counted.
    """
    closed = jax.make_jaxpr(fn)(*args)
    counts = flops_by(closed, lambda equation, stack: equation.primitive.name, elementwise, while_iterations)
    return {name: count for name, count in counts.most_common() if count}


def flops_by(
    closed: core.ClosedJaxpr, key: "Key", elementwise: bool = False, while_iterations: int = 1
) -> Counter[Any]:
    """FLOPs as `flops_by_primitive` counts them, by what `key` makes of an equation and its stack of names.

    The stack is the equation's own under those of the equations that hold it, '/'-joined.
    """
    return _count(closed.jaxpr, key, "", elementwise, while_iterations)


def count_flops(fn: Callable[..., Any], *args: Any, elementwise: bool = False, while_iterations: int = 1) -> int:
    """FLOPs of `fn(*args)`: the sum of `flops_by_primitive`, where what is counted is said."""
    return sum(flops_by_primitive(fn, *args, elementwise=elementwise, while_iterations=while_iterations).values())


Key = Callable[[core.JaxprEqn, str], Any]


def _count(jaxpr: core.Jaxpr, key: Key, above: str, elementwise: bool, while_iterations: int) -> Counter[Any]:
    total: Counter[Any] = Counter()
    for equation in jaxpr.eqns:
        name, params, stack = equation.primitive.name, equation.params, stack_of(equation, above)

        def inner(body: core.Jaxpr | core.ClosedJaxpr, stack: str = stack) -> Counter[Any]:
            open_body = body.jaxpr if isinstance(body, core.ClosedJaxpr) else body
            return _count(open_body, key, stack, elementwise, while_iterations)

        if name == "dot_general":
            total[key(equation, stack)] += _dot_general(equation)
        elif name == "conv_general_dilated":
            total[key(equation, stack)] += _convolution(equation)
        elif name == "cond":
            total += max((inner(branch) for branch in params["branches"]), key=lambda c: c.total(), default=Counter())
        elif name == "while":
            total += _times(inner(params["cond_jaxpr"]) + inner(params["body_jaxpr"]), while_iterations)
        elif bodies := bodies_of(equation):
            # Derivative rules of custom_jvp and custom_vjp are held as functions: the one jaxpr is the primal's.
            for body in bodies:
                total += _times(inner(body), repeats(equation))
        elif elementwise and name in ELEMENTWISE:
            total[key(equation, stack)] += sum(math.prod(_shape(out)) for out in equation.outvars)
        elif elementwise and name in REDUCTIONS:
            total[key(equation, stack)] += math.prod(_shape(equation.invars[0]))
    return total


def _dot_general(equation: core.JaxprEqn) -> int:
    """2 x the elements of the result x the contracted sizes."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = _shape(equation.invars[0])
    return 2 * math.prod(_shape(equation.outvars[0])) * math.prod(left[dim] for dim in contracted)


def _convolution(equation: core.JaxprEqn) -> int:
    """2 x the elements of the result x the taps that each reads, taps on padding among them.

    The gradient of a strided convolution reads an operand dilated with zeros; only one tap in the product of
    `lhs_dilation` falls on an element, so it is counted as about the convolution itself, and not as a dense one.
    """
    kernel = _shape(equation.invars[1])
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    taps = math.prod(kernel) // out_features  # the kernel's in-features are those of one group
    return 2 * math.prod(_shape(equation.outvars[0])) * taps // math.prod(equation.params["lhs_dilation"])


def stack_of(equation: core.JaxprEqn, above: str = "") -> str:
    """The '/'-joined names under which an equation was traced, below those of the equation that holds it."""
    own = str(equation.source_info.name_stack)
    return f"{above}/{own}" if above and own else above or own


def repeats(equation: core.JaxprEqn) -> int:
    """How often an equation runs the jaxpr that it holds; a while loop, whose length is unknown, once."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return params["length"]
    if name == "shard_map":  # its body sees one device's shard
        mesh = params["mesh"]
        return math.prod(mesh.shape[axis] for axis in params["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    return 1


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def bodies_of(equation: core.JaxprEqn) -> list[core.Jaxpr | core.ClosedJaxpr]:
    """The jaxprs that an equation holds."""
    values = [
        item for value in equation.params.values() for item in (value if isinstance(value, tuple | list) else (value,))
    ]
    return [value for value in values if isinstance(value, core.Jaxpr | core.ClosedJaxpr)]


def _times(counts: Counter[Any], factor: int) -> Counter[Any]:
    return Counter({name: count * factor for name, count in counts.items()})
