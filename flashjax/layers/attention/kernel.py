"""Kernel attention: what mixers share whose weights are products of features of queries and keys.

    o_i = sum_j w_ij v_j / (sum_j w_ij + eps),    w_ij = phi(q_i).psi(k_j)

Causal, the sums are a state: S_t = S_{t-1} + psi(k_t) v_t^T, z_t = z_{t-1} + psi(k_t).

Features that are exponentials are kept near 1 by the largest exponent l_t that a head's keys have had up to here in
their segment: psi(k_t) stands for psi(k_t) exp(l_t), and S and z are divided by exp(l_t), a decay of
exp(l_{t-1} - l_t). So no token depends on a later one, not even by rounding, and a decoder does the same sums.

Shapes: as in `flashjax.layers.attention.base`; M features.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from flashjax.layers.attention.base import Keys, Mixer, Outputs, Queries, Segments, Values, visible
from flashjax.layers.positions import positions_of
from flashjax.ops import linear_attention as linear
from flashjax.ops.pairs import HIDDEN


@dataclass(frozen=True)
class Kernel(Mixer):
    """A mixer by its features; a subclass says what they are."""

    chunk: int | None = None
    """Tokens of a chunk of the parallel form; None: 64, on TPUs 128."""
    eps: float = 1e-6
    """Added to the sum of the weights."""

    def query_features(self, q: Array, positions: Array, **inputs: Array) -> Array:
        """phi: float32 queries [..., H, D] at positions [...] to features [..., H, M]."""
        raise NotImplementedError

    def key_features(self, k: Array, positions: Array, level: Array | None, **inputs: Array) -> Array:
        """psi, divided by exp(level)."""
        raise NotImplementedError

    def level(self, k: Array, **inputs: Array) -> Array:
        """[..., H], where features are exponentials: the largest exponent of a key."""
        raise NotImplementedError

    def exponential(self) -> bool:
        """Whether features are exponentials, of which `level` gives the largest exponent."""
        return False

    def width(self, head_dim: int) -> int:
        """M."""
        return head_dim

    def normalise(self, o: Float[Array, "... E"], n: Float[Array, "..."]) -> Float[Array, "... E"]:
        """The sum of weighted values over that of the weights."""
        return o / (n + self.eps)[..., None]

    def reference(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        **inputs: Array,
    ) -> Outputs:
        """w_ij for all pairs."""
        self.check(causal=causal)
        q, k, positions = _begin(q, k, segment_ids)
        seen = visible(segment_ids, q.shape[0], q.shape[1], causal)[:, None]
        level = self._levels(k, segment_ids, causal, inputs)
        phi = self.query_features(q, positions, **inputs)
        psi = self.key_features(k, positions, level, **inputs)
        w = jnp.einsum("bihm,bjhm->bhij", phi, psi)
        if level is not None:
            top = jnp.moveaxis(level, 1, 2)
            w = w * jnp.exp(jnp.where(seen, top[:, :, None, :] - top[:, :, :, None], 0))
        w = jnp.where(seen, w, 0)
        o = jnp.einsum("bhij,bjhe->bihe", w, v.astype(w.dtype))
        return self.normalise(o, jnp.moveaxis(w.sum(-1), 1, 2)).astype(v.dtype)

    def parallel(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        **inputs: Array,
    ) -> Outputs:
        """Chunkwise (`flashjax.ops.linear_attention`)."""
        self.check(causal=causal)
        q, k, positions = _begin(q, k, segment_ids)
        level = self._levels(k, segment_ids, causal, inputs)
        phi = self.query_features(q, positions, **inputs)
        psi = self.key_features(k, positions, level, **inputs)
        if causal:
            decay = None if level is None else _decay(level, segment_ids)
            o, n, _ = linear.causal(phi, psi, v, decay, segment_ids, chunk=self.chunk, normaliser=True)
        else:
            o, n = linear.bidirectional(phi, psi, v, segment_ids, chunk=self.chunk, normaliser=True)
        assert n is not None
        return self.normalise(o, n).astype(v.dtype)

    def initial_state(self, batch: int, heads: int, head_dim: int, value_dim: int, capacity: int) -> dict[str, Array]:
        """S and z, float32; the number of tokens; and the level, where there is one."""
        features = self.width(head_dim)
        state = {
            "S": jnp.zeros((batch, heads, features, value_dim)),
            "z": jnp.zeros((batch, heads, features)),
            "position": jnp.zeros((batch,), jnp.int32),
        }
        return state | ({"level": jnp.full((batch, heads), HIDDEN)} if self.exponential() else {})

    def prefill(
        self, q: Queries, k: Keys, v: Values, valid: Bool[Array, "B N"], state: dict[str, Array], **inputs: Array
    ) -> tuple[dict[str, Array], Outputs]:
        """Padding has no features and leaves the level where it is."""
        q, k, _ = _begin(q, k, None)
        positions = state["position"][:, None] + jnp.arange(q.shape[1])
        real = valid[..., None]
        level = decay = None
        if self.exponential():
            own = jax.lax.stop_gradient(self.level(k, **inputs))
            before = state["level"][:, None].astype(own.dtype)
            path = jax.lax.cummax(jnp.concatenate([before, jnp.where(real, own, HIDDEN)], 1), axis=1)
            decay, state = path[:, :-1] - path[:, 1:], state | {"level": path[:, -1]}
            level = jnp.where(real, path[:, 1:], own)
        phi = self.query_features(q, positions, **inputs)
        psi = jnp.where(real[..., None], self.key_features(k, positions, level, **inputs), 0)
        past = linear.State(state["S"], state["z"])
        o, n, past = linear.causal(phi, psi, v, decay, None, past, chunk=self.chunk, normaliser=True)
        assert n is not None
        position = state["position"] + valid.sum(1, dtype=jnp.int32)
        return state | {"S": past.S, "z": past.z, "position": position}, self.normalise(o, n).astype(v.dtype)

    def step(
        self,
        state: dict[str, Array],
        q: Float[Array, "B H D"],
        k: Float[Array, "B H D"],
        v: Float[Array, "B H E"],
        **inputs: Array,
    ) -> tuple[dict[str, Array], Float[Array, "B H E"]]:
        """One token more in the sums."""
        q, k = (x.astype(state["S"].dtype) for x in (q, k))
        level = decay = None
        if self.exponential():
            level = jnp.maximum(state["level"], self.level(k, **inputs))
            decay, state = state["level"] - level, state | {"level": level}
        phi = self.query_features(q, state["position"], **inputs)
        psi = self.key_features(k, state["position"], level, **inputs)
        past, o, n = linear.step(linear.State(state["S"], state["z"]), phi, psi, v, decay)
        assert n is not None
        new = state | {"S": past.S, "z": past.z, "position": state["position"] + 1}
        return new, self.normalise(o, n).astype(v.dtype)

    def _levels(self, k: Keys, segment_ids: Segments | None, causal: bool, inputs: dict[str, Array]) -> Array | None:
        """[B, N, H]: the largest exponent up to each token, or (bidirectional) of its segment; a constant to AD."""
        if not self.exponential():
            return None
        own = jax.lax.stop_gradient(self.level(k, **inputs))
        path = _running_max(own, segment_ids)
        return path if causal else jnp.maximum(path, _running_max(own, segment_ids, reverse=True))


def _begin(q: Queries, k: Keys, segment_ids: Segments | None) -> tuple[Queries, Keys, Int[Array, "B N"]]:
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    if segment_ids is None:
        positions = jnp.broadcast_to(jnp.arange(q.shape[1]), q.shape[:2])
    else:
        positions = positions_of(segment_ids)
    return q.astype(dtype), k.astype(dtype), positions


def _running_max(
    x: Float[Array, "B N H"], segment_ids: Segments | None, reverse: bool = False
) -> Float[Array, "B N H"]:
    """The largest x of a segment up to each token (`reverse`: from it on)."""
    if segment_ids is None:
        return jax.lax.cummax(x, axis=1, reverse=reverse)

    def later(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        (id_a, max_a), (id_b, max_b) = a, b
        return id_b, jnp.where(id_a == id_b, jnp.maximum(max_a, max_b), max_b)

    ids = jnp.broadcast_to(segment_ids[..., None], x.shape)
    return jax.lax.associative_scan(later, (ids, x), axis=1, reverse=reverse)[1]


def _decay(level: Float[Array, "B N H"], segment_ids: Segments | None) -> Float[Array, "B N H"]:
    """log of what is left of the state of the token before; 0 at the start of a segment, where it is left behind."""
    change = jnp.pad(level[:, :-1] - level[:, 1:], ((0, 0), (1, 0), (0, 0)))
    if segment_ids is None:
        return change
    inside = jnp.pad(segment_ids[:, 1:] == segment_ids[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(inside[..., None], change, 0)
