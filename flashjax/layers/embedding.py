"""From tokens to channels and back: tables of embeddings and the head over the vocabulary."""

import jax.numpy as jnp
from flax import linen as nn
from flax.typing import Initializer
from jaxtyping import Array, Float

from flashjax.layers.initializers import NORMAL
from flashjax.ops.dense import dot_general


class Table(nn.Module):
    """An embedding [rows, channels] to be looked up, or multiplied with."""

    rows: int
    channels: int

    @nn.compact
    def __call__(self) -> Float[Array, "rows channels"]:
        # Loaded weights may be numpy's, which a traced index cannot look up.
        return jnp.asarray(self.param("embedding", NORMAL, (self.rows, self.channels)))


class Head(nn.Module):
    """Logits of `vocab_size` V tokens by a kernel of its own, float32."""

    vocab_size: int
    kernel_init: Initializer
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*b C"]) -> Float[Array, "*b V"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.vocab_size))
        logits = project(x, jnp.asarray(kernel))
        return logits + self.param("bias", nn.initializers.zeros, (self.vocab_size,)) if self.use_bias else logits


def project(x: Float[Array, "*b C"], kernel: Float[Array, "C V"]) -> Float[Array, "*b V"]:
    """x kernel, multiplied in x's dtype, added up in float32."""
    numbers = (((x.ndim - 1,), (0,)), ((), ()))
    return dot_general(x, kernel.astype(x.dtype), numbers, preferred_element_type=jnp.float32)
