"""What Pallas kernels for TPUs share: how maps lie, where they are interpreted, which axes of a mesh split them, the
grid of those that compute each token by itself, norms.

Shapes: B batch; H, W map; C channels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from flashjax.ops.platform import cores_of_device, device_kind, traced_for
from flashjax.ops.windows import NEIGHBOURS

LANES = 128
"""Of a tile of a TPU's registers."""
IMAGES = 8
"""Rows of a tile: a batch is filled up to a multiple of it."""
TURN, ROWS = 2**17, 256
"""Numbers of a map that a turn of `over_tokens` takes, at most, those included that fill up lanes; of wide maps as many
tokens all the same (on `LARGE_UNIT` twice as many), for which the matrix unit keeps a weight once it has it."""
LARGE_UNIT = ("TPU v6", "TPU7")
"""Chips whose matrix unit is 256 x 256 and not 128 x 128."""
MEMORY = 48 * 2**20
"""Bytes of the chip's own memory that it may take."""
Across = Callable[[Array], Array]
"""Sums over the devices with other examples."""
ONE_BUFFER = pl.Buffered(1)
"""Of what stays for all turns of a core."""


def laid_out(x: Float[Array, "B H W C"]) -> Float[Array, "H W b C"]:
    """A map as the TPU's compiler keeps it by itself, so that no copy is made: images in rows, filled up."""
    return jnp.pad(x, ((0, -x.shape[0] % IMAGES), (0, 0), (0, 0), (0, 0))).transpose(1, 2, 0, 3)


def taken_out(x: Float[Array, "H W b C"], batch: int) -> Float[Array, "B H W C"]:
    """Undoes `laid_out` of so many images."""
    return x.transpose(2, 0, 1, 3)[:batch]


def interpreted(instead: str) -> bool:
    """Whether a kernel is interpreted, as on a CPU, for tests.

    Raises:
        NotImplementedError: on a GPU; `instead` says what to choose.
    """
    platform = traced_for()
    if platform == "gpu":
        raise NotImplementedError(f"this kernel is for TPUs: on a GPU choose {instead}")
    return platform == "cpu"


def axes(name: str, size: int, mesh: Any) -> tuple[str, ...]:
    """The mesh axes that split a dim of that logical name; none where they do not divide its size."""
    found = dict(nn.get_logical_axis_rules()).get(name) or ()
    found = tuple(axis for axis in ((found,) if isinstance(found, str) else found) if mesh.shape[axis] > 1)
    return found if size % math.prod(mesh.shape[axis] for axis in found) == 0 else ()


def differentiable(
    forward: Callable[..., tuple[Any, ...]],
    backward: Callable[..., tuple[Any, ...]],
    split: str,
    out: str,
    tiles: int = 1,
) -> Callable[..., tuple[Any, ...]]:
    """`forward(*arrays)` whose gradients are `backward(across, *arrays, *coming)`, cast to the dtypes of the arrays; on
    a mesh of each device's own examples, as the compiler cannot split a kernel by itself. Each is traced once for calls
    alike.

    Args:
        backward: sums gradients of h and w over the devices with other examples by `across`.
        split, out: a letter for each argument and result. b: its first dim is the batch; m: a map [B, H, W, C] whose
            channels are `tiles` of heads; h: the second dim is heads; w: whole on each device.
        tiles: what the mesh axes of heads are to divide, or else each device computes all.
    """

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def own(device: tuple[str, str, int], summed: tuple[str, ...] | None, *arrays: Any) -> tuple[Any, ...]:
        """`summed`: mesh axes, None of a forward pass. `device`, what it is traced for, keeps traces apart."""
        del device
        if summed is None:
            return forward(*arrays)
        found = backward(lambda x: jax.lax.psum(x, summed) if summed else x, *arrays)
        return jax.tree.map(lambda gradient, array: gradient.astype(array.dtype), found, arrays[: len(split)])

    def on_mesh(arrays: tuple[Any, ...], split: str, out: str, back: bool) -> tuple[Any, ...]:
        mesh, device = jax.sharding.get_abstract_mesh(), (traced_for(), device_kind(), cores_of_device())
        if mesh.empty or mesh.size == 1:
            return own(device, () if back else None, *arrays)
        examples, heads = axes("batch", arrays[0].shape[0], mesh), axes("heads", tiles, mesh)
        specs = {"b": PartitionSpec(examples), "m": PartitionSpec(examples, None, None, heads)}
        specs |= {"h": PartitionSpec(None, heads), "w": PartitionSpec()}
        in_specs, out_specs = (tuple(specs[letter] for letter in letters) for letters in (split, out))
        function = functools.partial(own, device, examples if back else None)
        return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arrays)

    @jax.custom_vjp
    def function(*arrays: Any) -> tuple[Any, ...]:
        return on_mesh(arrays, split, out, back=False)

    def keep_inputs(*arrays: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return function(*arrays), arrays

    def pull_back(kept: tuple[Any, ...], coming: tuple[Any, ...]) -> tuple[Any, ...]:
        return on_mesh((*kept, *coming), split + out, split, back=True)

    function.defvjp(keep_inputs, pull_back)
    return function


def over_tokens(
    turn: Callable[..., None],
    name: str,
    maps: Sequence[Float[Array, "B _ _ _"]],
    whole: Sequence[Array],
    out: Sequence[tuple[int, ...]],
    *,
    factors: Sequence[Float[Array, "B"]] = (),
    sums: Sequence[tuple[int, ...]] = (),
    sums_dtype: Any = jnp.float32,
    vectors: Sequence[int] = (),
    total: Across | None = None,
    loops: int = 1,
    flops: int,
    exponentials: int = 0,
    instead: str,
) -> list[Array]:
    """A kernel over a grid of positions and images of maps, all channels of each.

    Of maps twice as high and as wide as the others a turn takes the 2 x 2 tokens at each of its positions.

    Args:
        turn: takes a ref of each of `maps`, `factors`, `whole`, `out`, `sums` and `vectors`: maps
            [positions, images, C] or [2, positions, 2, images, C] (`rows` and `put` know both), factors [images, 1]
            float32, vectors [1, n].
        out: shapes [B, H, W, C] of the maps among the results; their dtype is that of the first map.
        sums: shapes [m, n], n the same of all, of float32 sums over all turns, which a turn adds to.
        sums_dtype: in which they come out.
        vectors: [n] of others, which come out in float32.
        total: sums both over devices (`differentiable`).
        loops: how often a loop in a turn runs.
        flops, exponentials: of all of it, for the compiler's schedule around it.
        instead: what to choose on a GPU.

    Returns:
        The maps [B, H, W, C], the sums, and the vectors.

    Raises:
        ValueError: where `sums` are not as wide as each other.
    """
    B, batch, dtype = len(maps[0]), len(maps[0]) + -len(maps[0]) % IMAGES, maps[0].dtype
    every = [*(x.shape for x in maps), *out]
    H, W = min(shape[1:3] for shape in every)
    sides = [shape[1] // H for shape in every]
    lanes = [side**2 * in_lanes(shape[-1]) for shape, side in zip(every, sides, strict=True)]
    fewest = 2 * ROWS if device_kind().startswith(LARGE_UNIT) else ROWS
    tokens = max(min(TURN // lanes[0], 2 * TURN // max(lanes)), fewest)
    # Sums of each core are summed once more, so that a chip with one has one.
    positions, images, cores = _turn(W if 2 in sides else H * W, H * W, batch, tokens, cores_of_device())
    turns = [H * W // positions, batch // images]
    split = 0 if turns[0] % cores == 0 else 1  # what the cores of a chip share: positions, or else images
    turns[split] //= cores
    grid = (cores, *turns)

    def here(core: Any, i: Any, j: Any) -> tuple[Any, Any]:
        """The positions and the images of a turn."""
        return (core * turns[0] + i, j) if split == 0 else (i, core * turns[1] + j)

    def a_map(shape: tuple[int, ...], side: int) -> tuple[tuple[int, ...], pl.BlockSpec]:
        """Its shape for the kernel, and the block of a turn."""

        def place(core: Any, i: Any, j: Any) -> tuple[Any, ...]:
            tokens, of_images = here(core, i, j)
            if side == 1:
                return tokens, of_images, 0
            across = W // positions
            return jax.lax.div(tokens, across), 0, jax.lax.rem(tokens, across), 0, of_images, 0

        tokens, block = ((H * W,), (positions,)) if side == 1 else ((H, 2, W, 2), (None, 2, positions, 2))
        return (*tokens, batch, shape[-1]), pl.BlockSpec((*block, images, shape[-1]), place)

    def constant(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda core, i, j: (0,) * len(shape), pipeline_mode=ONE_BUFFER)

    def in_place(*shape: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, *shape), lambda core, i, j: (core, *(0,) * len(shape)), pipeline_mode=ONE_BUFFER)

    # One under the other: the compiler writes a long part of a program for each array that is summed over devices.
    heights, widths = [shape[0] for shape in sums], {shape[1] for shape in sums}
    if len(widths) > 1:
        raise ValueError(f"sums one under the other are as wide as each other, not {sorted(widths)}")
    below = [slice(sum(heights[:i]), sum(heights[: i + 1])) for i in range(len(sums))]
    stacks = [(sum(heights), max(widths))] if sums else []
    stacks += [(len(vectors), max(vectors))] if vectors else []

    def from_zero(*refs: Any) -> None:
        before, summed = refs[: len(refs) - len(stacks)], refs[len(refs) - len(stacks) :]

        @pl.when((pl.program_id(1) == 0) & (pl.program_id(2) == 0))
        def _() -> None:
            for ref in summed:
                ref[...] = jnp.zeros_like(ref)

        own = [summed[0].at[place] for place in below]
        own += [summed[-1].at[row : row + 1, :n] for row, n in enumerate(vectors)]
        turn(*before, *own)

    constants = [w[None] if w.ndim == 1 else w for w in whole]
    shapes, blocks = zip(*map(a_map, every, sides), strict=True)
    given = [laid_out(x).reshape(shape) for x, shape in zip(maps, shapes, strict=False)]
    given += [jnp.pad(factor.astype(jnp.float32), (0, batch - B))[:, None] for factor in factors] + constants
    in_specs = [*blocks[: len(maps)], *(pl.BlockSpec((images, 1), lambda *turn: (here(*turn)[1], 0)) for _ in factors)]
    results = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes[len(maps) :]]
    results += [jax.ShapeDtypeStruct((cores, *shape), jnp.float32) for shape in stacks]
    found = pl.pallas_call(
        from_zero,
        grid=grid,
        in_specs=in_specs + [constant(*w.shape) for w in constants],
        out_specs=[*blocks[len(maps) :], *(in_place(*shape) for shape in stacks)],
        out_shape=results,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"), vmem_limit_bytes=MEMORY
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            transcendentals=exponentials,
            bytes_accessed=sum(math.prod(a.shape) * a.dtype.itemsize for a in (*given, *results)),
        ),
        interpret=interpreted(instead),
        name=name,
        metadata=of_turns(grid, cores, loops),
    )(*given)
    found_maps = [taken_out(x.reshape(*shape[1:3], batch, shape[-1]), B) for x, shape in zip(found, out, strict=False)]
    totals = [x.sum(0) for x in found[len(out) :]]
    if total:
        totals = [total(x) for x in totals]
    if sums:  # before they are cut: the sum over devices then writes that dtype by itself
        totals[0] = totals[0].astype(sums_dtype)
    of_vectors = [totals[-1][row, :n] for row, n in enumerate(vectors)]
    return [*found_maps, *(totals[0][place] for place in below), *of_vectors]


def of_turns(grid: Sequence[int], parallel: int, loops: int = 1) -> dict[str, str]:
    """A kernel's `metadata` for `flashjax.analysis.kernels`: its turns, how many parts a chip's cores may take, and how
    often a loop in a turn runs."""
    return {"turns": str(math.prod(grid)), "parallel": str(parallel), "loops": str(loops)}


def in_lanes(channels: int) -> int:
    """With those that fill up the lanes of a tile."""
    return channels + -channels % LANES


def largest(count: int, limit: int, multiple: int = 1) -> int:
    """The largest divisor of `count` that is a multiple of another and at most `limit`, or else that other."""
    return max((n for n in range(multiple, min(count, limit) + 1, multiple) if count % n == 0), default=multiple)


def _turn(row: int, positions: int, batch: int, tokens: int, cores: int) -> tuple[int, int, int]:
    """Positions and images of a turn, and how many cores of a chip share the turns: as many tokens as there may be, or
    at least half as many where all cores can share them then. Positions divide `row`, of which there are some."""
    shapes = [
        (p, b, cores if positions // p % cores == 0 or batch // b % cores == 0 else 1)
        for p in range(1, row + 1)
        for b in range(IMAGES, batch + 1, IMAGES)
        if row % p == 0 and batch % b == 0 and p * b <= max(tokens, IMAGES)
    ]
    most = max(p * b for p, b, _ in shapes)
    return max(shapes, key=lambda of: (of[2] if 2 * of[0] * of[1] >= most else 0, of[0] * of[1], of[1]))


def product(a: Array, a_dim: int, b: Array, b_dim: int) -> Array:
    """Float32 product of two matrices over one dim of each."""
    return jax.lax.dot_general(a, b, (((a_dim,), (b_dim,)), ((), ())), preferred_element_type=jnp.float32)


def of_rows(factor: Any, x: Any) -> Array:
    """[rows, 1]: the factor of each row's image, in a turn of `over_tokens`."""
    positions, images, _ = x.shape
    return jnp.broadcast_to(factor[...][None], (positions, images, 1)).reshape(-1, 1)


def rows(x: Any, channels: Any = slice(None)) -> Array:
    """A map of a turn as float32 rows, whose tiles have as many of them as there are images; of 2 x 2 tokens side by
    side. Or some channels of each token."""
    places = [()] if len(x.shape) == 3 else [(row, slice(None), column) for row, column in NEIGHBOURS]
    tokens = [x[(*place, ..., channels)] for place in places]
    return jnp.concatenate([t.astype(jnp.float32).reshape(-1, t.shape[-1]) for t in tokens], axis=-1)


def put(out: Any, x: Array) -> None:
    """Writes rows into a map of a turn, as `rows` reads them."""
    x, C = x.astype(out.dtype), out.shape[-1]
    if len(out.shape) == 3:
        out[...] = x.reshape(out.shape)
        return
    for place, (row, column) in enumerate(NEIGHBOURS):
        out[row, :, column] = x[:, place * C : (place + 1) * C].reshape(-1, *out.shape[3:])


def standardised(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Rows less their mean over their deviation, and one over the deviation."""
    centred = x - x.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    return centred * inverse, inverse


def of_standardised(of_out: Array, out: Array, inverse: Array) -> Array:
    """What comes back to the rows from that which comes back to them standardised."""
    along = of_out - of_out.mean(-1, keepdims=True) - out * (of_out * out).mean(-1, keepdims=True)
    return along * inverse
