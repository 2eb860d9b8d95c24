"""What every token mixer is: one interface, three forms of the same function, and a state to decode with.

Shapes: B batch, N tokens, H heads, D width of a query and key head, E width of a value head, Hk key-value heads.
Queries are [B, N, H, D], keys [B, N, H, D], values [B, N, H, E]; what leaves is [B, N, H, E] in the values' dtype.

Segments: `segment_ids` int32 [B, N] numbers the documents of a packed row from 1; 0 is padding. A token sees its own
segment alone; padding is seen by nobody, and what it is given itself is finite and means nothing. None: one segment.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from flashjax.ops.pairs import same

Queries = Float[Array, "B N H D"]
Keys = Float[Array, "B N H D"]
Values = Float[Array, "B N H E"]
Outputs = Float[Array, "B N H E"]
Segments = Int[Array, "B N"]
State = Any


@dataclass(frozen=True)
class Mixer:
    """A token mixer; its fields are its options, its methods are pure.

    `reference`, `parallel` and `recurrent` compute the same function of (q, k, v, inputs): by its equation with all
    pairs of tokens; as it is trained, in parts that run side by side; and token by token, as it is decoded. A mixer
    that cannot do one of them says so by a ValueError.

    What a mixer needs besides q, k and v (gates, projections) are its *inputs*: keyword arguments that its `inputs`
    module makes from the block's input.
    """

    name: ClassVar[str]
    causal: ClassVar[bool] = True
    """Whether there is a causal form."""
    bidirectional: ClassVar[bool] = True
    """Whether there is a form in which each token sees all others."""
    linear: ClassVar[bool] = True
    """Whether time and memory grow linearly with the length and a decoding step costs the same at any length."""
    rotary: ClassVar[bool] = True
    """Whether a block may rotate queries and keys by their positions before they come here."""
    bounded: ClassVar[bool] = False
    """Whether the inputs are made for a longest sequence, beyond which there are none."""
    bias: ClassVar[bool] = False
    """Whether logits take an additive bias (ALiBi, T5)."""
    grouped: ClassVar[bool] = False
    """Whether keys and values may have fewer heads than queries; the block repeats them for all others."""
    shared_inputs: ClassVar[tuple[str, ...]] = ()
    """Names of the inputs that all tokens share (a projection); all others are [B, N, ...]."""
    short_conv: ClassVar[int] = 0
    """Taps of the causal depthwise convolution, then SiLU, that the block puts before q, k and v; 0: none."""
    unit_queries: ClassVar[bool] = False
    """The block divides queries and keys by their lengths."""
    output_norm: ClassVar[bool] = False
    """The block normalises each head of what leaves (RMS), as mixers without a normaliser need."""
    output_gate: ClassVar[bool] = False
    """The block multiplies what leaves by SiLU(x W)."""

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module | None:
        """A module `x [B, N, C] -> {name: array}` that makes the further inputs; None where there are none.

        `length` is the longest sequence that the model is made for.
        """
        return None

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
        """The equation over all pairs of tokens, in time and memory of N^2."""
        raise NotImplementedError

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
        """The form for training and for a prompt."""
        raise NotImplementedError

    def recurrent(
        self,
        q: Queries,
        k: Keys,
        v: Values,
        *,
        causal: bool = True,
        segment_ids: Segments | None = None,
        **inputs: Array,
    ) -> Outputs:
        """Token by token: `step` from the first token to the last, forgetting at each start of a segment."""
        self.check(causal=causal)
        if not causal:
            raise ValueError(f"{self.name}: a recurrence sees the past alone: pass causal=True, or use parallel")
        empty = self.initial_state(q.shape[0], q.shape[2], q.shape[3], v.shape[3], q.shape[1])
        if q.dtype == jnp.float64:  # then the sums are, too
            empty = jax.tree.map(lambda x: x.astype(q.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, empty)
        ids = numbered(segment_ids, *q.shape[:2])
        starts = jnp.pad(ids[:, 1:] != ids[:, :-1], ((0, 0), (1, 0)))
        shared = {name: value for name, value in inputs.items() if name in self.shared_inputs}
        per_token = {name: value for name, value in inputs.items() if name not in shared}

        def one(state: State, token: Any) -> tuple[State, Array]:
            (q_t, k_t, v_t), start, real, given = token
            state = jax.tree.map(lambda old, new: _where(start, new, old), state, empty)
            new, o_t = self.step(state, q_t, k_t, v_t, **shared, **given)
            return jax.tree.map(lambda n, o: _where(real, n, o), new, state), o_t

        tokens = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), ((q, k, v), starts, ids > 0, per_token))
        _, o = jax.lax.scan(one, empty, tokens)
        return jnp.moveaxis(o, 0, 1)

    def initial_state(self, batch: int, heads: int, head_dim: int, value_dim: int, capacity: int) -> State:
        """What a decoder remembers before the first token: a tree of arrays whose first dim is the batch.

        `capacity` is the most tokens that it will see; a mixer with a state of constant size does not need it.
        """
        raise NotImplementedError

    def prefill(
        self, q: Queries, k: Keys, v: Values, valid: Bool[Array, "B N"], state: State, **inputs: Array
    ) -> tuple[State, Outputs]:
        """A prompt from an empty `state`, in the parallel form: (state after the last valid token, outputs).

        `valid` is a prefix of each row: prompts of different lengths are padded behind.
        """
        raise NotImplementedError

    def step(
        self,
        state: State,
        q: Float[Array, "B H D"],
        k: Float[Array, "B H D"],
        v: Float[Array, "B H E"],
        **inputs: Array,
    ) -> tuple[State, Float[Array, "B H E"]]:
        """One token a row: (state after it, output). Inputs have no dim N here, those without one come as they are."""
        raise NotImplementedError

    def check(self, *, causal: bool, position: str = "none") -> None:
        """Raises ValueError for what this mixer cannot do; the message names what can."""
        if causal and not self.causal:
            raise ValueError(f"{self.name} has no causal form: it mixes all tokens at once; use it with causal=False")
        if not causal and not self.bidirectional:
            raise ValueError(f"{self.name} has no bidirectional form: it is a recurrence; use it with causal=True")
        if position == "rope" and not self.rotary:
            raise ValueError(f"{self.name} takes no rotary positions; use position='none'")
        if position in ("alibi", "t5") and not self.bias:
            raise ValueError(f"{self.name} has no logits to add position={position!r} to; use 'rope' or 'none'")


def visible(segment_ids: Segments | None, batch: int, length: int, causal: bool) -> Bool[Array, "B N N"]:
    """Whether query i may see key j: the mask of every reference form."""
    ids = numbered(segment_ids, batch, length)
    seen = same(ids, ids)
    return seen & jnp.tri(length, dtype=bool) if causal else seen


def numbered(segment_ids: Segments | None, batch: int, length: int) -> Segments:
    """The segments, or one that is the whole row."""
    return jnp.ones((batch, length), jnp.int32) if segment_ids is None else segment_ids


def _where(condition: Bool[Array, "B"], x: Array, y: Array) -> Array:
    return jnp.where(condition.reshape(-1, *(1,) * (x.ndim - 1)), x, y)
