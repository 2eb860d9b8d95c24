"""Softmax attention: one function, several ways to compute it, none chosen behind the caller's back.

Shapes: B batch, Q queries, K keys, H query heads, Hk key-value heads (H is a multiple of Hk: query head h reads
key-value head h // (H / Hk)), D width of a query and key head, E width of a value head.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

Implementation = Literal["auto", "xla", "blocked", "cudnn"]

HIDDEN = -1e30
"""Logit of a key that is not seen. Finite, so that a row without any makes no NaN."""
FLOOR = -1e20
"""Least running maximum: exp(HIDDEN - FLOOR) is 0, so a row that sees nothing sums to 0."""
BLOCK = 512
"""Queries, and keys, of a block of the blocked form."""
BLOCKED_FROM = 1024
"""`auto` takes the blocked form where queries times keys reach the square of this: below it the whole matrix of logits
is small, and one pass over it is the fastest."""


def dot_product_attention(
    q: Float[Array, "B Q H D"],
    k: Float[Array, "B K Hk D"],
    v: Float[Array, "B K Hk E"],
    *,
    bias: Any = None,
    causal: bool = False,
    q_positions: Int[Array, "#B Q"] | None = None,
    k_positions: Int[Array, "#B K"] | None = None,
    q_segment_ids: Int[Array, "B Q"] | None = None,
    k_segment_ids: Int[Array, "B K"] | None = None,
    window: int | None = None,
    scale: float | None = None,
    implementation: Implementation = "auto",
) -> Float[Array, "B Q H E"]:
    """softmax(scale q k^T + bias) v over the keys that each query sees; logits and softmax in float32.

    Args:
        bias: added to the logits: an array that broadcasts to [B, H, Q, K], or a pytree that is called as
            `bias(q_positions [Q'], k_positions [K'])` and gives [H, Q', K'] for any part of the positions, so that the
            blocked form never holds it whole (`flashjax.layers.positions` has such). Both are differentiated.
        causal: a query sees the keys whose position is not above its own.
        q_positions, k_positions: default 0, 1, 2 ... for both; the same for all rows where `bias` is called.
        q_segment_ids, k_segment_ids: a query sees the keys of its own segment; 0 is padding, which nobody sees.
        window: a query sees keys nearer than this: |q position - k position| < window.
        scale: default D^-1/2.
        implementation: `xla` holds all logits at once. `blocked` never holds more than a block of them, forward and
            backward (online softmax, Dao et al. 2022), and passes over the blocks above the diagonal and outside of
            the window where positions are the default ones. `cudnn` is NVIDIA's kernel. `auto` is `xla` below
            `BLOCKED_FROM`^2 pairs and `blocked` from there on, on every device.

    Returns attention in v's dtype; a query that sees nothing gets 0 and passes gradients of 0.

    Raises:
        ValueError: for heads that do not divide, a window below 1, segments of one side alone, or an implementation
            that is unknown or not to be had here.
    """
    _check(q, k, window, q_segment_ids, k_segment_ids, implementation)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if implementation == "auto":
        implementation = "blocked" if q.shape[1] * k.shape[1] >= BLOCKED_FROM**2 else "xla"
    seen = _Seen(causal, window, q_positions, k_positions, q_segment_ids, k_segment_ids)
    if implementation == "blocked":
        return _blocked(q, k, v, bias, seen, scale)
    if callable(bias):
        bias = bias(seen.q_index(q.shape[1])[0], seen.k_index(k.shape[1])[0])
    compute = _cudnn if implementation == "cudnn" else _xla
    return compute(q, k, v, bias, seen, scale)


def _check(q: Array, k: Array, window: int | None, q_ids: Any, k_ids: Any, implementation: str) -> None:
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads do not divide into {k.shape[2]} key-value heads")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}; it must be at least 1 (a token sees itself), or None")
    if (q_ids is None) != (k_ids is None):
        raise ValueError("segments of queries and of keys come together: pass q_segment_ids and k_segment_ids")
    if implementation not in ("auto", "xla", "blocked", "cudnn"):
        raise ValueError(f"unknown implementation {implementation!r}; choose auto, xla, blocked or cudnn")
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise ValueError(f"implementation 'cudnn' needs an NVIDIA GPU, and this is a {jax.default_backend()}: use auto")


class _Seen:
    """Which keys a query sees."""

    def __init__(self, causal, window, q_positions, k_positions, q_segment_ids, k_segment_ids):
        self.causal, self.window = causal, window
        self.q_positions, self.k_positions = q_positions, k_positions
        self.q_ids, self.k_ids = q_segment_ids, k_segment_ids

    def q_index(self, length: int) -> Int[Array, "b Q"]:
        return jnp.arange(length)[None] if self.q_positions is None else self.q_positions

    def k_index(self, length: int) -> Int[Array, "b K"]:
        return jnp.arange(length)[None] if self.k_positions is None else self.k_positions

    def mask(self, queries: int, keys: int) -> Bool[Array, "b Q K"] | None:
        """For all pairs; None: all are seen."""
        ids = (None, None) if self.q_ids is None else (self.q_ids, self.k_ids)
        return _mask(self.causal, self.window, self.q_index(queries), self.k_index(keys), *ids)


def _mask(causal: bool, window: int | None, q_index: Array, k_index: Array, q_ids: Any, k_ids: Any) -> Array | None:
    """bool [b, Q, K] of index [b, Q] and [b, K]; None where nothing is hidden."""
    parts = []
    ahead = q_index[:, :, None] - k_index[:, None, :]
    if causal:
        parts.append(ahead >= 0)
    if window is not None:
        parts.append(ahead < window)
        if not causal:
            parts.append(ahead > -window)
    if q_ids is not None:
        parts.append((q_ids[:, :, None] == k_ids[:, None, :]) & (k_ids[:, None, :] > 0))
    return functools.reduce(jnp.logical_and, parts) if parts else None


def _xla(q: Array, k: Array, v: Array, bias: Array | None, seen: _Seen, scale: float) -> Array:
    """All logits at once."""
    B, Q, H, D = q.shape
    K, Hk = k.shape[1:3]
    q = (q * jnp.asarray(scale, q.dtype)).reshape(B, Q, Hk, H // Hk, D)
    logits = jnp.einsum("bqhgd,bkhd->bhgqk", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        bias = jnp.broadcast_to(bias, jnp.broadcast_shapes(jnp.shape(bias), (1, H, 1, 1)))
        logits = logits + bias.reshape(bias.shape[0], Hk, H // Hk, *bias.shape[2:]).astype(jnp.float32)
    mask = seen.mask(Q, K)
    if mask is not None:
        mask = mask[:, None, None]
        logits = jnp.where(mask, logits, HIDDEN)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.maximum(logits.max(-1, keepdims=True), FLOOR)))
    total = weights.sum(-1)
    o = jnp.einsum("bhgqk,bkhe->bqhge", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    # Divided after the product: E numbers a query instead of K.
    o = o / jnp.where(total > 0, total, 1).transpose(0, 3, 1, 2)[..., None]
    return o.reshape(B, Q, H, v.shape[-1]).astype(v.dtype)


def _cudnn(q: Array, k: Array, v: Array, bias: Array | None, seen: _Seen, scale: float) -> Array:
    """NVIDIA's kernel, which wants 16-bit inputs; it raises for what it does not take."""
    plain = seen.q_positions is None and seen.k_positions is None and seen.q_ids is None and seen.window is None
    mask = None if plain else seen.mask(q.shape[1], k.shape[1])
    o = jax.nn.dot_product_attention(
        q,
        k,
        v,
        bias=None if bias is None else jnp.broadcast_to(bias, (1, q.shape[2], q.shape[1], k.shape[1])).astype(q.dtype),
        mask=None if mask is None else mask[:, None],
        scale=scale,
        is_causal=plain and seen.causal,
        implementation="cudnn",
    )
    return o if mask is None else jnp.where(mask.any(-1)[:, :, None, None], o, 0)


# The blocked form. Logits of a block are kept [B, Hk, keys, group x queries]: maxima and sums then run over rows, which
# a CPU adds up many columns at a time.


def _blocked(q: Array, k: Array, v: Array, bias: Any, seen: _Seen, scale: float) -> Array:
    B, Q, H, D = q.shape
    K, Hk, E = k.shape[1], k.shape[2], v.shape[3]
    bq, bk = min(BLOCK, _round_up(Q, 8)), min(BLOCK, _round_up(K, 8))
    nq, nk = -(-Q // bq), -(-K // bk)
    q_ids, k_ids = seen.q_ids, seen.k_ids
    if q_ids is None and nk * bk != K:  # padded keys must not be seen
        q_ids, k_ids = jnp.ones((1, Q), jnp.int32), jnp.ones((1, K), jnp.int32)

    def blocks(x: Array, count: int, size: int) -> Array:
        """[b, length, ...] -> [count, b, size, ...], padded by zeros."""
        x = jnp.pad(x, ((0, 0), (0, count * size - x.shape[1]), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, size, *x.shape[2:]), 1, 0)

    G = H // Hk
    q = blocks((q * jnp.asarray(scale, q.dtype)).reshape(B, Q, Hk, G, D), nq, bq)
    q = q.transpose(0, 1, 3, 4, 2, 5).reshape(nq, B, Hk, G * bq, D)
    k, v = (blocks(x, nk, bk).swapaxes(2, 3) for x in (k, v))  # [nk, B, Hk, bk, D]
    tables = {
        "q_index": blocks(seen.q_index(Q), nq, bq),
        "k_index": blocks(seen.k_index(K), nk, bk),
        "q_ids": None if q_ids is None else blocks(q_ids, nq, bq),
        "k_ids": None if k_ids is None else blocks(k_ids, nk, bk),
    }
    if bias is not None and not callable(bias):
        bias = _Whole.make(bias, H, Q, K, nq * bq, nk * bk)
    plain = seen.q_positions is None and seen.k_positions is None
    spec = _Spec(seen.causal, seen.window, plain, bq, bk, nq, nk, G)
    o = _attend(spec, q, k, v, bias, tables)  # [nq, B, Hk, E, G * bq]
    o = o.reshape(nq, B, Hk, E, G, bq).transpose(1, 0, 5, 2, 4, 3).reshape(B, nq * bq, H, E)
    return o[:, :Q].astype(v.dtype)


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


@jax.tree_util.register_pytree_node_class
class _Whole:
    """A bias given as an array, cut by index."""

    def __init__(self, array: Array):
        self.array = array  # [b, H, Q, K]

    @classmethod
    def make(cls, bias: Array, heads: int, queries: int, keys: int, padded_q: int, padded_k: int) -> "_Whole":
        lead = jnp.broadcast_shapes(jnp.shape(bias), (1, heads, queries, keys))
        bias = jnp.broadcast_to(bias, lead).astype(jnp.float32)
        return cls(jnp.pad(bias, ((0, 0), (0, 0), (0, padded_q - queries), (0, padded_k - keys))))

    def tree_flatten(self):
        return (self.array,), None

    @classmethod
    def tree_unflatten(cls, _, leaves):
        return cls(*leaves)


class _Spec(tuple):
    """Static facts: causal, window, whether positions are the default ones, block sizes and counts, heads a group."""

    __slots__ = ()

    def __new__(cls, *facts):
        return super().__new__(cls, facts)

    causal, window, plain, bq, bk, nq, nk, group = (property(lambda self, i=i: self[i]) for i in range(8))

    def keys_of(self, i: Any) -> tuple[Any, Any]:
        """First and one past the last block of keys that block i of queries may see."""
        first, last = 0, self.nk
        if self.plain and self.causal:
            last = jnp.minimum(self.nk, ((i + 1) * self.bq + self.bk - 1) // self.bk)
        if self.plain and self.window is not None:
            first = jnp.maximum(0, (i * self.bq - self.window + 1) // self.bk)
            if not self.causal:
                last = jnp.minimum(last, ((i + 1) * self.bq + self.window - 1 + self.bk - 1) // self.bk)
        return first, last

    def queries_of(self, j: Any) -> tuple[Any, Any]:
        """First and one past the last block of queries that may see block j of keys."""
        first, last = 0, self.nq
        if self.plain and self.causal:
            first = (j * self.bk) // self.bq
        if self.plain and self.window is not None:
            last = jnp.minimum(self.nq, ((j + 1) * self.bk + self.window - 1 + self.bq - 1) // self.bq)
            if not self.causal:
                first = jnp.maximum(first, (j * self.bk - self.window + 1) // self.bq)
        return first, last


def _at(x: Any, i: Any) -> Any:
    return jax.tree.map(lambda y: jax.lax.dynamic_index_in_dim(y, i, 0, keepdims=False), x)


def _block_bias(spec: _Spec, bias: Any, i: Any, j: Any, tables: Any) -> Array:
    """[b, Hk, bk, group * bq] float32."""
    if isinstance(bias, _Whole):
        b, H = bias.array.shape[:2]
        part = jax.lax.dynamic_slice(bias.array, (0, 0, i * spec.bq, j * spec.bk), (b, H, spec.bq, spec.bk))
    else:
        part = bias(_at(tables["q_index"], i)[0], _at(tables["k_index"], j)[0])[None]
    b, H = part.shape[:2]
    part = part.astype(jnp.float32).reshape(b, H // spec.group, spec.group, spec.bq, spec.bk)
    return part.transpose(0, 1, 4, 2, 3).reshape(b, H // spec.group, spec.bk, spec.group * spec.bq)


def _block_logits(spec: _Spec, q_i: Array, k_j: Array, bias: Any, i: Any, j: Any, tables: Any) -> Array:
    """[B, Hk, bk, group * bq] float32, HIDDEN where a key is not seen."""
    s = jnp.einsum("bhkd,bhqd->bhkq", k_j, q_i, preferred_element_type=jnp.float32)
    if bias is not None:
        s = s + _block_bias(spec, bias, i, j, tables)
    ids = (None, None) if tables["q_ids"] is None else (_at(tables["q_ids"], i), _at(tables["k_ids"], j))
    mask = _mask(spec.causal, spec.window, _at(tables["q_index"], i), _at(tables["k_index"], j), *ids)
    if mask is None:
        return s
    mask = jnp.tile(mask.swapaxes(1, 2), (1, 1, spec.group))[:, None]
    return jnp.where(mask, s, HIDDEN)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(spec: _Spec, q: Array, k: Array, v: Array, bias: Any, tables: Any) -> Array:
    return _attend_forward(spec, q, k, v, bias, tables)[0]


def _attend_forward(spec: _Spec, q: Array, k: Array, v: Array, bias: Any, tables: Any) -> Any:
    B, Hk, rows = q.shape[1:4]
    E = v.shape[-1]

    def of_queries(_, i):
        q_i = _at(q, i)

        def add(j, carry):
            m, total, o = carry
            s = _block_logits(spec, q_i, _at(k, j), bias, i, j, tables)
            m_new = jnp.maximum(m, s.max(-2))
            p = jnp.exp(s - m_new[:, :, None])
            old = jnp.exp(m - m_new)
            total = total * old + p.sum(-2)
            v_j = _at(v, j)
            new = jnp.einsum("bhke,bhkq->bheq", v_j, p.astype(v_j.dtype), preferred_element_type=jnp.float32)
            return m_new, total, o * old[:, :, None] + new

        start = (jnp.full((B, Hk, rows), FLOOR), jnp.zeros((B, Hk, rows)), jnp.zeros((B, Hk, E, rows)))
        m, total, o = jax.lax.fori_loop(*spec.keys_of(i), add, start)
        any_seen = total > 0
        total = jnp.where(any_seen, total, 1)
        return None, (o / total[:, :, None], jnp.where(any_seen, m + jnp.log(total), 0))

    _, (o, lse) = jax.lax.scan(of_queries, None, jnp.arange(spec.nq))
    return o, (q, k, v, bias, tables, o, lse)


def _attend_backward(spec: _Spec, kept: Any, do: Array) -> Any:
    q, k, v, bias, tables, o, lse = kept
    delta = (do * o).sum(-2)  # [nq, B, Hk, rows]

    def of_keys(carry, j):
        k_j, v_j = _at(k, j), _at(v, j)

        def add(i, carry):
            dq, dbias, dk, dv = carry
            q_i, do_i = _at(q, i), _at(do, i).astype(v_j.dtype)
            s = _block_logits(spec, q_i, k_j, bias, i, j, tables)
            p = jnp.exp(s - _at(lse, i)[:, :, None])
            dv = dv + jnp.einsum("bhkq,bheq->bhke", p.astype(v_j.dtype), do_i, preferred_element_type=jnp.float32)
            dp = jnp.einsum("bhke,bheq->bhkq", v_j, do_i, preferred_element_type=jnp.float32)
            ds = p * (dp - _at(delta, i)[:, :, None])
            if bias is not None:
                _, pull = jax.vjp(lambda b: _block_bias(spec, b, i, j, tables), bias)
                full = _block_bias_shape(spec, bias, i, j, tables)
                (part,) = pull(ds if full[0] != 1 else ds.sum(0, keepdims=True))
                dbias = jax.tree.map(jnp.add, dbias, part)
            ds = ds.astype(q_i.dtype)
            dk = dk + jnp.einsum("bhkq,bhqd->bhkd", ds, q_i, preferred_element_type=jnp.float32)
            new = _at(dq, i) + jnp.einsum("bhkq,bhkd->bhqd", ds, k_j, preferred_element_type=jnp.float32)
            return jax.lax.dynamic_update_index_in_dim(dq, new, i, 0), dbias, dk, dv

        zeros = (jnp.zeros(k_j.shape, jnp.float32), jnp.zeros(v_j.shape, jnp.float32))
        dq, dbias, dk, dv = jax.lax.fori_loop(*spec.queries_of(j), add, (*carry, *zeros))
        return (dq, dbias), (dk.astype(k.dtype), dv.astype(v.dtype))

    start = (jnp.zeros(q.shape, jnp.float32), jax.tree.map(jnp.zeros_like, bias))
    (dq, dbias), (dk, dv) = jax.lax.scan(of_keys, start, jnp.arange(spec.nk))
    return dq.astype(q.dtype), dk, dv, dbias, jax.tree.map(_no_gradient, tables)


def _block_bias_shape(spec: _Spec, bias: Any, i: Any, j: Any, tables: Any) -> tuple[int, ...]:
    return jax.eval_shape(lambda b: _block_bias(spec, b, i, j, tables), bias).shape


def _no_gradient(x: Array) -> Any:
    """The cotangent of an integer array."""
    return np.zeros(x.shape, jax.dtypes.float0)


_attend.defvjp(_attend_forward, _attend_backward)
