"""The (gated) delta rule: a state that is corrected at the key it is written to.

    S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T,    o_t = q_t S_t

Inside a chunk the corrections u_t = b_t (v_t - a_t S_{t-1}^T k_t) depend on each other, by a lower triangular system:

    (I + A) U = b v - b Gamma_0 K S,    A_ij = b_i Gamma_ij k_i.k_j  (j < i)

(Gamma_ij the decay from j to i, Gamma_0 that from the chunk's start, S the state that enters). With T = (I + A)^-1,
U = T b V - (T b Gamma_0 K) S, and all but S is computed for all chunks side by side: the state obeys a linear
recurrence with one [D, D] and one [D, E] matrix for each chunk. Sources: Yang et al. 2024a, "Parallelizing Linear
Transformers with the Delta Rule over Sequence Length" (section 3); 2024b, "Gated Delta Networks" (section 3.3).

Shapes, segments and states: as in `flashjax.ops.linear_attention`; everything is float32 (float64 for float64 inputs).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flashjax.ops import linear_attention as linear


def causal(
    q: Float[Array, "B N H D"],
    k: Float[Array, "B N H D"],
    v: Float[Array, "B N H E"],
    beta: Float[Array, "B N H"],
    log_decay: Float[Array, "B N H"] | None = None,
    segment_ids: Int[Array, "B N"] | None = None,
    state: Float[Array, "B H D E"] | None = None,
    *,
    chunk: int | None = None,
) -> tuple[Float[Array, "B N H E"], Float[Array, "B H D E"]]:
    """(outputs, the state after the last token), from `state` (default: zeros).

    Args:
        beta: b_t, how much of the old value goes; the recurrence is stable for b_t |k_t|^2 in [0, 2].
        log_decay: log a_t <= 0; None: no decay. One below e^-18 (float64: e^-40) counts as that.
        chunk: tokens of a chunk, None: as of `linear_attention.chunk_length`; rounded up to a power of two.
    """
    B, N, H, D = q.shape
    E, dtype = v.shape[-1], jnp.promote_types(q.dtype, jnp.float32)
    L = 1 << (linear.chunk_length(chunk, N) - 1).bit_length()
    q, k, v = (linear.chunked(x.astype(dtype), L) for x in (q, k, v))
    beta = linear.chunked(beta.astype(dtype), L)[..., None]  # [Z, B, H, L, 1]
    ids = linear.segments(segment_ids, L)
    pairs, carry = linear.pairs(ids, L), linear.Carry(ids)

    q_in, k_in, k_out, through = q, k, k, jnp.ones((1,), dtype)
    A, C = jnp.einsum("zbhid,zbhjd->zbhij", k * beta, k), jnp.einsum("zbhid,zbhjd->zbhij", q, k)
    if log_decay is not None:
        g = linear.prefix_sum(linear.chunked(linear.floored(log_decay.astype(dtype)), L))
        gamma = linear.pair_decay(g)
        A, C = A * gamma, C * gamma
        from_start, to_end = jnp.exp(g)[..., None], jnp.exp(g[..., -1:] - g)[..., None]
        q_in, k_in, k_out, through = q * from_start, k * from_start, k * to_end, jnp.exp(g[..., -1:])
    C = jnp.where(pairs, C, 0)
    T = unit_lower_inverse(jnp.where(pairs & ~jnp.eye(L, dtype=bool), A, 0))
    q_in, k_in, k_out, through = carry.read(q_in), carry.read(k_in), carry.write(k_out), carry.keep(through)
    U = jnp.einsum("zbhij,zbhje->zbhie", T, v * beta)
    W = jnp.einsum("zbhij,zbhjd->zbhid", T, k_in * beta)

    # S <- through S + k_out^T (U - W S)
    R = linear.gathered(jnp.einsum("zbhjd,zbhje->zbhde", k_out, U))
    P = linear.gathered(jnp.einsum("zbhjd,zbhjc->zbhdc", k_out, W))
    assert through is not None
    through = jnp.broadcast_to(through, (*R.shape[:3], 1))[..., None]

    def advance(S: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        R_z, P_z, keep = at
        return keep * S + R_z - jnp.einsum("bhdc,bhce->bhde", P_z, S), S

    first = jnp.zeros((B, H, D, E), dtype) if state is None else state.astype(dtype)
    last, S = jax.lax.scan(advance, first, (R, P, through))
    U = U - jnp.einsum("zbhid,zbhde->zbhie", W, S)
    o = jnp.einsum("zbhid,zbhde->zbhie", q_in, S) + jnp.einsum("zbhij,zbhje->zbhie", C, U)
    return linear.whole(o, N), last


def step(
    S: Float[Array, "B H D E"],
    q: Float[Array, "B H D"],
    k: Float[Array, "B H D"],
    v: Float[Array, "B H E"],
    beta: Float[Array, "B H"],
    log_decay: Float[Array, "B H"] | None = None,
) -> tuple[Float[Array, "B H D E"], Float[Array, "B H E"]]:
    """One token of `causal`: (state after it, output)."""
    q, k, v, beta = (x.astype(S.dtype) for x in (q, k, v, beta))
    if log_decay is not None:
        S = jnp.exp(linear.floored(log_decay.astype(S.dtype)))[..., None, None] * S
    u = beta[..., None] * (v - jnp.einsum("bhd,bhde->bhe", k, S))
    S = S + k[..., :, None] * u[..., None, :]
    return S, jnp.einsum("bhd,bhde->bhe", q, S)


@jax.custom_vjp
def unit_lower_inverse(A: Float[Array, "... L L"]) -> Float[Array, "... L L"]:
    """T = (I + A)^-1 for strictly lower triangular A; L is a power of two.

    By halves, [[T1, 0], [-T2 A21 T1, T2]]: products of matrices alone, and as stable as substitution. Up to 4 rows
    it is the finite series (I - A)(I + A^2); of more rows the powers of A may be large where T is not.
    """
    L = A.shape[-1]
    if L & (L - 1):
        raise ValueError(f"a matrix of {L} rows: the number must be a power of two")
    if L <= 4:
        eye = jnp.eye(L, dtype=A.dtype)
        return (eye - A) @ (eye + A @ A)
    h = L // 2
    T1, T2 = unit_lower_inverse(jnp.stack([A[..., :h, :h], A[..., h:, h:]]))
    corner = -(T2 @ (A[..., h:, :h] @ T1))
    above = jnp.concatenate([T1, jnp.zeros_like(T1)], -1)
    return jnp.concatenate([above, jnp.concatenate([corner, T2], -1)], -2)


def _inverse_forward(A: Array) -> tuple[Array, Array]:
    T = unit_lower_inverse(A)
    return T, T


def _inverse_backward(T: Array, dT: Array) -> tuple[Array]:
    """dA = -T^T dT T^T below the diagonal."""
    transposed = T.mT
    return (jnp.tril(-(transposed @ dT @ transposed), -1),)


unit_lower_inverse.defvjp(_inverse_forward, _inverse_backward)
