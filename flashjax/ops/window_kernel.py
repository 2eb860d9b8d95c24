"""`flashjax.ops.paired_windows.attend` as a Pallas kernel for TPUs: logits live and die in the chip's own memory.

A turn of the kernel's grid takes the same rectangle of a few images and a few heads. The rectangle is the outermost dim
of the grid and images the innermost, so that a bias is fetched once, and its gradient summed in place.

Shapes: B batch; L rectangles of a map; h heads, d channels of a head; N tokens of a rectangle; l is 1 or L.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flashjax.ops.platform import traced_for

VMEM_BYTES = 64 * 2**20
"""What a kernel may take of the chip's own memory: half of what the smallest of today's chips have."""
TURN_BYTES = 12 * 2**20
"""Of logits in float32 in one turn; the compiler holds several such arrays at once."""
BODIES = 12
"""Pairs of a head and a rectangle that a turn writes out: enough for one to hide the waits of another."""


@jax.custom_vjp
def attend(
    q: Float[Array, "B L h d N"],
    k: Float[Array, "B L h d N"],
    v: Float[Array, "B L h d N"],
    bias: Float[Array, "l h N N"],
) -> Float[Array, "B L h d N"]:
    """Softmax attention of every rectangle; queries are scaled already.

    `bias` is float32, [1 or L, h, keys, queries], and added to the logits. Logits and weights are float32; the weights
    meet the values in their dtype. The backward pass makes them again; nothing but the arguments is kept for it.
    On a CPU the kernel is interpreted, which is for tests. On a mesh each device computes its own examples and heads.

    Raises:
        NotImplementedError: on a GPU.
    """
    return _on_mesh(_forward, (q, k, v, bias), "xxxb", "x")[0]


def _keep_inputs(q: Array, k: Array, v: Array, bias: Array) -> tuple[Array, tuple[Array, ...]]:
    return attend(q, k, v, bias), (q, k, v, bias)


def _pull_back(kept: tuple[Array, ...], of_out: Array) -> tuple[Array, ...]:
    of_q, of_k, of_v, of_bias = _on_mesh(_backward, (*kept, of_out), "xxxbx", "xxxb")
    if kept[-1].shape[0] == 1:
        of_bias = of_bias.sum(0, keepdims=True)
    return of_q, of_k, of_v, of_bias


attend.defvjp(_keep_inputs, _pull_back)


def _forward(*arrays: Array) -> tuple[Array, ...]:
    return _call(_forward_turn, arrays, "xxxb", "x")


def _backward(*arrays: Array, summed: tuple[str, ...] = ()) -> tuple[Array, ...]:
    *of_inputs, of_bias = _call(_backward_turn, arrays, "xxxbx", "xxxb")
    return *of_inputs, jax.lax.psum(of_bias, summed) if summed else of_bias


def _product(a: Array, a_dim: int, b: Array, b_dim: int) -> Array:
    """Float32 product of two matrices over one dim of each."""
    return jax.lax.dot_general(a, b, (((a_dim,), (b_dim,)), ((), ())), preferred_element_type=jnp.float32)


def _weights(q: Array, k: Array, bias: Array) -> tuple[Array, Array]:
    """Exponentials of a head's logits, keys by queries, and one over their sums [1, queries]."""
    logits = _product(k, 0, q, 0) + bias
    weights = jnp.exp(logits - logits.max(0, keepdims=True))
    return weights, 1 / weights.sum(0, keepdims=True)


def _forward_turn(q: Any, k: Any, v: Any, bias: Any, out: Any) -> None:
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            weights, scale = _weights(q[b, h], k[b, h], bias[h])
            mixed = _product(v[b, h], 1, weights.astype(v.dtype), 0)  # [d, queries]
            out[b, h] = (mixed * scale).astype(out.dtype)


def _backward_turn(
    q: Any, k: Any, v: Any, bias: Any, of_out: Any, of_q: Any, of_k: Any, of_v: Any, of_bias: Any
) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        of_bias[...] = jnp.zeros_like(of_bias)

    for h in range(q.shape[1]):
        total = of_bias[h]
        for b in range(q.shape[0]):
            weights, scale = _weights(q[b, h], k[b, h], bias[h])
            weights = weights * scale
            of_v[b, h] = _product(of_out[b, h], 1, weights.astype(v.dtype), 1).astype(of_v.dtype)
            of_weights = _product(v[b, h], 0, of_out[b, h], 0)
            of_logits = weights * (of_weights - (weights * of_weights).sum(0, keepdims=True))
            total += of_logits
            of_logits = of_logits.astype(q.dtype)
            of_q[b, h] = _product(k[b, h], 1, of_logits, 0).astype(of_q.dtype)
            of_k[b, h] = _product(q[b, h], 1, of_logits, 1).astype(of_k.dtype)
        of_bias[h] = total


def _call(turn: Any, arrays: tuple[Array, ...], inputs: str, outputs: str) -> tuple[Array, ...]:
    """The kernel over a grid of rectangles, groups of heads and groups of images: `x` is shaped as the queries, `b` as
    the bias, of which a result has one for each rectangle."""
    (B, L, h, d, N), bias = arrays[0].shape, arrays[3]
    heads, images = _block(B, h, N)
    grid = (L, h // heads, B // images)
    shared = bias.shape[0] == 1
    of_maps = pl.BlockSpec((images, None, heads, d, N), lambda r, g, i: (i, r, g, 0, 0))
    of_bias = pl.BlockSpec((None, heads, N, N), lambda r, g, i: (0 if shared else r, g, 0, 0))
    of_sums = pl.BlockSpec((None, heads, N, N), lambda r, g, i: (r, g, 0, 0))
    shapes = {
        "x": jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype),
        "b": jax.ShapeDtypeStruct((L, h, N, N), jnp.float32),
    }
    products = 2 if outputs == "x" else 5
    cost = pl.CostEstimate(
        flops=products * 2 * B * L * h * d * N * N,
        transcendentals=B * L * h * N * N,
        bytes_accessed=sum(a.size * a.dtype.itemsize for a in (*arrays, *(shapes[o] for o in outputs))),
    )
    kernel = pl.pallas_call(
        turn,
        grid=grid,
        in_specs=[of_maps if i == "x" else of_bias for i in inputs],
        out_specs=[of_maps if o == "x" else of_sums for o in outputs],
        out_shape=[shapes[o] for o in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
        ),
        cost_estimate=cost,
        interpret=_interpreted(),
        name="window_attention" if outputs == "x" else "window_attention_backward",
        metadata={"turns": str(math.prod(grid))},
    )
    return tuple(kernel(*arrays))


def _block(images: int, heads: int, tokens: int) -> tuple[int, int]:
    """(heads, images) of one turn: about `BODIES` pairs of them, fewer where logits are large."""
    most = max(1, min(BODIES, TURN_BYTES // (4 * tokens * tokens)))
    of_heads = _divisor(heads, most)
    return of_heads, _divisor(images, most // of_heads)


def _divisor(number: int, most: int) -> int:
    return max(d for d in range(1, max(1, most) + 1) if number % d == 0)


def _interpreted() -> bool:
    platform = traced_for()
    if platform == "gpu":
        raise NotImplementedError("the window kernel is for TPUs: on a GPU choose attention='windows' or 'paired'")
    return platform == "cpu"


def _on_mesh(function: Any, arrays: tuple[Array, ...], inputs: str, outputs: str) -> tuple[Array, ...]:
    """`function` of each device's own examples and heads: the compiler cannot split a kernel by itself."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arrays)
    B, _, h, _, _ = arrays[0].shape
    examples, heads = (_axes(name, size, mesh) for name, size in (("batch", B), ("heads", h)))
    specs = {"x": PartitionSpec(examples, None, heads), "b": PartitionSpec(None, heads)}
    if "b" in outputs:
        function = functools.partial(function, summed=examples)
    in_specs, out_specs = (tuple(specs[letter] for letter in letters) for letters in (inputs, outputs))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)


def _axes(name: str, size: int, mesh: Any) -> tuple[str, ...]:
    """The mesh axes that split a dim of that name; none where they do not divide it."""
    axes = dict(nn.get_logical_axis_rules()).get(name) or ()
    axes = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes) if mesh.shape[axis] > 1)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()
