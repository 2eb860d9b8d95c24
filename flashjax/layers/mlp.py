"""The perceptrons of transformer blocks."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float

from flashjax.ops.dense import dot_general
from flashjax.ops.gate import product_of
from flashjax.ops.loop import keep


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x (1 + erf(x / sqrt 2)) / 2 (Hendrycks and Gimpel 2016).

    As torch computes it. `jax.nn.gelu` takes erfc, which keeps digits where the result is below 1e-6 and, with its
    gradient, costs twice the time on a CPU.
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


class Mlp(nn.Module):
    """Dense, exact (erf) GELU, Dense, with dropout after each. `hidden` is the inner width."""

    hidden: int
    drop_rate: float = 0.0
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "... C"], train: bool = False) -> Float[Array, "... C"]:
        width = x.shape[-1]
        drop = nn.Dropout(self.drop_rate, deterministic=not train)
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        x = keep(dense(self.hidden, dot_general=dot_general, name="fc1")(x))
        if self.drop_rate and train:
            x, product = drop(gelu(x)), dot_general
        else:
            product = product_of(gelu)
        return drop(keep(dense(width, dot_general=product, name="fc2")(x)))


def relu2(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """max(x, 0)^2 (So et al. 2021, "Primer")."""
    return jnp.square(jax.nn.relu(x))


_GELU_TANH = functools.partial(jax.nn.gelu, approximate=True)
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], bool]] = {
    "gelu": (gelu, False),  # the exact one, by erf
    "gelu_tanh": (_GELU_TANH, False),  # GPT-2
    "relu": (jax.nn.relu, False),
    "relu2": (relu2, False),
    "silu": (jax.nn.silu, False),
    "swiglu": (jax.nn.silu, True),  # Llama, Qwen
    "geglu": (gelu, True),
    "geglu_tanh": (_GELU_TANH, True),
    "reglu": (jax.nn.relu, True),
}
"""name: (function, whether it is gated: f(x W_gate) * (x W_up))."""


class FeedForward(nn.Module):
    """f(x W_up) W_down, or (f(x W_gate) * (x W_up)) W_down for a gated activation (Shazeer 2020)."""

    hidden: int
    activation: str = "gelu"
    use_bias: bool = True
    dropout_rate: float = 0.0
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    out_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"], train: bool = False) -> Float[Array, "B N C"]:
        activate, has_gate = ACTIVATIONS[self.activation]

        def dense(width: int, name: str, init: nn.initializers.Initializer, product: Any = dot_general) -> nn.Dense:
            options: dict[str, Any] = {"use_bias": self.use_bias, "dtype": self.dtype, "dot_general": product}
            return nn.Dense(width, kernel_init=init, name=name, **options)

        names = ("batch", "length" if x.shape[1] > 1 else None, "mlp")
        hidden = dense(self.hidden, "up", self.kernel_init)(x)
        gate = dense(self.hidden, "gate", self.kernel_init)(x) if has_gate else None
        product = product_of(activate, gate, lambda y: with_logical_constraint(y, names))
        x_out = dense(x.shape[-1], "down", self.out_init, product)(hidden)
        return nn.Dropout(self.dropout_rate, deterministic=not train)(x_out)
