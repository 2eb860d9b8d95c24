"""Sparse and low-rank attention against transformers (Nyströmformer, Longformer, BigBird) and the linformer package."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers import attention
from flashjax.layers.attention.bigbird import BigBird

torch = pytest.importorskip("torch", reason="parity with PyTorch needs the extra flashjax[parity]")
transformers = pytest.importorskip("transformers", reason="parity with transformers needs the extra flashjax[parity]")

HEADS, DIM = 3, 8
WIDTH = HEADS * DIM


def hidden(length):
    return np.random.default_rng(0).normal(size=(2, length, WIDTH)).astype(np.float32)


def kernel(linear):
    bias = 0 if linear.bias is None else linear.bias.detach().numpy()
    return linear.weight.detach().numpy().T, bias


def compare(module, names, mixer, inputs, reference, x, real=None, atol=1e-5):
    """Outputs [2, N, width] on the `real` tokens, and the gradients of their weighted sum by the hidden states.

    `names` are the linears of q, k and v; `inputs` makes the mixer's other inputs from (projections of x).
    """
    w = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    w = w if real is None else w * real[..., None]
    kernels = {name: kernel(getattr(module, name)) for name in (*names, *inputs)}
    ids = None if real is None else jnp.asarray(real, jnp.int32)

    def ours(x):
        def project(name):
            y = x @ kernels[name][0] + kernels[name][1]
            return y.reshape(*x.shape[:2], HEADS, DIM)

        further = {n: project(n) for n in inputs}
        further = {translated(n): y for n, y in further.items()}
        o = mixer(*map(project, names), causal=False, segment_ids=ids, **further)
        o = o.reshape(x.shape)
        return (o * w).sum(), o

    x_torch = torch.from_numpy(x).requires_grad_()
    want = reference(x_torch)
    (want * torch.from_numpy(w)).sum().backward()
    gradient, o = jax.jit(jax.grad(ours, has_aux=True))(x)
    want, want_gradient = want.detach().numpy(), x_torch.grad.numpy()
    keep = np.ones(x.shape[:2], bool) if real is None else real > 0
    assert np.abs(want).max() > 0.1
    np.testing.assert_allclose(o[keep], want[keep], atol=atol)
    np.testing.assert_allclose(gradient, want_gradient, atol=1e-3 * np.abs(want_gradient).max())


def translated(name):
    return {"query_global": "global_query", "key_global": "global_key", "value_global": "global_value"}[name]


def randomise(module):
    """Kernels of the size of one over the root of their inputs; torch's default is a third of that."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=1.5 * WIDTH**-0.5)
    return module


@pytest.mark.parametrize(("init", "conv"), [("original", 0), ("exact", 5)])
def test_nystromformer(init, conv):
    from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

    length, landmarks = 48, 8
    config = transformers.NystromformerConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        num_landmarks=landmarks,
        segment_means_seq_len=length,
        conv_kernel_size=conv or 1,
        attention_probs_dropout_prob=0.0,
    )
    module = randomise(NystromformerSelfAttention(config)).eval()
    module.init_option = init  # the constructor reads the option by a wrong name
    module.conv_kernel_size = conv or None
    mixer = attention.get("nystromformer", landmarks=landmarks, conv=conv, init=init)
    taps = {} if not conv else {"taps": jnp.asarray(module.conv.weight.detach().numpy()[:, 0, :, 0].T)}
    run = functools.partial(mixer.parallel, **taps)
    compare(module, ("query", "key", "value"), run, (), lambda x: module(x)[0], hidden(length), atol=2e-4)


@pytest.mark.parametrize("global_tokens", [1, 3])
def test_longformer(global_tokens):
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    length, window = 40, 8
    config = transformers.LongformerConfig(
        hidden_size=WIDTH, num_attention_heads=HEADS, attention_window=[window], attention_probs_dropout_prob=0.0
    )
    module = randomise(LongformerSelfAttention(config, 0)).eval()
    real = np.arange(length) < np.array([[40], [29]])
    mask = np.where(real, 0.0, -10000.0).astype(np.float32)  # as LongformerModel hands it on
    mask[:, :global_tokens] = 10000.0

    def reference(x):
        m = torch.from_numpy(mask)
        (o,) = module(x, m, m < 0, m > 0, True)[:1]
        return o

    mixer = attention.get("longformer", window=window, global_tokens=global_tokens)
    further = ("query_global", "key_global", "value_global")
    compare(
        module, ("query", "key", "value"), mixer.parallel, further, reference, hidden(length), real.astype(np.float32)
    )


@pytest.mark.parametrize("blocks", [10, 13])
def test_bigbird(blocks):
    from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention, BigBirdModel

    block, random = 4, 2
    length = blocks * block
    config = transformers.BigBirdConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        block_size=block,
        num_random_blocks=random,
        use_bias=True,
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=0.0,
    )
    # Random blocks are drawn in training alone; in evaluation all of them are block 0, which then counts r + 1 times.
    module = randomise(BigBirdBlockSparseAttention(config, seed=5)).train()
    drawn = {}

    def record(**arguments):
        drawn["blocks"] = type(module)._bigbird_block_rand_mask_with_head(module, **arguments)
        return drawn["blocks"]

    module._bigbird_block_rand_mask_with_head = record
    real = (np.arange(length) < np.array([[length], [length - 7]])).astype(np.float32)
    blocked, band, from_mask, to_mask = BigBirdModel.create_masks_for_block_sparse_attn(torch.from_numpy(real), block)

    def reference(x):
        return module(x, band, from_mask, to_mask, blocked, blocked)[0]

    reference(torch.from_numpy(hidden(length)))  # draws
    chosen = np.stack(drawn["blocks"]).astype(np.int32)
    assert chosen.shape == (HEADS, blocks - 2, random) and chosen.min() > 0

    @dataclass(frozen=True)
    class Same(BigBird):
        def random_blocks(self, heads, blocks):
            return chosen

    mixer = Same(block=block, random=random)
    compare(module, ("query", "key", "value"), mixer.parallel, (), reference, hidden(length), real)


@pytest.mark.parametrize("share", ["heads", "key_value"])
def test_linformer(share):
    linformer = pytest.importorskip("linformer", reason="parity with Linformer needs the package linformer")
    length, longest, rank = 21, 30, 6
    torch.manual_seed(0)
    module = linformer.LinformerSelfAttention(WIDTH, longest, k=rank, heads=HEADS, share_kv=share == "key_value")
    module.eval()
    module.to_out = torch.nn.Identity()
    E = jnp.asarray(module.proj_k.detach().numpy())[None]
    F = E if share == "key_value" else jnp.asarray(module.proj_v.detach().numpy())[None]
    mixer = attention.get("linformer", rank=rank, share=share)
    run = functools.partial(mixer.parallel, key_projection=E, value_projection=F)
    # share_kv also makes the values the keys; that is the block's part.
    names = ("to_q", "to_k", "to_k" if share == "key_value" else "to_v")
    compare(module, names, run, (), module, hidden(length))
