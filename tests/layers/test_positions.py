"""Rotary frequencies against their equations in float64, rotation, ALiBi, T5's buckets, and what is refused."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.bias import AlibiBias
from flashjax.layers.positions import (
    RopeParameters,
    alibi_slopes,
    positions_of,
    rope_frequencies,
    rotary_turn,
    rotate,
    sinusoidal,
    t5_bucket,
    turned,
)

D, S, L = 16, 4.0, 64
THETA = 10000.0 ** (-np.arange(0, D, 2) / D)
YARN = {"rope_type": "yarn", "factor": S, "original_max_position_embeddings": L}
LONG = {"short_factor": [1.0 + i for i in range(D // 2)], "long_factor": [2.0 + i for i in range(D // 2)]}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


def by_hand(kind: str) -> np.ndarray:
    """The scaled frequencies, one pair after the other."""
    found = []
    for i, theta in enumerate(THETA):
        turns = L * theta / (2 * math.pi)
        match kind:
            case "linear":
                scale = 1 / S
            case "ntk":
                scale = (S ** (D / (D - 2))) ** (-2 * i / D)
            case "ntk_fixed":
                scale = (S ** (2 / D)) ** -(i + 1)
            case "ntk_mixed":
                scale = math.exp(-math.log(S) / (D / 2) ** 0.625 * (i + 1) ** 0.625)
            case "llama3":
                blend = (turns - 1) / (4 - 1)
                scale = 1 / S if turns < 1 else 1.0 if turns > 4 else (1 - blend) / S + blend
        found.append(theta * scale)
    return np.array(found)


@pytest.mark.parametrize("kind", ["linear", "ntk", "ntk_fixed", "ntk_mixed", "llama3"])
def test_frequencies_by_hand(kind):
    more = LLAMA3 | {"original_max_position_embeddings": L} if kind == "llama3" else {}
    found, scale = rope_frequencies({"rope_type": kind, "factor": S, **more}, D, 10)
    assert found.dtype == np.float32 and scale == 1.0
    np.testing.assert_allclose(found, by_hand(kind), rtol=1e-6)


def test_ntk_keeps_the_first_pair_and_stretches_the_last():
    for kind, first in {"ntk": 1.0, "ntk_fixed": S ** (-2 / D)}.items():
        found, _ = rope_frequencies({"rope_type": kind, "factor": S}, D)
        np.testing.assert_allclose(found[[0, -1]] / THETA[[0, -1]], [first, 1 / S], rtol=1e-6)
    mixed, _ = rope_frequencies({"rope_type": "ntk_mixed", "factor": S, "mixed_power": 1.0}, D)
    np.testing.assert_allclose(mixed, rope_frequencies({"rope_type": "ntk_fixed", "factor": S}, D)[0], rtol=1e-6)


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones():
    found, scale = rope_frequencies(YARN, D)
    assert scale == pytest.approx(0.1 * math.log(S) + 1)
    parts, one = rope_frequencies({**YARN, "rope_type": "ntk_by_parts"}, D)
    np.testing.assert_array_equal(parts, found)
    assert one == 1.0
    # Pair i turns L theta_i / 2 pi times: 32 times at i < 0, once at i = 2.02, so the ramp is 0, 1/3, 2/3, 1.
    keep = np.clip(1 - np.arange(D // 2) / 3, 0, 1)
    np.testing.assert_allclose(found, THETA * (keep + (1 - keep) / S), rtol=1e-6)


def test_the_current_length_as_a_traced_number():
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": L}
    longrope = {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": L, **LONG}
    traced = jax.jit(lambda n: (rope_frequencies(dynamic, D, n)[0], rope_frequencies(longrope, D, n)[0]))
    for n in (7, L, L + 1, 1000):
        for got, parameters in zip(traced(jnp.int32(n)), (dynamic, longrope), strict=True):
            np.testing.assert_allclose(got, rope_frequencies(parameters, D, n)[0], rtol=2e-6)
    np.testing.assert_array_equal(rope_frequencies(dynamic, D, 7)[0], THETA.astype(np.float32))
    stretched = rope_frequencies({"rope_type": "ntk", "factor": 2 * 1000 / L - 1}, D)[0]
    np.testing.assert_allclose(rope_frequencies(dynamic, D, 1000)[0], stretched, rtol=1e-6)
    short, long = (rope_frequencies(longrope, D, n) for n in (L, L + 1))
    np.testing.assert_allclose(THETA / short[0], LONG["short_factor"], rtol=1e-6)
    np.testing.assert_allclose(THETA / long[0], LONG["long_factor"], rtol=1e-6)
    assert short[1] == long[1] == math.sqrt(1 + math.log(4) / math.log(L))


def test_parts_of_a_head():
    partial, _ = rope_frequencies({"rope_type": "default", "partial_rotary_factor": 0.25}, D)
    np.testing.assert_allclose(partial, [1, 0.01])
    still, _ = rope_frequencies({"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0}, D)
    np.testing.assert_allclose(still, [*(THETA[:2] / 2), *[0.0] * 6], rtol=1e-6)


@functools.cache
def vectors():
    return np.random.default_rng(0).normal(size=(2, 5, 3, D)).astype(np.float32)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation_is_multiplication_by_a_unit_complex_number(interleaved):
    x, at = vectors(), np.array([0, 3, 1, 700, 4])
    frequencies = THETA[:4].astype(np.float32)  # 8 of 16 dims
    got = np.asarray(rotate(jnp.asarray(x), jnp.asarray(at), frequencies, 1.5, interleaved))
    a, b = (slice(0, 8, 2), slice(1, 8, 2)) if interleaved else (slice(0, 4), slice(4, 8))
    z = (x[..., a] + 1j * x[..., b]) * 1.5 * np.exp(1j * at[:, None] * THETA[:4])[:, None]
    np.testing.assert_allclose(got[..., a], z.real, atol=2e-4)
    np.testing.assert_allclose(got[..., b], z.imag, atol=2e-4)
    np.testing.assert_array_equal(got[..., 8:], x[..., 8:])


@pytest.mark.parametrize("made", ["by the host", "by the program"])
def test_turns_out_of_a_table_are_those_of_the_positions(made):
    """Of all positions in order, and of some, as in packed rows."""
    x = jax.random.normal(jax.random.key(0), (2, 9, 3, D))
    frequencies = THETA.astype(np.float32) if made == "by the host" else jnp.asarray(THETA, jnp.float32)
    packed = jnp.array([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    for positions in (None, packed):
        turn = jax.jit(lambda p: rotary_turn(p, frequencies, 0.5, below=9))(positions)
        expected = rotate(x, jnp.arange(9) if positions is None else positions, frequencies, 0.5)
        np.testing.assert_allclose(turned(x, turn), expected, atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    x = jnp.asarray(vectors())
    frequencies = THETA.astype(np.float32)
    logits = [
        jnp.einsum("bihd,bjhd->bhij", rotate(x, at, frequencies), rotate(x, at, frequencies))
        for at in (jnp.arange(5), jnp.arange(5) + 100, jnp.arange(5, dtype=jnp.float32) + 0.5)
    ]
    for other in logits[1:]:
        np.testing.assert_allclose(other, logits[0], atol=2e-4)
    assert rotate(x.astype(jnp.bfloat16), jnp.arange(5), frequencies).dtype == jnp.bfloat16


def test_alibi_slopes_of_any_number_of_heads():
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    # Of 6 heads: the four of 4 heads, then the first and third of 8.
    np.testing.assert_allclose(alibi_slopes(6), [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3])
    np.testing.assert_allclose(alibi_slopes(1), [2**-8])
    bias = AlibiBias(jnp.asarray(alibi_slopes(2)))(jnp.arange(3), jnp.arange(3))
    np.testing.assert_allclose(bias[0, 2], [-2 / 16, -1 / 16, 0])


def test_t5_buckets():
    distance = jnp.array([0, 1, 15, 16, 20, 31, 127, 128, 5000])
    # One direction, 32 buckets: 0 to 15 alone, then 16 2^(k 3/16) ... up to 128.
    assert t5_bucket(-distance, bidirectional=False).tolist() == [0, 1, 15, 16, 17, 21, 31, 31, 31]
    assert t5_bucket(distance, bidirectional=False).tolist() == [0] * 9
    # Both, 16 each: 0 to 7 alone, then doublings into pairs of buckets.
    ahead = jnp.array([0, 1, 7, 8, 16, 32, 64, 128])
    assert t5_bucket(-ahead, bidirectional=True).tolist() == [0, 1, 7, 8, 10, 12, 14, 15]
    assert t5_bucket(ahead, bidirectional=True).tolist() == [0, 17, 23, 24, 26, 28, 30, 31]


def test_sinusoids_and_positions_of_documents():
    found = sinusoidal(jnp.array([[0, 3], [49, 1]]), 8)
    assert found.shape == (2, 2, 8) and found.dtype == jnp.float32
    np.testing.assert_array_equal(found[0, 0], [0, 1] * 4)
    angles = [49.0, 4.9, 0.49, 0.049]
    np.testing.assert_allclose(found[1, 0, ::2], np.sin(angles), rtol=1e-5)
    np.testing.assert_allclose(found[1, 0, 1::2], np.cos(angles), rtol=1e-5)
    with pytest.raises(ValueError, match="an even width, found 7"):
        sinusoidal(jnp.arange(2), 7)
    ids = jnp.array([[1, 1, 1, 2, 3, 3, 0, 0], [4, 4, 4, 4, 4, 4, 4, 4]])
    np.testing.assert_array_equal(positions_of(ids), [[0, 1, 2, 0, 0, 1, 0, 1], list(range(8))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rope_type": "yarrn"}, "unknown rope_type 'yarrn'; nearest: yarn"),
        ({"rope_type": "linear", "factr": 2}, "unknown rope parameter 'factr'; nearest: factor"),
        ({"rope_type": "linear"}, "'linear' needs factor"),
        ({"rope_type": "linear", "factor": 0.5}, "factor must be 1 or more, found 0.5"),
        ({"factor": 2.0}, "'default' does not use factor"),
        ({"rope_type": "yarn", "factor": 2.0}, "needs original_max_position_embeddings"),
        ({**YARN, "beta_fast": 1.0, "beta_slow": 2.0}, r"beta_fast \(1.0\) must be over beta_slow \(2.0\)"),
        ({"rope_type": "llama3", "factor": 2.0, **LLAMA3}, "needs original_max_position_embeddings"),
        ({**YARN, "attention_factor": -1.0}, "attention_factor must be positive, found -1.0"),
        ({"partial_rotary_factor": 0.0}, "partial_rotary_factor must be in"),
        ({"full_attention": {"rope_type": "default"}}, "by kind of layer .full_attention.: pass those of one"),
        (
            {"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": L, **LONG}
            | {"long_factor": [1.0]},
            "long_factor has 1 numbers; 16 rotated dims are 8 pairs",
        ),
        ({"partial_rotary_factor": 0.2}, "rotations need an even number"),
        ({"rope_type": "ntk", "factor": 2.0, "partial_rotary_factor": 0.125}, "2 rotated dims are one pair"),
    ],
)
def test_wrong_parameters_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        rope_frequencies(values, D, 10)


def test_parameters_of_a_config_json():
    """Older and newer spellings, and what transformers fills in."""
    read = RopeParameters.from_config
    assert read({"rope_theta": 5e5}) == RopeParameters(rope_theta=5e5)
    old = {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e4, "max_position_embeddings": 128}
    assert read(old) == RopeParameters("linear", factor=2.0)
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}, "max_position_embeddings": 128}
    assert read(dynamic).original_max_position_embeddings == 128
    phi = {"rope_scaling": {"rope_type": "longrope", **LONG}, "original_max_position_embeddings": 64}
    made = read(phi | {"max_position_embeddings": 256})
    assert (made.factor, made.original_max_position_embeddings) == (4.0, 64)
    by_layer = {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}, "sliding": None}}
    assert read(by_layer, "full_attention").factor == 8.0
    assert RopeParameters.from_dict(made.to_dict()) == made and isinstance(made.to_dict()["long_factor"], list)
