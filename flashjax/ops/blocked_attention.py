"""The blocked form of softmax attention: a block of logits at once, forward and backward, or a few (`UNROLLED`).

Online softmax (Dao et al. 2022, "FlashAttention"). Logits of a block have keys before queries: every product then has
its contracted dims where a CPU reads them in order, and maxima run down columns, many at a time. Their dims are [n, h,
keys, g, q]: rows, key-value heads, queries of a group, queries. On one CPU (`_Spec.flat`) they are [h, keys, q], the
group among the queries: XLA for CPUs copies what a product of more dims hands on. Other shapes: see
`flashjax.ops.attention`.
"""

import functools
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flashjax.ops.dense import sums_of_rows
from flashjax.ops.loop import keep
from flashjax.ops.pairs import FLOOR, HIDDEN, Seen, pair_mask
from flashjax.ops.platform import on_one_cpu, traced_for

BLOCK = 256
"""Queries, and keys, of a block at most."""
LARGE_BLOCK = 512
"""The same on one CPU, whose cores do not share smaller products, and on TPUs: a step of `wiki40b_transformer` on
v5e:4x4 takes 446 ms with 256 by the compiler's estimate, 387 with 512, 492 with 1,024."""
PART = 128
"""Queries of a part of such a block on the diagonal."""
UNROLLED = 4
"""Blocks of a causal row up to which one CPU has no loop over them: a loop copies what it reads and hands on. Logits of
more than one block may then be there together: of 4 rows of 2,048 tokens, 4 heads, a gradient takes 122 MiB, not 76."""
CACHE = 2**21
"""Bytes of logits that a core of a CPU has at once: so many heads go through the blocks together. Twice what its own
cache holds, as cores share products of more heads better."""


def blocked(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K Hk D"],
    v: Float[Array, "B K Hk E"],
    bias: Any,
    seen: Seen,
    scale: float,
) -> Float[Array, "B Q H E"]:
    """softmax(scale q k^T + bias) v over what is `seen`, in v's dtype; `bias` as of `dot_product_attention`, which
    checks all of it."""
    B, Q, H = q.shape[:3]
    K, Hk, E = k.shape[1], k.shape[2], v.shape[3]
    G = H // Hk
    one_cpu, tpu = on_one_cpu(), traced_for() == "tpu"
    most = LARGE_BLOCK if one_cpu or tpu else BLOCK
    # Queries that an axis of the mesh splits go side by side: a loop would visit one device at a time.
    nq, bq = _blocks(Q, Q if _sequence_shards() > 1 else most)
    nk, bk = _blocks(K, most)
    q_ids, k_ids = seen.q_ids, seen.k_ids
    if q_ids is None and nk * bk != K:  # the keys of the padding must not be seen
        q_ids, k_ids = jnp.ones((1, Q), jnp.int32), jnp.ones((1, K), jnp.int32)
    if bias is not None and not callable(bias):
        bias = _Whole.make(bias, H, Q, K, nq * bq, nk * bk)
    rows, few = _together(B, Hk, G * bq * bk * 4, bias) if one_cpu else (B, Hk)
    parts = (B // rows) * (Hk // few)
    flat = one_cpu and rows == 1
    plain = seen.q_positions is None and seen.k_positions is None
    stairs = flat and plain and seen.causal and bias is None and (nq, bq) == (nk, bk)
    unrolled = stairs and nq <= UNROLLED
    spec = _Spec(seen.causal, seen.window, plain, q_ids is not None, bq, bk, nq, nk, flat, stairs, unrolled, tpu)
    tables = {
        "q_index": _cut(seen.q_index(Q), nq, bq),
        "k_index": _cut(seen.k_index(K), nk, bk),
        "q_ids": None if q_ids is None else _cut(q_ids, nq, bq),
        "k_ids": None if k_ids is None else _cut(k_ids, nk, bk),
    }

    def laid(x: Array, count: int, size: int, *queries: int) -> Array:
        """[B, length, Hk G, D] -> [parts, count, rows, few, G, size, D]; G, size as `queries`, if flat no rows."""
        x = _padded(x, count * size).reshape(B // rows, rows, count, size, Hk // few, few, -1, x.shape[-1])
        x = x.transpose(0, 4, 2, 1, 5, 6, 3, 7)
        return x.reshape(parts, count, *((few,) if flat else (rows, few)), *queries, x.shape[-1])

    scaled = q * jnp.asarray(scale, q.dtype)
    given = (
        jnp.arange(parts),
        laid(scaled, nq, bq, *((G * bq,) if flat else (G, bq))),
        laid(k, nk, bk, bk),
        laid(v, nk, bk, bk),
    )

    def some(given: Any) -> Array:
        part, q, k, v = given
        row = part // (Hk // few)
        mine = jax.tree.map(lambda x: x if rows == B or x.shape[1] == 1 else x[:, row][:, None], tables)
        return _attend(spec, q, k, v, bias, mine)

    o = jax.lax.map(some, given) if parts > 1 else some(jax.tree.map(lambda x: x[0], given))[None]
    o = o.reshape(B // rows, Hk // few, nq, rows, few, G, bq, E).transpose(0, 3, 2, 6, 1, 4, 5, 7)
    return o.reshape(B, nq * bq, H, E)[:, :Q]


def _blocks(length: int, most: int) -> tuple[int, int]:
    """How many blocks, and of how many tokens: the fewest of at most `most`, and then the smallest."""
    count = -(-length // most)
    return count, _round_up(-(-length // count), 8)


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _padded(x: Array, length: int) -> Array:
    """Zeros behind, along dim 1."""
    missing = length - x.shape[1]
    return jnp.pad(x, ((0, 0), (0, missing), *((0, 0),) * (x.ndim - 2))) if missing else x


def _cut(x: Array, count: int, size: int) -> Array:
    """[b, length] -> [count, b, size], padded by zeros."""
    return _padded(x, count * size).reshape(x.shape[0], count, size).swapaxes(0, 1)


def _together(rows: int, heads: int, each: int, bias: Any) -> tuple[int, int]:
    """How many rows and key-value heads go through one CPU's blocks together, where a head's logits take `each` bytes.

    So many heads of a row as fill `CACHE`, or all where a bias is made for all at once.
    """
    if isinstance(bias, _Whole):
        return rows, heads
    if bias is not None:
        return 1, heads
    room = CACHE * (os.cpu_count() or 1) / each
    divisors = [h for h in range(1, heads + 1) if heads % h == 0]
    return 1, min(divisors, key=lambda h: abs(math.log(h / room)))


def _sequence_shards() -> int:
    """Into how many parts the mesh that is being traced for splits a sequence."""
    return dict(jax.sharding.get_abstract_mesh().shape).get("sequence", 1)


@jax.tree_util.register_pytree_node_class
class _Whole:
    """A bias given as an array [b, H, Q, K], cut by index."""

    def __init__(self, array: Any):
        self.array = array

    @classmethod
    def make(cls, bias: Array, heads: int, queries: int, keys: int, padded_q: int, padded_k: int) -> "_Whole":
        whole = jnp.broadcast_shapes(jnp.shape(bias), (1, heads, queries, keys))
        bias = jnp.broadcast_to(bias, whole).astype(jnp.float32)
        return cls(jnp.pad(bias, ((0, 0), (0, 0), (0, padded_q - queries), (0, padded_k - keys))))

    def tree_flatten(self):
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


@dataclass(frozen=True)
class _Spec:
    """What is known before the loops run."""

    causal: bool
    window: int | None
    plain: bool
    """Positions are 0, 1, 2 ..."""
    segments: bool
    bq: int
    bk: int
    nq: int
    nk: int
    flat: bool
    """Dims are [h, keys, q] and not [n, h, keys, g, q]."""
    stairs: bool
    """Blocks on the diagonal are not of the ranges; each is computed in `parts`, which read no key after their own."""
    unrolled: bool
    """Blocks are known by number when traced."""
    tpu: bool

    @property
    def tokens(self) -> int:
        """How many dims queries have."""
        return 1 if self.flat else 2

    @property
    def keys(self) -> int:
        """The dim of keys among logits, and of channels in what products make as columns."""
        return 1 if self.flat else 2

    @property
    def channels(self) -> int:
        """The dim of channels of `columns`."""
        return -2 if self.flat else -1

    def product(self, dims: str, a: Array, b: Array) -> Array:
        """`jnp.einsum` in each row and head, where q stands for all dims of queries; float32. Operands whose channels
        (d, e) come first are `columns`."""
        rows, queries = ("h", "q") if self.flat else ("nh", "gq")
        *operands, out = re.split(",|->", dims)
        if not self.flat:
            operands = [term[::-1] if term[0] in "de" else term for term in operands]
        left, right, out = (rows + term.replace("q", queries) for term in (*operands, out))
        return jnp.einsum(f"{left},{right}->{out}", a, b, preferred_element_type=jnp.float32)

    def columns(self, x: Array) -> Array:
        """Channels [..., tokens, C] before tokens, in memory too, on one CPU, whose products would read them out of
        order at every use; elsewhere x."""
        return jax.lax.optimization_barrier(x.swapaxes(-1, -2)) if self.flat else x

    def rows(self, x: Array) -> Array:
        """What a product made as columns of queries, as rows [..., C]."""
        x = jnp.moveaxis(x, x.ndim - 1 - self.tokens, -1)
        return jax.lax.optimization_barrier(x) if self.flat else x

    def sums(self, x: Array) -> Array:
        """Over channels."""
        return sums_of_rows(x) if self.flat else x.sum(-1)

    @property
    def parts(self) -> list[tuple[int, int]]:
        """(first, end) of the queries of each part of a block on the diagonal; it sees keys up to `end`."""
        return [(first, min(first + PART, self.bq)) for first in range(0, self.bq, PART)]

    def part(self, x: Array, first: int, end: int, axis: int = -1) -> Array:
        """These queries of a block, whose queries are along `axis`."""
        axis %= x.ndim
        x = x.reshape(*x.shape[:axis], -1, self.bq, *x.shape[axis + 1 :])
        x = jax.lax.slice_in_dim(x, first, end, axis=axis + 1)
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    def joined(self, parts: Sequence[Array]) -> Array:
        """All queries of a block, along the last axis, of those of its parts."""
        cut = [x.reshape(*x.shape[:-1], -1, end - first) for x, (first, end) in zip(parts, self.parts, strict=True)]
        x = jnp.concatenate(cut, -1)
        return x.reshape(*x.shape[:-2], -1)

    def of_queries(self, i: Any) -> list[tuple[Any, Any, bool]]:
        """Ranges of the blocks of keys that block i of queries may see: (first, end, whether some pair is hidden).

        Without that on the diagonal where `stairs`.
        """
        back, ahead = self._reach()
        ranges = self._ranges(i * self.bq, self.bq, self.bk, self.nk, back, ahead)
        if not self.stairs:
            return ranges
        return [(first, _library(i).minimum(end, i), masked) for first, end, masked in ranges]

    def of_keys(self, j: Any) -> list[tuple[Any, Any, bool]]:
        """The same for the blocks of queries that may see block j of keys."""
        back, ahead = self._reach()
        ranges = self._ranges(j * self.bk, self.bk, self.bq, self.nq, ahead, back)
        if not self.stairs:
            return ranges
        return [(_library(j).maximum(first, j + 1), end, masked) for first, end, masked in ranges]

    def _reach(self) -> tuple[int | None, int | None]:
        """How far back and ahead a query sees; None: without end."""
        if not self.plain:
            return None, None
        reach = None if self.window is None else self.window - 1
        return reach, 0 if self.causal else reach

    def _ranges(
        self, at: Any, size: int, unit: int, count: int, back: int | None, ahead: int | None
    ) -> list[tuple[Any, Any, bool]]:
        """Of `count` blocks of `unit` tokens, for the tokens [at, at + size)."""
        hidden = self.segments or not self.plain
        if count == 1 and not self.stairs:
            return [(0, 1, hidden or back is not None or ahead is not None)]
        numbers, last = _library(at), at + size - 1
        first, low = (0, 0) if back is None else (numbers.maximum((at - back) // unit, 0), -((back - last) // unit))
        end, high = (count, count)
        if ahead is not None:
            end, high = numbers.minimum((last + ahead) // unit + 1, count), (at + ahead + 1) // unit
        if hidden:
            return [(first, end, True)]
        low = numbers.clip(low, first, end)
        high = numbers.clip(high, low, end)
        # Where blocks on the diagonal are in no range, nothing else is hidden on that side.
        before = back is not None and not (self.stairs and back == 0)
        after = ahead is not None and not (self.stairs and ahead == 0)
        return [*[(first, low, True)][:before], (low, high, False), *[(high, end, True)][:after]]


def _library(number: Any) -> Any:
    """numpy for a number that is known when traced, jax.numpy for others."""
    return np if isinstance(number, int) else jnp


def _over(ranges: list[tuple[Any, Any, bool]], add: Any, carry: Any, unrolled: bool) -> Any:
    """`add(block, carry, masked)` for all blocks of the ranges."""
    for first, end, masked in ranges:
        if unrolled:
            for block in range(first, end):
                carry = add(block, carry, masked)
        else:
            carry = jax.lax.fori_loop(first, end, functools.partial(_flip, add, masked), carry)
    return carry


def _flip(add: Any, masked: bool, block: Any, carry: Any) -> Any:
    return add(block, carry, masked)


def _each(step: Any, carry: Any, count: int, unrolled: bool) -> tuple[Any, Any]:
    """`jax.lax.scan` over 0, 1 ... count - 1; a Python loop where `unrolled`."""
    if not unrolled:
        return jax.lax.scan(step, carry, jnp.arange(count))
    out = []
    for i in range(count):
        carry, of_i = step(carry, i)
        out.append(of_i)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *out)


def _at(x: Any, i: Any) -> Any:
    """Block i."""
    return jax.lax.dynamic_index_in_dim(x, i, 0, keepdims=False) if isinstance(i, jax.Array) else x[i]


def _added(x: Any, i: Any, new: Array) -> Any:
    """`x` with `new` added to block i."""
    if isinstance(x, list):
        return [*x[:i], x[i] + new, *x[i + 1 :]]
    return jax.lax.dynamic_update_index_in_dim(x, _at(x, i) + new, i, 0)


def _block_bias(spec: _Spec, bias: Any, i: Any, j: Any, tables: Any, heads: int) -> Array:
    """float32, as it broadcasts to logits of so many key-value heads."""
    if isinstance(bias, _Whole):
        b, H = bias.array.shape[:2]
        part = jax.lax.dynamic_slice(bias.array, (0, 0, i * spec.bq, j * spec.bk), (b, H, spec.bq, spec.bk))
    else:
        part = bias(_at(tables["q_index"], i)[0], _at(tables["k_index"], j)[0])[None]
    part = part.astype(jnp.float32).reshape(part.shape[0], heads, -1, spec.bq, spec.bk).transpose(0, 1, 4, 2, 3)
    return part.reshape(heads, spec.bk, -1) if spec.flat else part


def _part_logits(spec: _Spec, q_i: Array, k_i: Array, i: Any, tables: Any, first: int, end: int) -> Array:
    """As `_block_logits`, of queries first to end of a block on the diagonal and keys 0 to end."""
    ids = (None, None)
    if tables["q_ids"] is not None:
        ids = (_at(tables["q_ids"], i)[:, first:end], _at(tables["k_ids"], i)[:, :end])
    return _hidden(spec, spec.product("kd,dq->kq", k_i, q_i), jnp.arange(first, end)[None], jnp.arange(end)[None], *ids)


def _hidden(spec: _Spec, s: Array, q_index: Array, k_index: Array, q_ids: Any, k_ids: Any) -> Array:
    """Logits, HIDDEN where a key is not seen."""
    mask = pair_mask(spec.causal, spec.window, q_index, k_index, q_ids, k_ids, k_first=True)
    if mask is None:
        return s
    mask = jnp.tile(mask, s.shape[-1] // mask.shape[-1]) if spec.flat else mask[:, None, :, None]
    return jnp.where(mask, s, HIDDEN)


def _block_logits(spec: _Spec, q_i: Array, k_j: Array, bias: Any, i: Any, j: Any, tables: Any, masked: bool) -> Array:
    """Of queries as columns and keys as rows; float32, HIDDEN where a key is not seen."""
    s = spec.product("kd,dq->kq", k_j, q_i)
    if bias is not None:
        s = s + _block_bias(spec, bias, i, j, tables, k_j.shape[-3])
    if not masked:
        return s
    ids = (None, None) if tables["q_ids"] is None else (_at(tables["q_ids"], i), _at(tables["k_ids"], j))
    if spec.plain:
        q_index, k_index = (jnp.arange(b)[None] + at * b for b, at in ((spec.bq, i), (spec.bk, j)))
    else:
        q_index, k_index = _at(tables["q_index"], i), _at(tables["k_index"], j)
    return _hidden(spec, s, q_index, k_index, *ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(spec: _Spec, q: Array, k: Array, v: Array, bias: Any, tables: Any) -> Array:
    return _attend_forward(spec, q, k, v, bias, tables)[0]


def _attend_forward(spec: _Spec, q: Array, k: Array, v: Array, bias: Any, tables: Any) -> Any:
    """o [nq, n, h, g, bq, E] in v's dtype, and what is kept, of which o and the logarithms of the sums by name: blocks
    whose rest is computed again need not go through all pairs twice.

    q [nq, n, h, g, bq, D], k [nk, n, h, bk, D], v [nk, n, h, bk, E]. A column of ones beside v sums the
    weights in the product that sums the values.
    """
    columns = spec.columns(v)
    ones = jnp.ones_like(jax.lax.slice_in_dim(columns, 0, 1, axis=spec.channels))
    columns = jnp.concatenate([columns, ones], spec.channels)
    keys, E = spec.keys, v.shape[-1]

    def of_queries(_, i):
        q_i = spec.columns(_at(q, i))

        def onto(m, o, s, columns):
            m_new = jnp.maximum(m, s.max(keys))
            p = jnp.exp(s - jnp.expand_dims(m_new, keys))
            new = spec.product("ek,kq->eq", columns, p.astype(v.dtype))
            return m_new, o * jnp.expand_dims(jnp.exp(m - m_new), keys) + new

        def add(j, carry, masked):
            s = _block_logits(spec, q_i, _at(k, j), bias, i, j, tables, masked)
            m, o = carry
            return onto(m, o, s, _at(columns, j))

        rows = q.shape[1:-1]
        start = (jnp.full(rows, FLOOR), jnp.zeros((*rows[:keys], E + 1, *rows[keys:])))
        m, o = _over(spec.of_queries(i), add, start, spec.unrolled or spec.nk == 1)
        if spec.stairs:
            parts = []
            for first, end in spec.parts:
                m_p, o_p, q_p = (spec.part(x, first, end) for x in (m, o, q_i))
                s = _part_logits(spec, q_p, _at(k, i)[:, :end], i, tables, first, end)
                parts.append(onto(m_p, o_p, s, _at(columns, i)[..., :end]))
            m, o = (spec.joined(x) for x in zip(*parts, strict=True))
        total = jax.lax.index_in_dim(o, E, keys, keepdims=False)
        some = total > 0
        total = jnp.where(some, total, 1)
        o = jax.lax.slice_in_dim(o, 0, E, axis=keys) / jnp.expand_dims(total, keys)
        return None, (spec.rows(o).astype(v.dtype), jnp.where(some, m + jnp.log(total), 0))

    _, (o, lse) = _each(of_queries, None, spec.nq, spec.unrolled)
    o, lse = keep(o), keep(lse)
    return o, (q, k, v, bias, tables, o, lse)


def _attend_backward(spec: _Spec, kept: Any, do: Array) -> Any:
    """With p = exp(s - lse): dv = p do, dp = v do^T, ds = p (dp - sum(do o)), dk = ds q, dq = ds^T k."""
    q, k, v, bias, tables, o, lse = kept
    keys = spec.keys
    delta = spec.sums(do.astype(jnp.float32) * o)
    q_columns, do_columns = (spec.columns(x) for x in (q, do))

    def gradients(s, q, lse, delta, do, do_columns, k_columns, v):
        """(ds in float32, dq as columns, dk, dv) of some queries and keys."""
        p = jnp.exp(s - jnp.expand_dims(lse, keys))
        dv = spec.product("kq,qe->ke", p.astype(do.dtype), do)
        dp = spec.product("ke,eq->kq", v, do_columns)
        ds = p * (dp - jnp.expand_dims(delta, keys))
        # A TPU writes float32 out of a product in a quarter of the cycles that bfloat16 takes: apart,
        # both uses round it for themselves.
        apart = jax.lax.optimization_barrier(ds) if spec.tpu else ds
        dk = spec.product("kq,qd->kd", apart.astype(q.dtype), q)
        return ds, spec.product("dk,kq->dq", k_columns, ds.astype(q.dtype)), dk, dv

    def of_keys(carry, j):
        k_j, v_j = _at(k, j), _at(v, j)
        k_columns = spec.columns(k_j)

        def add(i, carry, masked):
            dq, dbias, dk, dv = carry
            s = _block_logits(spec, _at(q_columns, i), k_j, bias, i, j, tables, masked)
            of = functools.partial(_at, i=i)
            given = (of(q), of(lse), of(delta), of(do), of(do_columns), k_columns, v_j)
            ds, of_q, of_k, of_v = gradients(s, *given)
            if bias is not None:
                part, pull = jax.vjp(lambda b: _block_bias(spec, b, i, j, tables, k_j.shape[-3]), bias)
                of_bias = ds if part.shape == ds.shape else ds.sum(0, keepdims=True)
                dbias = jax.tree.map(jnp.add, dbias, pull(of_bias)[0])
            return _added(dq, i, of_q), dbias, dk + of_k, dv + of_v

        zeros = (jnp.zeros(k_j.shape, jnp.float32), jnp.zeros(v_j.shape, jnp.float32))
        dq, dbias, dk, dv = _over(spec.of_keys(j), add, (*carry, *zeros), spec.unrolled or spec.nq == 1)
        if spec.stairs:
            new = []
            for first, end in spec.parts:
                of = functools.partial(spec.part, first=first, end=end)
                of_rows = functools.partial(of, axis=-2)
                s = _part_logits(spec, of(_at(q_columns, j)), k_j[:, :end], j, tables, first, end)
                of_j = (of_rows(_at(q, j)), of(_at(lse, j)), of(_at(delta, j)), of_rows(_at(do, j)))
                given = (*of_j, of(_at(do_columns, j)), k_columns[..., :end], v_j[:, :end])
                _, of_q, of_k, of_v = gradients(s, *given)
                dk, dv = dk.at[:, :end].add(of_k), dv.at[:, :end].add(of_v)
                new.append(of_q)
            dq = _added(dq, j, spec.joined(new))
        return (dq, dbias), (dk.astype(k.dtype), dv.astype(v.dtype))

    start = jnp.zeros((*q.shape[: keys + 1], q.shape[-1], *q.shape[keys + 1 : -1]), jnp.float32)
    start = (list(start) if spec.unrolled else start, jax.tree.map(jnp.zeros_like, bias))
    (dq, dbias), (dk, dv) = _each(of_keys, start, spec.nk, spec.unrolled)
    dq = jnp.stack(dq) if spec.unrolled else dq
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, jax.dtypes.float0), tables)
    return spec.rows(dq).astype(q.dtype), dk, dv, dbias, nothing


_attend.defvjp(_attend_forward, _attend_backward)
