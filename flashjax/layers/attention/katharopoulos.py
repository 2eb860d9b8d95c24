"""Linear attention with phi = elu + 1 (Katharopoulos et al. 2020, "Transformers are RNNs").

o_i = phi(q_i).S_i / (phi(q_i).z_i + eps),    S_i = sum_{j <= i} phi(k_j) v_j^T,  z_i = sum_{j <= i} phi(k_j)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
from jaxtyping import Array

from flashjax.layers.attention.kernel import Kernel


@dataclass(frozen=True)
class Katharopoulos(Kernel):
    """phi(x) = elu(x) + 1, of queries and keys alike; queries are not scaled. eps is that of the authors' code."""

    name: ClassVar[str] = "katharopoulos"

    def query_features(self, q: Array, positions: Array, **inputs: Any) -> Array:
        return jax.nn.elu(q) + 1

    def key_features(self, k: Array, positions: Array, level: Array | None, **inputs: Any) -> Array:
        return jax.nn.elu(k) + 1
