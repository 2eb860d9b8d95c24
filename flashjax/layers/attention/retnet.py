"""Retention: a fixed decay for each head (Sun et al. 2023, "Retentive Network").

    S_t = g_h S_{t-1} + k_t v_t^T,    o_t = q_t S_t / sqrt(D),    g_h = 1 - 2^(-5 - h),  h = 0 .. H - 1

The paper's rotation of q and k is the block's (position "rope"), and so are its norm of each head and its gate.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array

from flashjax.layers.attention.decayed import Decayed, Terms


@dataclass(frozen=True)
class RetNet(Decayed):
    """Multi-scale retention. The paper's further normalisers, which the norm of each head undoes, are left out."""

    name: ClassVar[str] = "retnet"

    def terms(self, q: Array, k: Array, **inputs: Any) -> Terms:
        H, D = q.shape[-2:]
        log_decay = jnp.asarray([math.log1p(-(2.0 ** (-5 - h))) for h in range(H)], q.dtype)
        return Terms(q * D**-0.5, k, log_decay)
