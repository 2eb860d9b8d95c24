"""What keeps signals alike through activations and through depth: gains of functions, factors of residual stacks."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flashjax.layers.mlp import ACTIVATIONS

_POINTS = 128


@functools.lru_cache
def second_moment(activation: str | Callable[[Array], Array]) -> float:
    """E[f(z)^2] for z ~ N(0, 1), to six digits, by Gauss-Hermite quadrature.

    `activation` is a function, "tanh", or a name of `ACTIVATIONS`. Of a gated one it is E[(f(z) u)^2] with z and u
    independent, which is the same number.

    Raises ValueError for an unknown name.
    """
    if isinstance(activation, str):
        known = {name: f for name, (f, _) in ACTIVATIONS.items()} | {"tanh": jnp.tanh}
        if activation not in known:
            raise ValueError(f"unknown activation {activation!r}; choose from {', '.join(sorted(known))}")
        activation = known[activation]
    points, weights = np.polynomial.hermite_e.hermegauss(_POINTS)
    with jax.ensure_compile_time_eval():
        values = np.asarray(activation(jnp.asarray(points, jnp.float32)), np.float64)
    return float((weights * values**2).sum() / weights.sum())


def gain(activation: str | Callable[[Array], Array]) -> float:
    """What the deviation of a kernel after `activation` is multiplied by to keep second moments: sqrt(2) for ReLU."""
    return second_moment(activation) ** -0.5


@dataclass(frozen=True)
class DeepNorm:
    """Post-normalised residuals LN(alpha x + f(x)), and the gain beta of Xavier's kernels in feed-forward, values and
    attention's output (Wang et al. 2022, "DeepNet", table 2)."""

    alpha: float
    beta: float


def deepnorm(layers: int) -> DeepNorm:
    """Of an encoder alone or a decoder alone: alpha = (2 N)^(1/4), beta = (8 N)^(-1/4)."""
    _at_least_one("layers", layers)
    return DeepNorm((2 * layers) ** 0.25, (8 * layers) ** -0.25)


def deepnorm_pair(encoder: int, decoder: int) -> tuple[DeepNorm, DeepNorm]:
    """(encoder's, decoder's) of a model that has both, of N and M layers.

    Encoder: alpha = 0.81 (N^4 M)^(1/16), beta = 0.87 (N^4 M)^(-1/16); decoder: alpha = (3 M)^(1/4), beta =
    (12 M)^(-1/4).
    """
    _at_least_one("encoder", encoder)
    _at_least_one("decoder", decoder)
    both = float(encoder**4 * decoder) ** (1 / 16)
    return DeepNorm(0.81 * both, 0.87 / both), DeepNorm((3 * decoder) ** 0.25, (12 * decoder) ** -0.25)


def gpt2_residual(branches: int) -> float:
    """1 / sqrt(branches), for the kernels that leave a branch: 1 / sqrt(2 L) of L blocks (Radford et al. 2019)."""
    _at_least_one("branches", branches)
    return branches**-0.5


def fixup(branches: int, kernels: int) -> float:
    """L^(-1 / (2 m - 2)), of He's deviation, for all but the last of the m `kernels` of each of L branches.

    The last one begins at zero (Zhang et al. 2019).
    """
    _at_least_one("branches", branches)
    if kernels < 2:
        raise ValueError(f"kernels is {kernels}: Fixup scales those before a branch's last, so it needs 2 or more")
    return branches ** (-1 / (2 * kernels - 2))


def t_fixup_encoder(layers: int) -> float:
    """0.67 N^(-1/4), for an encoder's feed-forward, values and attention's output (Huang et al. 2020)."""
    _at_least_one("layers", layers)
    return 0.67 * layers**-0.25


def t_fixup_decoder(layers: int) -> float:
    """(9 M)^(-1/4), for a decoder's feed-forward, values and attention's output, and for embeddings."""
    _at_least_one("layers", layers)
    return (9 * layers) ** -0.25


def layerscale(layers: int) -> float:
    """What each channel of a branch is multiplied by at the start: 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond.

    Source: Touvron et al. 2021 (CaiT), section 2.
    """
    _at_least_one("layers", layers)
    return 0.1 if layers <= 18 else 1e-5 if layers <= 24 else 1e-6


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, found {value}")
