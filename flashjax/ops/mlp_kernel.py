"""The MLP branch of a block as a Pallas kernel for TPUs: hidden units live and die in the chip's own memory.

x + f (gelu(norm(x) W + b) V + c) is one pass over the map, and so is its derivative, where the compiler alone makes a
pass for each sum of a norm and writes maps of 4C channels. A turn of the kernel's grid takes all images of some
positions of the map, as the compiler keeps it; the backward pass keeps x alone, and sums the gradients of the weights
in place.

Shapes: B batch; H, W map; C channels; F hidden units.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flashjax.ops.platform import traced_for
from flashjax.ops.tpu_kernel import IMAGES, axes, interpreted, laid_out, taken_out

CHANNELS = 512
"""At most: products of more fill the matrix unit by themselves, and take a minute to compile here."""
TURN = 98_304
"""Numbers of a map that a turn takes, at most."""
MEMORY = 48 * 2**20
"""Bytes of the chip's own memory that a kernel may take."""


class Weights(NamedTuple):
    """Of a norm and the two layers behind it, float32."""

    scale: Float[Array, "C"]
    offset: Float[Array, "C"]
    kernel_in: Float[Array, "C F"]
    bias_in: Float[Array, "F"]
    kernel_out: Float[Array, "F C"]
    bias_out: Float[Array, "C"]


def branch(
    x: Float[Array, "B H W C"], factor: Float[Array, "B"], weights: Weights, epsilon: float = 1e-5
) -> Float[Array, "B H W C"]:
    """x + factor * (gelu(norm(x) kernel_in + bias_in) kernel_out + bias_out), norm over channels.

    Norm, GELU and sums are float32, products of x's dtype with float32 sums. A factor has no gradient: it is what
    stochastic depth draws. A batch is filled up to a multiple of 8 on each device. On a CPU it is interpreted, for
    tests. Under `sharding.on_mesh` each device computes its own examples; elsewhere the compiler refuses to split it
    over several devices.

    Raises:
        NotImplementedError: on a GPU.
        ValueError: for other dtypes than float32 and bfloat16.
    """
    if x.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"the MLP kernel computes in float32 or bfloat16, not {x.dtype}")
    return _branch(x, factor, weights, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _branch(x: Array, factor: Array, weights: Weights, epsilon: float) -> Array:
    def forward(*arrays: Any, summed: Any) -> Array:
        del summed
        return _forward(traced_for(), epsilon, *arrays)

    return _on_mesh(forward, (x, factor, weights), back=False)


def _keep_inputs(x: Array, factor: Array, weights: Weights, epsilon: float) -> tuple[Array, tuple[Any, ...]]:
    return _branch(x, factor, weights, epsilon), (x, factor, weights)


def _pull_back(epsilon: float, kept: tuple[Any, ...], of_out: Array) -> tuple[Array, Array, Weights]:
    backward = functools.partial(_backward, traced_for(), epsilon)
    of_x, of_weights = _on_mesh(backward, (*kept, of_out), back=True)
    return of_x, jnp.zeros_like(kept[1]), of_weights


_branch.defvjp(_keep_inputs, _pull_back)


def _on_mesh(function: Any, arrays: tuple[Any, ...], back: bool) -> Any:
    """`function` of each device's own examples: the compiler cannot split a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays, summed=())
    examples = axes("batch", arrays[0].shape[0], mesh)
    split, whole = PartitionSpec(examples), PartitionSpec()
    in_specs = (split, split, whole, split)[: len(arrays)]
    out_specs = (split, whole) if back else split
    function = functools.partial(function, summed=examples)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)


# Once for all blocks that are alike; `platform`, what it is `traced_for`, keeps traces apart.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(platform: str, epsilon: float, x: Array, factor: Array, weights: Weights) -> Array:
    del platform
    turn = functools.partial(_forward_turn, epsilon)
    return _call(turn, "mlp_branch", x, factor, weights, (), [])[0]


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="summed")
def _backward(
    platform: str, epsilon: float, x: Array, factor: Array, weights: Weights, of_out: Array, summed: tuple[str, ...]
) -> tuple[Array, Weights]:
    del platform
    shapes = [(1, x.shape[-1])] * 2 + [weights.kernel_in.shape, (1, weights.bias_in.size)]
    shapes += [weights.kernel_in.shape, (1, x.shape[-1])]  # of kernel_out the gradient comes transposed
    turn = functools.partial(_backward_turn, epsilon)
    of_x, *sums = _call(turn, "mlp_branch_backward", x, factor, weights, (of_out,), shapes)
    scale, offset, kernel_in, bias_in, kernel_out, bias_out = (a.sum(0) for a in sums)
    found = Weights(scale[0], offset[0], kernel_in, bias_in[0], kernel_out.T, bias_out[0])
    return of_x, jax.lax.psum(found, summed) if summed else found


def _forward_turn(epsilon: float, x: Any, factor: Any, *refs: Any) -> None:
    scale, offset, kernel_in, bias_in, kernel_out, bias_out, out = refs
    x_turn, standardised, _ = _standardised(x, epsilon)
    normed = (standardised * scale[...] + offset[...]).astype(x.dtype)
    hidden = _product(normed, 1, kernel_in[...], 0) + bias_in[...]
    share, _ = _normal(hidden, rough=x.dtype == jnp.bfloat16)
    mixed = _product((hidden * share).astype(x.dtype), 1, kernel_out[...], 0) + bias_out[...]
    out[...] = (x_turn + mixed * _rows(factor, x)).astype(out.dtype).reshape(out.shape)


def _backward_turn(epsilon: float, x: Any, factor: Any, *refs: Any) -> None:
    scale, offset, kernel_in, bias_in, kernel_out, _, of_out, of_x, *sums = refs

    @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
    def _() -> None:
        for ref in sums:
            ref[...] = jnp.zeros_like(ref)

    of_scale, of_offset, of_kernel_in, of_bias_in, of_kernel_out, of_bias_out = sums
    _, standardised, deviation = _standardised(x, epsilon)
    normed = (standardised * scale[...] + offset[...]).astype(x.dtype)
    hidden = _product(normed, 1, kernel_in[...], 0) + bias_in[...]
    share, density = _normal(hidden, rough=x.dtype == jnp.bfloat16)

    coming = of_out[...].astype(jnp.float32).reshape(standardised.shape)
    of_mixed = coming * _rows(factor, x)
    of_bias_out[...] += of_mixed.sum(0, keepdims=True)
    of_mixed = of_mixed.astype(x.dtype)
    # Both kernels' gradients are [C, F]: what the unit for transpositions turns is the narrow map.
    of_kernel_out[...] += _product(of_mixed, 0, (hidden * share).astype(x.dtype), 0)
    of_hidden = _product(of_mixed, 1, kernel_out[...], 1) * (share + hidden * density)
    of_bias_in[...] += of_hidden.sum(0, keepdims=True)
    of_hidden = of_hidden.astype(x.dtype)
    of_kernel_in[...] += _product(normed, 0, of_hidden, 0)

    of_normed = _product(of_hidden, 1, kernel_in[...], 1)
    of_scale[...] += (of_normed * standardised).sum(0, keepdims=True)
    of_offset[...] += of_normed.sum(0, keepdims=True)
    along = of_normed * scale[...]
    along -= along.mean(-1, keepdims=True) + standardised * (along * standardised).mean(-1, keepdims=True)
    of_x[...] = (coming + along / deviation).astype(of_x.dtype).reshape(of_x.shape)


def _standardised(x: Any, epsilon: float) -> tuple[Array, Array, Array]:
    """x as float32 rows, those less their mean over their deviation, and it."""
    rows = x[...].astype(jnp.float32).reshape(-1, x.shape[-1])
    centred = rows - rows.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    return rows, centred / deviation, deviation


def _rows(factor: Any, x: Any) -> Array:
    """[rows, 1]: the factor of each row's image."""
    positions, images, _ = x.shape
    return jnp.broadcast_to(factor[...][None], (positions, images, 1)).reshape(-1, 1)


def _normal(x: Array, rough: bool) -> tuple[Array, Array]:
    """The normal distribution's share below x, which GELU multiplies x by, and its density there.

    By an exponential, which has a unit of its own and is the density too: Abramowitz and Stegun 7.1.26, within 7e-8 of
    the share. `rough`: with a reciprocal of 12 bits, more than bfloat16 keeps.
    """
    size = jnp.abs(x)
    bell = jnp.exp(x * x * -0.5)
    below = 1 + 0.3275911 * math.sqrt(0.5) * size
    t = pl.reciprocal(below, approx=True) if rough else 1 / below
    tail = 0.0
    for coefficient in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = t * (tail + coefficient / 2)
    tail *= bell
    return jnp.where(x < 0, tail, 1 - tail), bell * (1 / math.sqrt(2 * math.pi))


def _product(a: Array, a_dim: int, b: Array, b_dim: int) -> Array:
    """Float32 product of two matrices over one dim of each."""
    return jax.lax.dot_general(a, b, (((a_dim,), (b_dim,)), ((), ())), preferred_element_type=jnp.float32)


def _call(
    turn: Any,
    name: str,
    x: Array,
    factor: Array,
    weights: Weights,
    more: tuple[Array, ...],
    sums: list[tuple[int, int]],
) -> list[Array]:
    """The kernel over a grid of positions and images of maps; results are a map, and sums for each part of the grid
    that cores may share."""
    B, H, W, C = x.shape
    batch, dtype = B + -B % IMAGES, x.dtype
    images = _largest(batch, TURN // C, IMAGES)
    positions = _largest(H * W, TURN // C // images)
    turns = H * W // positions
    cores = 2 if turns % 2 == 0 else 1
    grid = (cores, turns // cores, batch // images)

    def flat(x: Array) -> Array:
        return laid_out(x).reshape(H * W, batch, C)

    def whole(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda core, i, j: (0,) * len(shape))

    def summed(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, *shape), lambda core, i, j: (core,) + (0,) * len(shape))

    a_map = pl.BlockSpec((positions, images, C), lambda core, i, j: (core * (turns // cores) + i, j, 0))
    factors = jnp.pad(factor.astype(jnp.float32), (0, batch - B))[:, None]
    rows = [w[None] if w.ndim == 1 else w.astype(dtype) for w in weights]
    given = [flat(x), factors, *rows, *map(flat, more)]
    specs = [a_map, pl.BlockSpec((images, 1), lambda core, i, j: (j, 0))]
    specs += [*(whole(*w.shape) for w in rows), *(a_map for _ in more)]
    shapes = [jax.ShapeDtypeStruct((H * W, batch, C), dtype)]
    shapes += [jax.ShapeDtypeStruct((cores, *shape), jnp.float32) for shape in sums]
    product = 2 * x.size * weights.bias_in.size
    kernel = pl.pallas_call(
        turn,
        grid=grid,
        in_specs=specs,
        out_specs=[a_map, *(summed(*shape) for shape in sums)],
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=MEMORY
        ),
        cost_estimate=pl.CostEstimate(
            flops=(5 if sums else 2) * product,
            transcendentals=x.size // C * weights.bias_in.size,
            bytes_accessed=sum(math.prod(a.shape) * a.dtype.itemsize for a in (*given, *shapes)),
        ),
        interpret=interpreted("mlp='dense'"),
        name=name,
        metadata={"turns": str(math.prod(grid))},
    )
    found = kernel(*given)
    return [taken_out(found[0].reshape(H, W, batch, C), B), *found[1:]]


def _largest(count: int, limit: int, multiple: int = 1) -> int:
    """The largest divisor of `count` that is a multiple of another and at most `limit`, or else that other."""
    return max((n for n in range(multiple, min(count, limit) + 1, multiple) if count % n == 0), default=multiple)
