"""Attention of a gated unit: one head for all, wide values, no normaliser (Hua et al. 2022, arXiv 2202.10447).

Shapes: B batch, N tokens, s width of queries and keys, e width of values; C tokens of a chunk, G chunks of a row.
Weights and states are float32 whatever the dtype of the operands.

Segments: `segment_ids` int32 [B, N] numbers the documents of a packed row, each in one piece; 0 is padding. A token
sees its own segment alone, and `positions` [B, N] count from its start. None: the row is one segment.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from flashjax.ops.again import again
from flashjax.ops.blocks import from_blocks, neighbours, to_blocks
from flashjax.ops.cache import newest, write
from flashjax.ops.dense import copies, product
from flashjax.ops.pairs import HIDDEN

Heads = Float[Array, "B N s"]
Values = Float[Array, "B N e"]
Segments = Int[Array, "B N"]
Count = Float[Array, "B N"] | Float[Array, ""] | float
Weigh = Callable[[Array, Any, Any], Array]
"""(logits, bias, n) -> weights, float32."""

MAX_BLOCKS = 16  # blocks of queries are unrolled: more of them would only compile longer


def squared_relu(
    qk: Float[Array, "..."], b: Float[Array, "..."] | float, n: Any, scaling: str, s: int
) -> Float[Array, "..."]:
    """Weights of logits qk = Q K^T, with b the relative position bias and n the number of keys they are meant for.

    paper: relu(qk / n + b)^2 (the paper's pseudo-code). sum: relu((qk + b) / n)^2 (the GAU of flash-pytorch).
    mean: relu(qk / sqrt(s) + b)^2 / n (Su, kexue.fm 8934), whose weights do not vanish as n^-2.
    """
    if scaling == "paper":
        return jnp.square(jax.nn.relu(qk / n + b))
    if scaling == "sum":
        return jnp.square(jax.nn.relu((qk + b) / n))
    return jnp.square(jax.nn.relu(qk * s**-0.5 + b)) / n


def _column(n: Count) -> Any:
    """n against keys, one for each query or one for all."""
    return jnp.asarray(n)[..., None] if jnp.ndim(n) else n


def toeplitz(b: Float[Array, "M"], columns: int) -> Float[Array, "rows columns"]:
    """The matrix t with t[i, j] = b[j - i + rows - 1], where rows = M + 1 - columns.

    Rows are cut out of one long repetition of b, so that no gradient is a scatter.
    """
    M = b.shape[0]
    rows = M + 1 - columns
    repeated = jnp.broadcast_to(jnp.append(b, 0), (rows, M + 1)).reshape(-1)
    return repeated[: rows * M].reshape(rows, M)[:, rows - 1 :]


def rotated_dots(a: Float[Array, "s"], c: Float[Array, "s"], first: int, last: int) -> Float[Array, "M"]:
    """<a, R_m c> for m from `first` to `last`, where R_m turns dims i and i + s/2 by the angle m 10000^(-2i/s).

    With z_i = (a_i - i a_{i+s/2}) (c_i + i c_{i+s/2}) it is the real part of sum_i z_i exp(i theta_i m). For m = u + w
    that is a product of tables for u, many apart, and w, few: one turn for sqrt(M) distances.
    """
    half, M = a.shape[0] // 2, last - first + 1
    theta = 10000.0 ** -(np.arange(half) / half)
    few = math.isqrt(M - 1) + 1
    u, w = (np.asarray(m, np.float64)[:, None] * theta for m in (first + few * np.arange(-(-M // few)), np.arange(few)))
    real, imaginary = a[:half] * c[:half] + a[half:] * c[half:], a[:half] * c[half:] - a[half:] * c[:half]
    cos, sin = np.cos(u).astype(np.float32), np.sin(u).astype(np.float32)
    turned = jnp.concatenate([real * cos - imaginary * sin, -real * sin - imaginary * cos], -1)
    table = np.concatenate([np.cos(w), np.sin(w)], -1).astype(np.float32)
    return jnp.einsum("ui,wi->uw", turned, table, precision="highest").reshape(-1)[:M]


def quadratic(
    q: Heads,
    k: Heads,
    v: Values,
    b: Float[Array, "M"] | None,
    n: Count,
    weigh: Weigh,
    *,
    softmax: bool = False,
    causal: bool = True,
    segment_ids: Segments | None = None,
    block: int = 1024,
) -> Values:
    """A V over the whole row, where A = weigh(Q K^T, b, n), and 0 where a key is not seen; or softmax(weigh(...)) V.

    b [2N - 1] holds the bias of each distance j - i from 1 - N to N - 1. Queries are taken `block` at a time: a causal
    block reads no key behind it, and the weights of a long row, which the backward pass computes anew, never exist at
    once. 0: all queries together, which is what a row split over a `sequence` mesh axis wants.
    """
    N = q.shape[1]
    if segment_ids is not None:
        v = jnp.where(segment_ids[..., None] > 0, v, 0)
    block = max(block, -(-N // MAX_BLOCKS)) if block else N

    def rows(first: int, last: int, q, k, v, b, n, segment_ids) -> Values:
        keys = k.shape[1]
        qk = product("bis,bjs->bij", q, k, dtype=jnp.float32)
        a = weigh(qk, 0.0 if b is None else copies(toeplitz(b, keys), q.shape[0]), _column(n))
        seen = None
        if causal:
            seen = jnp.arange(keys) <= jnp.arange(first, last)[:, None]
        if segment_ids is not None:
            same = segment_ids[:, first:last, None] == segment_ids[:, None, :keys]
            seen = same if seen is None else seen & same
        if softmax:
            a = jax.nn.softmax(a if seen is None else jnp.where(seen, a, HIDDEN), axis=-1)
        elif seen is not None:
            a = jnp.where(seen, a, 0)
        return product("bij,bje->bie", a.astype(v.dtype), v)

    out = []
    for first in range(0, N, block):
        last = min(first + block, N)
        keys = last if causal else N
        part = functools.partial(rows, first, last)
        if block < N:
            part = again(part, elsewhere=jax.checkpoint(part))
        b_part = None if b is None else b[N - last : N - last + (last - first) + keys - 1]
        n_part = jnp.asarray(n)[:, first:last] if jnp.ndim(n) else n
        out.append(part(q[:, first:last], k[:, :keys], v[:, :keys], b_part, n_part, segment_ids))
    return jnp.concatenate(out, axis=1) if len(out) > 1 else out[0]


def weighted_sum(a: Float[Array, "B K"], v: Float[Array, "B K e"], part: int = 256) -> Float[Array, "B e"]:
    """sum_j a_j v_j, added up in float32: what one query reads of a cache.

    By parts of the keys, where they divide: as one product over many rows it takes twice the time on a CPU.
    """
    (B, K), e = a.shape, v.shape[-1]
    part = K if K % part else part
    a, v = a.reshape(B, -1, part), v.reshape(B, -1, part, e)
    return jnp.einsum("bpj,bpje->bpe", a, v, preferred_element_type=jnp.float32).sum(1)


def mixed_chunk(
    q_quad: Heads,
    k_quad: Heads,
    q_lin: Heads,
    k_lin: Heads,
    v: Values,
    b: Float[Array, "M"],
    n: Count,
    weigh: Weigh,
    *,
    chunk: int,
    causal: bool = True,
) -> Values:
    """V_quad + V_lin of each chunk g of C tokens (paper section 3.2 and its pseudo-code), for a row of one segment.

    V_quad_g = weigh(Q_quad_g K_quad_g^T, b, C) V_g      inside the chunk; causal: keys up to each query
    V_lin_g  = Q_lin_g / C  sum_{h < g} K_lin_h^T V_h    causal: the chunks before this one
    V_lin_g  = Q_lin_g / n  sum_h       K_lin_h^T V_h    otherwise: all of them

    b [2C - 1] holds the bias of each distance from 1 - C to C - 1. The last chunk may be short: what it lacks are keys
    and values of zero, which add nothing anywhere.
    """
    N, C = v.shape[1], chunk
    c = min(C, N)  # a row shorter than a chunk is not padded to one

    q_lin = q_lin if causal else q_lin / _column(n)
    Q_quad, K_quad, Q_lin, K_lin, V = (to_blocks(x, c, 1) for x in (q_quad, k_quad, q_lin, k_lin, v))

    def weighed(qk: Array, bias: Array, V: Array) -> Array:
        A = weigh(qk, bias, C)
        A = jnp.where(jnp.tri(c, dtype=bool), A, 0) if causal else A
        return product("bgij,bgje->bgie", A.astype(v.dtype), V)

    qk = product("bgis,bgjs->bgij", Q_quad, K_quad, dtype=jnp.float32)
    out = again(weighed)(qk, copies(toeplitz(b[C - c : C - 1 + c], c), *qk.shape[:2]), V)
    if causal and V.shape[1] > 1:
        # Of the last chunk, too, whose sum nobody reads: to leave it out would copy the values of all others.
        KV = product("bgjs,bgje->bgse", K_lin, V, dtype=jnp.float32)
        out = out + product("bgis,bgse->bgie", Q_lin, sums_before(_gathered(KV), 1 / C).astype(v.dtype))
    if not causal:
        S = product("bns,bne->bse", k_lin, v, dtype=jnp.float32).astype(v.dtype)
        out = out + product("bgis,bse->bgie", Q_lin, S)
    return from_blocks(out, N, 1)


def mixed_chunk_packed(
    q_quad: Heads,
    k_quad: Heads,
    q_lin: Heads,
    k_lin: Heads,
    v: Values,
    b: Float[Array, "M"],
    n: Count,
    weigh: Weigh,
    *,
    chunk: int,
    causal: bool = True,
    segment_ids: Segments,
    positions: Int[Array, "B N"],
) -> Values:
    """`mixed_chunk` of each segment of a packed row, exactly: a segment's chunks are counted from its own start.

    A segment may start anywhere, so its chunks lie across those that the row is cut into. What is near is weighed and
    what is far is summed: with c = positions // C the chunk of a token in its segment, and chunks g of the row,

    near, g - 1 to g (to g + 1 unless causal):
        V_i = sum_j A_ij V_j,  A_ij = weigh(Q_quad_i K_quad_j^T, b, C)  where c_j = c_i (and j <= i if causal)
                                    + Q_lin_i K_lin_j^T / C             where c_j < c_i if causal
                                    + Q_lin_i K_lin_j^T / n             all, otherwise
    far, chunks of the row before g - 1 (and after g + 1):
        V_i = Q_lin_i / C (or n)  sum_j K_lin_j^T V_j                   over keys of the segment of i

    Twice the work of `mixed_chunk` inside chunks (three times unless causal), which is little of a layer.
    """
    N, C = v.shape[1], chunk
    v = jnp.where(segment_ids[..., None] > 0, v, 0)
    q_lin = q_lin / (C if causal else _column(n))
    back, ahead = 1, 0 if causal else 1

    chunks = functools.partial(to_blocks, block=C, axis=1)
    near = functools.partial(neighbours, before=back, after=ahead, axis=1)  # the keys that a chunk weighs
    Q_quad, K_quad, Q_lin, K_lin, V, ids, p = map(chunks, (q_quad, k_quad, q_lin, k_lin, v, segment_ids, positions))
    i, j = (p[..., None], near(p)[..., None, :])
    same = ids[..., None] == near(ids)[..., None, :]
    distances = jnp.pad(b, (C * back, C * ahead))  # further than a chunk: masked

    def weighed(qk: Array, linear: Array, bias: Array, V: Array, local: Array, further: Array) -> Array:
        A = jnp.where(local, weigh(qk, bias, C), 0) + jnp.where(further, linear, 0)
        return product("bgij,bgje->bgie", A.astype(v.dtype), V)

    qk = product("bgis,bgjs->bgij", Q_quad, near(K_quad), dtype=jnp.float32)
    linear = product("bgis,bgjs->bgij", Q_lin, near(K_lin), dtype=jnp.float32)
    bias = copies(toeplitz(distances, (back + 1 + ahead) * C), *qk.shape[:2])
    local = same & (i // C == j // C) & (j <= i if causal else True)
    further = same & (j // C < i // C) if causal else same
    out = again(weighed)(qk, linear, bias, near(V), local, further)
    out = out + _far(Q_lin, K_lin, V, ids, ids[:, :, -1], back + 1)
    if not causal:
        flipped = [x[:, ::-1] for x in (Q_lin, K_lin, V, ids, ids[:, :, 0])]
        out = out + _far(*flipped, gap=ahead + 1)[:, ::-1]
    return from_blocks(out, N, 1)


def sums_before(x: Float[Array, "B G s e"], scale: float = 1.0, run: int = 32) -> Float[Array, "B G s e"]:
    """The sum of all chunks before each one, times `scale`; time and memory of G (run + 1) s e.

    A product with a triangle within runs of chunks, and again over the runs' sums. A cumulative sum is a window over
    all of G to XLA for CPUs (32 chunks: ten times the time).
    """
    B, G, s, e = x.shape
    c = min(run, G)
    runs = jnp.pad(x, ((0, 0), (0, -G % c), (0, 0), (0, 0))).reshape(-1, c, s, e)
    earlier = jnp.broadcast_to(scale * jnp.tri(c, k=-1, dtype=x.dtype), (runs.shape[0], c, c))
    before = product("rgh,rhse->rgse", earlier, runs, precision="highest")
    if c < G:
        whole = (before[:, -1] + scale * runs[:, -1]).reshape(B, -1, s, e)
        before = before.reshape(B, -1, c, s, e) + sums_before(whole, 1.0, run)[:, :, None]
    return before.reshape(B, -1, s, e)[:, :G]


def _gathered(sums: Float[Array, "B G s e"]) -> Float[Array, "B G s e"]:
    """All chunks' sums on each device, however the row is split: adding them up then needs no talk."""
    return with_logical_constraint(sums, ("batch", None, None, "mlp"))


def _far(
    Q: Float[Array, "B G C s"],
    K: Float[Array, "B G C s"],
    V: Float[Array, "B G C e"],
    ids: Int[Array, "B G C"],
    edge: Int[Array, "B G"],
    gap: int,
) -> Float[Array, "B G C e"]:
    """Q_g times the sum of K_h^T V_h over chunks h <= g - gap, tokens of the query's own segment alone.

    S_h = L_h + S_{h-1} if edge_h = edge_{h-1}, with edge_h the segment that leaves chunk h towards h + 1 and L_h the
    sum over its tokens in h.
    """
    if V.shape[1] <= gap:
        return jnp.zeros_like(V)
    K = jnp.where((ids == edge[..., None])[..., None], K, 0)
    L = product("bgjs,bgje->bgse", K[:, :-gap], V[:, :-gap], dtype=jnp.float32)
    L = _gathered(L)
    goes_on = jnp.pad(edge[:, 1:-gap] == edge[:, : -gap - 1], ((0, 0), (1, 0)))

    def add(earlier, later):
        (f, x), (g, y) = earlier, later
        return f & g, jnp.where(g[..., None, None], x, 0) + y

    _, S = jax.lax.associative_scan(add, (goes_on, L), axis=1)
    sees = ids[:, gap:] == edge[:, :-gap, None]
    Q = jnp.where(sees[..., None], Q[:, gap:], 0)
    return jnp.pad(product("bgis,bgse->bgie", Q, S.astype(V.dtype)), ((0, 0), (gap, 0), (0, 0), (0, 0)))


class ChunkState(NamedTuple):
    """What causal decoding of `mixed_chunk` remembers, however many tokens there were.

    A ring of the last C tokens' keys and values, token t at t mod C, and S = sum of K_lin_t^T V_t / C over all before.
    """

    k_quad: Float[Array, "B C s"]
    k_lin: Float[Array, "B C s"]
    v: Float[Array, "B C e"]
    S: Float[Array, "B s e"]


def chunk_prefill(k_quad: Heads, k_lin: Heads, v: Values, lengths: Int[Array, "B"], chunk: int) -> ChunkState:
    """The state after the first `lengths` tokens of each row."""
    past = jnp.arange(v.shape[1]) < lengths[:, None] - chunk
    K = jnp.where(past[..., None], k_lin, 0) / chunk
    S = jnp.einsum("bns,bne->bse", K, v, preferred_element_type=jnp.float32)
    k_quad, k_lin, v = (newest(x, lengths, chunk) for x in (k_quad, k_lin, v))
    return ChunkState(k_quad, k_lin, v, S)


def chunk_step(
    q_quad: Float[Array, "B s"],
    k_quad: Float[Array, "B s"],
    q_lin: Float[Array, "B s"],
    k_lin: Float[Array, "B s"],
    v: Float[Array, "B e"],
    b: Float[Array, "B C"],
    weigh: Weigh,
    state: ChunkState,
    position: Int[Array, "B"],
) -> tuple[Float[Array, "B e"], ChunkState]:
    """One token of causal `mixed_chunk`: (V_quad + V_lin, state), in time and memory of s e + C (s + e).

    The token takes its place in the ring from the one C before it, which goes into S. Of the ring, slots up to its own
    are its chunk, and weighed; those behind are the end of the chunk before, and so linear as S is.

    `b` is the bias of each slot's distance to the token; those behind its own are not used.
    """
    C, row = state.v.shape[1], jnp.arange(v.shape[0])
    slot = position % C
    K_old, V_old = (x[row, slot].astype(jnp.float32) for x in (state.k_lin, state.v))
    S = state.S + jnp.einsum("bs,be->bse", K_old / C, V_old)
    K_quad, K_lin, V = (
        write(ring, slot, new) for ring, new in ((state.k_quad, k_quad), (state.k_lin, k_lin), (state.v, v))
    )
    weighed = weigh(jnp.einsum("bs,bjs->bj", q_quad, K_quad, preferred_element_type=jnp.float32), b, C)
    linear = jnp.einsum("bs,bjs->bj", q_lin, K_lin, preferred_element_type=jnp.float32) / C
    A = jnp.where(jnp.arange(C) <= slot[:, None], weighed, linear)
    out = jnp.einsum("bj,bje->be", A, V, preferred_element_type=jnp.float32)
    out = out + jnp.einsum("bs,bse->be", q_lin, S, preferred_element_type=jnp.float32)
    return out.astype(v.dtype), ChunkState(K_quad, K_lin, V, S)
