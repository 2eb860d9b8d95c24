"""cosFormer: weights that fall with distance as a cosine (Qin et al. 2022, "cosFormer").

    w_ij = relu(q_i).relu(k_j) cos(pi/2 (i - j) / M)
         = (relu(q_i) cos a_i).(relu(k_j) cos a_j) + (relu(q_i) sin a_i).(relu(k_j) sin a_j),    a_i = pi/2 i / M

over which o_i is the mean of v_j; a sum of weights below eps counts as eps (the authors' code).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from flashjax.layers.attention.base import Keys, Outputs, Queries, Segments, Values
from flashjax.layers.attention.kernel import Kernel


class Horizon(nn.Module):
    """M, the longest sequence of a model. Raises ValueError for one that is longer."""

    length: int

    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Array]:
        if x.shape[1] > self.length:
            raise ValueError(
                f"{x.shape[1]} tokens, but cosformer's weights are made for {self.length}: raise max_length"
            )
        return {"horizon": jnp.asarray(self.length, jnp.float32)}


@dataclass(frozen=True)
class Cosformer(Kernel):
    """The input `horizon` is M, no shorter than any sequence; without it, the length of what is given (a state's: its
    capacity)."""

    name: ClassVar[str] = "cosformer"
    rotary: ClassVar[bool] = False
    bounded: ClassVar[bool] = True
    shared_inputs: ClassVar[tuple[str, ...]] = ("horizon",)

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module:
        return Horizon(length)

    def query_features(self, q: Array, positions: Array, *, horizon: Array) -> Array:
        a = (jnp.pi / 2 * positions / jnp.reshape(horizon, (-1,) + (1,) * (positions.ndim - 1)))[..., None, None]
        x = jax.nn.relu(q)
        return jnp.concatenate([x * jnp.cos(a), x * jnp.sin(a)], -1)

    def key_features(self, k: Array, positions: Array, level: Array | None, *, horizon: Array) -> Array:
        return self.query_features(k, positions, horizon=horizon)

    def width(self, head_dim: int) -> int:
        return 2 * head_dim

    def normalise(self, o: Float[Array, "... E"], n: Float[Array, "..."]) -> Float[Array, "... E"]:
        return o / jnp.maximum(n, self.eps)[..., None]

    def reference(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        horizon: Array | None = None,
    ) -> Outputs:
        horizon = jnp.asarray(q.shape[1], jnp.float32) if horizon is None else horizon
        return super().reference(q, k, v, causal=causal, segment_ids=segment_ids, horizon=horizon)

    def parallel(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        horizon: Array | None = None,
    ) -> Outputs:
        horizon = jnp.asarray(q.shape[1], jnp.float32) if horizon is None else horizon
        return super().parallel(q, k, v, causal=causal, segment_ids=segment_ids, horizon=horizon)

    def initial_state(self, batch: int, heads: int, head_dim: int, value_dim: int, capacity: int) -> dict[str, Array]:
        state = super().initial_state(batch, heads, head_dim, value_dim, capacity)
        return state | {"horizon": jnp.full((batch,), float(capacity))}

    def prefill(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        valid: Bool[Array, "B N"],
        state: dict[str, Array],
        horizon: Array | None = None,
    ) -> tuple[dict[str, Array], Outputs]:
        return super().prefill(q, k, v, valid, state, horizon=state["horizon"] if horizon is None else horizon)

    def step(
        self,
        state: dict[str, Array],
        q: Float[Array, "B H D"],
        k: Float[Array, "B H D"],
        v: Float[Array, "B H E"],
        horizon: Array | None = None,
    ) -> tuple[dict[str, Array], Float[Array, "B H E"]]:
        return super().step(state, q, k, v, horizon=state["horizon"] if horizon is None else horizon)
