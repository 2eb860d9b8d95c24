"""Normalisation layers."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from flashjax.ops.again import after, again
from flashjax.ops.dense import by_token, scaled
from flashjax.ops.platform import on_one_cpu


class LayerNorm(nn.Module):
    """Layer normalisation over the last dim with float32 statistics; the result has `dtype`.

    The variance is the mean of squared deviations, as in torch: Flax's default (mean of squares less the squared mean)
    loses digits where the mean is large. Source: Ba et al. 2016.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", self.scale_init, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        if on_one_cpu():
            normal: Array = _scaled_here(True, self.epsilon, x, scale)
            return (normal + bias).astype(self.dtype)
        return (_standardised(x.astype(jnp.float32), (-1,), self.epsilon) * scale + bias).astype(self.dtype)


class NormWeights(nn.Module):
    """The parameters of a `LayerNorm` whose sums are written elsewhere."""

    @nn.compact
    def __call__(self, channels: int) -> tuple[Float[Array, "C"], Float[Array, "C"]]:
        """Scale and bias."""
        scale = self.param("scale", nn.initializers.ones, (channels,))
        return scale, self.param("bias", nn.initializers.zeros, (channels,))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _standardised(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """x less its mean over some axes, over the root of its variance and epsilon.

    With a derivative of its own, so that the backward pass sums over x once: what it would find by itself sums first
    for the variance, then for the mean.
    """
    return _standardised_parts(x, axes, epsilon)[0]


def _standardised_parts(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array]:
    x = x - x.mean(axes, keepdims=True)
    deviation = jnp.sqrt((x * x).mean(axes, keepdims=True) + epsilon)
    return x / deviation, deviation


@_standardised.defjvp
def _(axes: tuple[int, ...], epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (moved,) = primals, tangents
    out, deviation = _standardised_parts(x, axes, epsilon)
    along = moved - moved.mean(axes, keepdims=True) - out * (out * moved).mean(axes, keepdims=True)
    return out, along / deviation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _scaled_here(centred: bool, epsilon: float, x: Float[Array, "... C"], scale: Float[Array, "C"]) -> Array:
    """x, less its mean where `centred`, over the root of what is left's mean square and epsilon, times a scale.

    For one CPU: sums over channels are products with a vector, and the backward pass keeps x and the scale alone. By
    itself it keeps three more maps, of which one is the scale, once for each token (8,192 tokens of 256, both passes:
    22 ms and not 14).
    """
    return _over_deviation(centred, epsilon, x)[0] * scale


def _over_deviation(centred: bool, epsilon: float, x: Array) -> tuple[Array, Array]:
    x = x.astype(jnp.float32)
    mean = jnp.full(x.shape[-1], 1 / x.shape[-1], jnp.float32)
    x = x - (x @ mean)[..., None] if centred else x
    deviation = jnp.sqrt((x * x) @ mean + epsilon)[..., None]
    return x / deviation, deviation


def _scaled_forward(centred: bool, epsilon: float, x: Array, scale: Array) -> tuple[Array, tuple[Array, Array]]:
    return _over_deviation(centred, epsilon, x)[0] * scale, (x, scale)


def _scaled_backward(centred: bool, epsilon: float, given: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    (x, scale), C = given, gradient.shape[-1]
    shape, dtype = x.shape, x.dtype
    gradient = gradient.reshape(-1, C)
    with jax.named_scope("rematted_computation"):  # JAX's name for it: so it counts as made again
        normal, deviation = _over_deviation(centred, epsilon, after(x.reshape(-1, C), gradient))
    along = gradient * normal
    through = gradient * scale - normal * (along @ scale / C)[:, None]
    through = through - (gradient @ scale / C)[:, None] if centred else through
    return (through / deviation).reshape(shape).astype(dtype), along.sum(0).astype(scale.dtype)


_scaled_here.defvjp(_scaled_forward, _scaled_backward)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) times a learned scale, in float32; the result has `dtype`.

    `use_scale` False leaves the scale out. Source: Zhang and Sennrich 2019.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    use_scale: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],)) if self.use_scale else None
        if on_one_cpu():
            normal: Array = _scaled_here(False, self.epsilon, x, jnp.ones(x.shape[-1]) if scale is None else scale)
            return normal.astype(self.dtype)
        x = x.astype(jnp.float32)
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return (x if scale is None else x * scale).astype(self.dtype)


class ScaleNorm(nn.Module):
    """g x / max(||x|| / sqrt(C), epsilon) with one learned number g, from 1; float32, the result has `dtype`.

    The length is taken over sqrt(C), so that entries begin near 1 as with the other norms. Source: Nguyen and Salazar
    2019, who begin with g = sqrt(C) over ||x||: the same function.
    """

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        g = self.param("scale", nn.initializers.ones, ())

        def over_length(x: Array) -> Array:  # bounded under the root, so that a zero vector has a finite gradient
            return x * jax.lax.rsqrt(jnp.maximum((x * x).mean(-1, keepdims=True), self.epsilon**2))

        return again(lambda x, g: (g * by_token(over_length, x.astype(jnp.float32))).astype(self.dtype))(x, g)


def unit(x: Float[Array, "..."], axis: int = -1, least: float = 1e-24) -> Float[Array, "..."]:
    """x over its length along a dim, in float32; the result has x's dtype.

    The square of a length counts as `least` where it is less (default: a length of 1e-12, as torch's normalize): a zero
    vector stays one, and its gradient is finite.
    """
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis, keepdims=True)
    return (x * jax.lax.rsqrt(jnp.maximum(squares, least))).astype(x.dtype)


class Shift(nn.Module):
    """In a norm's place: x plus one learned number, from 0; `scaled`: times another, from 1, before that.

    Source: Zhang et al. 2019 ("Fixup").
    """

    scaled: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "..."], train: bool = False) -> Float[Array, "..."]:
        del train
        if self.scaled:
            x = x * self.param("scale", nn.initializers.ones, (1,)).astype(x.dtype)
        return x + self.param("bias", nn.initializers.zeros, (1,)).astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalisation over all dims but the last, with float32 statistics; the result has `dtype`.

    As in torch: training takes the batch's own mean and (biased) variance and moves the running ones, in the collection
    "batch_stats", by `momentum` towards them, the variance as its unbiased estimate; evaluation takes the running ones.
    The batch is that of all devices: under `jit` a mean over a sharded dim is one over all of it. With gradient
    accumulation it is the micro-batch: each has statistics of its own, and moves the running ones after the one before
    it, so that a step of k micro-batches is not that of one batch, in torch neither. Source: Ioffe and Szegedy 2015.
    """

    momentum: float = 0.1
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "... C"], train: bool = False) -> Float[Array, "... C"]:
        """Raises ValueError when training on one value a channel, whose variance says nothing."""
        channels = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels, jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels, jnp.float32)
        x = x.astype(jnp.float32)
        if train:
            count = x.size // x.shape[-1]
            if count < 2:
                raise ValueError(f"batch norm of {x.shape}: training needs more than one value a channel")
            axes = tuple(range(x.ndim - 1))
            mean = x.mean(axes)
            var = jnp.square(x - mean).mean(axes)
            for running, new in ((running_mean, mean), (running_var, var * (count / (count - 1)))):
                running.value = (1 - self.momentum) * running.value + self.momentum * new
        else:
            mean, var = running_mean.value, running_var.value
        return ((x - mean) * (scale / jnp.sqrt(var + self.epsilon)) + bias).astype(self.dtype)


class GroupNorm(nn.Module):
    """Normalises groups of neighbouring channels, with float32 statistics; the result has `dtype`.

    Each position is alone, so that no token sees another; with `over_map` a group's statistics are those of all dims
    between the first and the last, as in convolutional networks. Source: Wu and He 2018.
    """

    groups: int = 32
    epsilon: float = 1e-5
    dtype: Any = jnp.float32
    over_map: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B *n C"]) -> Float[Array, "B *n C"]:
        """Raises ValueError where the channels do not divide into groups."""
        C = x.shape[-1]
        if C % self.groups:
            raise ValueError(f"{C} channels do not divide into {self.groups} groups")
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        grouped = x.astype(jnp.float32).reshape(*x.shape[:-1], self.groups, C // self.groups)
        axes = (*range(1, x.ndim - 1), x.ndim) if self.over_map else (x.ndim,)
        normal = _standardised(grouped, axes, self.epsilon).reshape(x.shape)
        return (scaled(normal, scale) + bias).astype(self.dtype)


class NoNorm(nn.Module):
    """x in `dtype`: for stacks that their initialization keeps in order (Fixup, T-Fixup, ReZero)."""

    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        return x.astype(self.dtype)


NORMS: dict[str, type[nn.Module]] = {
    "layernorm": LayerNorm,
    "rmsnorm": RMSNorm,
    "scalenorm": ScaleNorm,
    "groupnorm": GroupNorm,
    "none": NoNorm,
}
"""By name; all take `epsilon` and `dtype`."""


def check_width(name: str, width: int) -> None:
    """Raises ValueError where `NORMS[name]` cannot normalise so many channels."""
    if name == "groupnorm" and width % GroupNorm.groups:
        raise ValueError(
            f"groupnorm has {GroupNorm.groups} groups, and width {width} does not divide into them: take a multiple of "
            f"{GroupNorm.groups}, or another norm"
        )
