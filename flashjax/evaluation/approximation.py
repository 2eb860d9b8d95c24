"""How far random features are from the softmax attention that they stand for (Choromanski et al. 2020, figure 4).

Shapes: N tokens, D width of a head, M rows of the projection.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from flashjax.layers import attention
from flashjax.layers.attention.performer import SOFTMAX, draw
from flashjax.ops.attention import dot_product_attention


@dataclass(frozen=True)
class ErrorConfig:
    """Attention among random tokens, exactly and by random features."""

    features: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    """Numbers of rows; hyperbolic and trig have two features a row."""
    kernels: tuple[str, ...] = SOFTMAX
    """positive, hyperbolic, trig."""
    draws: int = 12
    """Projections that an error is the mean of."""
    length: int = 256
    """Tokens."""
    dim: int = 16
    """Width of a head."""
    scale: float = 0.5
    """Deviation of queries and keys (values: 1); larger ones make sharper attention."""


def errors(config: ErrorConfig, seed: int = 0) -> list[dict[str, Any]]:
    """One line a kernel, kind of rows and number of them: `error`, the mean of |o - exact| / |exact|, its `deviation`.

    Raises ValueError for a kernel that does not stand for the softmax.
    """
    if unknown := set(config.kernels) - set(SOFTMAX):
        raise ValueError(f"kernels {sorted(unknown)} do not stand for the softmax; choose from {', '.join(SOFTMAX)}")
    tokens_key, rows_key = jax.random.split(jax.random.key(seed))
    q, k, v = jax.random.normal(tokens_key, (3, 1, config.length, 1, config.dim))
    q, k = config.scale * q, config.scale * k
    exact = dot_product_attention(q, k, v)
    keys = jax.random.split(rows_key, config.draws)
    lines = []
    for kernel in config.kernels:
        for features in config.features:
            found = {kind: _errors(kernel, features, kind, q, k, v, exact, keys) for kind in (True, False)}
            lines += [
                {
                    "kernel": kernel,
                    "rows": "orthogonal" if orthogonal else "independent",
                    "features": features,
                    "error": float(np.mean(each)),
                    "deviation": float(np.std(each)),
                }
                for orthogonal, each in found.items()
            ]
    return lines


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _errors(
    kernel: str, features: int, orthogonal: bool, q: Array, k: Array, v: Array, exact: Array, keys: PRNGKeyArray
) -> Float[Array, "draws"]:
    mixer = attention.get("performer", features=features, kernel=kernel)

    def one(key: Array) -> Array:
        w = draw(key, features, q.shape[-1], orthogonal)
        o = mixer.parallel(q, k, v, causal=False, projection=w)
        return jnp.linalg.norm(o - exact) / jnp.linalg.norm(exact)

    return jax.lax.map(one, keys)
