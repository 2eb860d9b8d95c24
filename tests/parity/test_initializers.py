"""Deviations of what torch, transformers and timm begin with, against the initializers and the tables of presets."""

import math

import numpy as np
import pytest

from flashjax.layers import initializers
from flashjax.training.parametrization import PRESETS, resolve, tensors

torch = pytest.importorskip("torch", reason="parity needs the extra: pip install 'flashjax[parity]'")
transformers = pytest.importorskip("transformers", reason="parity needs the extra: pip install 'flashjax[parity]'")
timm = pytest.importorskip("timm", reason="parity needs the extra: pip install 'flashjax[parity]'")

C, H, D, F, L, V = 128, 4, 32, 512, 3, 1000


def kernel(*shape):
    return {"kernel": np.zeros(shape)}


TREE = {
    "embed": {"embedding": np.zeros((V, C))},
    "position": {"embedding": np.zeros((256, C))},
    "head": kernel(C, V),
    "layers": {
        "attn": {name: kernel(L, C, C) for name in ("query", "key", "value", "out")},
        "mlp": {"up": kernel(L, C, F), "down": kernel(L, F, C)},
    },
}
"""A Transformer's kernels."""


def table(preset, head_dim=None):
    return resolve(PRESETS[preset], tensors(TREE, head_dim))


def check(weight, std):
    """The weight's second moment is std^2 within five errors of sampling."""
    values = weight.detach().double().numpy()
    np.testing.assert_allclose((values**2).mean() / std**2, 1, atol=5 * math.sqrt(2 / values.size))


def test_gpt2():
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=V, n_positions=256, n_embd=C, n_layer=L, n_head=H)
    model, ours = transformers.GPT2LMHeadModel(config).transformer, table("gpt2")
    check(model.wte.weight, ours["embed/embedding"].std)
    check(model.wpe.weight, ours["position/embedding"].std)
    for block in model.h:
        check(block.attn.c_attn.weight, ours["layers/attn/query/kernel"].std)
        check(block.attn.c_proj.weight, ours["layers/attn/out/kernel"].std)
        check(block.mlp.c_fc.weight, ours["layers/mlp/up/kernel"].std)
        check(block.mlp.c_proj.weight, ours["layers/mlp/down/kernel"].std)
        assert not block.attn.c_attn.bias.any()


def test_t5():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=V, d_model=C, d_kv=D, d_ff=F, num_layers=L, num_heads=H, tie_word_embeddings=False
    )
    model, ours = transformers.T5ForConditionalGeneration(config), table("t5", head_dim=D)
    check(model.shared.weight, ours["embed/embedding"].std)
    check(model.lm_head.weight, ours["head/kernel"].std)
    for block in model.encoder.block:
        attention, mlp = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        for theirs, name in (
            (attention.q, "query"),
            (attention.k, "key"),
            (attention.v, "value"),
            (attention.o, "out"),
        ):
            check(theirs.weight, ours[f"layers/attn/{name}/kernel"].std)
        check(mlp.wi.weight, ours["layers/mlp/up/kernel"].std)
        check(mlp.wo.weight, ours["layers/mlp/down/kernel"].std)
    bias = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    check(bias.weight, ours["position/embedding"].std)


def test_bert():
    """Google's program cuts at two deviations, as `bert` does; transformers' draws the plain normal of the same .02.

    Both begin all kernels and embeddings alike, biases at 0 and norms at 1.
    """
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=V, hidden_size=C, num_hidden_layers=L, num_attention_heads=H, intermediate_size=F
    )
    ours = table("bert")
    assert {leaf.std for leaf in ours.values()} == {0.02 * initializers.TRUNCATED_STD}
    cut = torch.nn.init.trunc_normal_(torch.empty(V, C), std=0.02, a=-0.04, b=0.04)
    check(cut, ours["embed/embedding"].std)
    drawn = 0
    for name, weight in transformers.BertForMaskedLM(config).named_parameters():
        if name.endswith("word_embeddings.weight"):
            assert not weight[0].any()  # padding's, which ours draws like the others
            weight = weight[1:]
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "LayerNorm" in name:
            assert (weight == 1).all(), name
        else:
            check(weight, 0.02)
            drawn += 1
    assert drawn == 3 + 6 * L + 1  # embeddings of words, positions and kinds; a block's kernels; the head's transform


def test_vit():
    """And timm's truncated normal, cut at an absolute 2, is a plain normal of .02."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", embed_dim=C, depth=1, num_heads=H, img_size=64)
    ours = resolve(PRESETS["vit"], tensors({"patch_embed": {"proj": kernel(16, 16, 3, C)}, **TREE}))
    check(model.patch_embed.proj.weight, ours["patch_embed/proj/kernel"].std)
    for linear in (model.blocks[0].attn.qkv, model.blocks[0].attn.proj, model.blocks[0].mlp.fc1):
        check(linear.weight, ours["layers/attn/query/kernel"].std)
    assert model.blocks[0].attn.qkv.weight.abs().max() > 0.06  # three deviations: not cut at two


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (torch.nn.init.xavier_uniform_, ("xavier", "uniform")),
        (torch.nn.init.xavier_normal_, ("xavier", "normal")),
        (lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu"), ("he", "uniform")),
        (lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="relu"), ("he", "normal")),
        (lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="linear"), ("lecun", "normal")),
        (lambda w: torch.nn.Conv2d(8, 96, 3).weight, ("torch", "uniform")),
    ],
)
def test_torch(theirs, ours):
    torch.manual_seed(0)
    weight = theirs(torch.empty(96, 8, 3, 3))  # [out, in, k, k], ours is [k, k, in, out]
    scheme, distribution = ours
    std = initializers.fan_std(scheme, *initializers.fans((3, 3, 8, 96)))
    check(weight, std)
    if distribution == "uniform":
        bound = weight.abs().max().item()
        assert 0.995 * math.sqrt(3) * std < bound <= math.sqrt(3) * std * (1 + 1e-6)
