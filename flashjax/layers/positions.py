"""Where a token is: rotary frequencies of every kind, ALiBi, T5's relative bias, sinusoids.

Shapes: B batch, N tokens, H heads, D width of a head, R = D * partial_rotary_factor the rotated part of it, pairs i of
R/2 frequencies. Angles are float32 whatever the compute dtype.

Names and parameters of the rotary kinds are those of the ``rope_parameters`` of Hugging Face's configurations, and four
of our own: ``ntk``, ``ntk_fixed``, ``ntk_mixed``, ``ntk_by_parts``.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flashjax.words import nearest

RopeType = Literal[
    "default",
    "linear",
    "dynamic",
    "yarn",
    "llama3",
    "longrope",
    "proportional",
    "ntk",
    "ntk_fixed",
    "ntk_mixed",
    "ntk_by_parts",
]
Frequencies = Float[Array, "pairs"] | Float[np.ndarray, "pairs"]


@dataclass(frozen=True)
class RopeParameters:
    """How positions become angles; fields are the keys of Hugging Face's ``rope_parameters``.

    Raises ValueError for a type or value that cannot be, for a parameter that the type needs and lacks, and for one
    that it would not use.
    """

    rope_type: RopeType = "default"
    """Kind of scaling: default (none), linear (position interpolation), dynamic (NTK by the current length), yarn,
    llama3, longrope, proportional, and of our own: ntk, ntk_fixed, ntk_mixed, ntk_by_parts."""
    rope_theta: float = 10000.0
    """Base of the frequencies: pair i turns by rope_theta^(-2i/R) a position."""
    partial_rotary_factor: float = 1.0
    """Part of each head that is rotated; its first dims."""
    factor: float | None = None
    """By how many times the context is stretched."""
    original_max_position_embeddings: int | None = None
    """Length L that the model was trained at."""
    attention_factor: float | None = None
    """yarn, longrope: factor of cos and sin, so its square is the factor of the logits; default: the paper's rule."""
    beta_fast: float | None = None
    """yarn, ntk_by_parts: pairs that turn more often than this within L are kept (default 32)."""
    beta_slow: float | None = None
    """yarn, ntk_by_parts: pairs that turn less often than this within L are interpolated (default 1)."""
    truncate: bool | None = None
    """yarn, ntk_by_parts: the ramp between them begins and ends at whole pairs (default true)."""
    mscale: float | None = None
    """yarn: with mscale_all_dim, attention factor (.1 mscale ln factor + 1) / (.1 mscale_all_dim ln factor + 1)."""
    mscale_all_dim: float | None = None
    """yarn: see mscale."""
    short_factor: tuple[float, ...] | None = None
    """longrope: by what each pair's frequency is divided up to length L."""
    long_factor: tuple[float, ...] | None = None
    """longrope: the same beyond L."""
    low_freq_factor: float | None = None
    """llama3: pairs with a wavelength over L / this are interpolated (Llama 3.1 has 1)."""
    high_freq_factor: float | None = None
    """llama3: pairs with a wavelength under L / this are kept (Llama 3.1 has 4)."""
    mixed_power: float | None = None
    """ntk_mixed: power b of the pair's number; 0 would be linear, 1 is ntk_fixed (default 0.625)."""

    def __post_init__(self) -> None:
        rule = _rule(self.rope_type)
        for name in rule.needs:
            if getattr(self, name) is None:
                raise ValueError(f"rope_type {self.rope_type!r} needs {name}")
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None and field.name not in _COMMON + rule.needs + rule.takes:
                users = [name for name, other in _RULES.items() if field.name in other.needs + other.takes]
                raise ValueError(
                    f"rope_type {self.rope_type!r} does not use {field.name}; leave it out, or take one that does: "
                    f"{', '.join(users)}"
                )
        if self.rope_theta <= 1:
            raise ValueError(f"rope_theta must be over 1, found {self.rope_theta}")
        if not 0 < self.partial_rotary_factor <= 1:
            raise ValueError(f"partial_rotary_factor must be in (0, 1], found {self.partial_rotary_factor}")
        if self.factor is not None and self.factor < 1:
            raise ValueError(
                f"factor must be 1 or more, found {self.factor}: it says how many times longer the context is"
            )
        length = self.original_max_position_embeddings
        if length is not None and length < 2:
            raise ValueError(f"original_max_position_embeddings must be 2 or more, found {length}")
        for name in ("attention_factor", "beta_fast", "beta_slow", "low_freq_factor", "high_freq_factor"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, found {value}")
        if (self.beta_fast or 32) <= (self.beta_slow or 1):
            raise ValueError(f"beta_fast ({self.beta_fast or 32}) must be over beta_slow ({self.beta_slow or 1})")
        if self.rope_type == "llama3":
            assert self.high_freq_factor is not None and self.low_freq_factor is not None
            if self.high_freq_factor <= self.low_freq_factor:
                raise ValueError(
                    f"high_freq_factor ({self.high_freq_factor}) must be over low_freq_factor ({self.low_freq_factor})"
                )
        if self.mixed_power is not None and not 0 < self.mixed_power <= 1:
            raise ValueError(f"mixed_power must be in (0, 1], found {self.mixed_power}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], max_position_embeddings: int | None = None) -> "RopeParameters":
        """From a ``rope_parameters`` (or older ``rope_scaling``) object.

        Args:
            max_position_embeddings: of the model's configuration, where there is one. As in transformers it is L for
                ``dynamic``, L for the other types that need one and do not say, and max / L is the factor of ``yarn``
                and ``longrope`` where none is given.

        Raises ValueError for unknown keys, with the nearest names, and as the class does.
        """
        given = {name: value for name, value in values.items() if value is not None}
        given.setdefault("rope_type", given.get("type", "default"))
        given.pop("type", None)
        names = [field.name for field in dataclasses.fields(cls)]
        for name, value in given.items():
            if isinstance(value, Mapping):
                kinds = ", ".join(sorted(given.keys() - {"rope_type"}))
                raise ValueError(f"rope parameters by kind of layer ({kinds}): pass those of one kind")
            if name not in names:
                raise ValueError(f"unknown rope parameter {name!r}; nearest: {nearest(name, names)}")
        kind, length = given["rope_type"], max_position_embeddings
        rule = _rule(kind)
        if length is not None:
            if kind == "dynamic":
                given["original_max_position_embeddings"] = length
            elif "original_max_position_embeddings" in rule.needs:
                given.setdefault("original_max_position_embeddings", length)
            if kind in ("yarn", "longrope") and "factor" not in given:
                given["factor"] = length / given["original_max_position_embeddings"]
        return cls(**{name: _typed(name, value) for name, value in given.items()})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], layer_type: str | None = None) -> "RopeParameters":
        """From a whole ``config.json``: ``rope_parameters``, or ``rope_scaling`` and ``rope_theta`` beside it.

        ``layer_type`` picks one kind of layer ("full_attention") where the parameters differ by layer.
        """
        values = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
        if layer_type is not None and layer_type in values:
            values = dict(values[layer_type])
        for name in ("rope_theta", "partial_rotary_factor"):
            if config.get(name) is not None:
                values.setdefault(name, config[name])
        kind = values.get("rope_type", values.get("type"))
        if kind in _RULES and "original_max_position_embeddings" in _RULES[kind].needs and kind != "dynamic":
            length = config.get("original_max_position_embeddings")
            if length is not None:
                values["original_max_position_embeddings"] = length
        return cls.from_dict(values, config.get("max_position_embeddings"))

    def to_dict(self) -> dict[str, Any]:
        """The object for a ``config.json``: what is set, lists for tuples."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @property
    def by_length(self) -> bool:
        """Whether the angles of all tokens change as the sequence grows."""
        return self.rope_type in ("dynamic", "longrope")

    def rotary_dim(self, head_dim: int) -> int:
        """Dims of a head that are rotated. Raises ValueError where they are no pairs."""
        dim = head_dim if self.rope_type == "proportional" else int(head_dim * self.partial_rotary_factor)
        if dim < 2 or dim % 2:
            raise ValueError(
                f"{dim} of {head_dim} dims of a head would be rotated (partial_rotary_factor "
                f"{self.partial_rotary_factor}): rotations need an even number, 2 or more"
            )
        return dim


def rope_frequencies(
    rope_parameters: Mapping[str, Any] | RopeParameters, head_dim: int, length: int | Int[Array, ""] | None = None
) -> tuple[Frequencies, float]:
    """(angle by which each pair turns from one position to the next [R/2] float32, factor of cos and sin).

    Args:
        length: tokens of the sequence as it is now, a number or a traced scalar; ``dynamic`` and ``longrope`` depend on
            it (None: L), the others do not.

    Static tables are computed in float64 and then rounded. Sources: Su et al. 2021 (default); Chen et al. 2023
    (linear); Peng et al. 2023 (ntk, dynamic, ntk_by_parts, yarn); Ding et al. 2024 (longrope); Llama 3.1 (llama3); Su,
    kexue.fm 9706 (ntk_fixed, ntk_mixed). Those of Hugging Face agree with its ``ROPE_INIT_FUNCTIONS``.

    Raises ValueError as RopeParameters does, and for a number of longrope factors that is not R/2.
    """
    p = rope_parameters if isinstance(rope_parameters, RopeParameters) else RopeParameters.from_dict(rope_parameters)
    frequencies, scale = _RULES[p.rope_type].frequencies(p, p.rotary_dim(head_dim), length)
    if isinstance(frequencies, np.ndarray):
        frequencies = frequencies.astype(np.float32)
    return frequencies, scale


Made = tuple[np.ndarray | jax.Array, float]
Length = int | jax.Array | None


def _theta(p: RopeParameters, R: int) -> np.ndarray:
    """theta_i = base^(-2i/R)."""
    return p.rope_theta ** -(np.arange(0, R, 2, dtype=np.float64) / R)


def _default(p: RopeParameters, R: int, n: Length) -> Made:
    return _theta(p, R), 1.0


def _linear(p: RopeParameters, R: int, n: Length) -> Made:
    """theta_i / s: position m is read as m/s."""
    return _theta(p, R) / _need(p.factor), 1.0


def _ntk(p: RopeParameters, R: int, n: Length) -> Made:
    """Base times s^(R/(R-2)): the first pair is kept, the last one interpolated by s."""
    return _theta(p, R) * _need(p.factor) ** -_spread(R), 1.0


def _dynamic(p: RopeParameters, R: int, n: Length) -> Made:
    """ntk with s n/L - (s - 1) for s, where n > L is the current length; plain up to L."""
    s, L = _need(p.factor), _need(p.original_max_position_embeddings)
    if n is None or isinstance(n, int):
        stretch = s * max(n or L, L) / L - (s - 1)
        return _theta(p, R) * stretch ** -_spread(R), 1.0
    stretch = s * (jnp.maximum(n, L).astype(jnp.float32) / L - 1) + 1
    return _theta(p, R).astype(np.float32) * jnp.exp(-_spread(R).astype(np.float32) * jnp.log(stretch)), 1.0


def _spread(R: int) -> np.ndarray:
    """2i/(R-2), from 0 for the first pair to 1 for the last: (c^(R/(R-2)))^(-2i/R) = c^(-spread)."""
    if R < 4:
        raise ValueError(f"NTK scaling keeps the first pair and stretches the last: {R} rotated dims are one pair")
    return np.arange(0, R, 2, dtype=np.float64) / (R - 2)


def _ntk_fixed(p: RopeParameters, R: int, n: Length) -> Made:
    """theta_m / lambda^m with lambda = s^(2/R), m = 1 .. R/2: all pairs are stretched, the last one by s."""
    m = np.arange(1, R // 2 + 1, dtype=np.float64)
    return _theta(p, R) * _need(p.factor) ** -(m / (R / 2)), 1.0


def _ntk_mixed(p: RopeParameters, R: int, n: Length) -> Made:
    """theta_m exp(-a m^b) with a (R/2)^b = ln s, m = 1 .. R/2: low digits take more of the stretching."""
    m, b = np.arange(1, R // 2 + 1, dtype=np.float64), p.mixed_power or 0.625
    a = math.log(_need(p.factor)) / (R / 2) ** b
    return _theta(p, R) * np.exp(-a * m**b), 1.0


def _ntk_by_parts(p: RopeParameters, R: int, n: Length) -> Made:
    """(1 - g_i) theta_i / s + g_i theta_i, g from 1 to 0 between pairs that turn beta_fast and beta_slow times in L.

    g is linear in the pair's number, as in transformers; the paper's equation is linear in the turns.
    """
    s, L = _need(p.factor), _need(p.original_max_position_embeddings)

    def pair(turns: float) -> float:
        """The i at which L theta_i = 2 pi turns."""
        return R * math.log(L / (turns * 2 * math.pi)) / (2 * math.log(p.rope_theta))

    low, high = pair(p.beta_fast or 32.0), pair(p.beta_slow or 1.0)
    if p.truncate is not False:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, R - 1)
    ramp = (np.arange(R // 2) - low) / (high - low if high != low else 0.001)
    g = 1 - np.clip(ramp, 0, 1)
    theta = _theta(p, R)
    return (1 - g) * theta / s + g * theta, 1.0


def _yarn(p: RopeParameters, R: int, n: Length) -> Made:
    """ntk_by_parts, and cos and sin times .1 ln s + 1, against the entropy of longer sequences."""
    frequencies, _ = _ntk_by_parts(p, R, n)
    if p.attention_factor is not None:
        return frequencies, float(p.attention_factor)

    def scale(mscale: float) -> float:
        return 0.1 * mscale * math.log(_need(p.factor)) + 1

    if p.mscale and p.mscale_all_dim:
        return frequencies, scale(p.mscale) / scale(p.mscale_all_dim)
    return frequencies, scale(1.0)


def _llama3(p: RopeParameters, R: int, n: Length) -> Made:
    """theta_i / s where the wavelength is over L/low, theta_i where under L/high, between them by 1/wavelength."""
    s, L = _need(p.factor), _need(p.original_max_position_embeddings)
    low, high = _need(p.low_freq_factor), _need(p.high_freq_factor)
    theta = _theta(p, R)
    smooth = np.clip((L * theta / (2 * np.pi) - low) / (high - low), 0, 1)
    return (1 - smooth) * theta / s + smooth * theta, 1.0


def _longrope(p: RopeParameters, R: int, n: Length) -> Made:
    """theta_i / short_i up to L, theta_i / long_i beyond; cos and sin times sqrt(1 + ln s / ln L)."""
    s, L = _need(p.factor), _need(p.original_max_position_embeddings)
    for name, factors in (("short_factor", p.short_factor), ("long_factor", p.long_factor)):
        assert factors is not None
        if len(factors) != R // 2:
            raise ValueError(f"{name} has {len(factors)} numbers; {R} rotated dims are {R // 2} pairs")
    short, long = (_theta(p, R) / np.asarray(factors) for factors in (p.short_factor, p.long_factor))
    scale = p.attention_factor
    if scale is None:
        scale = math.sqrt(1 + math.log(s) / math.log(L))
    if n is None or isinstance(n, int):
        return (long if (n or L) > L else short), float(scale)
    return jnp.where(n > L, long.astype(np.float32), short.astype(np.float32)), float(scale)


def _proportional(p: RopeParameters, R: int, n: Length) -> Made:
    """The first pairs of the whole head turn, by their share of it; the other pairs stand still."""
    turning = int(p.partial_rotary_factor * R // 2)
    theta = _theta(p, R)
    return np.where(np.arange(R // 2) < turning, theta, 0.0) / (p.factor or 1.0), 1.0


@dataclass(frozen=True)
class _Rule:
    frequencies: Callable[[RopeParameters, int, Length], Made]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


_COMMON = ("rope_type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings")
_L, _PARTS = "original_max_position_embeddings", ("beta_fast", "beta_slow", "truncate")
_RULES: dict[str, _Rule] = {
    "default": _Rule(_default),
    "linear": _Rule(_linear, ("factor",)),
    "dynamic": _Rule(_dynamic, ("factor", _L)),
    "yarn": _Rule(_yarn, ("factor", _L), (*_PARTS, "attention_factor", "mscale", "mscale_all_dim")),
    "llama3": _Rule(_llama3, ("factor", _L, "low_freq_factor", "high_freq_factor")),
    "longrope": _Rule(_longrope, ("factor", _L, "short_factor", "long_factor"), ("attention_factor",)),
    "proportional": _Rule(_proportional, (), ("factor",)),
    "ntk": _Rule(_ntk, ("factor",)),
    "ntk_fixed": _Rule(_ntk_fixed, ("factor",)),
    "ntk_mixed": _Rule(_ntk_mixed, ("factor",), ("mixed_power",)),
    "ntk_by_parts": _Rule(_ntk_by_parts, ("factor", _L), _PARTS),
}


Turn = tuple[Float[Array, "*b N pairs"], Float[Array, "*b N pairs"]]
"""Cosines and sines of the angles that tokens are turned by."""


def rotary_turn(
    positions: Int[Array, "*b N"] | Float[Array, "*b N"] | None,
    inverse_frequencies: Frequencies,
    attention_scale: float = 1.0,
    below: int | None = None,
) -> Turn:
    """The turns of positions, to be shared by all layers.

    `below`: positions are whole numbers below it, whose turns come out of a table that is a constant of the program;
    positions of None are then all of them, 0, 1, 2 ... Angles that a program makes itself, XLA for CPUs makes anew
    wherever it multiplies by them, for each row and head: most of the time of a rotation.
    """
    if below is None:
        assert positions is not None
        angles = positions.astype(jnp.float32)[..., None] * inverse_frequencies
        return attention_scale * jnp.cos(angles), attention_scale * jnp.sin(angles)
    # Some kinds make their frequencies in the program.
    host = np if isinstance(inverse_frequencies, np.ndarray) else jnp
    angles = host.arange(below, dtype=np.float32)[:, None] * inverse_frequencies
    cos, sin = (jnp.asarray(np.float32(attention_scale) * turn(angles)) for turn in (host.cos, host.sin))
    return (cos, sin) if positions is None else (jnp.take(cos, positions, axis=0), jnp.take(sin, positions, axis=0))


def rotate(
    x: Float[Array, "B N H D"],
    positions: Int[Array, "#B N"] | Int[Array, "N"] | Float[Array, "#B N"] | Float[Array, "N"],
    inverse_frequencies: Frequencies,
    attention_scale: float = 1.0,
    interleaved: bool = False,
) -> Float[Array, "B N H D"]:
    """RoPE: `turned` by the angles of positions, which may be fractions. Source: Su et al. 2021, section 3.2."""
    return turned(x, rotary_turn(positions, inverse_frequencies, attention_scale), interleaved)


def turned(x: Float[Array, "B N H D"], turn: Turn, interleaved: bool = False) -> Float[Array, "B N H D"]:
    """(x_a, x_b) of pair i at position m become (x_a cos - x_b sin, x_b cos + x_a sin) of the angle m theta_i.

    Pairs are dims (i, i + R/2) as in Hugging Face's models, or (2i, 2i + 1) if ``interleaved`` as in the paper; dims
    from R on pass as they are.
    """
    R = 2 * turn[0].shape[-1]
    cos, sin = (part[..., None, :] for part in turn)
    rotated = x[..., :R].astype(jnp.float32)
    if interleaved:
        a, b = rotated[..., 0::2], rotated[..., 1::2]
        out = jnp.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(rotated.shape)
    else:
        a, b = jnp.split(rotated, 2, -1)
        out = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([out.astype(x.dtype), x[..., R:]], -1) if x.shape[-1] > R else out.astype(x.dtype)


def alibi_slopes(heads: int) -> Float[np.ndarray, "H"]:
    """m_h of ALiBi, whose logits lose m_h (i - j): 2^(-8h/H) for h = 1 .. H where H is a power of two.

    Otherwise those of the next lower power, then every second one of its double. Source: Press et al. 2022, its code.
    """
    if heads < 1:
        raise ValueError(f"heads must be 1 or more, found {heads}")
    power = 2 ** int(math.log2(heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-4 * np.arange(1, 2 * power, 2) / power)
    return np.concatenate([slopes, between])[:heads].astype(np.float32)


def t5_bucket(
    relative: Int[Array, "..."], bidirectional: bool, buckets: int = 32, max_distance: int = 128
) -> Int[Array, "..."]:
    """The bucket of each distance key position - query position: single ones near by, then ever wider ones.

    Half of the buckets are for keys behind the query if ``bidirectional``; otherwise those are as distance 0. Of a
    direction's buckets the first half are single distances, the others grow geometrically up to ``max_distance``.
    Source: Raffel et al. 2020, and its code.
    """
    offset = jnp.zeros_like(relative)
    single, growing = t5_buckets(bidirectional, buckets, max_distance)
    if bidirectional:
        offset = jnp.where(relative > 0, single + growing, 0)
        distance = jnp.abs(relative)
    else:
        distance = -jnp.minimum(relative, 0)
    starts = single * (max_distance / single) ** (np.arange(1, growing) / growing)
    starts = np.ceil(starts - 1e-6).astype(np.int32)  # a start that is whole but for rounding is whole
    far = single + jnp.searchsorted(jnp.asarray(starts), distance, side="right")
    return (offset + jnp.where(distance < single, distance, far)).astype(relative.dtype)


def t5_buckets(bidirectional: bool, buckets: int, max_distance: int) -> tuple[int, int]:
    """(buckets of single distances, buckets that grow) in a direction.

    Raises ValueError where there is none of single distances, or they reach `max_distance` already.
    """
    directions = 2 if bidirectional else 1
    own = buckets // directions
    single = own // 2
    if single < 1 or max_distance <= single:
        raise ValueError(
            f"{buckets} buckets, {own} a direction, do not reach from single distances to {max_distance}: want "
            f"{2 * directions} buckets or more, and a distance over {max(single, 1)}"
        )
    return single, own - single


def sinusoidal(positions: Int[Array, "*b N"], width: int) -> Float[Array, "*b N C"]:
    """sin(m / 10000^(2i/C)) in dim 2i, cos of it in dim 2i + 1, float32. Source: Vaswani et al. 2017, section 3.5.

    Raises ValueError for an odd width.
    """
    if width % 2:
        raise ValueError(f"sinusoidal positions need an even width, found {width}")
    angles = positions.astype(jnp.float32)[..., None] * 10000.0 ** -(jnp.arange(0, width, 2) / width)
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1).reshape(*positions.shape, width)


def positions_of(segment_ids: Int[Array, "B N"]) -> Int[Array, "B N"]:
    """Position of each token in its own segment, from 0; padding (0) counts as a segment."""
    index = jnp.broadcast_to(jnp.arange(segment_ids.shape[1], dtype=jnp.int32), segment_ids.shape)
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def _typed(name: str, value: Any) -> Any:
    """A value of a JSON file in the type of the field: files write 10000 for 10000.0."""
    if isinstance(value, list | tuple):
        return tuple(float(item) for item in value)
    if name == "original_max_position_embeddings":
        return int(value)
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _rule(rope_type: str) -> _Rule:
    if rope_type not in _RULES:
        raise ValueError(f"unknown rope_type {rope_type!r}; nearest: {nearest(str(rope_type), _RULES)}")
    return _RULES[rope_type]


def _need(value: Any) -> Any:
    assert value is not None  # RopeParameters checked it
    return value
