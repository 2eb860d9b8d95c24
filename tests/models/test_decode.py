"""Generating: greedy against the full forward, samplers against their distributions, prompts side by side."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.extension import Extension
from flashjax.layers.positions import RopeParameters
from flashjax.models.decode import GREEDY, Sampling, for_decoding, generate, sample
from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.transformer import Transformer, TransformerConfig

V = 23
MODEL = Transformer(
    TransformerConfig(vocab_size=V, width=16, depth=2, heads=2, position="rope", max_length=64, scan_layers=True)
)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4], [2]]
NEW = 5


def drawn(model):
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), variables)


@pytest.fixture(scope="module")
def given():
    return drawn(MODEL)


@pytest.fixture(scope="module")
def greedy(given):
    return generate(MODEL, given, PROMPTS, NEW)


def test_greedy_takes_the_likeliest_token_of_the_full_forward(given, greedy):
    longest = max(map(len, PROMPTS)) + NEW
    rows = [prompt + new for prompt, new in zip(PROMPTS, greedy, strict=True)]
    tokens = jnp.asarray([row + [0] * (longest - len(row)) for row in rows])
    best = np.asarray(jnp.argmax(jax.jit(MODEL.apply)(given, tokens), -1))
    for prompt, new, row in zip(PROMPTS, greedy, best, strict=True):
        assert new == row[len(prompt) - 1 : len(prompt) - 1 + NEW].tolist()
    assert len({tuple(new) for new in greedy}) == len(PROMPTS)


def test_it_streams_and_stops_at_the_end_of_a_text(given, greedy):
    heard: list[list[int]] = [[] for _ in PROMPTS]
    eos = greedy[0][2]
    found = generate(MODEL, given, PROMPTS, NEW, eos=eos, on_token=lambda row, token: heard[row].append(token))
    assert heard == found
    for whole, cut in zip(greedy, found, strict=True):
        assert cut == (whole[: whole.index(eos) + 1] if eos in whole else whole)
    assert found[0] == greedy[0][: greedy[0].index(eos) + 1]


def test_several_tokens_may_end_a_text(given, greedy):
    found = generate(MODEL, given, PROMPTS, NEW, eos=(greedy[0][0], greedy[1][1]))
    assert found[0] == greedy[0][:1]
    assert len(found[1]) <= 2


def test_what_is_drawn_follows_from_the_key_and_the_row(given):
    hot = Sampling(temperature=3.0)
    first, again, other = (generate(MODEL, given, PROMPTS, NEW, hot, jax.random.key(seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_layers_come_apart_for_decoding(given):
    apart, params = for_decoding(MODEL, given)
    assert not apart.config.scan_layers and set(params["params"]) >= {"layer_0", "layer_1"}  # type: ignore[attr-defined]
    assert for_decoding(apart, params) == (apart, params)


MOST = 21
ONE_LAYER = {"vocab_size": V, "width": 16, "depth": 1, "max_length": MOST}
BOUNDED = {
    "learned": Transformer(TransformerConfig(**ONE_LAYER, heads=2)),
    "cosformer": Transformer(TransformerConfig(**ONE_LAYER, heads=2, position="none", mixer="cosformer")),
    "toeplitz": Flash(FlashConfig(**ONE_LAYER, head_dim=8, kind="quad")),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_the_last_position_of_a_model_is_reached_and_not_passed(name):
    """Lengths of prompts and caches are rounded up, and those of 17 tokens would be 32."""
    model, prompt = BOUNDED[name], PROMPTS[1]
    new = MOST + 1 - len(prompt)  # the last token drawn is not read again
    variables = drawn(model)
    (found,) = generate(model, variables, [prompt], new)
    best = jnp.argmax(jax.jit(model.apply)(variables, jnp.asarray([prompt + found[:-1]])), -1)[0]
    assert found == best[len(prompt) - 1 :].tolist()
    with pytest.raises(ValueError, match="a prompt of 17 tokens and 6 more, but the model has 21 positions"):
        generate(model, variables, [prompt], new + 1)
    with pytest.raises(ValueError, match="a cache of capacity 22 but"):
        model.init_cache(1, MOST + 1)


LONGROPE = RopeParameters(
    "longrope",
    factor=2.0,
    original_max_position_embeddings=24,
    short_factor=(1.0, 1.1, 1.2, 1.3),
    long_factor=(2.0, 5.0, 8.0, 12.0),
)
DYNAMIC = RopeParameters("dynamic", factor=8.0, original_max_position_embeddings=8)
BY_LENGTH = {
    "longrope": {"rope": LONGROPE},
    "dynamic": {"rope": DYNAMIC},
    "dynamic, at other distances": {"rope": DYNAMIC, "extension": Extension("rerope", window=16)},
}


@pytest.mark.parametrize("name", BY_LENGTH)
def test_angles_are_those_of_the_tokens_there_will_be(given, name):
    """Of 23, where a cache has room for 32."""
    model = Transformer(dataclasses.replace(MODEL.config, **BY_LENGTH[name]))
    prompts = np.random.default_rng(1).integers(0, V, (8, 5))
    found = generate(model, given, list(prompts), 18)
    rows = np.concatenate([prompts, found], 1)
    np.testing.assert_array_equal(jnp.argmax(jax.jit(model.apply)(given, rows), -1)[:, 4:-1], found)


@pytest.mark.parametrize("kind", ["flash", "quad"])
def test_other_models_have_no_last_position(kind):
    assert FlashConfig(kind=kind, bias="rope").most_positions is None
    assert TransformerConfig(position="rope").most_positions is None


LOGITS = jnp.log(jnp.asarray([[0.05, 0.4, 0.1, 0.25, 0.2]]))


def frequencies(sampling: Sampling, draws: int = 20_000):
    tokens = jax.jit(lambda x: sample(x, jax.random.key(0), sampling))(jnp.tile(LOGITS, (draws, 1)))
    return np.bincount(np.asarray(tokens), minlength=5) / draws


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.05, 0.4, 0.1, 0.25, 0.2]),
        (Sampling(temperature=0.5), np.square([0.05, 0.4, 0.1, 0.25, 0.2]) / 0.275),
        (Sampling(top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
        (Sampling(top_p=0.6), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),  # .4 + .25 crosses .6
        (Sampling(top_p=0.01), [0, 1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.7), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),  # of the three, .47 + .29 crosses .7
        (GREEDY, [0, 1, 0, 0, 0]),
    ],
)
def test_samplers_draw_from_their_distributions(sampling, expected):
    expected = np.asarray(expected)
    bound = 4 * np.sqrt(expected * (1 - expected) / 20_000) + 1e-9  # four standard errors
    assert (np.abs(frequencies(sampling) - expected) <= bound).all()


def test_a_row_is_drawn_alike_whatever_is_beside_it():
    many = sample(jnp.tile(LOGITS, (7, 1)), jax.random.key(3), Sampling())
    few = sample(jnp.tile(LOGITS, (3, 1)), jax.random.key(3), Sampling())
    np.testing.assert_array_equal(many[:3], few)


def test_errors_name_the_value(given):
    with pytest.raises(ValueError, match="a prompt is empty"):
        generate(MODEL, given, [[1], []], 1)
    with pytest.raises(ValueError, match="token 23 is not among the model's 23"):
        generate(MODEL, given, [[1, 23]], 1)
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generate(MODEL, given, [[1]], 0)
    with pytest.raises(ValueError, match="temperature is -1"):
        Sampling(temperature=-1.0)
    with pytest.raises(ValueError, match="top_p is 0"):
        Sampling(top_p=0.0)
    with pytest.raises(ValueError, match="top_k is -2"):
        Sampling(top_k=-2)
