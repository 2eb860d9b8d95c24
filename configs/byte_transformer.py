"""The Transformer over bytes that demos train in minutes on two cores: Llama's block, 128 wide, 4 deep."""

from flashjax.models.transformer_config import TransformerConfig

BYTE_TRANSFORMER = TransformerConfig(
    vocab_size=260,
    width=128,
    depth=4,
    heads=4,
    hidden=384,
    activation="swiglu",
    norm="rmsnorm",
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    position="rope",
    initializer="fan_in",
    scan_layers=True,
)
