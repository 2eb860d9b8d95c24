"""Residuals, norms and the division of logits, by configuration."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.swin_config import SwinConfig
from flashjax.models.transformer import Transformer, TransformerConfig

TINY = TransformerConfig(vocab_size=40, width=64, depth=2, heads=4, max_length=16, initializer="fan_in")
TOKENS = jax.random.randint(jax.random.key(0), (2, 12), 0, 40)


def run(config, **changes):
    model = Transformer(dataclasses.replace(config, **changes))
    logits, variables = jax.jit(lambda: model.init_with_output(jax.random.key(1), TOKENS))()
    return model, variables, logits


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["groupnorm", "none", "scalenorm"])
@pytest.mark.parametrize("residual", ["rezero", "layerscale"])
def test_decoding_is_the_forward_pass(norm, residual):
    """Token by token, with branches that count: their scales are not those of the start."""
    model, variables, _ = run(TINY, norm=norm, residual=residual, scan_layers=True)
    names = jax.tree_util.tree_leaves_with_path(variables["params"]["layers"])
    assert sum("residual" in jax.tree_util.keystr(path) for path, _ in names) == 2
    variables = jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.full(x.shape, 0.7) if "residual" in jax.tree_util.keystr(path) else x, variables
    )
    full = model.apply(variables, TOKENS)
    cache = model.init_cache(2, 16)
    step = jax.jit(lambda token, cache: model.apply(variables, token, cache, method="step"))
    for i in range(TOKENS.shape[1]):
        logits, cache = step(TOKENS[:, i], cache)
        np.testing.assert_allclose(logits, full[:, i], atol=2e-4)


def test_rezero_begins_as_the_embedding():
    model, variables, logits = run(TINY, residual="rezero", norm="none", position="none")
    embed = variables["params"]["embed"]["embedding"]
    np.testing.assert_allclose(logits, embed[TOKENS] @ embed.T, rtol=1e-4, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda v: jnp.square(model.apply(v, TOKENS)).sum()))(variables)["params"]["layer_0"]
    assert gradient["attn_residual"]["scale"] != 0 and not gradient["attn"]["query"]["kernel"].any()


def test_deepnorm_is_post_norm_of_a_louder_stream():
    """With alpha = 1 it would be post-norm; at depth 2 alpha is sqrt(2)."""
    model, variables, logits = run(TINY, residual="deepnorm", norm_position="post", depth=2)
    plain = Transformer(dataclasses.replace(model.config, residual="plain"))
    louder = jax.tree_util.tree_map_with_path(
        # LN(a x + f) = LN(x + f / a), so branches over a make post-norm the same
        lambda path, x: x / 2**0.5 if {"out", "down"} & {getattr(p, "key", "") for p in path} else x,
        variables,
    )
    np.testing.assert_allclose(jax.jit(plain.apply)(louder, TOKENS), logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("scale", "factor"), [("none", 4.0), ("dim", 0.25)])
@pytest.mark.parametrize("implementation", ["xla", "blocked"])
def test_the_division_of_logits_by_configuration(scale, factor, implementation):
    options = f"implementation={implementation}"
    model, variables, logits = run(TINY, attention_scale=scale, mixer_options=options)
    louder = jax.tree_util.tree_map_with_path(
        lambda path, x: x * factor if "query" in jax.tree_util.keystr(path) else x, variables
    )
    standard = Transformer(dataclasses.replace(model.config, attention_scale="sqrt_dim"))
    np.testing.assert_allclose(jax.jit(standard.apply)(louder, TOKENS), logits, rtol=1e-4, atol=1e-5)
    assert model.config.logit_power == {"none": 0.0, "dim": 1.0}[scale]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"residual": "deepnorm"}, "normalised after the sum: norm_position is 'pre'"),
        ({"attention_scale": "none", "mixer": "retnet", "position": "none"}, "softmax attention without a scale"),
        ({"attention_scale": "none", "mixer_options": "scale=0.5"}, "softmax attention without a scale of its own"),
    ],
)
def test_settings_that_do_not_go_together(fields, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**fields)


def test_a_model_at_another_width():
    wide = TransformerConfig(width=512, heads=8, kv_heads=4, hidden=1024)
    narrow = wide.at_width(128)
    assert (narrow.width, narrow.heads, narrow.kv_heads, narrow.dim, narrow.hidden) == (128, 2, 1, 64, 256)
    as_many = wide.at_width(128, "heads")
    assert (as_many.heads, as_many.kv_heads, as_many.dim, as_many.hidden) == (8, 4, 16, 256)
    assert dataclasses.replace(wide, head_dim=32).at_width(128, "heads").dim == 8
    with pytest.raises(ValueError, match=r"at width 64 in place of 512, kv_heads 4 would be 0\.5"):
        wide.at_width(64)
    assert FlashConfig(width=64, head_dim=32).at_width(16).head_dim == 32
    assert FlashConfig(width=64, head_dim=32).at_width(16, "heads").head_dim == 8
    swin = SwinConfig(embed_dim=96).at_width(32)
    assert swin.num_heads == (1, 2, 4, 8) and swin.head_width == 32
    assert SwinConfig(embed_dim=96).at_width(192, "heads").head_width == 64


@pytest.mark.parametrize("residual", ["rezero", "layerscale"])
def test_residuals_of_flash(residual):
    config = FlashConfig(vocab_size=40, width=32, depth=2, head_dim=16, chunk=8, max_length=16, residual=residual)
    logits, variables = Flash(config).init_with_output(jax.random.key(1), TOKENS)
    shape = variables["params"]["layer_0"]["residual"]["scale"].shape
    assert shape == (() if residual == "rezero" else (32,)) and np.isfinite(logits).all()
