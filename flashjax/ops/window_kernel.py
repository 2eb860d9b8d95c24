"""Attention in windows as a Pallas kernel for TPUs: logits live and die in the chip's own memory.

A turn of the kernel's grid takes one rectangle of windows of a few images, and the heads that fill a tile of lanes.
Rectangles are the outermost dims of the grid and images the innermost, so that a bias is fetched once for all images,
and its gradient summed in place.

The compiler likes maps as [H, W, B, C], where tokens of one image are rows of a stride. Loads and stores with a stride
are of 32 bits, so that bfloat16 comes as two images at once. Heads, 32 channels of 128 lanes, are not cut apart: a
product over the channels of one head is that over the whole tile with the others set to 0, which takes the matrix unit
no longer.

Shapes: B batch; H, W map; C channels; h heads; N tokens of a rectangle; L rectangles of a map; l is 1 or L.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flashjax.ops.paired_windows import LANES
from flashjax.ops.platform import traced_for

IMAGES = 8
"""Images of one turn: as many as a tile has rows."""
Size = tuple[int, int]
"""Rows and columns."""
FORWARD, BACKWARD = ("xxxb", "x"), ("xxxbx", "xxxb")
"""What a pass takes and gives: x shaped as the queries, b as the bias, of which a result has one for each rectangle."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
    q: Float[Array, "B H W C"],
    k: Float[Array, "B H W C"],
    v: Float[Array, "B H W C"],
    bias: Float[Array, "l h N N"],
    rectangle: Size,
) -> Float[Array, "B H W C"]:
    """Softmax attention in every rectangle of a map that is cut into some of that size; queries are scaled already.

    `bias` is float32, keys by queries, and added to the logits, as `paired_windows.position_bias` makes it. Logits and
    weights are float32; the weights meet the values in their dtype. The backward pass makes them again; nothing but the
    arguments is kept for it. A batch is filled up to a multiple of 8 on each device. On a CPU it is interpreted, for
    tests. Under `sharding.on_mesh` each device computes its own examples and heads, all where the axes do
    not divide them; elsewhere the compiler refuses to split it over several devices.

    Raises:
        NotImplementedError: on a GPU.
        ValueError: where channels of a head do not divide 128, the rectangle does not divide the map or is not that of
            the bias, and for other dtypes than float32 and bfloat16.
    """
    return _on_mesh(functools.partial(_forward, rectangle), (q, k, v, bias), *FORWARD)[0]


def _keep_inputs(q: Array, k: Array, v: Array, bias: Array, rectangle: Size) -> tuple[Array, tuple[Array, ...]]:
    return attend(q, k, v, bias, rectangle), (q, k, v, bias)


def _pull_back(rectangle: Size, kept: tuple[Array, ...], of_out: Array) -> tuple[Array, ...]:
    return _on_mesh(functools.partial(_backward, rectangle), (*kept, of_out), *BACKWARD)


attend.defvjp(_keep_inputs, _pull_back)


def _forward(rectangle: Size, *arrays: Array) -> tuple[Array, ...]:
    return _call(_forward_turn, rectangle, arrays, *FORWARD)


def _backward(rectangle: Size, *arrays: Array, summed: tuple[str, ...] = ()) -> tuple[Array, ...]:
    *of_maps, of_bias = _call(_backward_turn, rectangle, arrays, *BACKWARD)
    if arrays[3].shape[0] == 1:
        of_bias = of_bias.sum(0, keepdims=True)
    return *of_maps, jax.lax.psum(of_bias, summed) if summed else of_bias


def _forward_turn(width: int, q: Any, k: Any, v: Any, bias: Any, out: Any) -> None:
    def attended(queries: Array, keys: Array, values: Array) -> tuple[Array]:
        mixed = jnp.zeros(queries.shape, jnp.float32)
        for head in range(bias.shape[0]):
            own = functools.partial(_own, head, width)
            weights = _weights(queries, own(keys), bias[head]).astype(v.dtype)
            mixed += _product(weights, 0, own(values), 0)  # 0 in the lanes of other heads
        return (mixed,)

    _for_each_image(attended, (q, k, v), (out,))


def _backward_turn(
    width: int, q: Any, k: Any, v: Any, bias: Any, of_out: Any, of_q: Any, of_k: Any, of_v: Any, of_bias: Any
) -> None:
    @pl.when(pl.program_id(3) == 0)
    def _() -> None:
        of_bias[...] = jnp.zeros_like(of_bias)

    def pulled_back(queries: Array, keys: Array, values: Array, of_mixed: Array) -> tuple[Array, ...]:
        of_queries, of_keys, of_values = (jnp.zeros(queries.shape, jnp.float32) for _ in range(3))
        for head in range(bias.shape[0]):
            own = functools.partial(_own, head, width)
            weights = _weights(queries, own(keys), bias[head])
            of_weights = _product(own(values), 1, of_mixed, 1)
            of_logits = weights * (of_weights - (weights * of_weights).sum(0, keepdims=True))
            of_bias[head] += of_logits
            of_logits = of_logits.astype(q.dtype)
            of_queries += _product(of_logits, 0, own(keys), 0)
            of_keys += own(_product(of_logits, 1, queries, 0))
            of_values += own(_product(weights.astype(v.dtype), 1, of_mixed, 0))
        return of_queries, of_keys, of_values

    _for_each_image(pulled_back, (q, k, v, of_out), (of_q, of_k, of_v))


def _weights(queries: Array, keys: Array, bias: Array) -> Array:
    """Softmax over keys, keys by queries."""
    logits = _product(keys, 1, queries, 1) + bias
    weights = jnp.exp(logits - logits.max(0, keepdims=True))
    return weights * (1 / weights.sum(0, keepdims=True))


def _product(a: Array, a_dim: int, b: Array, b_dim: int) -> Array:
    """Float32 product of two matrices over one dim of each."""
    return jax.lax.dot_general(a, b, (((a_dim,), (b_dim,)), ((), ())), preferred_element_type=jnp.float32)


def _own(head: int, width: int, x: Array) -> Array:
    """x with the lanes of other heads set to 0."""
    lane = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
    return jnp.where((lane >= head * width) & (lane < (head + 1) * width), x, jnp.zeros_like(x))


def _for_each_image(
    compute: Callable[..., tuple[Array, ...]], inputs: tuple[Any, ...], outputs: tuple[Any, ...]
) -> None:
    """Computes from and to [N, lanes] of each image of maps [rows, columns, images, lanes]; results are float32."""
    together = _together(inputs[0].dtype)

    def turn(at: Any, _: None) -> None:
        images = zip(*(_load(ref, at, together) for ref in inputs), strict=True)
        results = zip(*(compute(*image) for image in images), strict=True)
        for ref, values in zip(outputs, results, strict=True):
            _store(ref, at, together, values)

    turns = inputs[0].shape[2] // together
    if _interpreted():
        jax.lax.fori_loop(0, turns, turn, None)
    else:  # written out: a stride must begin where the compiler knows
        for at in range(turns):
            turn(at, None)


def _together(dtype: Any) -> int:
    """Images that share 32 bits; the interpreter has no words, and takes one at a time."""
    return 1 if _interpreted() else 4 // jnp.dtype(dtype).itemsize


def _load(ref: Any, at: Any, together: int) -> tuple[Array, ...]:
    if _interpreted():
        return (ref[:, :, at].reshape(-1, ref.shape[-1]),)
    words, rows = _words(ref, at, together)
    loaded = words[rows, :]
    if together == 1:
        return (loaded,)
    halves = loaded << 16, loaded & jnp.int32(-(2**16))
    return tuple(jax.lax.bitcast_convert_type(half, jnp.float32).astype(ref.dtype) for half in halves)


def _store(ref: Any, at: Any, together: int, values: tuple[Array, ...]) -> None:
    if _interpreted():
        ref[:, :, at] = values[0].astype(ref.dtype).reshape(*ref.shape[:2], -1)
        return
    words, rows = _words(ref, at, together)
    if together == 1:
        words[rows, :] = values[0].astype(ref.dtype)
    else:
        low, high = (jax.lax.bitcast_convert_type(v.astype(ref.dtype).astype(jnp.float32), jnp.int32) for v in values)
        words[rows, :] = jax.lax.shift_right_logical(low, 16) | (high & jnp.int32(-(2**16)))


def _words(ref: Any, at: Any, together: int) -> tuple[Any, Any]:
    """A map as rows of 32 bits, and those of the images that begin at one."""
    rows, columns, images, lanes = ref.shape
    stride, tokens = images // together, rows * columns
    words = ref.bitcast(jnp.int32) if together > 1 else ref
    return words.reshape(tokens * stride, lanes), pl.ds(at, tokens, stride)


def _call(turn: Any, rectangle: Size, arrays: tuple[Array, ...], inputs: str, outputs: str) -> tuple[Array, ...]:
    """The kernel over a grid of rectangles, tiles of lanes and groups of images."""
    (B, H, W, C), dtype, bias = arrays[0].shape, arrays[0].dtype, arrays[3]
    heads, tokens = bias.shape[1:3]
    width = C // heads
    if LANES % width:
        raise ValueError(
            f"heads of {width} channels do not divide {LANES} lanes: choose attention='windows' or 'paired'"
        )
    if H % rectangle[0] or W % rectangle[1] or tokens != math.prod(rectangle):
        raise ValueError(f"rectangles of {rectangle} do not cut a map of {(H, W)} with a bias of {tokens} tokens")
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"the window kernel computes in float32 or bfloat16, not {dtype}")
    tiles, of_tile, batch = -(-C // LANES), min(heads, LANES // width), -(-B // IMAGES) * IMAGES
    down, across = H // rectangle[0], W // rectangle[1]

    def laid_out(array: Array, kind: str) -> Array:
        if kind == "b":
            return jnp.pad(array, ((0, 0), (0, tiles * of_tile - heads), (0, 0), (0, 0)))
        return jnp.pad(array, ((0, batch - B), (0, 0), (0, 0), (0, tiles * LANES - C))).transpose(1, 2, 0, 3)

    def taken_out(array: Array, kind: str) -> Array:
        return array[:, :heads] if kind == "b" else array.transpose(2, 0, 1, 3)[:B, ..., :C]

    maps = pl.BlockSpec((*rectangle, IMAGES, LANES), lambda r, s, g, i: (r, s, i, g))
    one = (None, of_tile, tokens, tokens)
    biases = pl.BlockSpec(one, lambda r, s, g, i: (0 if bias.shape[0] == 1 else r * across + s, g, 0, 0))
    sums = pl.BlockSpec(one, lambda r, s, g, i: (r * across + s, g, 0, 0))
    shapes = {
        "x": jax.ShapeDtypeStruct((H, W, batch, tiles * LANES), dtype),
        "b": jax.ShapeDtypeStruct((down * across, tiles * of_tile, tokens, tokens), jnp.float32),
    }
    given = [laid_out(array, kind) for array, kind in zip(arrays, inputs, strict=True)]
    grid = (down, across, tiles, batch // IMAGES)
    logits = B * down * across * heads * tokens**2
    kernel = pl.pallas_call(
        functools.partial(turn, width),
        grid=grid,
        in_specs=[maps if i == "x" else biases for i in inputs],
        out_specs=[maps if o == "x" else sums for o in outputs],
        out_shape=[shapes[o] for o in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=(2 if outputs == "x" else 5) * 2 * logits * width,
            transcendentals=logits,
            bytes_accessed=sum(math.prod(a.shape) * a.dtype.itemsize for a in (*given, *(shapes[o] for o in outputs))),
        ),
        interpret=_interpreted(),
        name="window_attention" if outputs == "x" else "window_attention_backward",
        metadata={"turns": str(math.prod(grid))},
    )
    return tuple(taken_out(found, kind) for found, kind in zip(kernel(*given), outputs, strict=True))


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
    examples, heads = _axes("batch", arrays[0].shape[0], mesh), _axes("heads", arrays[3].shape[1], mesh)
    specs = {"x": PartitionSpec(examples, None, None, heads), "b": PartitionSpec(None, heads)}
    if "b" in outputs:
        function = functools.partial(function, summed=examples)
    in_specs, out_specs = (tuple(specs[letter] for letter in letters) for letters in (inputs, outputs))
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)


def _axes(name: str, size: int, mesh: Any) -> tuple[str, ...]:
    """The mesh axes that split a dim of that name; none where they do not divide it."""
    axes = dict(nn.get_logical_axis_rules()).get(name) or ()
    axes = tuple(axis for axis in ((axes,) if isinstance(axes, str) else axes) if mesh.shape[axis] > 1)
    return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else ()
