"""Public Transformers, under the names that their authors gave them."""

import dataclasses

from flashjax.layers.positions import RopeParameters
from flashjax.models.registry import register
from flashjax.models.transformer import Transformer
from flashjax.models.transformer_config import TransformerConfig


def _variants() -> dict[str, TransformerConfig]:
    """Public models, under the names that their authors gave them."""
    replace = dataclasses.replace
    gpt2 = TransformerConfig()
    llama = TransformerConfig(
        activation="swiglu",
        norm="rmsnorm",
        qkv_bias=False,
        out_bias=False,
        mlp_bias=False,
        position="rope",
        tie_embeddings=False,
        initializer="normal",
    )
    smollm2 = replace(
        llama, vocab_size=49152, rope=RopeParameters(rope_theta=1e5), max_length=8192, tie_embeddings=True
    )
    qwen2 = replace(llama, vocab_size=151936, norm_epsilon=1e-6, qkv_bias=True, rope=RopeParameters(rope_theta=1e6))
    qwen3 = replace(qwen2, qkv_bias=False, qk_norm="both", head_dim=128, max_length=40960)
    base = TransformerConfig(vocab_size=32000, activation="gelu", position="sinusoidal", max_length=8192)
    return {
        "gpt2": gpt2,
        "gpt2_medium": replace(gpt2, width=1024, depth=24, heads=16),
        "gpt2_large": replace(gpt2, width=1280, depth=36, heads=20),
        "gpt2_xl": replace(gpt2, width=1600, depth=48, heads=25),
        # The baselines of FLASH (Hua et al. 2022).
        "transformer_base": base,
        "transformer_pp_base": replace(base, position="rope", activation="geglu", hidden=2048),
        "llama2_7b": replace(llama, vocab_size=32000, width=4096, depth=32, heads=32, hidden=11008, max_length=4096),
        "llama3_2_1b": replace(
            llama,
            vocab_size=128256,
            width=2048,
            depth=16,
            heads=32,
            kv_heads=8,
            hidden=8192,
            max_length=131072,
            tie_embeddings=True,
            rope=RopeParameters(
                rope_type="llama3",
                rope_theta=5e5,
                factor=32.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=8192,
            ),
        ),
        "tinyllama_1b": replace(
            llama, vocab_size=32000, width=2048, depth=22, heads=32, kv_heads=4, hidden=5632, max_length=2048
        ),
        "smollm2_135m": replace(smollm2, width=576, depth=30, heads=9, kv_heads=3, hidden=1536),
        "smollm2_360m": replace(smollm2, width=960, depth=32, heads=15, kv_heads=5, hidden=2560),
        "qwen2_0_5b": replace(
            qwen2, width=896, depth=24, heads=14, kv_heads=2, hidden=4864, max_length=131072, tie_embeddings=True
        ),
        "qwen3_0_6b": replace(qwen3, width=1024, depth=28, heads=16, kv_heads=8, hidden=3072, tie_embeddings=True),
        "qwen3_1_7b": replace(qwen3, width=2048, depth=28, heads=16, kv_heads=8, hidden=6144, tie_embeddings=True),
    }


register(Transformer, _variants())
