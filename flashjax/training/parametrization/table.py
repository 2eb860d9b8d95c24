"""A table says of each parameter, by its path, how it is drawn, multiplied, and trained.

It is resolved from ordered rules, first match wins; what a rule sees of a parameter is a `Tensor`: of scanned layers,
one layer. Only shapes are read.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from flashjax.layers import initializers
from flashjax.training.optimizers.groups import check_found, leaves_by_path
from flashjax.training.optimizers.layers import stack_depth

PyTree = Any
Distribution = Literal["model", "normal", "truncated_normal", "uniform", "orthogonal", "zeros", "ones"]

LEAVES_BRANCH = r"(^|/)(attn/(out|proj)|mlp/(down|fc2)|gau/out)/kernel$"
"""The kernel that ends a residual branch, in any Transformer here."""
CONV_OF_BRANCH = r"(^|/)block_\d+/conv(\d+)/kernel$"
"""Of a residual network's blocks, counted from 1."""
_HEADS = ((re.compile(r"(^|/)(query|key|value)/kernel$"), 1), (re.compile(r"(^|/)out/kernel$"), 2))
"""Kernels that may be written with a dim of heads, [C, H, D] and [H, D, C], and how many of their dims are inputs."""


class ParametrizationError(ValueError):
    """A table that does not fit its model, or a model its table."""


@dataclass(frozen=True)
class Leaf:
    """One parameter: what the model sees is `multiplier` times the parameter that is drawn, trained and stored."""

    distribution: Distribution = "model"
    """What it is drawn from; model: what the model itself draws."""
    std: float | None = None
    """Deviation of what is drawn; None: the model's own."""
    multiplier: float = 1.0
    """A constant. Under Adam the parameter that the model sees moves by learning rate x multiplier a step; under SGD by
    learning rate x multiplier^2 x its gradient."""
    learning_rate: float = 1.0
    """Multiplies the learning rate (and with it decoupled decay)."""
    decay: float = 1.0
    """Multiplies the weight decay."""

    def __post_init__(self):
        if self.distribution not in get_args(Distribution):
            raise ParametrizationError(
                f"unknown distribution {self.distribution!r}; choose from {', '.join(get_args(Distribution))}"
            )
        drawn = self.distribution in initializers.DISTRIBUTIONS
        if drawn != (self.std is not None):
            raise ParametrizationError(
                f"distribution {self.distribution!r} {'needs a' if drawn else 'has no'} std, found {self.std}"
            )
        if self.std is not None and not self.std > 0:
            raise ParametrizationError(f"std is {self.std}: it must be positive; what begins at 0 is 'zeros'")
        if self.multiplier == 0:
            raise ParametrizationError("multiplier is 0: the parameter could never be learned; draw it from 'zeros'")


Table = Mapping[str, Leaf]
"""By '/'-joined path, in the order of the parameters."""


@dataclass(frozen=True)
class Facts:
    """What a rule may ask of the model as a whole."""

    branches: int
    """Residual branches: two a block of a Transformer, one a gated unit or a block of a residual network; 0: none."""
    width: int | None
    """Channels of the token embedding, where there is one."""
    tied: bool
    """The head is that embedding."""
    head_dim: int | None = None
    """Channels of an attention head, where they are the same everywhere."""
    convs: int = 0
    """Convolutions of a residual network's branch."""


@dataclass(frozen=True)
class Tensor:
    """What a rule sees of a parameter."""

    path: str
    shape: tuple[int, ...]
    """Of one layer, where layers are scanned."""
    model: Facts

    @property
    def heads(self) -> int | None:
        """Of a kernel with a dim of heads, how many of its leading dims are inputs."""
        found = (count for pattern, count in _HEADS if len(self.shape) == 3 and pattern.search(self.path))
        return next(found, None)

    @property
    def matrix(self) -> tuple[int, int]:
        """(rows, columns) of a kernel as the one matrix that it is: inputs (taps of a convolution among them), outputs.

        Raises ParametrizationError for vectors and scalars.
        """
        if len(self.shape) < 2:
            raise ParametrizationError(f"{self.path} {self.shape} is no kernel: it has no fan-in, give it another rule")
        inputs = self.heads or len(self.shape) - 1
        return math.prod(self.shape[:inputs]), math.prod(self.shape[inputs:])

    @property
    def fans(self) -> tuple[int, int]:
        """(fan-in, fan-out), as `initializers.fans` counts them; raises as `matrix` does."""
        return self.matrix if self.heads else (self.matrix[0], initializers.fans(self.shape)[1])

    def std(self, scheme: initializers.Scheme) -> float:
        """The deviation that a scheme gives to this kernel."""
        return initializers.fan_std(scheme, *self.fans)

    def ask(self, fact: Literal["branches", "width", "head_dim"]) -> int:
        """A fact of the model; raises ParametrizationError where it has none."""
        value = getattr(self.model, fact)
        if not value:
            raise ParametrizationError(
                f"the rule for {self.path} asks for the model's {fact}, and it has none: {_WHAT[fact]}"
            )
        return value


_WHAT = {
    "branches": f"no kernel's path holds {LEAVES_BRANCH} or {CONV_OF_BRANCH}",
    "width": "no parameter is embed/embedding",
    "head_dim": "its configuration names no head_width",
}


def tensors(params: PyTree, head_dim: int | None = None) -> dict[str, Tensor]:
    """A `Tensor` for each leaf of `params` (abstract will do), by its path."""
    leaves = leaves_by_path(params)
    ends = [stack_depth(path, leaf) or 1 for path, leaf in leaves.items() if re.search(LEAVES_BRANCH, path)]
    width = next((leaf.shape[1] for path, leaf in leaves.items() if path.endswith("embed/embedding")), None)
    tied = width is not None and not any(path.endswith("head/kernel") for path in leaves)
    convs = [int(found[2]) for path in leaves if (found := re.search(CONV_OF_BRANCH, path))]
    facts = Facts(sum(ends) + convs.count(1), width, tied, head_dim, max(convs, default=0))
    return {
        path: Tensor(path, tuple(leaf.shape[bool(stack_depth(path, leaf)) :]), facts) for path, leaf in leaves.items()
    }


@dataclass(frozen=True)
class Rule:
    """`leaf` of every tensor in whose path `pattern` is found (`re.search`) and that no rule before took."""

    pattern: str
    leaf: Callable[[Tensor], Leaf]
    accept_unmatched: bool = False
    """A rule shared by several models may match nothing in one of them."""


Rules = Sequence[Rule]


def resolve(rules: Rules, parameters: Mapping[str, Tensor]) -> dict[str, Leaf]:
    """The table that `rules` make of the parameters.

    Raises ParametrizationError for a parameter that no rule matches, and ValueError for a rule that matches none, with
    the nearest paths.
    """
    table, used = {}, set()
    for path, tensor in parameters.items():
        rule = next((rule for rule in rules if re.search(rule.pattern, path)), None)
        if rule is None:
            patterns = ", ".join(repr(rule.pattern) for rule in rules)
            raise ParametrizationError(f"no rule matches {path!r}; there are {patterns or 'no rules'}")
        used.add(id(rule))
        table[path] = rule.leaf(tensor)
    unused = [rule.pattern for rule in rules if id(rule) not in used and not rule.accept_unmatched]
    check_found("rule", unused, parameters)
    if unused:
        raise ParametrizationError(f"rule {unused[0]!r} is the first match of no parameter: move it up, or remove it")
    return table


def columns(table: Table) -> dict[str, dict[str, str]]:
    """Columns for the table of parameters, by header, as text by path: distribution, deviation, multiplier.

    (Rates and decay stand beside, with what the optimizer's groups make of them.)
    """
    return {
        "drawn from": {path: leaf.distribution for path, leaf in table.items()},
        "std": {path: "" if leaf.std is None else f"{leaf.std:.4g}" for path, leaf in table.items()},
        "multiplier": {path: f"{leaf.multiplier:.4g}" for path, leaf in table.items()},
    }
