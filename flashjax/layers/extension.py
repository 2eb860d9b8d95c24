"""Softmax attention beyond the length that a model was trained at, without training: other distances, other masks.

RoPE's logits depend on the distance i - j of query i and key j alone. Every method here is a rule for what distance
d(i, j) a pair is given instead and which pairs are seen at all, so that no distance comes that training did not show.
A rule is made of parts: in each, queries and keys stand at positions a(i) and b(j) with d(i, j) = a(i) - b(j), so that
they can be rotated one by one; where a further part holds, its logits replace those of the part before.

Shapes: B batch, Q queries, K keys.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from flashjax.layers.positions import RopeParameters

Kind = Literal["none", "window", "sinks", "lambda", "rerope", "leaky_rerope", "self_extend", "dual_chunk"]


@dataclass(frozen=True)
class Extension:
    """Which distances and which keys a query is given; w is `window`, k `factor`, G `group`, s `chunk`, L `length`.

    none          d = i - j, all keys.
    window        d = i - j, keys with i - j < w.
    sinks         the first m tokens and those with i - j < w are seen, and are counted as if there were no others:
                  d = min(i, m + w - 1) - j for the first m where i - j >= w (StreamingLLM, Xiao et al. 2023).
    lambda        the same keys; d = min(i - j, w) (LM-Infinite, Han et al. 2023).
    rerope        d = min(i - j, w) (Su, kexue.fm 9708).
    leaky_rerope  d = i - j below w, w + (i - j - w) / k from there on (Su, kexue.fm 9708, 9728).
    self_extend   d = i - j below w, floor(i / G) + w - floor(w / G) - floor(j / G) from there on (Jin et al. 2024).
    dual_chunk    with chunks of s tokens and j' = j mod s: d = i' - j' in the same chunk; s + i' - j' to the chunk
                  before, where i' < w, and L - 1 - j' where not; L - 1 - j' to all chunks before that one (An et al.
                  2024, equations 2 to 7; w is L - s where it is not given, as there).

    ``log_n`` multiplies the logits of a query that sees n keys by log n / log L ("plain", for models so trained), or by
    max(1, log n / log L) ("clipped", for all others: nothing changes up to L). It goes with every kind (Su, kexue.fm
    8823, 9706).

    Raises ValueError for what a kind needs and lacks, and for what it would not use.
    """

    kind: Kind = "none"
    """Rule of distances and keys."""
    window: int | None = None
    """w: distances below it are kept as they are (window, sinks, lambda: further keys are not seen)."""
    factor: float | None = None
    """k of leaky_rerope: beyond w, k tokens count as one position."""
    group: int | None = None
    """G of self_extend: beyond w, G tokens share a position."""
    sinks: int | None = None
    """m of sinks and lambda: first tokens that are always seen; papers: 4 and 10 to 100."""
    chunk: int | None = None
    """s of dual_chunk: tokens of a chunk, below L; the official code has 11/16 of L."""
    length: int | None = None
    """L of dual_chunk and log_n: the length that the model was trained at."""
    log_n: Literal["none", "clipped", "plain"] = "none"
    """Scale the logits by the logarithm of the number of keys: at test alone (clipped), or as trained (plain)."""

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        if self.kind not in kinds:
            raise ValueError(f"unknown extension {self.kind!r}; choose {', '.join(kinds)}")
        needs = _NEEDS[self.kind] + (("length",) if self.log_n != "none" else ())
        for name in needs:
            if getattr(self, name) is None:
                why = f"extension {self.kind!r}" if name in _NEEDS[self.kind] else f"log_n={self.log_n!r}"
                raise ValueError(f"{why} needs {name}")
        takes = (*needs, "length", *(("window",) if self.kind == "dual_chunk" else ()))
        for field in dataclasses.fields(self)[1:-1]:
            value = getattr(self, field.name)
            if value is None:
                continue
            if field.name not in takes:
                users = [kind for kind in kinds if field.name in _NEEDS[kind]]
                raise ValueError(f"extension {self.kind!r} does not use {field.name}; {', '.join(users)} do")
            if value < (2 if field.name == "length" else 1):
                raise ValueError(f"{field.name} of extension {self.kind!r} must be positive, found {value}")
        if self.kind == "dual_chunk":
            assert self.chunk is not None and self.length is not None
            if self.chunk >= self.length:
                raise ValueError(
                    f"chunk ({self.chunk}) must be below length ({self.length}): distances reach length - 1"
                )
            if self.local > min(self.chunk, self.length - self.chunk):
                raise ValueError(
                    f"window ({self.local}) of dual_chunk is at most chunk ({self.chunk}) and length - chunk "
                    f"({self.length - self.chunk})"
                )

    @property
    def active(self) -> bool:
        """Whether attention differs from plain softmax attention with RoPE."""
        return self.kind != "none" or self.log_n != "none"

    @property
    def local(self) -> int:
        """w of dual_chunk."""
        assert self.chunk is not None and self.length is not None
        return self.window if self.window is not None else min(self.chunk, self.length - self.chunk)


_NEEDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "window": ("window",),
    "sinks": ("window", "sinks"),
    "lambda": ("window", "sinks"),
    "rerope": ("window",),
    "leaky_rerope": ("window", "factor"),
    "self_extend": ("window", "group"),
    "dual_chunk": ("chunk", "length"),
}

Host = Array | np.ndarray
Pairs = Bool[Host, "B Q K"]
Part = tuple[Any, Any, Any]
"""(where this part holds [B, Q, K] or None, a(i) [B, Q], b(j) [B, K])."""


def parts(e: Extension, i: Int[Host, "B Q"], j: Int[Host, "B K"], causal: bool = True) -> list[Part]:
    """The rule of distances; the first part holds everywhere. Of numpy's positions in numpy.

    Raises ValueError for a kind that only looks back, where not causal.
    """
    xp = i.__array_namespace__()
    zero_i, zero_j = xp.zeros_like(i), xp.zeros_like(j)
    d, w = i[:, :, None] - j[:, None, :], e.window or 0

    def mirrored(a_i: Any, b_j: Any, a_j: Any, b_i: Any) -> list[Part]:
        """From w on back a(i) - b(j), and, where not causal, b(i) - a(j) from w on ahead."""
        return [(d >= w, a_i, b_j), *([] if causal else [(d <= -w, b_i, a_j)])]

    check_causal(e, causal)
    plain: Part = (None, i, j)
    match e.kind:
        case "none" | "window":
            return [plain]
        case "sinks":
            return [plain, (d >= w, xp.minimum(i, (e.sinks or 0) + w - 1), j)]
        case "lambda" | "rerope":
            return [plain, *mirrored(zero_i + w, zero_j, zero_j + w, zero_i)]
        case "leaky_rerope":
            k = e.factor or 1.0
            return [plain, *mirrored(w + (i - w) / k, j / k, w + (j - w) / k, i / k)]
        case "self_extend":
            G = e.group or 1
            return [plain, *mirrored(i // G + w - w // G, j // G, j // G + w - w // G, i // G)]
        case "dual_chunk":
            s, L, w = e.chunk or 1, e.length or 0, e.local
            chunks, within = i[:, :, None] // s - j[:, None, :] // s, j % s
            before = xp.where(i % s < w, s + i % s, L - 1)
            return [(None, i % s, within), (chunks == 1, before, within), (chunks > 1, zero_i + L - 1, within)]
    raise AssertionError(e.kind)


def check_causal(e: Extension, causal: bool) -> None:
    """Raises ValueError for a kind that only looks back, where not causal."""
    if not causal and e.kind in ("sinks", "lambda", "dual_chunk"):
        raise ValueError(f"extension {e.kind!r} is a rule for looking back: use it with causal attention")


def seen(e: Extension, i: Int[Host, "B Q"], j: Int[Host, "B K"], causal: bool = True) -> Pairs:
    """Which keys a query sees, of its own segment."""
    d = i[:, :, None] - j[:, None, :]
    mask = d >= 0 if causal else d == d
    match e.kind:
        case "window":
            return mask & (abs(d) < (e.window or 0))
        case "sinks" | "lambda":
            return mask & ((d < (e.window or 0)) | (j[:, None, :] < (e.sinks or 0)))
    return mask


def applied(extension: Extension, rope: RopeParameters | None) -> Extension:
    """The rule, or without positions what remains of it."""
    return extension if rope is not None else dataclasses.replace(extension, **_masks_alone(extension))


def _masks_alone(e: Extension) -> dict[str, object]:
    """Without positions only what is seen remains of a rule."""
    if e.kind in ("none", "window", "lambda"):
        return {}
    if e.kind == "sinks":
        return {"kind": "lambda"}
    return {"kind": "none", "window": None, "factor": None, "group": None, "chunk": None}


def log_n(e: Extension, n: Int[Array, "B Q"]) -> Float[Array, "B Q"]:
    """lambda_i: log n / log L of the number n of keys that query i sees, clipped at 1, or 1."""
    if e.log_n == "none":
        return jnp.ones(n.shape, jnp.float32)
    ratio = jnp.log(jnp.maximum(n, 1).astype(jnp.float32)) / math.log(e.length or 0)
    return jnp.maximum(ratio, 1) if e.log_n == "clipped" else ratio


def distances(e: Extension, length: int, causal: bool = True) -> Float[np.ndarray, "N N"]:
    """d(i, j) for every pair of a sequence, NaN for a key that is not seen: the picture of a method."""
    at = np.arange(length)[None]
    d = np.zeros((1, length, length))
    for where, a, b in parts(e, at, at, causal):
        new = a[:, :, None] - b[:, None, :]
        d = new if where is None else np.where(where, new, d)
    return np.where(seen(e, at, at, causal), d, np.nan)[0]
