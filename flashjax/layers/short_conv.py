"""The short convolution that linear mixers put before queries, keys and values."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int


class ShortConv(nn.Module):
    """Causal depthwise convolution of a few taps: y_t = sum_s w_s x_(t - taps + 1 + s), zeros before the start.

    Tokens of another segment count as zeros. The state for decoding is the last taps - 1 inputs, oldest first.
    Source: Fu et al. 2023 (H3); Gu and Dao 2023 (Mamba).
    """

    taps: int
    dtype: Any = jnp.float32

    def setup(self):
        if self.taps < 1:
            raise ValueError(f"taps must be 1 or more, found {self.taps}")

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B N C"],
        segment_ids: Int[Array, "B N"] | None = None,
        state: Float[Array, "B taps_1 C"] | None = None,
        valid: Bool[Array, "B N"] | None = None,
    ) -> tuple[Float[Array, "B N C"], Float[Array, "B taps_1 C"] | None]:
        """(output, state after the last valid token, or None where none was given)."""
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=0, out_axis=())
        kernel = self.param("kernel", init, (self.taps, x.shape[-1])).astype(self.dtype)
        N, past = x.shape[1], self.taps - 1
        if state is None:
            padded = jnp.pad(x, ((0, 0), (past, 0), (0, 0)))
        else:
            padded = jnp.concatenate([state.astype(x.dtype), x], 1)
        ids = None if segment_ids is None else jnp.pad(segment_ids, ((0, 0), (past, 0)))
        y = jnp.zeros(x.shape, self.dtype)
        for s in range(self.taps):
            tap = padded[:, s : s + N]
            if ids is not None and segment_ids is not None:
                tap = jnp.where((ids[:, s : s + N] == segment_ids)[..., None], tap, 0)
            y = y + kernel[s] * tap
        if state is None:
            return y, None
        # What is last in each row: [length, length + past) of the padded rows.
        length = jnp.full(x.shape[:1], N) if valid is None else valid.sum(1)
        last = jax.vmap(lambda row, at: jax.lax.dynamic_slice_in_dim(row, at, past, 0))(padded, length)
        return y, last.astype(state.dtype)
