"""FLOPs counted from a jaxpr: what the program asks for, before any compiler touches it.

A compiled program's cost analysis counts a scanned body once, and its counts depend on the backend; the jaxpr has the
length of each scan, and is the same everywhere. A multiply-add is two FLOPs. Nothing is divided by the devices of a
mesh: the count is of the whole computation. Recomputation under remat is in the jaxpr and is counted, so utilisation
from these counts is of the hardware, not of the model, wherever something is recomputed.

A loop whose bounds are computed, as blocked attention's are from the number of a block, is a `while` that says no
length. Integers that depend on no argument are followed through the jaxpr (`planning.values`), a scan's turn by turn
where that is wanted, so that such bounds are known; `is_exact` says whether all are.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.extend import core

from flashjax.analysis.values import MOST, Known, Value, constant, is_followed, stacked, turns

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
    thus: scan times its length; cond as its most expensive branch; a `while` that counts up (what `fori_loop` with
    traced bounds becomes) times its turns where its bounds depend on no argument, any other times `while_iterations`;
    shard_map times the devices that it runs on; a Pallas kernel times its grid; jit, remat and custom derivatives once.
    What nothing in its own jaxpr reads is not counted, nor factorisations, FFTs, sorts and whatever foreign calls hide.
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
    return _Counting(key, elementwise, while_iterations).count(closed, "").counts


def is_exact(closed: core.ClosedJaxpr) -> bool:
    """Whether the turns of all loops around matrix products or convolutions are known; FLOPs are a lower bound else."""
    return _Counting(lambda *_: None).count(closed, "").exact


def turns_of_loops(closed: core.ClosedJaxpr) -> list[tuple[str, float | None]]:
    """Each `while` in the order of the jaxpr: (the stack under which it stands, its turns: the mean of all times that
    it is begun, None where they depend on an argument)."""
    counting = _Counting(lambda *_: None)
    counting.count(closed, "")
    loops = counting.loops.values()
    return [(stack, sum(times) / len(times) if times else None) for _, stack, times in loops]


def count_flops(fn: Callable[..., Any], *args: Any, elementwise: bool = False, while_iterations: int = 1) -> int:
    """FLOPs of `fn(*args)`: the sum of `flops_by_primitive`, where what is counted is said."""
    return sum(flops_by_primitive(fn, *args, elementwise=elementwise, while_iterations=while_iterations).values())


Key = Callable[[core.JaxprEqn, str], Any]


Body = core.Jaxpr | core.ClosedJaxpr


def _opened(body: Body) -> core.Jaxpr:
    return body.jaxpr if isinstance(body, core.ClosedJaxpr) else body


@dataclass
class _Found:
    counts: Counter[Any]
    exact: bool
    """No loop with something to count is of unknown length."""
    results: list[Value]


@dataclass
class _Counting:
    """One way to count; see `flops_by_primitive`."""

    key: Key
    elementwise: bool = False
    while_iterations: int = 1
    held: dict[tuple[core.Jaxpr, frozenset[str]], bool] = field(default_factory=dict)
    """What `_holds` has found."""
    loops: dict[int, tuple[core.JaxprEqn, str, list[int]]] = field(default_factory=dict)
    """Each `while`, the stack it stands under, and its turns as often as they were found."""

    def count(self, body: Body, above: str, given: Sequence[Value] = (), follow: bool = False) -> _Found:
        """Of `body`, whose arguments are `given`; with `follow` its results are wanted."""
        jaxpr = _opened(body)
        total: Counter[Any] = Counter()
        exact, known = True, Known()
        follow = follow or self._holds(jaxpr, _LOOPS)  # else nobody asks for values
        if follow:
            known.put(jaxpr.invars, given)
            if isinstance(body, core.ClosedJaxpr):
                known.put(jaxpr.constvars, [constant(const) for const in body.consts])
        for equation in _asked_for(jaxpr):
            name, params, stack = equation.primitive.name, equation.params, stack_of(equation, above)
            values = [known.value(v) for v in equation.invars] if follow else []
            if name == "dot_general":
                total[self.key(equation, stack)] += _dot_general(equation)
            elif name == "conv_general_dilated":
                total[self.key(equation, stack)] += _convolution(equation)
            elif name == "cond":
                found = [self.count(branch, stack, values[1:]) for branch in params["branches"]]
                total += max((f.counts for f in found), key=lambda c: c.total(), default=Counter())
                exact &= all(f.exact for f in found)
            elif name == "while":
                times, consts = turns(equation, values), params["cond_nconsts"]
                found_turns = self.loops.setdefault(id(equation), (equation, stack, []))[2]
                found_turns += [] if times is None else [times]
                test = self.count(params["cond_jaxpr"], stack, values[:consts])
                one = self.count(params["body_jaxpr"], stack, values[consts : consts + params["body_nconsts"]])
                counts = test.counts + one.counts
                total += _times(counts, self.while_iterations if times is None else times)
                exact &= one.exact and (times is not None or not counts)
            elif name == "scan":
                found = self._scan(
                    equation, stack, values, follow and any(is_followed(v.aval) for v in equation.outvars)
                )
                total += found.counts
                exact &= found.exact
                known.put(equation.outvars, found.results)
            elif bodies := bodies_of(equation):
                # Derivative rules of custom_jvp and custom_vjp are held as functions: the one jaxpr is the primal's.
                called = name in _CALLS
                for inner in bodies:
                    found = self.count(inner, stack, values if called else (), follow and called)
                    total += _times(found.counts, repeats(equation))
                    exact &= found.exact
                    known.put(equation.outvars, found.results if called else ())
            elif self.elementwise and name in ELEMENTWISE:
                total[self.key(equation, stack)] += sum(math.prod(_shape(out)) for out in equation.outvars)
            elif self.elementwise and name in REDUCTIONS:
                total[self.key(equation, stack)] += math.prod(_shape(equation.invars[0]))
            if follow:
                known.compute(equation, values)
        return _Found(total, exact, [known.value(v) for v in jaxpr.outvars] if follow else [])

    def _scan(self, equation: core.JaxprEqn, stack: str, values: list[Value], follow: bool) -> _Found:
        """Of all turns: one by one where it is known what tells them apart and a loop or results depend on that."""
        params, body = equation.params, equation.params["jaxpr"]
        consts, length = params["num_consts"], params["length"]
        first = consts + params["num_carry"]
        each = self.count(body, stack, values[:consts])
        alike = _Found(_times(each.counts, length), each.exact, [])
        follow = follow and not self._holds(body.jaxpr, _PRODUCTS)  # such as what is made of the numbers of blocks
        known = any(value is not None for value in values[consts:]) and 0 < length <= MOST
        if not known or (each.exact and not follow):
            return alike
        order = range(length)[:: -1 if params["reverse"] else 1]
        carry, rows = values[consts:first], values[first:]
        total: Counter[Any] = Counter()
        made: dict[int, list[Value]] = {}
        for turn in order:
            given = [*values[:consts], *carry, *(None if row is None else row[turn] for row in rows)]
            found = self.count(body, stack, given, follow)
            if not found.exact:
                return alike
            total += found.counts
            carry, made[turn] = found.results[: first - consts], found.results[first - consts :]
        return _Found(total, True, [*carry, *map(stacked, zip(*(made[i] for i in range(length)), strict=True))])

    def _holds(self, jaxpr: core.Jaxpr, names: frozenset[str]) -> bool:
        """Whether an equation of one of these primitives is somewhere in it."""
        if (jaxpr, names) not in self.held:
            self.held[jaxpr, names] = any(
                equation.primitive.name in names
                or any(self._holds(_opened(body), names) for body in bodies_of(equation))
                for equation in jaxpr.eqns
            )
        return self.held[jaxpr, names]


_LOOPS = frozenset({"while"})
_PRODUCTS = frozenset({"dot_general", "conv_general_dilated"})
_CALLS = frozenset(
    {"jit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call", "custom_vjp_call", "shard_map"}
)
"""Whose one body has their operands and results; a device's part of an array has another shape."""


def _asked_for(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """Its equations but those whose results nobody reads, which no compiler runs: a derivative that makes again what it
    needs traces the end of the function, too."""
    read = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
    asked = []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or not read.isdisjoint(equation.outvars):
            asked.append(equation)
            read.update(v for v in equation.invars if isinstance(v, core.Var))
    return asked[::-1]


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
