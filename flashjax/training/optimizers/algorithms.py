"""The algorithms by name. Each is one chain, in the order of its update: the chain shows where the decay enters.

Optax does the work wherever it has it. The arguments that an algorithm takes, and their defaults, are those of its
function here; all else is as its source has it.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optax

chain = optax.chain


@dataclass(frozen=True)
class Parts:
    """What every algorithm is composed with."""

    decay: optax.GradientTransformation
    """Adds weight decay times the parameter, where there is any to add."""
    rate: optax.GradientTransformation
    """Multiplies by minus the learning rate of the update and of the parameter."""
    scheduled_decay: optax.GradientTransformation
    """Subtracts weight decay times the schedule's multiplier times the parameter."""


Build = Callable[..., optax.GradientTransformation]


@dataclass(frozen=True)
class Algorithm:
    """A row of `ALGORITHMS`."""

    build: Build
    """(parts, arguments by name) to the transformation of gradients to changes of the parameters."""
    source: str
    decay: str | None
    """What the weight decay is; None where there is none."""
    weight_decay: float = 0.0
    """Default."""

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments that it takes, with their defaults."""
        return {
            p.name: p.default for p in inspect.signature(self.build).parameters.values() if p.kind is p.KEYWORD_ONLY
        }


def adam(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.rate)


def adam_l2(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(parts.decay, optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.rate)


def adamw(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.decay, parts.rate)


def adamw_paper(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.rate, parts.scheduled_decay)


def sgd(parts: Parts, *, momentum=0.0, nesterov=False, mu_dtype=None):
    still = isinstance(momentum, float) and momentum == 0
    trace = optax.identity() if still else optax.trace(momentum, nesterov, accumulator_dtype=mu_dtype)
    return chain(parts.decay, trace, parts.rate)


GRADIENT = "added to the gradient, before the moments (L2)"
RATE = "times the learning rate of the update"
SCHEDULE = "times the schedule's multiplier, not the peak learning rate"

ALGORITHMS: dict[str, Algorithm] = {
    "adamw": Algorithm(adamw, "Loshchilov and Hutter 2017, as PyTorch and Optax have it", RATE, weight_decay=0.05),
    "adamw_paper": Algorithm(adamw_paper, "Loshchilov and Hutter 2017, Algorithm 2", SCHEDULE),
    "adam": Algorithm(adam, "Kingma and Ba 2014", None),
    "adam_l2": Algorithm(adam_l2, "Kingma and Ba 2014, PyTorch's Adam(weight_decay)", GRADIENT),
    "sgd": Algorithm(sgd, "Sutskever et al. 2013, PyTorch's form: the momentum holds gradients, not steps", GRADIENT),
}
