"""The Transformer beyond its training length: decoding with a cache is the forward pass, whatever the rule."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.extension import Extension
from flashjax.layers.positions import RopeParameters
from flashjax.models.stack import unstack
from flashjax.models.transformer import Transformer, TransformerConfig

TINY = TransformerConfig(
    vocab_size=31,
    width=16,
    depth=2,
    heads=2,
    kv_heads=1,
    hidden=16,
    norm="rmsnorm",
    position="rope",
    initializer="fan_in",
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    scan_layers=True,
)
N, PROMPT = 13, (6, 9)
DYNAMIC = RopeParameters("dynamic", factor=2.0, original_max_position_embeddings=4)
CHANGES = {
    "rerope": {"extension": Extension("rerope", window=4, log_n="clipped", length=6)},
    "sinks": {"extension": Extension("sinks", window=4, sinks=1)},
    "dual_chunk": {"extension": Extension("dual_chunk", chunk=4, length=6)},
    "dynamic": {"rope": DYNAMIC},
    "dynamic_rerope": {"rope": DYNAMIC, "extension": Extension("rerope", window=4)},
    "hwfa": {
        "mixer_options": "window=3",
        "full_last": True,
        "extension": Extension(length=6, log_n="plain"),
        "qk_norm": "keys",
        "scan_layers": False,
    },
}


@functools.cache
def variables(scanned: bool = True):
    if not scanned:
        return {"params": unstack(variables()["params"])}
    return jax.jit(Transformer(TINY).init)(jax.random.key(0), jnp.zeros((1, 4), jnp.int32))


@functools.cache
def tokens() -> jax.Array:
    return jax.random.randint(jax.random.key(1), (2, N), 0, 31)


@functools.cache
def full(name: str) -> np.ndarray:
    model = Transformer(dataclasses.replace(TINY, **CHANGES.get(name, {})))
    return np.asarray(jax.jit(model.apply)(variables(model.config.scan_layers), tokens()))


QUICK = ("rerope",)


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CHANGES]
)
def test_prefill_and_steps_are_the_forward_pass(name):
    model = Transformer(dataclasses.replace(TINY, **CHANGES[name]))
    want, lengths = full(name), jnp.asarray(PROMPT, jnp.int32)

    @jax.jit
    def decode(variables, tokens):
        logits, cache = model.apply(variables, tokens[:, :9], lengths, model.init_cache(2, N), method="prefill")

        def step(cache, _):
            token = tokens[jnp.arange(2), jnp.minimum(cache["position"], N - 1)]
            logits, cache = model.apply(variables, token, cache, method="step")
            return cache, logits

        return logits, jax.lax.scan(step, cache, length=N - max(PROMPT))[1]

    first, later = decode(variables(model.config.scan_layers), tokens())
    for row, length in enumerate(PROMPT):
        np.testing.assert_allclose(first[row], want[row, length - 1], atol=1e-4)
        for t in range(N - max(PROMPT)):
            np.testing.assert_allclose(later[t, row], want[row, length + t], atol=1e-4)


def test_each_changes_what_lies_beyond_the_training_length():
    plain = full("plain")
    for name in QUICK:
        assert np.abs(full(name) - plain)[:, 8:].max() > 1e-3, name
    np.testing.assert_allclose(full("rerope")[:, :4], plain[:, :4], atol=1e-5)


@pytest.mark.slow
def test_packed_documents_are_as_if_alone():
    ids = jnp.repeat(jnp.array([[1, 2]]), jnp.array([6, 7]), axis=1, total_repeat_length=N)
    model = Transformer(dataclasses.replace(TINY, **CHANGES["rerope"]))
    run = jax.jit(model.apply)
    packed = run(variables(), tokens()[:1], ids)
    np.testing.assert_allclose(packed[:, :6], full("rerope")[:1, :6], atol=1e-5)
    alone = run(variables(), jnp.pad(tokens()[:1, 6:], ((0, 0), (0, 6))), jnp.ones((1, N), jnp.int32))
    np.testing.assert_allclose(packed[:, 6:], alone[:, :7], atol=1e-5)


@pytest.mark.parametrize("position", ["rope", "alibi", "t5"])
def test_the_full_last_block_knows_no_positions(position):
    one = dataclasses.replace(TINY, depth=1, scan_layers=False, position=position)
    last = Transformer(dataclasses.replace(one, full_last=True, mixer_options="window=3"))
    given = jax.jit(last.init)(jax.random.key(0), tokens())
    plain = Transformer(dataclasses.replace(one, position="none"))
    run = [np.asarray(jax.jit(model.apply)(given, tokens())) for model in (last, plain, Transformer(one))]
    np.testing.assert_array_equal(run[0], run[1])
    assert np.abs(run[2] - run[1]).max() > 1e-4


def test_keys_of_length_one():
    """The logits of qk_norm=keys do not change with the length of a key."""
    model = Transformer(dataclasses.replace(TINY, qk_norm="keys"))
    run = jax.jit(model.apply)
    longer = jax.tree_util.tree_map_with_path(
        lambda path, x: 3 * x if any(getattr(k, "key", "") == "key" for k in path) else x, variables()
    )
    np.testing.assert_allclose(run(longer, tokens()), run(variables(), tokens()), atol=1e-4)
    assert jax.tree.structure(variables()) == jax.tree.structure(
        jax.eval_shape(model.init, jax.random.key(0), tokens())
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mixer": "katharopoulos", "extension": Extension("rerope", window=4)}, "about softmax attention"),
        ({"position": "alibi", "extension": Extension("rerope", window=4)}, "rule for rotary positions"),
        ({"full_last": True, "extension": Extension("rerope", window=4)}, "leave out full_last"),
        ({"mixer_options": "window=3", "extension": Extension("sinks", window=4, sinks=1)}, "leave out full_last"),
        ({"mixer": "katharopoulos", "rope": DYNAMIC}, "depends on the length"),
        ({"causal": False, "extension": Extension("sinks", window=4, sinks=1)}, "a rule for looking back"),
        (
            {"mixer_options": "implementation=xla", "extension": Extension("rerope", window=4)},
            "leave out the mixer's implementation=xla",
        ),
    ],
)
def test_what_does_not_go_together_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)
