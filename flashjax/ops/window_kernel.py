"""Attention in windows as a Pallas kernel for TPUs: logits live and die in the chip's own memory.

A turn of the kernel's grid takes one rectangle of windows of a few images, and the heads that fill a tile of lanes.
Rectangles are the outermost dims of the grid and images the innermost, so that a bias is fetched once for all images,
and its gradient summed in place.

The compiler likes maps as [H, W, B, C], where tokens of one image are rows of a stride. Loads and stores with a stride
are of 32 bits, so that bfloat16 comes as two images at once. Heads, 32 channels of 128 lanes, are cut apart where
channels are rows, as the matrix unit takes rows one after the other and all columns at once; in products over channels
the others' are rows of zeros. Images are computed in stages, the products of some beside the softmax of others, which
the compiler does not find by itself.

Shapes: B batch; H, W map; C channels, F with those that fill up tiles; h heads; N tokens of a rectangle; L rectangles
of a map.
"""

import functools
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from flashjax.ops.tpu_kernel import (
    IMAGES,
    LANES,
    TURN,
    Across,
    differentiable,
    in_lanes,
    interpreted,
    laid_out,
    largest,
    of_turns,
    product,
    taken_out,
)

Size = tuple[int, int]
"""Rows and columns."""
FORWARD, BACKWARD = ("tob", "x"), ("tobx", "tob")
"""What a pass takes and gives: t queries, keys and values, o their offset, x what they are mixed to, b the biases of
each rectangle; the offset's gradient is of each rectangle too."""
WIDE = {"t": 3 * LANES, "x": LANES}
"""Lanes of a map that a turn takes."""
Loaded = list[tuple[Array, ...]]
"""Of each of some images float32 [N, 128] of some maps."""
Stages = Generator[None, None, Any]
"""Yields where a stage ends, and returns what is computed."""
_PARTS = [slice(part * LANES, (part + 1) * LANES) for part in range(3)]
"""Those of queries, keys and values."""


def tiled(x: Float[Array, "*n C"], heads: int) -> Float[Array, "*n F"]:
    """Channels of heads in tiles of 128 lanes, as many heads in each tile, which zeros fill up.

    Raises:
        ValueError: where channels of a head do not divide 128.
    """
    width = _width(x.shape[-1], heads)
    tiles, of_tile = _tiles(heads, width)
    x = _fill(x, tiles * of_tile * width).reshape(*x.shape[:-1], tiles, of_tile * width)
    return _fill(x, LANES).reshape(*x.shape[:-2], tiles * LANES)


def joined(
    q: Float[Array, "*n C"], k: Float[Array, "*n C"], v: Float[Array, "*n C"], heads: int
) -> Float[Array, "*n three_F"]:
    """What `attend` takes: a tile of queries, of keys, of values, then the next of each (`tiled`).

    Of maps, or of kernels and biases of projections, so that one product gives all three.
    """
    parts = [tiled(x, heads).reshape(*x.shape[:-1], -1, 1, LANES) for x in (q, k, v)]
    return jnp.concatenate(parts, axis=-2).reshape(*q.shape[:-1], -1)


def attend(
    qkv: Float[Array, "B H W three_F"],
    offset: Float[Array, "three_F"],
    bias: Float[Array, "1 h N N"],
    rectangle: Size,
    width: int,
    scale: float = 1.0,
    mask: Float[Array, "L N N"] | None = None,
) -> Float[Array, "B H W F"]:
    """Softmax attention in every rectangle of a map that is cut into some of that size.

    Logits and weights are float32; the weights meet the values in their dtype. The backward pass makes them again;
    nothing but the arguments is kept for it. A batch is filled up to a multiple of 8 on each device. On a CPU it is
    interpreted, for tests. Under `sharding.on_mesh` each device computes its own examples and tiles of heads, all
    where the axes do not divide them; elsewhere the compiler refuses to split it over several devices.

    Args:
        qkv: `joined` queries, keys and values.
        offset: of their dtype, added to each; its gradient costs nothing here and a pass over the map elsewhere.
        bias: float32, keys by queries, added to the logits of all rectangles, as `paired_windows.position_bias` makes
            it.
        rectangle: rows and columns.
        width: channels of a head.
        scale: of the queries, which are rounded to their dtype after it.
        mask: added to the logits of each rectangle, as `windows.shift_mask` makes it; it has no gradient. Without one
            zeros are added, so that the compiler has one kernel for both: [L, h, N, N] are written then too.

    Returns:
        What each query is mixed to, in the order of `tiled`.

    Raises:
        NotImplementedError: on a GPU.
        ValueError: where channels of a head do not divide 128, qkv has other tiles than the heads of the bias fill, the
            rectangle does not divide the map or is not that of the bias or of the mask, a bias has rectangles of its
            own, and for other dtypes than float32 and bfloat16.
    """
    (H, W), (heads, tokens) = qkv.shape[1:3], bias.shape[1:3]
    tiles, of_tile = _tiles(heads, _width(heads * width, heads))
    if qkv.shape[-1] != tiles * WIDE["t"]:
        raise ValueError(f"{heads} heads of {width} channels want {tiles * WIDE['t']} lanes, not {qkv.shape[-1]}")
    if H % rectangle[0] or W % rectangle[1] or tokens != math.prod(rectangle):
        raise ValueError(f"rectangles of {rectangle} do not cut a map of {(H, W)} with a bias of {tokens} tokens")
    if qkv.dtype not in (jnp.float32, jnp.bfloat16) or offset.dtype != qkv.dtype:
        raise ValueError(f"the window kernel computes in float32 or bfloat16, not {qkv.dtype} and {offset.dtype}")
    if bias.shape[0] != 1:
        raise ValueError(f"one bias is for all rectangles, not {bias.shape[0]}: what differs between them is the mask")
    bias = jnp.pad(bias, ((0, 0), (0, tiles * of_tile - heads), (0, 0), (0, 0)))
    of_rectangles = H * W // tokens, tokens, tokens
    if mask is None:
        mask = jnp.zeros(of_rectangles)
    elif mask.shape != of_rectangles:
        raise ValueError(
            f"a map of {(H, W)} in rectangles of {rectangle} wants a mask of {of_rectangles}, not {mask.shape}"
        )
    return _attention(rectangle, width, scale, tiles)(qkv, offset[None], bias, mask)[0]


def cyclic_shift(x: Float[Array, "B H W C"], shift: int) -> Float[Array, "B H W C"]:
    """Rolls a map up and left by `shift`, down and right where it is negative: a turn moves a row of the map.

    Raises:
        NotImplementedError: on a GPU.
    """
    return _shifted(shift)(x)[0] if shift else x


@functools.cache
def _shifted(shift: int) -> Callable[..., tuple[Any, ...]]:
    return differentiable(
        functools.partial(_moved_by, shift), lambda across, x, coming: _moved_by(-shift, coming), split="b", out="b"
    )


def _moved_by(shift: int, x: Array) -> tuple[Array]:
    moved = laid_out(x)
    H, W, batch, C = moved.shape
    images = largest(batch, TURN * 4 // (W * in_lanes(C)), IMAGES)

    def turn(row: Any, out: Any) -> None:
        first = shift % W
        out[:, : W - first] = row[:, first:]
        if first:
            out[:, W - first :] = row[:, :first]

    def of_row(ahead: int) -> pl.BlockSpec:
        return pl.BlockSpec((1, W, images, C), lambda i, j: ((i + ahead) % H, 0, j, 0))

    kernel = pl.pallas_call(
        turn,
        grid=(H, batch // images),
        in_specs=[of_row(shift % H)],
        out_specs=of_row(0),
        out_shape=jax.ShapeDtypeStruct(moved.shape, moved.dtype),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=pl.CostEstimate(flops=0, transcendentals=0, bytes_accessed=2 * moved.size * x.dtype.itemsize),
        interpret=_interpreted(),
        name="cyclic_shift",
        metadata=of_turns((H, batch // images), H),
    )
    return (taken_out(kernel(moved), x.shape[0]),)


def _width(channels: int, heads: int) -> int:
    if channels % heads or LANES % (channels // heads):
        raise ValueError(
            f"heads of {channels / heads:g} channels do not divide {LANES} lanes: choose attention='windows' or "
            "'paired'"
        )
    return channels // heads


def _tiles(heads: int, width: int) -> tuple[int, int]:
    """Tiles of lanes, and the heads in each: not the first ones full, but all alike."""
    tiles = -(-heads * width // LANES)
    return tiles, -(-heads // tiles)


def _fill(x: Array, channels: int) -> Array:
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, channels - x.shape[-1])])


@functools.cache
def _attention(rectangle: Size, width: int, scale: float, tiles: int) -> Callable[..., tuple[Any, ...]]:
    settings = rectangle, width, scale
    return differentiable(
        functools.partial(_forward, *settings), functools.partial(_backward, *settings), "mhhw", "m", tiles
    )


def _forward(
    rectangle: Size, width: int, scale: float, qkv: Array, offset: Array, bias: Array, mask: Array
) -> tuple[Array, ...]:
    arrays = qkv, offset, bias + mask[:, None]
    return _call(functools.partial(_forward_turn, width, scale), rectangle, width, arrays, *FORWARD)


def _backward(
    rectangle: Size,
    width: int,
    scale: float,
    across: Across,
    qkv: Array,
    offset: Array,
    bias: Array,
    mask: Array,
    of_out: Array,
) -> tuple[Array, ...]:
    turn = functools.partial(_backward_turn, width, scale)
    arrays = qkv, offset, bias + mask[:, None], of_out
    of_qkv, of_offset, of_bias = _call(turn, rectangle, width, arrays, *BACKWARD)
    return of_qkv, across(of_offset.sum(0)), across(of_bias.sum(0, keepdims=True)), jnp.zeros_like(mask)


def _forward_turn(width: int, scale: float, q: Any, k: Any, v: Any, offset: Any, bias: Any, out: Any) -> None:
    heads = bias.shape[0]

    def attended(images: Loaded) -> Stages:
        moved = [_moved(loaded, offset, scale) for loaded in images]
        logits = [_by_head(keys, queries.T, width, heads) for queries, keys, _ in moved]
        of_channels = [values.T for _, _, values in moved]
        yield
        weights = [[_weights(x, bias[head]).astype(v.dtype) for head, x in enumerate(each)] for each in logits]
        yield
        return [(_of_heads(x, each, 0, width),) for x, each in zip(of_channels, weights, strict=True)]

    _for_each_image(attended, (q, k, v), (out,))


def _backward_turn(width: int, scale: float, *refs: Any) -> None:
    q, k, v, offset, bias, of_out, of_qkv, of_offset, of_bias, *parts = refs
    heads = bias.shape[0]

    @pl.when(pl.program_id(3) == 0)
    def _() -> None:
        of_offset[...] = jnp.zeros_like(of_offset)
        of_bias[...] = jnp.zeros_like(of_bias)

    def pulled_back(images: Loaded) -> Stages:
        channels, logits, of_weights = [], [], []
        for *loaded, coming in images:
            queries, keys, values = _moved(loaded, offset, scale)
            channels.append((queries.T, keys.T, coming.astype(of_out.dtype).T))
            logits.append(_by_head(keys, channels[-1][0], width, heads))
            of_weights.append(_by_head(values, channels[-1][2], width, heads))
        yield
        weights, of_logits = ([[] for _ in images] for _ in range(2))
        for head in range(heads):
            of_head = 0.0
            for image in range(len(images)):
                softmax, coming = _weights(logits[image][head], bias[head]), of_weights[image][head]
                pulled = softmax * (coming - (softmax * coming).sum(0, keepdims=True))
                of_head += pulled
                weights[image].append(softmax.astype(v.dtype))
                of_logits[image].append(pulled.astype(q.dtype))
            of_bias[head] += of_head
        yield
        found = []
        for (queries, keys, of_mixed), mixing, pulled in zip(channels, weights, of_logits, strict=True):
            of_queries = _of_heads(keys, pulled, 0, width) * scale
            found.append((of_queries, _of_heads(queries, pulled, 1, width), _of_heads(of_mixed, mixing, 1, width)))
        for lanes, of_part in zip(_PARTS, zip(*found, strict=True), strict=True):
            of_offset[:, lanes] += functools.reduce(jnp.add, of_part).sum(0, keepdims=True)
        return found

    _for_each_image(pulled_back, (q, k, v, of_out), tuple(parts))
    for lanes, part in zip(_PARTS, parts, strict=True):  # a stride wants maps of one tile
        of_qkv[..., lanes] = part[...]


def _moved(loaded: Sequence[Array], offset: Any, scale: float) -> list[Array]:
    """Queries, keys and values with their offsets, queries scaled, in the dtype of the offset."""
    moved = (x + offset[:, lanes].astype(jnp.float32) for x, lanes in zip(loaded, _PARTS, strict=True))
    return [(x * s).astype(offset.dtype) for x, s in zip(moved, (scale, 1, 1), strict=True)]


def _by_head(tokens: Array, channels: Array, width: int, heads: int) -> list[Array]:
    """[N, N] of each head: the sum over its channels of [N, 128] by [128, N]."""

    def alone(head: int) -> Array:
        """The head's channels, and 0 in place of others."""
        around = (head * width, LANES - (head + 1) * width)
        before, after = ([jnp.zeros((n, channels.shape[1]), channels.dtype)] * (n > 0) for n in around)
        return jnp.concatenate([*before, channels[head * width : (head + 1) * width], *after])

    return [product(tokens, 1, alone(head), 0) for head in range(heads)]


def _weights(logits: Array, bias: Array) -> Array:
    """Softmax over keys, keys by queries."""
    logits = logits + bias
    weights = jnp.exp(logits - logits.max(0, keepdims=True))
    return weights * (1 / weights.sum(0, keepdims=True))


def _of_heads(channels: Array, of_pairs: Sequence[Array], dim: int, width: int) -> Array:
    """[N, 128]: the channels of each head in [128, N] by its [N, N], summed over that dim of it."""
    made = [product(channels[i * width : (i + 1) * width], 1, pairs, dim) for i, pairs in enumerate(of_pairs)]
    if rest := LANES - len(made) * width:
        made.append(jnp.zeros((rest, made[0].shape[1]), made[0].dtype))
    return jnp.concatenate(made).T


def _for_each_image(compute: Callable[[Loaded], Stages], inputs: tuple[Any, ...], outputs: tuple[Any, ...]) -> None:
    """Computes from and to float32 [N, 128] of each image of maps [rows, columns, images, lanes]."""
    together = _together(inputs[0].dtype)

    def some(at: Any) -> Stages:
        images = list(zip(*(_load(ref, at, together) for ref in inputs), strict=True))
        results = yield from compute(images)
        for ref, values in zip(outputs, zip(*results, strict=True), strict=True):
            _store(ref, at, together, values)

    turns = inputs[0].shape[2] // together
    if _interpreted():
        jax.lax.fori_loop(0, turns, lambda at, _: _staggered([some(at)]), None)
    else:  # written out: a stride must begin where the compiler knows
        _staggered([some(at) for at in range(turns)])


def _staggered(every: Sequence[Stages]) -> None:
    """The first stage of one beside the second of that before it, and so on."""
    waiting = list(every)
    running: list[Stages] = []
    while waiting or running:
        running = waiting[:1] + running
        del waiting[:1]
        running = [stages for stages in running if next(stages, stages) is None]


def _together(dtype: Any) -> int:
    """Images that share 32 bits; the interpreter has no words, and takes one at a time."""
    return 1 if _interpreted() else 4 // jnp.dtype(dtype).itemsize


def _load(ref: Any, at: Any, together: int) -> tuple[Array, ...]:
    if _interpreted():
        return (ref[:, :, at].reshape(-1, ref.shape[-1]).astype(jnp.float32),)
    words, rows = _words(ref, at, together)
    loaded = words[rows, :]
    if together == 1:
        return (loaded,)
    halves = loaded << 16, loaded & jnp.int32(-(2**16))
    return tuple(jax.lax.bitcast_convert_type(half, jnp.float32) for half in halves)


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


def _call(
    turn: Any, rectangle: Size, width: int, arrays: tuple[Array, ...], inputs: str, outputs: str
) -> tuple[Array, ...]:
    """The kernel over a grid of rectangles, tiles of lanes and groups of images."""
    (B, H, W, _), dtype, bias = arrays[0].shape, arrays[0].dtype, arrays[2]
    heads, tokens = bias.shape[1:3]
    tiles, batch = arrays[0].shape[-1] // WIDE["t"], -(-B // IMAGES) * IMAGES
    down, across = H // rectangle[0], W // rectangle[1]

    def tile(lanes: int, step: int = 1, first: int = 0) -> pl.BlockSpec:
        return pl.BlockSpec((*rectangle, IMAGES, lanes), lambda r, s, g, i: (r, s, i, step * g + first))

    one = (None, heads // tiles, tokens, tokens)
    biases = pl.BlockSpec(one, lambda r, s, g, i: (r * across + s, g, 0, 0))
    shapes = {kind: jax.ShapeDtypeStruct((H, W, batch, tiles * lanes), dtype) for kind, lanes in WIDE.items()}
    shapes["o"] = jax.ShapeDtypeStruct((down * across, 1, tiles * WIDE["t"]), jnp.float32)
    shapes["b"] = jax.ShapeDtypeStruct((down * across, heads, tokens, tokens), jnp.float32)
    given = {k: array if k in "ob" else laid_out(array) for array, k in zip(arrays, inputs, strict=True)}
    # Queries, keys and values are three tiles of one map, which is given three times.
    specs_in = {
        "t": [tile(LANES, len(_PARTS), part) for part in range(len(_PARTS))],
        "o": [pl.BlockSpec((1, WIDE["t"]), lambda r, s, g, i: (0, g))],
        "b": [biases],
        "x": [tile(LANES)],
    }
    specs_out = {
        "t": tile(WIDE["t"]),
        "o": pl.BlockSpec((None, 1, WIDE["t"]), lambda r, s, g, i: (r * across + s, 0, g)),
        "b": biases,
        "x": tile(LANES),
    }
    grid = (down, across, tiles, batch // IMAGES)
    logits = B * down * across * heads * tokens**2
    kernel = pl.pallas_call(
        turn,
        grid=grid,
        in_specs=[spec for i in inputs for spec in specs_in[i]],
        out_specs=[specs_out[o] for o in outputs],
        out_shape=[shapes[o] for o in outputs],
        scratch_shapes=[pltpu.VMEM((*rectangle, IMAGES, LANES), dtype) for _ in _PARTS if "t" in outputs],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=(2 if outputs == "x" else 5) * 2 * logits * width,
            transcendentals=logits,
            bytes_accessed=sum(
                math.prod(a.shape) * a.dtype.itemsize for a in (*given.values(), *(shapes[o] for o in outputs))
            ),
        ),
        interpret=_interpreted(),
        name="window_attention" if outputs == "x" else "window_attention_backward",
        metadata=of_turns(grid, math.prod(grid[:3])),
    )
    found = kernel(*(given[i] for i in inputs for _ in specs_in[i]))
    return tuple(a if kind in "ob" else taken_out(a, B) for a, kind in zip(found, outputs, strict=True))


def _interpreted() -> bool:
    return interpreted("attention='windows' or 'paired'")
