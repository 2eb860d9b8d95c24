"""Linear attention: a state instead of all pairs of tokens.

    S_t = diag(a_t) S_{t-1} + k_t v_t^T,    o_t = q_t S_t                      (causal)
    o_i = q_i sum_j k_j v_j^T                                                  (bidirectional)

Time and memory grow with N. The causal form is cut into chunks of L tokens: pairs inside a chunk are weighed all at
once, what lies before comes from the state that enters the chunk. All chunks are computed side by side; only their
states run from one to the next, so there are N / L states and never one for each token.
Sources: Hua et al. 2022 (section 3.2), Sun et al. 2023 (equation 7), Yang et al. 2023 (section 4).

Everything is float32 (float64 for float64 inputs), whatever the inputs are.

Shapes: B batch, N tokens, H heads, D width of a query and key, E width of a value; Z chunks of L tokens.

Segments are stretches of a row with one number: a token sees its own alone. A change inside a chunk is exact. An
initial state belongs to the first token's segment, the final state to the last token's.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Bool, Float, Int

from flashjax.ops.again import again
from flashjax.ops.blocks import from_blocks, to_blocks
from flashjax.ops.platform import chosen, traced_for

CHUNK = 64
"""Tokens of a chunk: where pairs inside it cost about what its state does, at the usual widths of a head."""
TPU_CHUNK = 128
"""On TPUs, whose products and vectors are as wide."""

_BLOCK = 8  # tokens whose vector decays are referred to one point in their middle


class State(NamedTuple):
    """What the past leaves behind: S, and the sum of its keys where a normaliser is asked for."""

    S: Float[Array, "B H D E"]
    z: Float[Array, "B H D"] | None = None


class Mixed(NamedTuple):
    """Outputs, normalisers q_t z_t (z is S for values of 1; None where not asked for), and the final state."""

    o: Float[Array, "B N H E"]
    normaliser: Float[Array, "B N H"] | None
    state: State


def causal(
    q: Float[Array, "B N H D"],
    k: Float[Array, "B N H D"],
    v: Float[Array, "B N H E"],
    log_decay: Float[Array, "H"] | Float[Array, "B N H"] | Float[Array, "B N H D"] | None = None,
    segment_ids: Int[Array, "B N"] | None = None,
    state: State | None = None,
    *,
    chunk: int | None = None,
    normaliser: bool = False,
) -> Mixed:
    """S_t = diag(a_t) S_{t-1} + k_t v_t^T, o_t = q_t S_t, from `state` (default: zeros).

    Args:
        log_decay: log a_t <= 0, one a head that never changes, one a token and head, or one for each dim of its key.
            A decay below e^-18 (float64: e^-40) counts as that, so -inf is fine.
        chunk: tokens of a chunk, None: as of `chunk_length`; rounded up to a power of two where decays are vectors.
        normaliser: also sums the keys.

    Raises ValueError for a chunk below 1, and for a state without `z` where a normaliser is asked for.
    """
    if normaliser and state is not None and state.z is None:
        raise ValueError("normaliser=True goes on with a sum of keys: give a state that has z")
    B, N, H, D = q.shape
    E, dtype = v.shape[-1], jnp.promote_types(q.dtype, jnp.float32)
    L = chunk_length(chunk, N)
    g = None if log_decay is None else floored(log_decay.astype(dtype))
    if g is not None and g.ndim == 1 and N % L:  # what fills up the last chunk must not decay
        g = jnp.broadcast_to(g, (B, N, H))
    if g is not None and g.ndim == 4:
        L = max(_BLOCK, 1 << (L - 1).bit_length())
    q, k, v = (chunked(x.astype(dtype), L) for x in (q, k, v))
    ids = segments(segment_ids, L)

    # Weights of the pairs inside a chunk; decays from its start to a token, from a token to its end, through all of it.
    if g is None:
        A = jnp.einsum("zbhid,zbhjd->zbhij", q, k)
        q_in, k_out, through = q, k, None
    elif g.ndim < 4:
        b = g[:, None] * jnp.arange(1, L + 1, dtype=dtype) if g.ndim == 1 else prefix_sum(chunked(g, L))
        A = jnp.einsum("zbhid,zbhjd->zbhij", q, k) * pair_decay(b)
        q_in, k_out = q * jnp.exp(b)[..., None], k * jnp.exp(b[..., -1:] - b)[..., None]
        through = jnp.exp(b[..., -1:])  # [(Z, B,) H, 1]
    else:
        weights = _weights_by_tables if traced_for() == "tpu" else _vector_weights
        A, b = again(weights, elsewhere=jax.checkpoint(weights))(q, k, chunked(g, L))
        q_in, k_out = q * jnp.exp(b), k * jnp.exp(b[..., -1:, :] - b)
        through = jnp.exp(b[..., -1, :])  # [Z, B, H, D]
    A = jnp.where(pairs(ids, L), A, 0)
    carry = Carry(ids)
    q_in, k_out, through = carry.read(q_in), carry.write(k_out), carry.keep(through)

    zero = State(jnp.zeros((B, H, D, E), dtype), jnp.zeros((B, H, D), dtype) if normaliser else None)
    first = zero if state is None else jax.tree.map(lambda x: x.astype(dtype), State(state.S, state.z))
    first = first if normaliser else State(first.S)
    sums = State(jnp.einsum("zbhjd,zbhje->zbhde", k_out, v), k_out.sum(-2) if normaliser else None)
    before, last = _states(first, sums, through)

    o = jnp.einsum("zbhij,zbhje->zbhie", A, v) + jnp.einsum("zbhid,zbhde->zbhie", q_in, before.S)
    n = A.sum(-1) + jnp.einsum("zbhid,zbhd->zbhi", q_in, before.z) if normaliser else None
    return Mixed(whole(o, N), None if n is None else whole(n, N), last)


def step(
    state: State,
    q: Float[Array, "B H D"],
    k: Float[Array, "B H D"],
    v: Float[Array, "B H E"],
    log_decay: Float[Array, "H"] | Float[Array, "B H"] | Float[Array, "B H D"] | None = None,
) -> tuple[State, Float[Array, "B H E"], Float[Array, "B H"] | None]:
    """One token of `causal`: (state after it, q S, q z or None)."""
    S, z = state
    q, k, v = (x.astype(S.dtype) for x in (q, k, v))
    if log_decay is not None:
        a = jnp.exp(floored(log_decay.astype(S.dtype)))
        a = a if a.ndim == 3 else a[..., None]  # [(B,) H, D or 1]
        S, z = a[..., None] * S, None if z is None else a * z
    S = S + k[..., :, None] * v[..., None, :]
    z = None if z is None else z + k
    o = jnp.einsum("bhd,bhde->bhe", q, S)
    return State(S, z), o, None if z is None else jnp.einsum("bhd,bhd->bh", q, z)


def bidirectional(
    q: Float[Array, "B N H D"],
    k: Float[Array, "B N H D"],
    v: Float[Array, "B N H E"],
    segment_ids: Int[Array, "B N"] | None = None,
    *,
    chunk: int | None = None,
    normaliser: bool = False,
) -> tuple[Float[Array, "B N H E"], Float[Array, "B N H"] | None]:
    """(q_i sum_j k_j v_j^T, q_i sum_j k_j or None) over the tokens j of i's segment, the second with `normaliser`.

    With segments a token sees its chunk, the states of the chunks before and those of the chunks behind.
    """
    B, N, H, D = q.shape
    E, dtype = v.shape[-1], jnp.promote_types(q.dtype, jnp.float32)
    if segment_ids is None:
        q, k, v = (x.astype(dtype) for x in (q, k, v))
        o = jnp.einsum("bihd,bhde->bihe", q, jnp.einsum("bjhd,bjhe->bhde", k, v))
        return o, jnp.einsum("bihd,bhd->bih", q, k.sum(1)) if normaliser else None
    L = chunk_length(chunk, N)
    q, k, v = (chunked(x.astype(dtype), L) for x in (q, k, v))
    ids = segments(segment_ids, L)
    A = jnp.where(pairs(ids, L, causal=False), jnp.einsum("zbhid,zbhjd->zbhij", q, k), 0)
    o, n = jnp.einsum("zbhij,zbhje->zbhie", A, v), A.sum(-1)
    zero = State(jnp.zeros((B, H, D, E), dtype), jnp.zeros((B, H, D), dtype))
    for reverse in (False, True):
        carry = Carry(ids, reverse)
        k_out, q_in = carry.write(k), carry.read(q)
        sums = State(jnp.einsum("zbhjd,zbhje->zbhde", k_out, v), k_out.sum(-2))
        beside, _ = _states(zero, sums, carry.keep(None), reverse)
        o = o + jnp.einsum("zbhid,zbhde->zbhie", q_in, beside.S)
        n = n + jnp.einsum("zbhid,zbhd->zbhi", q_in, beside.z)
    return whole(o, N), whole(n, N) if normaliser else None


# What a chunkwise form is made of; the delta rule shares it.


def chunk_length(chunk: int | None, length: int) -> int:
    """Tokens of a chunk of a sequence of `length`; where `chunk` is None `CHUNK`, or `TPU_CHUNK`, of them.

    Raises ValueError for a chunk below 1.
    """
    if chunk is None:
        chunk = TPU_CHUNK if traced_for() == "tpu" else CHUNK
        chosen("chunk", str(chunk))
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: a chunk has at least one token; {CHUNK} is usual")
    return min(chunk, length)


def chunked(x: Float[Array, "B N H *D"], L: int) -> Float[Array, "Z B H L *D"]:
    """Cut into chunks of L tokens, the last one filled up with zeros."""
    return jnp.moveaxis(to_blocks(x, L, 1), (1, 3), (0, 2))


def whole(x: Float[Array, "Z B H L *D"], length: int) -> Float[Array, "B N H *D"]:
    """The inverse of `chunked`."""
    return from_blocks(jnp.moveaxis(x, (0, 2), (1, 3)), length, 1)


def segments(segment_ids: Int[Array, "B N"] | None, L: int) -> Int[Array, "Z B 1 L"] | None:
    """Segments by chunk; what fills up the last one belongs to the last token's."""
    if segment_ids is None:
        return None
    B, N = segment_ids.shape
    ids = jnp.pad(segment_ids, ((0, 0), (0, -N % L)), mode="edge")
    return jnp.moveaxis(ids.reshape(B, -1, 1, L), 1, 0)


def pairs(ids: Int[Array, "Z B 1 L"] | None, L: int, causal: bool = True) -> Bool[Array, "... L L"]:
    """Whether a token (row) of a chunk sees another (column)."""
    seen = jnp.tril(jnp.ones((L, L), bool)) if causal else jnp.ones((L, L), bool)
    return seen if ids is None else seen & (ids[..., :, None] == ids[..., None, :])


class Carry:
    """Who writes to the state that leaves a chunk, who reads the one that enters it, and whether it passes through.

    The state that leaves is of the last token's segment (`reverse`: that which leaves at the front, of the first's).
    """

    def __init__(self, ids: Int[Array, "Z B 1 L"] | None, reverse: bool = False):
        self.ids = ids
        if ids is None:
            return
        if reverse:
            self.out = ids[..., :1]
            self.into = jnp.concatenate([self.out[1:], ids[-1:, ..., -1:]])
        else:
            self.out = ids[..., -1:]
            self.into = jnp.concatenate([ids[:1, ..., :1], self.out[:-1]])

    def read(self, q: Float[Array, "Z B H L D"]) -> Float[Array, "Z B H L D"]:
        """Queries of the segment that comes in; zeros elsewhere."""
        return q if self.ids is None else jnp.where((self.ids == self.into)[..., None], q, 0)

    def write(self, k: Float[Array, "Z B H L D"]) -> Float[Array, "Z B H L D"]:
        """Keys of the segment that goes out; zeros elsewhere."""
        return k if self.ids is None else jnp.where((self.ids == self.out)[..., None], k, 0)

    def keep(self, decay: Float[Array, "..."] | None) -> Float[Array, "..."] | None:
        """The factor of what comes in, in what goes out; None: 1."""
        if self.ids is None:
            return decay
        through = self.out == self.into  # [Z, B, 1, 1]
        return through.astype(jnp.float32) if decay is None else jnp.where(through, decay, 0)


def floored(log_decay: Float[Array, "..."]) -> Float[Array, "..."]:
    """Decays whose sums over a chunk stay exact and whose exponentials, over half a block, finite."""
    return jnp.maximum(log_decay, -40.0 if log_decay.dtype == jnp.float64 else -18.0)


def prefix_sum(g: Float[Array, "Z B H L"]) -> Float[Array, "Z B H L"]:
    """Sums from a chunk's start up to each token: a product with a triangle, faster than a scan."""
    L = g.shape[-1]
    return jnp.einsum("ij,...j->...i", jnp.tril(jnp.ones((L, L), g.dtype)), g, precision="highest")


def pair_decay(b: Float[Array, "... L"]) -> Float[Array, "... L L"]:
    """exp(b_i - b_j) for i >= j, from sums of log decays; 1 above the diagonal."""
    L = b.shape[-1]
    lower = jnp.tril(jnp.ones((L, L), bool))
    return jnp.exp(jnp.where(lower, b[..., :, None] - b[..., None, :], 0))


def gathered(x: Float[Array, "Z B H *D"]) -> Float[Array, "Z B H *D"]:
    """The chunks' sums, whole on each device, however the sequence is split: a scan over them needs no talk."""
    return with_logical_constraint(x, (None, "batch", "heads", *(None,) * (x.ndim - 3)))


def _vector_weights(
    q: Float[Array, "Z B H L D"], k: Float[Array, "Z B H L D"], g: Float[Array, "Z B H L D"]
) -> tuple[Float[Array, "Z B H L L"], Float[Array, "Z B H L D"]]:
    """(A_ij = sum_d q_id k_jd exp(b_id - b_jd) for i >= j, b), b the sums of g from the chunk's start.

    A decay for each dim does not leave the product of q and k. It is split between them at a point r:
    q exp(b_i - b_r) times k exp(b_r - b_j). For j <= r < i neither overflows, however strong the decay: so halves of
    a chunk meet at their border, quarters at theirs, and so on down to blocks of 8, which meet in their middle and
    rise by four decays at most. Sums are made up again at each size, so that small ones are not lost in large ones.
    """
    *lead, L, _ = q.shape
    size = _BLOCK

    def cut(x: Array, size: int) -> Array:
        return x.reshape(*lead, L // size, size, x.shape[-1])

    triangle = jnp.tril(jnp.ones((size, size), g.dtype))
    b = jnp.einsum("ij,...jd->...id", triangle, cut(g, size), precision="highest")
    r = b[..., size // 2 - 1 : size // 2, :]
    A = jnp.einsum("...id,...jd->...ij", cut(q, size) * jnp.exp(b - r), cut(k, size) * jnp.exp(r - b))
    A = jnp.where(triangle > 0, A, 0)
    while size < L:
        b = cut(jax.lax.optimization_barrier(b), 2 * size)  # else each size would sum from the beginning
        b_j, b_i = b[..., :size, :], b[..., size:, :]
        b_r = b_j[..., -1:, :]
        q_i, k_j = cut(q, 2 * size)[..., size:, :], cut(k, 2 * size)[..., :size, :]
        corner = jnp.einsum("...id,...jd->...ij", q_i * jnp.exp(b_i), k_j * jnp.exp(b_r - b_j))
        A = A.reshape(*lead, -1, 2, size, size)
        above = jnp.concatenate([A[..., 0, :, :], jnp.zeros_like(corner)], -1)
        A = jnp.concatenate([above, jnp.concatenate([corner, A[..., 1, :, :]], -1)], -2)
        b = jnp.concatenate([b_j, b_r + b_i], -2)
        size *= 2
    return A.reshape(*lead, L, L), b.reshape(g.shape)


@functools.lru_cache(maxsize=16)
def _tables(L: int) -> list[tuple[Float[np.ndarray, "L L"], Bool[np.ndarray, "L L"]]]:
    """For pairs of blocks of 8, 16 ... tokens: (which decays lie between a token and the border of its pair of blocks,
    which tokens meet there). First of all for a block of 8: those between a token and its middle, -1 before it."""
    i, found, size = np.arange(L), [], _BLOCK // 2
    while size < L:
        border = i // (2 * size) * 2 * size + size - 1
        after = i > border
        first, last = np.minimum(i, border), np.maximum(i, border)
        between = ((i > first[:, None]) & (i <= last[:, None])).astype(np.float32)
        same = border[:, None] == border
        if size < _BLOCK:
            found.append((np.where(after[:, None], between, -between), same & (i[:, None] >= i)))
        else:
            found.append((between, same & after[:, None] & ~after))
        size *= 2
    return found


def _weights_by_tables(
    q: Float[Array, "Z B H L D"], k: Float[Array, "Z B H L D"], g: Float[Array, "Z B H L D"]
) -> tuple[Float[Array, "Z B H L L"], Float[Array, "Z B H L D"]]:
    """As `_vector_weights`, for TPUs, which copy what is cut out of a chunk: each size is a product over all of it, of
    which the pairs that meet at a border are taken, whatever the others are."""

    def sums(table: np.ndarray) -> Array:
        return jnp.einsum("ij,...jd->...id", table.astype(g.dtype), g, precision="highest")

    A = jnp.zeros((), g.dtype)
    for number, (between, meet) in enumerate(_tables(g.shape[-2])):
        e = sums(between)
        to, back = jnp.exp(e), jnp.exp(e if number else -e)
        A = jnp.where(meet, jnp.einsum("...id,...jd->...ij", q * to, k * back), A)
    return A, sums(np.tri(g.shape[-2]))


def _states(
    first: State, sums: State, through: Float[Array, "..."] | None, reverse: bool = False
) -> tuple[State, State]:
    """(the states [Z, B, H, D, E] that enter each chunk, the one that leaves the last).

    S <- through S + sums, chunk after chunk.
    """
    sums = State(gathered(sums.S), None if sums.z is None else gathered(sums.z))
    if through is not None:
        through = jnp.broadcast_to(through, (*sums.S.shape[:3], through.shape[-1])).astype(sums.S.dtype)

    def advance(state: State, chunk: tuple[State, Array | None]) -> tuple[State, State]:
        more, keep = chunk
        kept = state
        if keep is not None:
            kept = State(keep[..., None] * state.S, None if state.z is None else keep * state.z)
        return jax.tree.map(jnp.add, kept, more), state

    last, before = jax.lax.scan(advance, first, (sums, through), reverse=reverse)
    return before, last
