"""Transformer: sizes to the unit, what a token sees, packing, decoding, scanned and recomputed layers, settings."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax import models
from flashjax.layers import attention
from flashjax.layers.positions import RopeParameters
from flashjax.models.stack import stack, unstack
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.ops.platform import as_elsewhere
from flashjax.planning.tracing import flops_by_pass

PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
    "llama2_7b": 6_738_415_616,
    "llama3_2_1b": 1_235_814_400,
    "tinyllama_1b": 1_100_048_384,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "qwen2_0_5b": 494_032_768,
    "qwen3_0_6b": 596_049_920,
    "qwen3_1_7b": 1_720_574_976,
}
"""As their authors' files hold them (tied embeddings once)."""
V, N = 29, 12
TINY = {"vocab_size": V, "width": 16, "depth": 2, "heads": 4, "hidden": 24, "max_length": 16}
MODERN = {
    **TINY,
    "kv_heads": 2,
    "activation": "swiglu",
    "norm": "rmsnorm",
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "qk_norm": "both",
    "position": "rope",
    "tie_embeddings": False,
}
KINDS = {
    "learned, as GPT-2": TINY,
    "rope, grouped, as Qwen3": MODERN,
    "alibi, post-norm": {**TINY, "position": "alibi", "norm_position": "post", "kv_heads": 1},
    "t5, sandwich": {**TINY, "position": "t5", "norm": "scalenorm", "norm_position": "sandwich"},
    "sinusoidal": {**TINY, "position": "sinusoidal", "embed_scale": True, "activation": "relu2"},
    "none": {**TINY, "position": "none", "activation": "geglu"},
}
QUICK = ("rope, grouped, as Qwen3",)
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (2, N)), jnp.int32)


def model(**fields) -> Transformer:
    return Transformer(TransformerConfig(**fields))


@functools.cache
def _shapes(made: Transformer):
    return jax.eval_shape(lambda: made.init(jax.random.key(0), TOKENS[:1]))


def variables(made: Transformer):
    """Parameters that all matter: no zeros, no ones."""
    rng = np.random.default_rng(1)

    def value(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(centre, 0.2, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(value, _shapes(made))


QUICK_SIZES = ("gpt2", "smollm2_135m", "qwen3_0_6b")


@pytest.mark.parametrize(
    "name", [n if n in QUICK_SIZES else pytest.param(n, marks=pytest.mark.slow) for n in PARAMETERS]
)
def test_published_sizes_to_the_unit(name):
    made = models.create(name, scan_layers=name != "gpt2")  # tracing one block is quicker than tracing all
    assert sum(leaf.size for leaf in jax.tree.leaves(_shapes(made)["params"])) == PARAMETERS[name]


def test_size_by_formula():
    """FLASH's baselines: 12 blocks of 4 C^2 + 2 C F (3 C F if gated), biases, norms, and the embedding."""
    for name, kernels in (("transformer_base", 2), ("transformer_pp_base", 3)):
        made = models.create(name, scan_layers=True)
        cfg = made.config
        C, F = cfg.width, cfg.hidden or 4 * cfg.width
        block = 4 * (C * C + C) + kernels * C * F + (kernels - 1) * F + C + 4 * C
        count = sum(leaf.size for leaf in jax.tree.leaves(_shapes(made)["params"]))
        assert count == cfg.vocab_size * C + cfg.depth * block + 2 * C


def everything(made: Transformer, given, tokens, lengths):
    """(logits of the whole rows, logits of the last tokens of the prompts and of every step after them)."""
    rows = jnp.arange(tokens.shape[0])
    full = made.apply(given, tokens)
    cache = made.init_cache(tokens.shape[0], N)
    first, cache = made.apply(given, tokens[:, :8], lengths, cache, method="prefill")

    def step(cache, i):
        logits, cache = made.apply(given, tokens[rows, lengths + i], cache, method="step")
        return cache, logits

    _, later = jax.lax.scan(step, cache, jnp.arange(4))
    return full, jnp.concatenate([first[None], later])


@pytest.mark.parametrize("kind", EVERY)
def test_decoding_equals_the_full_forward(kind):
    made = model(**KINDS[kind])
    lengths = jnp.array([8, 3])
    full, decoded = jax.jit(functools.partial(everything, made))(variables(made), TOKENS, lengths)
    for i, logits in enumerate(decoded):
        np.testing.assert_allclose(logits, full[jnp.arange(2), lengths - 1 + i], atol=1e-5)


MIXERS = ("gated_delta_net", "gla", "mamba2", "performer", "sliding_window")
"""Of what a block does for a mixer (short convolution, unit length, gates, inputs, own collections, output norm) each
comes in one of them."""


@pytest.mark.slow
@pytest.mark.parametrize("mixer", MIXERS)
def test_decoding_with_other_mixers(mixer):
    position = "rope" if attention.get(mixer).rotary else "none"
    made = model(**{**MODERN, "depth": 1, "qk_norm": "none", "position": position, "mixer": mixer})
    lengths = jnp.array([8, 3])
    given = {**_drawn(made), **variables(made)}
    full, decoded = jax.jit(functools.partial(everything, made))(given, TOKENS, lengths)
    for i, logits in enumerate(decoded):
        np.testing.assert_allclose(logits, full[jnp.arange(2), lengths - 1 + i], atol=2e-5)


def _drawn(made: Transformer):
    """Collections besides the parameters, such as a Performer's projections."""
    drawn = made.init(jax.random.key(0), TOKENS[:1])
    return {name: tree for name, tree in drawn.items() if name != "params"}


@pytest.mark.parametrize("kind", EVERY)
def test_a_packed_row_equals_its_documents_apart(kind):
    made = model(**KINDS[kind])
    given = variables(made)
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3])
    apply = jax.jit(made.apply)
    packed = apply(given, TOKENS[:1], segments)
    alone = apply(given, jnp.stack([TOKENS[0], jnp.roll(TOKENS[0], -5)]))
    np.testing.assert_allclose(packed[0, :5], alone[0, :5], atol=1e-5)
    np.testing.assert_allclose(packed[0, 5:9], alone[1, :4], atol=1e-5)
    assert np.isfinite(packed).all()


@pytest.mark.parametrize("causal", [True, False])
def test_what_a_token_sees(causal):
    made = model(**{**MODERN, "causal": causal})
    given = variables(made)
    apply = jax.jit(made.apply)
    before, after = (apply(given, tokens) for tokens in (TOKENS, TOKENS.at[:, 6].add(1) % V))
    change = np.abs(before - after).max((0, 2))
    assert (change[6:] > 1e-3).all()
    assert (change[:6] == 0).all() if causal else (change[:6] > 1e-3).all()


@pytest.mark.parametrize("remat", ["full", *(pytest.param(r, marks=pytest.mark.slow) for r in ("none", "dots"))])
def test_scanned_and_recomputed_layers_are_the_same_function(remat):
    apart = model(**MODERN)
    given = variables(apart)
    stacked = {"params": stack(given["params"])}
    jax.tree.map(np.testing.assert_array_equal, unstack(stacked["params"]), given["params"])

    def gradient(made, given):
        return jax.jit(jax.value_and_grad(lambda v: jnp.sum(jnp.sin(made.apply(v, TOKENS)))))(given)

    loss, expected = gradient(apart, given)
    scanned = model(**MODERN, scan_layers=True, remat=remat)
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, _shapes(scanned))
    found, gradients = gradient(scanned, stacked)
    np.testing.assert_allclose(found, loss, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        unstack(gradients["params"]),
        expected["params"],
    )


@pytest.mark.parametrize("where", [contextlib.nullcontext, as_elsewhere])
@pytest.mark.parametrize("remat", ["full", "dots"])
def test_dots_computes_neither_products_with_weights_nor_blocked_attention_again(remat, where):
    made = model(**MODERN, scan_layers=True, remat=remat)
    tokens = jnp.zeros((1, 256), jnp.int32)  # so many are computed by blocks
    with where():
        step = jax.make_jaxpr(jax.grad(lambda v: jnp.sum(made.apply(v, tokens))))(_shapes(made))
    flops = flops_by_pass(step)
    assert flops["forward"] > 0
    # On one CPU norms sum by products, which remat makes again, and their own backward pass: two norms of two blocks.
    norms = 0 if where is as_elsewhere else 2 * 4 * (2 * 256 * made.config.width)
    assert (flops["recomputed"] > 0.5 * flops["forward"]) if remat == "full" else flops["recomputed"] == norms


def test_a_stack_of_unlike_layers_is_an_error():
    with pytest.raises(ValueError, match="layers \\[0, 2\\] are not 0 to 1"):
        stack({"layer_0": {}, "layer_2": {}})
    with pytest.raises(ValueError, match="cannot be scanned"):
        stack({"layer_0": {"a": 1}, "layer_1": {"b": 1}})


def test_a_scanned_cache_has_a_dim_of_layers():
    cache = model(**MODERN, scan_layers=True).init_cache(3, 7)
    assert cache["layers"]["mixer"]["key"].shape == (2, 3, 2, 7, 4)
    assert cache["position"].shape == (3,)


@pytest.mark.parametrize("mixer", ["softmax", "sliding_window", "longformer", "gla"])
def test_a_cache_of_keys_has_the_compute_dtype_and_sums_are_float32(mixer):
    cache = model(**{**MODERN, "qk_norm": "none", "mixer": mixer}, dtype="bfloat16").init_cache(3, 7)
    found = {x.dtype for x in jax.tree.leaves(cache["layer_1"]["mixer"]) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert found == {jnp.dtype(jnp.float32 if mixer == "gla" else jnp.bfloat16)}


@pytest.mark.slow
def test_bfloat16_computes_near_float32_with_float32_logits():
    given = variables(model(**MODERN))
    exact = jax.jit(model(**MODERN).apply)(given, TOKENS)
    rough = jax.jit(model(**MODERN, dtype="bfloat16").apply)(given, TOKENS)
    assert rough.dtype == jnp.float32
    assert 1e-4 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.slow
def test_dropout_only_in_training():
    made = model(**{**TINY, "depth": 1}, dropout_rate=0.5)
    given = variables(made)
    apply = jax.jit(made.apply, static_argnames="train")
    rngs = [{"dropout": jax.random.key(i)} for i in range(2)]
    first, second = (apply(given, TOKENS, train=True, rngs=r) for r in rngs)
    assert np.abs(first - second).max() > 1e-2
    np.testing.assert_array_equal(apply(given, TOKENS, rngs=rngs[0]), apply(given, TOKENS))


def test_residual_projections_begin_smaller_in_deep_models():
    config = TransformerConfig(vocab_size=64, width=64, depth=8, heads=4, scan_layers=True)
    init = lambda cfg: Transformer(cfg).init(jax.random.key(0), TOKENS[:1])["params"]["layers"]  # noqa: E731
    layers = jax.jit(lambda: init(config))()
    for kernel, deviation in (
        (layers["attn"]["query"]["kernel"], 0.02),
        (layers["mlp"]["up"]["kernel"], 0.02),
        (layers["attn"]["out"]["kernel"], 0.02 / 4),
        (layers["mlp"]["down"]["kernel"], 0.02 / 4),
    ):
        np.testing.assert_allclose(np.std(kernel), deviation, rtol=0.02)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 5}, "width 16 does not divide into 5 heads"),
        ({"kv_heads": 3}, "4 heads do not divide into 3"),
        ({"depth": 0}, "depth must be at least 1, found 0"),
        ({"activation": "swish"}, "unknown activation 'swish'; choose from gelu"),
        ({"mixer": "sofmax"}, "nearest: softmax"),
        ({"mixer_options": "windw=3"}, "nearest: window"),
        ({"mixer": "linformer"}, "no causal form"),
        ({"mixer": "gla", "causal": False}, "no bidirectional form"),
        ({"mixer": "katharopoulos", "position": "alibi"}, "no logits to add position='alibi'"),
        ({"position": "sinusoidal", "width": 15, "heads": 3}, "even width, found 15"),
        ({"full_last": True, "scan_layers": True}, "set scan_layers=False"),
        ({"full_last": True, "mixer": "gla", "position": "none"}, "about softmax attention: mixer is 'gla'"),
        ({"hidden": -4}, "hidden must be 0, for its default, or more, found -4"),
        ({"dropout_rate": 1.5}, r"dropout_rate must be in \[0, 1\), found 1.5"),
        ({"norm": "groupnorm"}, "groupnorm has 32 groups, and width 16 does not divide"),
        ({"position": "t5", "t5_buckets": 1}, "want 2 buckets or more"),
        ({"position": "t5", "t5_buckets": 3, "causal": False}, "3 buckets, 1 a direction, .* want 4 buckets or more"),
        ({"position": "t5", "t5_max_distance": 16}, "and a distance over 16"),
        ({"rope": RopeParameters(rope_theta=1e6)}, "rope is of rotary positions, and position is 'learned'"),
        ({"mixer_options": "implementation=foo"}, "unknown implementation 'foo'; choose from auto, xla"),
        ({"mixer_options": "window=-3"}, "window=-3 must be 0"),
        ({"mixer": "gla", "mixer_options": "rank=0"}, "gla: rank=0 must be at least 1"),
        ({"mixer": "performer", "mixer_options": "features=-3"}, "performer: features=-3"),
    ],
)
def test_bad_settings_name_the_value(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**{**TINY, **fields})


def test_rows_of_no_tokens():
    with pytest.raises(ValueError, match=r"rows of no tokens \(2, 0\): give at least one"):
        jax.eval_shape(model(**TINY).init, jax.random.key(0), jnp.zeros((2, 0), jnp.int32))


def test_too_long_for_learned_positions():
    made = model(**TINY)
    with pytest.raises(ValueError, match="a sequence of 17 but there are 16 learned positions: raise max_length"):
        jax.eval_shape(lambda: made.init(jax.random.key(0), jnp.zeros((1, 17), jnp.int32)))
    with pytest.raises(ValueError, match="capacity 17"):
        made.init_cache(1, 17)
    with pytest.raises(ValueError, match="cannot decode"):
        model(**TINY, causal=False).init_cache(1, 4)


def test_settings_differ_in_one_field_alone():
    """Variants that are built from each other: what a name does not say is equal."""
    base, better = models.config("transformer_base"), models.config("transformer_pp_base")
    changed = {f.name for f in dataclasses.fields(base) if getattr(base, f.name) != getattr(better, f.name)}
    assert changed == {"position", "activation", "hidden"}
