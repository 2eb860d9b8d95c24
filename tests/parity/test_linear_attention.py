"""Linear mixers against PyTorch: performer-pytorch, linear-attention-transformer, transformers (Qwen3-Next, Mamba-2).

Deliberate differences, which these tests set aside:

- performer-pytorch takes the largest w.x of the whole sequence from the keys (even in its causal form), keeps
  exp(-|x|^2/2) in queries, and adds 1e-6 to causal sums of keys: here `stabiliser=sequence`, and its 1e-6 set to 0. Its
  orthogonal draws do not correct the signs of a QR decomposition; draws are injected.
- linear-attention-transformer scales queries by D^-1/2 after their softmax (`scale_queries`), and bounds causal sums of
  weights from below by 1e-3 where ours are bounded by 1e-6 of the largest key. Its `blindspot_size` is not offered.
- Qwen3-Next has fewer query and key heads than value heads, Mamba-2 shares B and C between heads of a group, and norms
  after its gate; a block here has as many heads of each, and gates after its norm.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers import attention
from flashjax.ops import delta_rule

torch = pytest.importorskip("torch", reason="parity needs torch: pip install 'flashjax[parity]'")

B, N, H, D = 2, 37, 3, 8


def draw(seed=0, scale=0.7):
    """q, k, v [B, N, H, D], float32."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(B, N, H, D)) * s).astype(np.float32) for s in (scale, scale, 1.0)]


def heads_first(x):
    return torch.tensor(x.swapaxes(1, 2).copy())


def back(x):
    return x.detach().numpy().swapaxes(1, 2)


def gradients(function, q, k, v):
    """(o, gradients of the sum of o^2) of a torch function of q, k, v [B, H, N, D]."""
    tensors = [heads_first(x).requires_grad_() for x in (q, k, v)]
    o = function(*tensors)
    o.square().sum().backward()
    return back(o), [back(x.grad) for x in tensors]


def ours(mixer, q, k, v, **arguments):
    """The same of a mixer."""

    def total(q, k, v):
        o = mixer.parallel(q, k, v, **arguments)
        return jnp.square(o).sum(), o

    found, o = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    return o, found


def assert_equal(got, want, atol=1e-5):
    np.testing.assert_allclose(got[0], want[0], atol=atol)
    for x, y in zip(got[1], want[1], strict=True):
        np.testing.assert_allclose(x, y, atol=10 * atol * max(1, np.abs(y).max()))


@pytest.mark.parametrize("kernel", ["positive", "relu"])
@pytest.mark.parametrize("causal", [False, True])
def test_performer(kernel, causal):
    package = pytest.importorskip("performer_pytorch.performer_pytorch", reason="performer-pytorch is not installed")
    q, k, v = draw()
    peer = package.FastAttention(D, nb_features=16, causal=causal, generalized_attention=kernel == "relu")
    if causal:
        peer.causal_linear_fn = functools.partial(package.causal_linear_attention_noncuda, eps=0.0)
    w = jnp.asarray(peer.projection_matrix.numpy())
    mixer = attention.get("performer", features=16, kernel=kernel, stabiliser="sequence", chunk=16)
    assert_equal(ours(mixer, q, k, v, causal=causal, projection=w), gradients(peer, q, k, v))


def test_performer_of_our_numerics_differs_by_what_is_added_to_features():
    package = pytest.importorskip("performer_pytorch.performer_pytorch", reason="performer-pytorch is not installed")
    q, k, v = draw()
    torch.manual_seed(0)
    peer = package.FastAttention(D, nb_features=16, causal=True)
    want, _ = gradients(peer, q, k, v)
    mixer = attention.get("performer", features=16)
    got = mixer.reference(*map(jnp.asarray, (q, k, v)), projection=jnp.asarray(peer.projection_matrix.numpy()))
    assert 1e-7 < np.abs(got - want).max() < 5e-2


@pytest.mark.parametrize("causal", [False, True])
def test_efficient(causal):
    module = "linear_attention_transformer.linear_attention_transformer"
    package = pytest.importorskip(module, reason="linear-attention-transformer is not installed")
    peer = functools.partial(package.causal_linear_attn, bucket_size=1) if causal else package.linear_attn
    q, k, v = draw()
    mixer = attention.get("efficient", scale_queries=True, chunk=16)
    assert_equal(ours(mixer, q, k, v, causal=causal), gradients(peer, q, k, v))


def test_efficient_with_padding():
    module = "linear_attention_transformer.linear_attention_transformer"
    package = pytest.importorskip(module, reason="linear-attention-transformer is not installed")
    q, k, v = draw()
    ids = np.ones((B, N), np.int32)
    ids[1, 20:] = 0
    with torch.no_grad():
        want = back(package.linear_attn(*map(heads_first, (q, k, v)), kv_mask=torch.tensor(ids > 0)))
    mixer = attention.get("efficient", scale_queries=True, chunk=16)
    got = mixer.parallel(*map(jnp.asarray, (q, k, v)), causal=False, segment_ids=jnp.asarray(ids))
    np.testing.assert_allclose(np.where(ids[..., None, None], got - want, 0), 0, atol=1e-5)


def test_gated_delta_rule():
    """Outputs and final state of both torch forms, from a given state; queries and keys of length 1."""
    package = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next", reason="no transformers")
    q, k, v = draw()
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    rng = np.random.default_rng(1)
    g, beta = -rng.exponential(size=(B, N, H)).astype(np.float32), rng.uniform(size=(B, N, H)).astype(np.float32)
    state = rng.normal(size=(B, H, D, D)).astype(np.float32)
    o, last = jax.jit(functools.partial(delta_rule.causal, chunk=16))(q * D**-0.5, k, v, beta, g, None, state)
    mixer = attention.get("gated_delta_net", chunk=16)
    for function in (package.torch_chunk_gated_delta_rule, package.torch_recurrent_gated_delta_rule):
        arguments = dict(g=torch.tensor(g), beta=torch.tensor(beta), output_final_state=True)
        tensors = [torch.tensor(x) for x in (q, k, v)]
        with torch.no_grad():
            want, want_last = function(*tensors, **arguments, initial_state=torch.tensor(state))
            fresh, _ = function(*tensors, **arguments)
        np.testing.assert_allclose(o, want, atol=1e-5)
        np.testing.assert_allclose(last, want_last, atol=1e-5)
        got = mixer.parallel(*map(jnp.asarray, (q, k, v)), beta=jnp.asarray(beta), log_decay=jnp.asarray(g))
        np.testing.assert_allclose(got, fresh, atol=1e-5)


def test_gates_of_qwen3_next():
    """Our module with a layer's weights, against its two formulae."""
    package = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next", reason="no transformers")
    sizes = dict(linear_num_value_heads=4, linear_num_key_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)
    config = package.Qwen3NextConfig(hidden_size=16, num_hidden_layers=1, num_experts=1, **sizes)
    layer = package.Qwen3NextGatedDeltaNet(config, 0)
    x = np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)
    with torch.no_grad():
        mixed = layer.in_proj_ba(torch.tensor(x)).reshape(2, 5, 4, 2)
        beta = mixed[..., 0].sigmoid()
        g = -layer.A_log.exp() * torch.nn.functional.softplus(mixed[..., 1] + layer.dt_bias)
    kernel = layer.in_proj_ba.weight.detach().numpy().reshape(4, 2, 16)
    params = {"beta": {"kernel": kernel[:, 0].T}, "dt": {"kernel": kernel[:, 1].T}}
    params |= {name: getattr(layer, name).detach().numpy() for name in ("A_log", "dt_bias")}
    made = attention.get("gated_delta_net").inputs(4, 8, 8, jnp.float32).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(made["beta"], beta, atol=1e-6)
    np.testing.assert_allclose(made["log_decay"], g, rtol=1e-5, atol=1e-5)


def test_mamba2():
    """Its chunked scan (outputs, final state) and its single step; a group of states for each head."""
    package = pytest.importorskip("transformers.models.mamba2.modeling_mamba2", reason="no transformers")
    C, Bs, x = draw()
    rng = np.random.default_rng(1)
    raw, A, skip = rng.normal(size=(B, N, H)), -rng.uniform(1, 4, size=H), rng.normal(size=H)
    raw, A, skip = (y.astype(np.float32) for y in (raw, A, skip))
    dt = np.log1p(np.exp(raw))
    tensors = [torch.tensor(y) for y in (x, raw, A, Bs, C)]
    arguments = dict(chunk_size=8, D=torch.tensor(skip), dt_softplus=True, return_final_states=True)
    with torch.no_grad():
        want, want_last = package.mamba2_chunk_scan(*tensors, **arguments)
    mixer = attention.get("mamba2", chunk=16)
    inputs = {"dt": jnp.asarray(dt), "A": jnp.asarray(A), "D": jnp.asarray(skip)}
    valid = jnp.ones((B, N), bool)
    run = jax.jit(lambda *a: mixer.prefill(*a[:3], valid, mixer.initial_state(B, H, D, D, N), **a[3]))
    state, o = run(C, Bs, x, inputs)
    np.testing.assert_allclose(o, want, atol=2e-5)
    np.testing.assert_allclose(state["S"], want_last.swapaxes(-1, -2), atol=1e-5)

    q, k, v = (y[:, 0] for y in draw(seed=2))
    step, torch_state = raw[:, 0], want_last.clone()
    spread = torch.tensor(step)[..., None].expand(-1, -1, D)
    rate = torch.tensor(A)[:, None, None].expand(-1, D, D)
    with torch.no_grad():
        arguments = dict(D=torch.tensor(skip)[:, None].expand(-1, D), dt_softplus=True)
        want = package.mamba2_selective_state_update(
            torch_state, torch.tensor(v), spread, rate, torch.tensor(k), torch.tensor(q), **arguments
        )
    inputs["dt"] = jnp.asarray(dt[:, 0])
    _, o = mixer.step(state, *map(jnp.asarray, (q, k, v)), **inputs)
    np.testing.assert_allclose(o, want, atol=2e-5)
