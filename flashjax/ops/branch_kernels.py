"""What is around attention in a block, its MLP, and what merges and embeds patches, as Pallas kernels for TPUs: a pass
over the map each.

The compiler alone makes a pass for each sum of a norm, and writes maps of 4C hidden units, which here live and die in
the chip's own memory. Backward passes keep what came in alone, and sum the gradients of the weights in place.

Norms (epsilon 1e-5), GELU and sums are float32, products of the map's dtype with float32 sums. A factor has no
gradient: it is what stochastic depth draws. A batch is filled up to a multiple of 8 on each device. On a CPU kernels
are interpreted, for tests. Under `sharding.on_mesh` each device computes its own examples; elsewhere the compiler
refuses to split them over several devices. All raise NotImplementedError on a GPU, and ValueError for other dtypes than
float32 and bfloat16.

Shapes: B batch; H, W map; C channels; F hidden units; K channels of a projection.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from flashjax.ops.tpu_kernel import (
    LANES,
    Across,
    differentiable,
    largest,
    of_rows,
    of_standardised,
    over_tokens,
    product,
    put,
    rows,
    standardised,
)

AT_ONCE = 3 * 2**18
"""Numbers of a layer behind a norm that are computed at once, at most: of more some units at a time, in a loop, whose
code is written, and compiled, once."""
LARGEST = 3 * 2**20
"""Numbers of a layer beside a norm, at most: weights and gradients stay in the chip's own memory."""
OLDER, LARGEST_OF_OLDER = ("TPU v2", "TPU v3", "TPU v4"), 2**18
"""Chips with 16 MiB of it in place of 64 or 128."""
EPSILON = 1e-5
FARTHEST = 5.5
"""Deviations from 0 at which the polynomials below end: beyond them GELU is x or 0, to 2e-7."""
FINE = (-3.61123285e-9, 2.6689282e-7, -7.93821893e-6, 1.10480317e-4, 6.62599879e-5, -7.2668567e-2, -1.59576843)
ROUGH = (7.03185164e-4, -7.40119885e-2, -1.59501518)
"""Of log((1 - P) / P) / x in x^2, where P is the normal distribution's share below x: the highest power first."""
_over_tokens = functools.partial(over_tokens, instead="branches='apart'")


class MlpWeights(NamedTuple):
    """Of a norm and the two layers behind it; all but the kernels float32."""

    scale: Float[Array, "C"]
    offset: Float[Array, "C"]
    kernel_in: Float[Array, "C F"]
    bias_in: Float[Array, "F"]
    kernel_out: Float[Array, "F C"]
    bias_out: Float[Array, "C"]


class NormedWeights(NamedTuple):
    """Of a norm, float32, and the projection behind it."""

    scale: Float[Array, "C"]
    offset: Float[Array, "C"]
    kernel: Float[Array, "C K"]


class AddedWeights(NamedTuple):
    """Of a projection; the bias float32."""

    kernel: Float[Array, "K C"]
    bias: Float[Array, "C"]


class EmbeddedWeights(NamedTuple):
    """Of a projection and the norm behind it; all but the kernel float32."""

    kernel: Float[Array, "K C"]
    bias: Float[Array, "C"]
    scale: Float[Array, "C"]
    offset: Float[Array, "C"]


def mlp_branch(x: Float[Array, "B H W C"], factor: Float[Array, "B"], weights: MlpWeights) -> Float[Array, "B H W C"]:
    """x + factor * (gelu(norm(x) kernel_in + bias_in) kernel_out + bias_out)."""
    return _mlp(_computable(x), factor, weights)[0]


def normed_product(
    x: Float[Array, "B H W C"], weights: NormedWeights
) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W K"]]:
    """x itself, and norm(x) kernel. What comes back to both is added in the kernel: x should go on from here."""
    same, out = _normed_beside(_computable(x), weights)
    return same, out


def merged_product(x: Float[Array, "B H W C"], weights: NormedWeights) -> Float[Array, "B h w K"]:
    """norm(y) kernel, where y has each 2 x 2 tokens side by side (`windows.merge_neighbours`). H and W must be even;
    weights are of 4C."""
    return _merged(_computable(x), weights)[0]


def added_product(
    x: Float[Array, "B H W C"], y: Float[Array, "B H W K"], factor: Float[Array, "B"], weights: AddedWeights
) -> Float[Array, "B H W C"]:
    """x + factor * (y kernel + bias)."""
    return _added(_computable(x), y, factor, weights)[0]


def product_normed(x: Float[Array, "B H W K"], weights: EmbeddedWeights) -> Float[Array, "B H W C"]:
    """norm(x kernel + bias)."""
    return _embedded(_computable(x), weights)[0]


def _computable(x: Array) -> Array:
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"kernels of branches compute in float32 or bfloat16, not {x.dtype}")
    return x


def _given(weights: tuple[Array, ...], dtype: Any) -> list[Array]:
    """Kernels in the dtype of products, vectors in float32."""
    return [w.astype(dtype if w.ndim == 2 else jnp.float32) for w in weights]


def _mlp_forward(x: Array, factor: Array, weights: MlpWeights) -> tuple[Array]:
    units = x.size // x.shape[-1] * weights.bias_in.size
    (out,) = _over_tokens(
        _mlp_turn,
        "mlp_branch",
        [x],
        _given(weights, x.dtype),
        [x.shape],
        factors=[factor],
        flops=4 * units * x.shape[-1],
        exponentials=units,
        loops=_loops(*weights.kernel_in.shape),
    )
    return (out,)


def _mlp_backward(across: Across, x: Array, factor: Array, weights: MlpWeights, of_out: Array) -> tuple[Any, ...]:
    units = x.size // x.shape[-1] * weights.bias_in.size
    scale, offset, kernel_in, bias_in, _, bias_out = weights
    of_x, of_kernel_in, of_kernel_out, of_scale, of_offset, of_bias_in, of_bias_out = _over_tokens(
        _mlp_turn_back,
        "mlp_branch_backward",
        [x, of_out],
        _given(weights, x.dtype),
        [x.shape],
        factors=[factor],
        # Both kernels' gradients are [C, F]: what the unit for transpositions turns is the narrow map.
        sums=[kernel_in.shape, kernel_in.shape],
        sums_dtype=kernel_in.dtype,
        vectors=[scale.size, offset.size, bias_in.size, bias_out.size],
        total=across,
        flops=10 * units * x.shape[-1],
        exponentials=2 * units,
        loops=_loops(*weights.kernel_in.shape),
    )
    of_weights = MlpWeights(of_scale, of_offset, of_kernel_in, of_bias_in, of_kernel_out.T, of_bias_out)
    return of_x, jnp.zeros_like(factor), of_weights


def _mlp_turn(x: Any, factor: Any, *refs: Any) -> None:
    scale, offset, kernel_in, bias_in, kernel_out, bias_out, out = refs
    came = rows(x)
    normed = (standardised(came, EPSILON)[0] * scale[...] + offset[...]).astype(x.dtype)

    def mix(units: Any, mixed: Any) -> Array:
        hidden = product(normed, 1, kernel_in[:, units], 0) + bias_in[:, units]
        share, _ = _normal(hidden, rough=x.dtype == jnp.bfloat16)
        return mixed + product((hidden * share).astype(x.dtype), 1, kernel_out[units], 0)

    mixed = _over_units(mix, kernel_in, came) + bias_out[...]
    put(out, came + mixed * of_rows(factor, x))


def _mlp_turn_back(x: Any, of_out: Any, factor: Any, *refs: Any) -> None:
    scale, offset, kernel_in, bias_in, kernel_out, _, of_x, *sums = refs
    of_kernel_in, of_kernel_out, of_scale, of_offset, of_bias_in, of_bias_out = sums
    standard, inverse = standardised(rows(x), EPSILON)
    normed = (standard * scale[...] + offset[...]).astype(x.dtype)
    coming = rows(of_out)
    of_mixed = coming * of_rows(factor, x)
    of_bias_out[...] += of_mixed.sum(0, keepdims=True)
    of_mixed = of_mixed.astype(x.dtype)

    def pull_back(units: Any, of_normed: Any) -> Array:
        hidden = product(normed, 1, kernel_in[:, units], 0) + bias_in[:, units]
        share, density = _normal(hidden, rough=x.dtype == jnp.bfloat16)
        of_kernel_out[:, units] += product(of_mixed, 0, (hidden * share).astype(x.dtype), 0)
        of_hidden = product(of_mixed, 1, kernel_out[units], 1) * (share + hidden * density)
        of_bias_in[:, units] += of_hidden.sum(0, keepdims=True)
        of_hidden = of_hidden.astype(x.dtype)
        of_kernel_in[:, units] += product(normed, 0, of_hidden, 0)
        return of_normed + product(of_hidden, 1, kernel_in[:, units], 1)

    of_normed = _over_units(pull_back, kernel_in, coming)
    of_scale[...] += (of_normed * standard).sum(0, keepdims=True)
    of_offset[...] += of_normed.sum(0, keepdims=True)
    came = of_standardised(of_normed * scale[...], standard, inverse)
    put(of_x, coming + came)


def _over_units(some: Callable[[Any, Any], Any], kernel: Any, like: Array) -> Any:
    """`some(units, before)` of a layer's units, some at a time: what it makes of zeros like `like`, then of that."""
    loops = _loops(*kernel.shape)
    if loops == 1:
        return some(slice(None), 0.0)
    count = kernel.shape[1] // loops
    return jax.lax.fori_loop(
        0, loops, lambda i, before: some(pl.ds(pl.multiple_of(i * count, count), count), before), jnp.zeros_like(like)
    )


def _loops(inputs: int, units: int) -> int:
    """How many times some of the units of a layer are computed; all at once where tiles of lanes do not divide them."""
    whole = inputs * units <= AT_ONCE or units % LANES
    return 1 if whole else units // largest(units, AT_ONCE // inputs, LANES)


def _normal(x: Array, rough: bool) -> tuple[Array, Array]:
    """The normal distribution's share below x, which GELU multiplies x by, and its density there.

    The logistic function of an odd polynomial, fitted to the least error of GELU: within 2e-7 of the share. `rough`:
    of lower degree, within 5.1e-5 (GELU 2.6e-5), with a reciprocal of 12 bits, more than bfloat16 keeps of it.
    """
    square = x * x
    near = jnp.minimum(square, FARTHEST**2)
    highest, *lower = ROUGH if rough else FINE
    odds = 1 + jnp.exp(x * functools.reduce(lambda power, coefficient: power * near + coefficient, lower, highest))
    share = pl.reciprocal(odds, approx=True) if rough else 1 / odds
    return share, jnp.exp(square * -0.5) * (1 / math.sqrt(2 * math.pi))


def _normed_forward(x: Array, weights: NormedWeights) -> tuple[Array]:
    inputs, features = weights.kernel.shape
    B, H, W, C = x.shape
    side = 1 if inputs == C else 2
    (out,) = _over_tokens(
        _normed_turn,
        "normed_product",
        [x],
        _given(weights, x.dtype),
        [(B, H // side, W // side, features)],
        loops=_loops(*weights.kernel.shape),
        flops=2 * x.size * features,
    )
    return (out,)


def _normed_backward(across: Across, x: Array, weights: NormedWeights, *coming: Array) -> tuple[Any, ...]:
    """`coming` is what comes back to the result, and before it to x where that goes on."""
    of_x, of_kernel, of_scale, of_offset = _over_tokens(
        _normed_turn_back,
        "normed_product_backward",
        [x, *coming],
        _given(weights, x.dtype),
        [x.shape],
        sums=[weights.kernel.shape],
        sums_dtype=weights.kernel.dtype,
        vectors=[weights.scale.size, weights.offset.size],
        total=across,
        loops=_loops(*weights.kernel.shape),
        flops=4 * x.size * weights.kernel.shape[1],
    )
    return of_x, NormedWeights(of_scale, of_offset, of_kernel)


def _normed_turn(x: Any, scale: Any, offset: Any, kernel: Any, out: Any) -> None:
    normed = (standardised(rows(x), EPSILON)[0] * scale[...] + offset[...]).astype(x.dtype)

    def project(units: Any, before: Any) -> Any:
        made = product(normed, 1, kernel[:, units], 0).astype(out.dtype)
        out[:, :, units] = made.reshape(*out.shape[:2], made.shape[-1])
        return before

    _over_units(project, kernel, jnp.zeros(()))


def _normed_turn_back(x: Any, *refs: Any) -> None:
    *coming, of_out, scale, offset, kernel, of_x, of_kernel, of_scale, of_offset = refs
    standard, inverse = standardised(rows(x), EPSILON)
    normed = (standard * scale[...] + offset[...]).astype(x.dtype)

    def pull_back(units: Any, of_normed: Any) -> Array:
        projected = rows(of_out, units).astype(x.dtype)
        of_kernel[:, units] += product(normed, 0, projected, 0)
        return of_normed + product(projected, 1, kernel[:, units], 1)

    of_normed = _over_units(pull_back, kernel, standard)
    of_scale[...] += (of_normed * standard).sum(0, keepdims=True)
    of_offset[...] += of_normed.sum(0, keepdims=True)
    came = of_standardised(of_normed * scale[...], standard, inverse)
    came = came + rows(coming[0]) if coming else came
    put(of_x, came)


def _added_forward(x: Array, y: Array, factor: Array, weights: AddedWeights) -> tuple[Array]:
    (out,) = _over_tokens(
        _added_turn,
        "added_product",
        [x, y],
        _given(weights, x.dtype),
        [x.shape],
        factors=[factor],
        flops=2 * y.size * x.shape[-1],
    )
    return (out,)


def _added_backward(
    across: Across, x: Array, y: Array, factor: Array, weights: AddedWeights, of_out: Array
) -> tuple[Any, ...]:
    of_y, of_kernel, of_bias = _over_tokens(
        _added_turn_back,
        "added_product_backward",
        [y, of_out],
        _given(weights, x.dtype),
        [y.shape],
        factors=[factor],
        sums=[weights.kernel.shape],
        sums_dtype=weights.kernel.dtype,
        vectors=[weights.bias.size],
        total=across,
        flops=4 * y.size * x.shape[-1],
    )
    return of_out, of_y, jnp.zeros_like(factor), AddedWeights(of_kernel, of_bias)


def _added_turn(x: Any, y: Any, factor: Any, kernel: Any, bias: Any, out: Any) -> None:
    mixed = product(rows(y).astype(y.dtype), 1, kernel[...], 0) + bias[...]
    put(out, rows(x) + mixed * of_rows(factor, x))


def _added_turn_back(y: Any, of_out: Any, factor: Any, kernel: Any, _: Any, *refs: Any) -> None:
    of_y, of_kernel, of_bias = refs
    of_mixed = rows(of_out) * of_rows(factor, of_out)
    of_bias[...] += of_mixed.sum(0, keepdims=True)
    of_mixed = of_mixed.astype(y.dtype)
    of_kernel[...] += product(rows(y).astype(y.dtype), 0, of_mixed, 0)
    put(of_y, product(of_mixed, 1, kernel[...], 1))


def _embedded_forward(x: Array, weights: EmbeddedWeights) -> tuple[Array]:
    channels = weights.bias.size
    (out,) = _over_tokens(
        _embedded_turn,
        "product_normed",
        [x],
        _given(weights, x.dtype),
        [(*x.shape[:3], channels)],
        flops=2 * x.size * channels,
    )
    return (out,)


def _embedded_backward(across: Across, x: Array, weights: EmbeddedWeights, of_out: Array) -> tuple[Any, ...]:
    of_x, of_kernel, *of_vectors = _over_tokens(
        _embedded_turn_back,
        "product_normed_backward",
        [x, of_out],
        _given(weights, x.dtype),
        [x.shape],
        sums=[weights.kernel.shape],
        sums_dtype=weights.kernel.dtype,
        vectors=[vector.size for vector in weights[1:]],
        total=across,
        flops=6 * x.size * weights.bias.size,
    )
    return of_x, EmbeddedWeights(of_kernel, *of_vectors)


def _embedded_turn(x: Any, kernel: Any, bias: Any, scale: Any, offset: Any, out: Any) -> None:
    standard, _ = standardised(product(rows(x).astype(x.dtype), 1, kernel[...], 0) + bias[...], EPSILON)
    put(out, standard * scale[...] + offset[...])


def _embedded_turn_back(x: Any, of_out: Any, kernel: Any, bias: Any, scale: Any, _: Any, *refs: Any) -> None:
    of_x, of_kernel, of_bias, of_scale, of_offset = refs
    given, coming = rows(x).astype(x.dtype), rows(of_out)
    standard, inverse = standardised(product(given, 1, kernel[...], 0) + bias[...], EPSILON)
    of_scale[...] += (coming * standard).sum(0, keepdims=True)
    of_offset[...] += coming.sum(0, keepdims=True)
    projected = of_standardised(coming * scale[...], standard, inverse)
    of_bias[...] += projected.sum(0, keepdims=True)
    projected = projected.astype(x.dtype)
    of_kernel[...] += product(given, 0, projected, 0)
    put(of_x, product(projected, 1, kernel[...], 1))


_mlp = differentiable(_mlp_forward, _mlp_backward, split="bbw", out="b")
_merged = differentiable(_normed_forward, _normed_backward, split="bw", out="b")
_normed_beside = differentiable(lambda x, w: (x, *_normed_forward(x, w)), _normed_backward, split="bw", out="bb")
_embedded = differentiable(_embedded_forward, _embedded_backward, split="bw", out="b")
_added = differentiable(_added_forward, _added_backward, split="bbbw", out="b")
