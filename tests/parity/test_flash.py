"""FLASH against flash-pytorch: outputs and gradients with its weights, under the conventions of `lucidrains`.

What is not compared: its Laplacian attention (another paper's), and `reduce_group_non_causal_attn=False`, in which a
token's global attention sees its own chunk alone. Rows of padding: only real tokens, since what padding itself is given
differs (there it sees the row, here nothing).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers.positions import rope_frequencies, rotary_turn
from flashjax.models.flash import Flash, FlashConfig, Unit, lucidrains

REASON = "parity needs the extra: pip install 'flashjax[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
peer = pytest.importorskip("flash_pytorch.flash_pytorch", reason=REASON)

VOCAB, WIDTH, S, CHUNK = 13, 12, 8, 4
SMALL = FlashConfig(vocab_size=VOCAB, width=WIDTH, depth=2, head_dim=S, chunk=CHUNK, max_length=64)


def shake(module):
    """Weights under which every parameter matters: biases that do not put all of a squared ReLU out."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "freqs" not in name:
                about = 1.0 if name.endswith(("norm.g", "norm.weight")) else 0.3 if "rel_pos_bias" in name else 0.0
                p.copy_(torch.randn(p.shape, generator=generator) * 0.5 + about)
    return module


def convert_unit(weights: dict, gradient: bool = False) -> dict:
    """The parameters of `Unit` from those of a GAU or a FLASH."""
    linear = lambda name: {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}  # noqa: E731
    hidden = linear("to_hidden.0")
    value, gate = ({k: np.split(x, 2, -1)[i] for k, x in hidden.items()} for i in range(2))
    offset, order = ("offsetscale", [0, 1]) if "offsetscale.gamma" in weights else ("qk_offset_scale", [0, 2, 1, 3])
    norm = {"scale": weights["norm.g"][0]} if "norm.g" in weights else {}
    if not norm:
        norm = {"scale": weights["norm.weight"], "bias": weights["norm.bias"]}
    gau = {
        "value": value,
        "gate": gate,
        "shared": linear("to_qk.0"),
        "gamma": weights[f"{offset}.gamma"][order],
        "beta": weights[f"{offset}.beta"][order],
        "relative": {"weight": weights["rel_pos_bias.relative_attention_bias.weight"][:, 0]},
        "out": linear("to_out.0" if "to_out.0.weight" in weights else "to_out"),
    }
    return {"norm": norm, "gau": gau}


def convert(weights: dict, depth: int) -> dict:
    """The parameters of `Flash` from those of a FLASHTransformer."""

    def below(prefix):
        return {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}

    return {
        "embed": {"embedding": weights["token_emb.weight"]},
        "position": {"scale": weights["abs_pos_emb.scale"][0]},
        "final_norm": {"scale": weights["to_logits.0.weight"], "bias": weights["to_logits.0.bias"]},
        "head": {"kernel": weights["to_logits.1.weight"].T, "bias": weights["to_logits.1.bias"]},
    } | {f"layer_{i}": convert_unit(below(f"layers.{i}.")) for i in range(depth)}


def arrays(module, of=lambda p: p) -> dict:
    return {n: of(p).detach().numpy() for n, p in module.named_parameters() if of(p) is not None}


def compare(ours, theirs, params, grads, expected):
    """Outputs to 2e-5, and gradients to 1e-3 of each tensor's largest."""
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1, np.abs(theirs).max()))
    assert jax.tree.structure(params) == jax.tree.structure(grads) == jax.tree.structure(expected)
    for (path, g), e in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected), strict=True):
        assert np.abs(e).max() > 1e-6, path
        np.testing.assert_allclose(g, e, atol=1e-3 * np.abs(e).max(), err_msg=jax.tree_util.keystr(path))


CASES = {
    # name: (kind, causal, tokens, real tokens of the second row)
    "flash": ("flash", True, 11, 11),
    "flash-encoder": ("flash", False, 11, 11),
    "flash-encoder-mask": ("flash", False, 12, 7),
    "flash-short": ("flash", False, 3, 3),
    "gau": ("quad", True, 9, 9),
    "gau-encoder-mask": ("quad", False, 9, 6),
}


@pytest.mark.parametrize("case", CASES)
def test_unit(case):
    kind, causal, N, real = CASES[case]
    config = lucidrains(FlashConfig(**{**vars(SMALL), "kind": kind, "causal": causal}))
    sizes = dict(dim=WIDTH, query_key_dim=S, causal=causal, norm_klass=peer.ScaleNorm)
    if kind == "flash":
        rotary = peer.RotaryEmbedding(dim=S)
        module = peer.FLASH(**sizes, group_size=CHUNK, rotary_pos_emb=rotary, shift_tokens=True)
    else:
        module = peer.GAU(**sizes)
    shake(module)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, N, WIDTH)).astype(np.float32)
    mask = np.arange(N) < np.array([[N], [real]])
    weight = rng.normal(size=x.shape).astype(np.float32) * mask[..., None]
    given = {} if real == N else {"mask": torch.from_numpy(mask)}
    theirs = module(torch.from_numpy(x), **given)
    (theirs * torch.from_numpy(weight)).sum().backward()

    params = convert_unit(arrays(module))
    ids = None if real == N else jnp.asarray(mask, jnp.int32)
    positions = jnp.arange(N) if ids is None else jnp.broadcast_to(jnp.arange(N), (2, N))
    turn = None
    if config.rotary_dim:
        frequencies, _ = rope_frequencies({"partial_rotary_factor": config.rotary}, config.head_dim)
        turn = rotary_turn(None, frequencies, below=N)
    context = {"positions": positions, "segment_ids": ids, "n": float(N), "turn": turn}

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        out, _ = Unit(config).apply({"params": params}, jnp.asarray(x), None, context)
        return (out * weight).sum(), out

    (_, ours), grads = jax.jit(loss)(params)
    expected = convert_unit(arrays(module, of=lambda p: p.grad))
    compare(np.where(mask[..., None], ours, 0), theirs.detach().numpy() * mask[..., None], params, grads, expected)


@pytest.mark.parametrize("causal", [True, False])
def test_transformer(causal):
    config = lucidrains(FlashConfig(**{**vars(SMALL), "causal": causal}))
    module = shake(
        peer.FLASHTransformer(
            dim=WIDTH, num_tokens=VOCAB, depth=2, group_size=CHUNK, query_key_dim=S, causal=causal, shift_tokens=True
        )
    )
    rng = np.random.default_rng(0)
    tokens, weight = rng.integers(0, VOCAB, (2, 14)), rng.normal(size=(2, 14, VOCAB)).astype(np.float32)
    theirs = module(torch.from_numpy(tokens))
    (theirs * torch.from_numpy(weight)).sum().backward()
    params = convert(arrays(module), 2)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        out = Flash(config).apply({"params": params}, jnp.asarray(tokens))
        return (out * weight).sum(), out

    (_, ours), grads = jax.jit(loss)(params)
    compare(ours, theirs.detach().numpy(), params, grads, convert(arrays(module, of=lambda p: p.grad), 2))
    shapes = jax.eval_shape(Flash(config).init, jax.random.key(0), jnp.asarray(tokens))["params"]
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda x: x.shape, shapes)


def test_a_step_at_a_time():
    """A causal FLASHTransformer decodes here in constant memory to what it computes there."""
    config = lucidrains(SMALL)
    module = shake(
        peer.FLASHTransformer(
            dim=WIDTH, num_tokens=VOCAB, depth=2, group_size=CHUNK, query_key_dim=S, causal=True, shift_tokens=True
        )
    )
    tokens = np.random.default_rng(1).integers(0, VOCAB, (1, 11))
    with torch.no_grad():
        theirs = module(torch.from_numpy(tokens)).numpy()
    variables, model = {"params": jax.tree.map(jnp.asarray, convert(arrays(module), 2))}, Flash(config)
    step = jax.jit(lambda t, cache: model.apply(variables, t, cache, method="step"))
    cache = model.init_cache(1, 11)
    for i in range(tokens.shape[1]):
        logits, cache = step(jnp.asarray(tokens[:, i]), cache)
        np.testing.assert_allclose(logits, theirs[:, i], atol=5e-5 * np.abs(theirs).max())
