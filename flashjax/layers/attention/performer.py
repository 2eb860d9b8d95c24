"""FAVOR+: softmax attention by positive random features (Choromanski et al. 2020, "Performers", arXiv 2009.14794).

    exp(q.k / sqrt(D)) = E_w[ phi(q).psi(k) ],    w ~ N(0, I),    x = q D^-1/4, y = k D^-1/4

    positive       phi(x) = M^-1/2 exp(w.x - |x|^2/2)                       M draws of w
    hyperbolic     phi(x) = (2M)^-1/2 (exp(w.x - |x|^2/2), exp(-w.x - |x|^2/2))
    trig           phi(x) = M^-1/2 exp(|x|^2/2) (sin w.x, cos w.x)          not positive; for comparison
    relu, ...      phi(x) = f(w.x) + 1e-3                                   another kernel than the softmax

psi is phi. Numerics: a query's features are divided by their largest one and lose exp(-|x|^2/2), which cancels; keys
are divided by the largest of their segment so far (`Kernel`). Then 1e-4 is added to each, so that none is zero.

Draws: rows of w are independent, or orthogonal in blocks of D with the lengths of independent ones (chi) or sqrt(D).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from flashjax.layers.attention.base import Keys, Outputs, Queries, Segments, Values
from flashjax.layers.attention.kernel import Kernel

SOFTMAX = ("positive", "hyperbolic", "trig")
"""Kernels that stand for the softmax."""
FUNCTIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "sigmoid": jax.nn.sigmoid,
    "exp": jnp.exp,
    "abs": jnp.abs,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "cos": jnp.cos,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}
"""Functions f of the generalised kernels (paper, appendix D.2)."""


GENERAL_EPS = 1e-3
"""Added to each feature of a generalised kernel."""


def draw(
    key: PRNGKeyArray, features: int, dim: int, orthogonal: bool = True, lengths: str = "chi"
) -> Float[Array, "M D"]:
    """The rows w: N(0, I) each; `orthogonal`, at right angles within blocks of D."""
    if not orthogonal:
        return jax.random.normal(key, (features, dim))
    direction, length = jax.random.split(key)
    blocks = -(-features // dim)
    Q, R = jnp.linalg.qr(jax.random.normal(direction, (blocks, dim, dim)))
    Q = Q * jnp.sign(jnp.diagonal(R, axis1=-2, axis2=-1))[:, None]  # else Q is not evenly distributed
    rows = Q.mT.reshape(-1, dim)[:features]
    if lengths == "sqrt":
        return rows * math.sqrt(dim)
    return rows * jnp.linalg.norm(jax.random.normal(length, (features, dim)), axis=1, keepdims=True)


def estimate(
    x: Float[Array, "*b D"], y: Float[Array, "*b D"], w: Float[Array, "M D"], kernel: str = "positive"
) -> Float[Array, "*b"]:
    """phi(x).psi(y), an estimate of exp(x.y) by the equations above, x and y as they are."""

    def phi(x: Array) -> Array:
        u, half = jnp.einsum("...d,md->...m", x, w), jnp.sum(x * x, -1, keepdims=True) / 2
        match kernel:
            case "positive":
                return jnp.exp(u - half) * u.shape[-1] ** -0.5
            case "hyperbolic":
                return jnp.concatenate([jnp.exp(u - half), jnp.exp(-u - half)], -1) * (2 * u.shape[-1]) ** -0.5
            case "trig":
                return jnp.exp(half) * jnp.concatenate([jnp.sin(u), jnp.cos(u)], -1) * u.shape[-1] ** -0.5
        raise ValueError(f"kernel {kernel!r} is no estimate of exp; choose from {', '.join(SOFTMAX)}")

    return jnp.sum(phi(x) * phi(y), -1)


class Projection(nn.Module):
    """The rows w of a layer, in the collection `projections`: not trained, kept in checkpoints.

    While the collection is mutable (in training), every `redraw_every`-th call draws anew, as a function of the key
    that the layer was initialised with and of the number of calls; evaluation uses the last draw. Calls are the
    updates that were applied, or with train.accumulate their micro-batches: there k times as large a `redraw_every`
    draws as often, and at the beginning of a step.
    """

    features: int
    dim: int
    orthogonal: bool
    lengths: str
    redraw_every: int

    @nn.compact
    def __call__(self, x: Float[Array, "B N C"]) -> dict[str, Array]:
        def drawn(key: Array, number: Array | int) -> Array:
            key = jax.random.fold_in(jax.random.wrap_key_data(key), number)
            return draw(key, self.features, self.dim, self.orthogonal, self.lengths)

        key = self.variable("projections", "key", lambda: jax.random.key_data(self.make_rng("params")))
        calls = self.variable("projections", "calls", lambda: jnp.zeros((), jnp.int32))
        w = self.variable("projections", "w", lambda: drawn(key.value, 0))
        if self.redraw_every and self.is_mutable_collection("projections") and not self.is_initializing():
            n = calls.value
            due = (n > 0) & (n % self.redraw_every == 0)
            w.value = jax.lax.cond(due, lambda: drawn(key.value, n), lambda: w.value)
            calls.value = n + 1
        return {"projection": jax.lax.stop_gradient(w.value)}


@dataclass(frozen=True)
class Performer(Kernel):
    """The input `projection` holds the rows w, float32 [M, D], for all heads (`draw` makes them)."""

    name: ClassVar[str] = "performer"
    shared_inputs: ClassVar[tuple[str, ...]] = ("projection",)

    eps: float = 1e-4
    """Added to each feature of a softmax kernel."""
    features: int = 0
    """M, rows of the projection; 0: D log D."""
    kernel: str = "positive"
    """positive, hyperbolic, trig (softmax); relu, sigmoid, exp, abs, gelu, cos, tanh, identity."""
    orthogonal: bool = True
    """Rows at right angles, in blocks of D."""
    lengths: str = "chi"
    """Of orthogonal rows: chi, as independent ones have (unbiased), or sqrt, all sqrt(D)."""
    redraw_every: int = 1000
    """Training steps (micro-batches with train.accumulate) between draws; 0: never."""
    stabiliser: str = "running"
    """running: as above. sequence: as public code does: the largest w.x of the whole sequence, and queries that keep
    exp(-|x|^2/2), so that 1e-4 weighs the more the longer they are; not for decoding, and only nearly causal."""

    def __post_init__(self):
        if self.kernel not in SOFTMAX and self.kernel not in FUNCTIONS:
            raise ValueError(f"unknown kernel {self.kernel!r}; choose from {', '.join((*SOFTMAX, *FUNCTIONS))}")
        if self.lengths not in ("chi", "sqrt"):
            raise ValueError(f"unknown lengths {self.lengths!r}; choose chi or sqrt")
        if self.stabiliser not in ("running", "sequence"):
            raise ValueError(f"unknown stabiliser {self.stabiliser!r}; choose running or sequence")
        if self.features < 0 or self.redraw_every < 0:
            raise ValueError(
                f"performer: features={self.features} and redraw_every={self.redraw_every} must be 0 (D log D; never) "
                "or more"
            )

    def inputs(self, heads: int, head_dim: int, length: int, dtype: Any) -> nn.Module:
        return Projection(self.rows(head_dim), head_dim, self.orthogonal, self.lengths, self.redraw_every)

    def rows(self, head_dim: int) -> int:
        """M."""
        return self.features or max(1, int(head_dim * math.log(head_dim)))

    def width(self, head_dim: int) -> int:
        return self.rows(head_dim) * (2 if self.kernel in ("hyperbolic", "trig") else 1)

    def exponential(self) -> bool:
        return self.kernel in SOFTMAX

    def query_features(self, q: Array, positions: Array, *, projection: Array) -> Array:
        u, half = self._products(q, projection)
        if self.kernel in FUNCTIONS:
            return FUNCTIONS[self.kernel](u) + GENERAL_EPS
        if self.kernel == "trig":
            return jnp.concatenate([jnp.sin(u), jnp.cos(u)], -1) * u.shape[-1] ** -0.5
        largest = jax.lax.stop_gradient(u.max(-1, keepdims=True))
        exponent = u - largest - (half if self.stabiliser == "sequence" else 0)
        return (jnp.exp(exponent) + self.eps) * u.shape[-1] ** -0.5

    def key_features(self, k: Array, positions: Array, level: Array | None, *, projection: Array) -> Array:
        u, half = self._products(k, projection)
        if level is None:
            return FUNCTIONS[self.kernel](u) + GENERAL_EPS
        scale = u.shape[-1] ** -0.5
        if self.kernel == "trig":
            return jnp.exp(half - level[..., None]) * jnp.concatenate([jnp.sin(u), jnp.cos(u)], -1) * scale
        return (jnp.exp(u - half - level[..., None]) + self.eps) * scale

    def level(self, k: Array, *, projection: Array) -> Array:
        u, half = self._products(k, projection)
        if self.kernel == "trig":
            return half[..., 0]
        return (u.max(-1, keepdims=True) - (0 if self.stabiliser == "sequence" else half))[..., 0]

    def normalise(self, o: Float[Array, "... E"], n: Float[Array, "..."]) -> Float[Array, "... E"]:
        return o / jnp.where(jnp.abs(n) < 1e-30, 1, n)[..., None]  # 0 in rows of padding alone

    def prefill(
        self, q: Queries, k: Keys, v: Values, valid: Bool[Array, "B N"], state: dict[str, Array], **inputs: Array
    ) -> tuple[dict[str, Array], Outputs]:
        self._can_decode()
        return super().prefill(q, k, v, valid, state, **inputs)

    def step(
        self,
        state: dict[str, Array],
        q: Float[Array, "B H D"],
        k: Float[Array, "B H D"],
        v: Float[Array, "B H E"],
        **inputs: Array,
    ) -> tuple[dict[str, Array], Float[Array, "B H E"]]:
        self._can_decode()
        return super().step(state, q, k, v, **inputs)

    def _can_decode(self) -> None:
        if self.stabiliser == "sequence":
            raise ValueError("performer: a decoder does not know the largest key of a sequence: use stabiliser=running")

    def _levels(self, k: Keys, segment_ids: Segments | None, causal: bool, inputs: dict[str, Array]) -> Array | None:
        return super()._levels(k, segment_ids, causal and self.stabiliser == "running", inputs)

    def _products(self, x: Array, projection: Array) -> tuple[Array, Array]:
        """(w.x of each row, of both signs if hyperbolic; |x|^2/2 [..., 1]), x scaled by D^-1/4."""
        D = x.shape[-1]
        if projection.shape != (self.rows(D), D):
            raise ValueError(
                f"performer: a projection {projection.shape}, where features={self.features} and heads of {D} make it "
                f"{(self.rows(D), D)}: draw one of that shape, or set features={projection.shape[0]}"
            )
        x = x * D**-0.25
        u = jnp.einsum("...d,md->...m", x, projection.astype(x.dtype))
        u = jnp.concatenate([u, -u], -1) if self.kernel == "hyperbolic" else u
        return u, jnp.sum(x * x, -1, keepdims=True) / 2
