"""The algorithms by name. Each is one chain, in the order of its update: the chain shows where the decay enters.

Optax does the work wherever it has it. The arguments that an algorithm takes, and their defaults, are those of its
function here; all else is as its source has it.
"""

import inspect
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import optax
from optax import chain
from optax.contrib import MuonDimensionNumbers

from flashjax.training.optimizers.transforms import scale_by_adan, scale_by_gradient_norm, scale_by_nadam


@dataclass(frozen=True)
class Parts:
    """What every algorithm is composed with."""

    decay: optax.GradientTransformation
    """Adds weight decay times the parameter."""
    rate: optax.GradientTransformation
    """Multiplies by minus the learning rate, of the update and of the parameter."""
    scheduled_decay: optax.GradientTransformation
    """Subtracts weight decay times the schedule's multiplier times the parameter."""
    schedule: optax.Schedule
    """The learning rate alone."""
    matrices: Any
    """Tree of the parameters with 'matrix' at the kernels of blocks, 'other' elsewhere."""
    by_layer: Callable[[optax.GradientTransformation], optax.GradientTransformation]
    """Makes a transformation that looks at whole tensors take scanned layers one by one."""


Build = Callable[..., optax.GradientTransformation]

NONE = "none: an error"
GRADIENT = "added to the gradient, before the moments (L2)"
RATE = "times the learning rate of the update"
SCHEDULE = "times the schedule's multiplier, not the peak learning rate"
TRUST = "added to Adam's direction, before the trust ratio"
MOMENTUM = "added to the normalised gradient, before the momentum"


@dataclass(frozen=True)
class Algorithm:
    """A row of `ALGORITHMS`."""

    build: Build
    """(parts, arguments by name) to the transformation of gradients to changes of the parameters."""
    source: str
    decay: str = RATE
    """What the weight decay is."""
    weight_decay: float = 0.0
    """Default."""
    averages: bool = False
    """Has parameters of its own for evaluation (schedule-free), and wants a constant learning rate."""
    scales: bool = True
    """Learning rates may differ between parameters."""

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The arguments that it takes, with their defaults."""
        taken = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in taken if p.kind is p.KEYWORD_ONLY}


def adamw(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.decay, parts.rate)


def adamw_paper(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.rate, parts.scheduled_decay)


def adam(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.rate)


def adam_l2(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(parts.decay, optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.rate)


def sgd(parts: Parts, *, momentum=0.0, nesterov=False, mu_dtype=None):
    return chain(parts.decay, _trace(momentum, nesterov, mu_dtype), parts.rate)


def nadam(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(parts.decay, scale_by_nadam(b1, b2, eps, mu_dtype=mu_dtype), parts.rate)


def nadamw(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    return chain(scale_by_nadam(b1, b2, eps, mu_dtype=mu_dtype), parts.decay, parts.rate)


def radam(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8):
    return chain(parts.decay, optax.scale_by_radam(b1, b2, eps), parts.rate)


def adamax(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8):
    return chain(parts.decay, optax.scale_by_adamax(b1, b2, eps), parts.rate)


def adagrad(parts: Parts, *, eps=1e-10):
    scaled = optax.scale_by_rss(initial_accumulator_value=0.0, eps=eps**2)  # inside the root, PyTorch's stands outside
    return chain(parts.decay, scaled, parts.rate)


def rmsprop(parts: Parts, *, b2=0.99, eps=1e-8, momentum=0.0, mu_dtype=None):
    scaled = optax.scale_by_rms(b2, eps, eps_in_sqrt=False)
    return chain(parts.decay, scaled, _trace(momentum, False, mu_dtype), parts.rate)


def adabelief(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-16):
    return chain(optax.scale_by_belief(b1, b2, eps, eps_root=eps), parts.decay, parts.rate)


def adan(parts: Parts, *, b1=0.98, b2=0.92, b3=0.99, eps=1e-8):
    return chain(scale_by_adan(b1, b2, b3, eps), parts.decay, parts.rate)


def lion(parts: Parts, *, b1=0.9, b2=0.99, mu_dtype=None):
    return chain(optax.scale_by_lion(b1, b2, mu_dtype=mu_dtype), parts.decay, parts.rate)


def muon(parts: Parts, *, momentum=0.95, nesterov=True, b1=0.9, b2=0.999, eps=1e-8, mu_dtype=None):
    directions: dict[Hashable, optax.GradientTransformation] = {
        "matrix": parts.by_layer(_orthogonal(momentum, nesterov, mu_dtype)),
        "other": optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype),
    }
    return chain(optax.partition(directions, parts.matrices), parts.decay, parts.rate)


def adafactor(parts: Parts):
    scaled = chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms(1e-3))
    return chain(parts.by_layer(scaled), parts.decay, parts.rate)


def lamb(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-6, mu_dtype=None):
    trust = parts.by_layer(optax.scale_by_trust_ratio())
    return chain(optax.scale_by_adam(b1, b2, eps, mu_dtype=mu_dtype), parts.decay, trust, parts.rate)


def lars(parts: Parts, *, momentum=0.9, nesterov=False, mu_dtype=None):
    trust = parts.by_layer(optax.scale_by_trust_ratio(trust_coefficient=0.001))
    return chain(parts.decay, trust, parts.rate, _trace(momentum, nesterov, mu_dtype))


def novograd(parts: Parts, *, b1=0.95, b2=0.98, eps=1e-8, mu_dtype=None):
    normalised = parts.by_layer(scale_by_gradient_norm(b2, eps))
    return chain(normalised, parts.decay, _trace(b1, False, mu_dtype), parts.rate)


def schedule_free_adamw(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8):
    scaled = optax.scale_by_rms(b2, eps, eps_in_sqrt=False, bias_correction=True)
    return optax.contrib.schedule_free(chain(scaled, parts.decay, parts.rate), parts.schedule, b1)


def prodigy(parts: Parts, *, b1=0.9, b2=0.999, eps=1e-8):
    return optax.contrib.prodigy(parts.schedule, (b1, b2), eps=eps)


def _trace(momentum: Any, nesterov: bool, mu_dtype: Any) -> optax.GradientTransformation:
    if isinstance(momentum, float) and momentum == 0:
        return optax.identity()  # no accumulator
    return optax.trace(momentum, nesterov, accumulator_dtype=mu_dtype)


def _orthogonal(momentum: Any, nesterov: bool, mu_dtype: Any) -> optax.GradientTransformation:
    """Muon's direction of kernels [..., in, out], times sqrt(max(1, out / in)); all dims but the last are inputs."""

    def dims(tree: Any) -> Any:
        return jax.tree.map(lambda x: MuonDimensionNumbers(tuple(range(x.ndim - 1)), x.ndim - 1), tree)

    def widen(direction: Any, param: Any) -> Any:
        outputs, inputs = direction.shape[-1], direction.size // direction.shape[-1]
        return direction * max(1.0, outputs / inputs) ** 0.5

    made = optax.contrib.scale_by_muon(
        beta=momentum, mu_dtype=mu_dtype, nesterov=nesterov, weight_dimension_numbers=dims
    )
    return chain(made, optax.stateless_with_tree_map(widen))


ALGORITHMS: dict[str, Algorithm] = {
    "adamw": Algorithm(adamw, "Loshchilov and Hutter 2017, as PyTorch and Optax have it", weight_decay=0.05),
    "adamw_paper": Algorithm(adamw_paper, "Loshchilov and Hutter 2017, Algorithm 2", SCHEDULE),
    "adam": Algorithm(adam, "Kingma and Ba 2014", NONE),
    "adam_l2": Algorithm(adam_l2, "Kingma and Ba 2014; PyTorch's Adam(weight_decay)", GRADIENT),
    "sgd": Algorithm(sgd, "Sutskever et al. 2013, in PyTorch's form", GRADIENT),
    "nadam": Algorithm(nadam, "Dozat 2016, with the schedule of its momentum, as PyTorch", GRADIENT),
    "nadamw": Algorithm(nadamw, "Dozat 2016; PyTorch's NAdam(decoupled_weight_decay)"),
    "radam": Algorithm(radam, "Liu et al. 2019", GRADIENT),
    "adamax": Algorithm(adamax, "Kingma and Ba 2014, section 7.1", GRADIENT),
    "adagrad": Algorithm(adagrad, "Duchi et al. 2011, the sum beginning at 0, as PyTorch", GRADIENT),
    "rmsprop": Algorithm(rmsprop, "Tieleman and Hinton 2012, as PyTorch", GRADIENT),
    "adabelief": Algorithm(adabelief, "Zhuang et al. 2020, without rectification"),
    "adan": Algorithm(adan, "Xie et al. 2022, the decay not proximal"),
    "lion": Algorithm(lion, "Chen et al. 2023"),
    "muon": Algorithm(muon, "Jordan 2024: kernels of blocks; all else by Adam"),
    "adafactor": Algorithm(adafactor, "Shazeer and Stern 2018, the rate relative to the parameter's RMS"),
    "lamb": Algorithm(lamb, "You et al. 2019, every tensor adapted", TRUST),
    "lars": Algorithm(lars, "You et al. 2017, every tensor adapted", GRADIENT),
    "novograd": Algorithm(novograd, "Ginsburg et al. 2019", MOMENTUM),
    "schedule_free_adamw": Algorithm(schedule_free_adamw, "Defazio et al. 2024", averages=True),
    "prodigy": Algorithm(prodigy, "Mishchenko and Defazio 2023: the rate multiplies its own (1)", NONE, scales=False),
}
