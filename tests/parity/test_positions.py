"""Rotary frequencies, rotation, ALiBi and T5's buckets against transformers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity needs torch")
pytest.importorskip("transformers", reason="parity needs transformers")

import jax.numpy as jnp  # noqa: E402
from transformers import LlamaConfig  # noqa: E402
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb  # noqa: E402

from flashjax.layers.positions import RopeParameters, alibi_slopes, rope_frequencies, rotate, t5_bucket  # noqa: E402

D, L, MOST = 32, 64, 512
FACTORS = {"short_factor": [1.0 + 0.05 * i for i in range(D // 2)], "long_factor": [1.0 + i for i in range(D // 2)]}
OWN = {"original_max_position_embeddings": L}
CASES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, **OWN},
    "yarn_from_lengths": {"rope_type": "yarn", "factor": None, **OWN},
    "yarn_as_deepseek": {
        "rope_type": "yarn",
        "factor": 8.0,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.7,
        "mscale_all_dim": 1.2,
        "truncate": False,
        **OWN,
    },
    "yarn_attention": {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.5, **OWN},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **OWN},
    "longrope": {"rope_type": "longrope", "factor": 8.0, **FACTORS, **OWN},
    "longrope_from_lengths": {"rope_type": "longrope", **FACTORS, **OWN},
    "proportional": {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5},
    "partial": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
}
LENGTHS = (1, L, L + 1, 300, MOST, MOST + 1, 5000)


def hf(parameters):
    return LlamaConfig(
        hidden_size=2 * D,
        num_attention_heads=2,
        head_dim=D,
        max_position_embeddings=MOST,
        rope_parameters={"rope_theta": 5e4, **parameters},
    )


@pytest.mark.parametrize("name", CASES)
def test_frequencies_of_every_type_at_several_lengths(name):
    config = hf(dict(CASES[name]))
    ours = RopeParameters.from_dict({"rope_theta": 5e4, **CASES[name]}, MOST)
    for length in LENGTHS:
        got, scale = rope_frequencies(ours, D, length)
        if name == "default":
            rotary = LlamaRotaryEmbedding(config)
            want, want_scale = rotary.inv_freq, rotary.attention_scaling
        else:
            want, want_scale = ROPE_INIT_FUNCTIONS[ours.rope_type](config, "cpu", seq_len=length)
        np.testing.assert_allclose(got, want.numpy(), rtol=2e-6, err_msg=f"at {length}")
        assert scale == pytest.approx(want_scale, rel=1e-7)
        if name == "dynamic":  # a tensor, as its forward pass gives it
            want, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=torch.tensor(length))
            got, _ = rope_frequencies(ours, D, jnp.int32(length))
            np.testing.assert_allclose(got, want.numpy(), rtol=1e-5)


def test_every_type_of_transformers_is_tried():
    assert {case["rope_type"] for case in CASES.values()} == {"default", *ROPE_INIT_FUNCTIONS}


def test_parameters_are_read_as_transformers_reads_them():
    for name in CASES:
        config = hf(dict(CASES[name])).to_dict()
        assert rope_frequencies(RopeParameters.from_config(config), D, 300)[1] == pytest.approx(
            rope_frequencies(RopeParameters.from_dict({"rope_theta": 5e4, **CASES[name]}, MOST), D, 300)[1]
        )


def test_rotation():
    config, at = hf(dict(CASES["yarn"])), np.array([[0, 1, 5, 300, 511]])
    x = np.random.default_rng(0).normal(size=(1, 5, 2, D)).astype(np.float32)
    cos, sin = LlamaRotaryEmbedding(config)(torch.tensor(x), torch.tensor(at))
    want, _ = apply_rotary_pos_emb(*[torch.tensor(x).transpose(1, 2)] * 2, cos, sin)
    frequencies, scale = rope_frequencies(RopeParameters.from_config(config.to_dict()), D, 5)
    got = rotate(jnp.asarray(x), jnp.asarray(at), frequencies, scale)
    np.testing.assert_allclose(got, want.transpose(1, 2).numpy(), atol=5e-5)


@pytest.mark.parametrize("heads", [1, 2, 6, 8, 12, 16])
def test_alibi_slopes(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    bias = build_alibi_tensor(torch.ones(1, 3), heads, torch.float32)  # slope times position of the key
    np.testing.assert_allclose(alibi_slopes(heads), bias[:, 0, 1].numpy(), rtol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("buckets", "most"), [(32, 128), (20, 50), (64, 1000)])
def test_t5_buckets(bidirectional, buckets, most):
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = np.arange(-3000, 3000)
    want = T5Attention._relative_position_bucket(torch.tensor(relative), bidirectional, buckets, most)
    got = t5_bucket(jnp.asarray(relative), bidirectional, buckets, most)
    np.testing.assert_array_equal(got, want.numpy())
