"""FLASH by its definition: NumPy, float64, one token at a time, one pair of tokens at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax import models
from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.stack import unstack

V, C = 7, 4
SMALL = FlashConfig(vocab_size=V, width=6, depth=1, head_dim=4, chunk=C, max_length=24)
SLOW = ("flash-mean", "quad-visible", "gau-encoder")
CASES = {
    "flash": {},
    "flash-encoder": {"causal": False, "count": "visible", "norm": "scalenorm"},
    "flash-mean": {
        "depth": 2,
        "scaling": "mean",
        "bias": "rope",
        "rotary": 0.5,
        "rotary_interleaved": True,
        "shift_tokens": True,
    },
    "quad": {"kind": "quad", "bias": "rope", "query_block": 4},
    "quad-encoder": {"kind": "quad", "causal": False, "count": "visible", "query_block": 0},
    "quad-visible": {"kind": "quad", "count": "visible", "scaling": "sum", "bias": "t5", "bias_scale": 2.0},
    "gau": {"kind": "gau", "scaling": "log_n", "count": "visible", "norm": "rmsnorm"},
    "gau-encoder": {"kind": "gau", "causal": False, "bias": "none", "tie_embeddings": False, "head_bias": True},
}


def cases(*names: str):
    """Those cases, the rarer ones among them slow."""
    return pytest.mark.parametrize("case", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names])


def config(case: str) -> FlashConfig:
    return dataclasses.replace(SMALL, **CASES[case])


@functools.cache
def model(case: str):
    """(module, variables in which every parameter matters)."""
    module, rng = Flash(config(case)), np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 5), jnp.int32))

    def draw(path, leaf):
        about = 1.0 if path[-1].key == "scale" else 0.3 if "relative" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(rng.normal(about, 0.6, leaf.shape), jnp.float32)

    return module, jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def apply(case: str):
    module, variables = model(case)
    return jax.jit(functools.partial(module.apply, variables))


def reference(case: str, tokens: np.ndarray) -> np.ndarray:
    """Logits [N, V] of one sequence, by the equations of the paper."""
    cfg, p = config(case), jax.tree.map(lambda x: np.asarray(x, np.float64), model(case)[1]["params"])
    N, d, s = len(tokens), cfg.width, cfg.head_dim
    silu = lambda x: x / (1 + np.exp(-x))  # noqa: E731
    dense = lambda x, w: x @ w["kernel"] + w["bias"]  # noqa: E731

    def norm(x, w):
        if cfg.norm == "layernorm":
            x = x - x.mean()
            return x / np.sqrt((x**2).mean() + 1e-5) * w["scale"] + w["bias"]
        if cfg.norm == "rmsnorm":
            return x / np.sqrt((x**2).mean() + 1e-5) * w["scale"]
        return w["scale"] * x / np.sqrt((x**2).mean())

    def turn(x, m, dims, interleaved=False):
        x, half = x.copy(), dims // 2
        for i in range(half):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            angle = m * 10000.0 ** (-i / half)
            x[a], x[b] = (
                x[a] * np.cos(angle) - x[b] * np.sin(angle),
                x[b] * np.cos(angle) + x[a] * np.sin(angle),
            )
        return x

    def bias(i, j, w):
        match cfg.bias_kind:
            case "toeplitz":
                return w["weight"][j - i + cfg.span - 1]
            case "rope":
                return turn(w["a"], i, s) @ turn(w["c"], j, s)
            case "t5":  # causal, and no further than single distances go
                return cfg.bias_scale * w["weight"][max(i - j, 0)]
        return 0.0

    def relu2(qk, b, n):
        match cfg.scaling:
            case "paper":
                return max(qk / n + b, 0) ** 2
            case "sum":
                return max((qk + b) / n, 0) ** 2
        return max(qk / s**0.5 + b, 0) ** 2 / n

    def unit(x, w):
        y = np.stack([norm(row, w["norm"]) for row in x])
        if cfg.shift_tokens:
            half = d // 2
            y = np.concatenate([np.concatenate([np.zeros((1, half)), y[:-1, :half]]), y[:, half:]], 1)
        g = w["gau"]
        U, V, Z = (silu(dense(y, g[name])) for name in ("gate", "value", "shared"))
        heads = []
        for gamma, beta in zip(g["gamma"], g["beta"], strict=True):
            turned = [turn(gamma * z + beta, m, cfg.rotary_dim, cfg.rotary_interleaved) for m, z in enumerate(Z)]
            heads.append(np.stack(turned))
        Q, K = heads[:2]
        AV = np.zeros_like(V)
        for i in range(N):
            seen = range(i + 1) if cfg.causal else range(N)
            n = float(len(seen)) if cfg.count == "visible" else float(cfg.max_length)
            if cfg.kind == "gau":
                scale = np.log(n) / np.log(512) if cfg.scaling == "log_n" else 1.0
                logits = np.array([scale * Q[i] @ K[j] / s**0.5 + bias(i, j, g.get("relative")) for j in seen])
                a = np.exp(logits - logits.max())
                AV[i] = (a / a.sum()) @ V[: len(seen)]
            elif cfg.kind == "quad":
                for j in seen:
                    AV[i] += relu2(Q[i] @ K[j], bias(i, j, g["relative"]), n) * V[j]
            else:
                for j in seen:
                    if j // C == i // C:
                        AV[i] += relu2(Q[i] @ K[j], bias(i % C, j % C, g["relative"]), C) * V[j]
                for j in range(N):
                    if not cfg.causal:
                        AV[i] += heads[2][i] @ heads[3][j] / n * V[j]
                    elif j // C < i // C:
                        AV[i] += heads[2][i] @ heads[3][j] / C * V[j]
        return x + dense(U * AV, g["out"])

    angles = np.arange(N)[:, None] * 10000.0 ** -(np.arange(0, d, 2) / d)
    x = p["embed"]["embedding"][tokens]
    x = x + p["position"]["scale"] * np.concatenate([np.sin(angles), np.cos(angles)], 1)
    for i in range(cfg.depth):
        x = unit(x, p[f"layer_{i}"])
    x = np.stack([norm(row, p["final_norm"]) for row in x])
    return x @ p["embed"]["embedding"].T if cfg.tie_embeddings else x @ p["head"]["kernel"] + p["head"]["bias"]


def text(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, V, shape).astype(np.int32)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=3e-5 * max(1.0, np.abs(expected).max()))


# Segments that end with a chunk, after one token, within the first chunk, and after several; and padding.
SEGMENTS = ((0, 4), (4, 5), (5, 8), (8, 21))


def packed_row(length: int = 23) -> np.ndarray:
    ids = np.zeros((1, length), np.int32)
    for number, (first, last) in enumerate(SEGMENTS):
        ids[:, first:last] = number + 1
    return ids


@cases(*CASES)
def test_packed_rows_are_their_sequences_alone(case):
    tokens, ids = text(1, 23), packed_row()
    found = apply(case)(tokens, ids)
    for first, last in SEGMENTS:
        close(found[0, first:last], reference(case, tokens[0, first:last]))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("case", ["flash", "flash-encoder", "quad"])
def test_a_whole_row(case):
    tokens = text(2, 11)
    found = apply(case)(tokens)
    for row in range(2):
        close(found[row], reference(case, tokens[row]))


@pytest.mark.parametrize("tokens", [1, C - 1, C, C + 1])
@pytest.mark.parametrize("case", ["flash", pytest.param("flash-encoder", marks=pytest.mark.slow)])
def test_lengths_about_a_chunk(case, tokens):
    given = text(1, tokens)
    close(apply(case)(given)[0], reference(case, given[0]))


@pytest.mark.parametrize("case", ["flash", "quad"])
def test_no_token_sees_what_follows(case):
    tokens = text(2, 11)
    changed = tokens.copy()
    changed[:, 6] = (tokens[:, 6] + 1) % V
    before, after = apply(case)(tokens), apply(case)(changed)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (np.abs(before - after)[:, [6, 10]].max(-1) > 1e-4).all()  # while the token itself and the last one do


@cases(*(name for name, fields in CASES.items() if fields.get("causal", True)))
def test_decoding_is_the_whole_row(case):
    """Prompts of two lengths, then through several chunks; with no prompt the first step is as good."""
    module, variables = model(case)
    tokens, lengths = text(2, 16), np.array([3, 9])
    expected = np.stack([reference(case, row) for row in tokens])
    prefill = jax.jit(lambda t, n, cache: module.apply(variables, t, n, cache, method="prefill"))
    step = jax.jit(lambda t, cache: module.apply(variables, t, cache, method="step"))
    padded = np.where(np.arange(10) < lengths[:, None], tokens[:, :10], 5)
    logits, cache = prefill(padded, jnp.asarray(lengths), module.init_cache(2, 16))
    rows = np.arange(2)
    for i in range(7):
        close(logits, expected[rows, lengths - 1 + i])
        logits, cache = step(tokens[rows, lengths + i], cache)
    np.testing.assert_array_equal(cache["position"], lengths + 7)
    cache = module.init_cache(2, 16)
    for i in range(5):
        logits, cache = step(tokens[:, i], cache)
        close(logits, expected[:, i])


def test_the_state_of_flash_does_not_grow():
    module, _ = model("flash")
    sizes = [sum(x.size for x in jax.tree.leaves(module.init_cache(2, n))) for n in (8, 8000)]
    cfg = module.config
    s, e = cfg.head_dim, cfg.inner
    assert sizes[0] == sizes[1] == 2 + 2 * cfg.depth * (s * e + C * (2 * s + e))
    assert all(x.shape[0] == 2 for x in jax.tree.leaves(module.init_cache(2, 8)))


@pytest.mark.parametrize(
    "case", ["flash", *(pytest.param(n, marks=pytest.mark.slow) for n in ("flash-encoder", "quad-encoder", "gau"))]
)
def test_rows_of_padding_are_finite(case):
    module, variables = model(case)
    tokens, ids = text(2, 9), jnp.zeros((2, 9), jnp.int32).at[0, :6].set(1)

    def loss(variables, tokens):
        return (module.apply(variables, tokens, ids) ** 2)[0, :6].sum()

    value, grads = jax.jit(jax.value_and_grad(loss))(variables, tokens)
    assert np.isfinite(value) and all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(grads))
    # Nothing that is real sees what padding holds.
    changed = np.where(ids > 0, tokens, (tokens + 1) % V)
    np.testing.assert_array_equal(apply(case)(tokens, ids)[0, :6], apply(case)(changed, ids)[0, :6])


@pytest.mark.slow
def test_blocks_of_queries_change_nothing():
    module, variables = model("quad")
    tokens = jnp.asarray(text(2, 11))

    def gradients(block):
        blocked = Flash(dataclasses.replace(module.config, query_block=block))
        return jax.jit(jax.grad(lambda v: (blocked.apply(v, tokens) ** 2).sum()))(variables)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradients(4), gradients(0))


@pytest.mark.slow
def test_scanned_layers_are_the_same_model():
    module, variables = model("flash-mean")
    tokens, ids = text(1, 23), packed_row()
    stacked = {k: x for k, x in variables["params"].items() if not k.startswith("layer_")}
    layers = [variables["params"][f"layer_{i}"] for i in range(2)]
    stacked["layers"] = jax.tree.map(lambda *x: jnp.stack(x), *layers)
    assert jax.tree.structure(unstack(stacked)) == jax.tree.structure(variables["params"])
    scanned = Flash(dataclasses.replace(module.config, scan_layers=True, remat="dots"))
    found = jax.jit(scanned.apply)({"params": stacked}, tokens, ids)
    np.testing.assert_allclose(found, apply("flash-mean")(tokens, ids), atol=1e-5)
    step = jax.jit(lambda t, cache: scanned.apply({"params": stacked}, t, cache, method="step"))
    cache, expected = scanned.init_cache(1, 9), reference("flash-mean", tokens[0, :6])
    for i in range(6):
        logits, cache = step(tokens[:, i], cache)
        close(logits[0], expected[i])


@pytest.mark.slow
def test_dropout_and_half_precision():
    """Dropout draws; bfloat16 is near float32, and its logits are float32."""
    module, variables = model("flash")
    tokens = text(2, 11)
    half = Flash(dataclasses.replace(module.config, dtype="bfloat16", dropout_rate=0.5))
    run = jax.jit(half.apply, static_argnames="train")
    exact, rough = apply("flash")(tokens), run(variables, tokens)
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(rough, exact, atol=0.1 * np.abs(exact).max())
    draws = [run(variables, tokens, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert np.abs(draws[0] - draws[1]).max() > 0.1


def count(cfg: FlashConfig) -> int:
    """Parameters by hand."""
    d, e, s = cfg.width, cfg.inner, cfg.head_dim
    bias = {"toeplitz": 2 * cfg.span - 1, "rope": 2 * s, "none": 0}[cfg.bias_kind]
    norm = 1 if cfg.norm == "scalenorm" else 2 * d
    unit = (d + 1) * (2 * e + s) + (e + 1) * d + 2 * cfg.projections * s + bias + norm
    return cfg.vocab_size * d + 1 + cfg.depth * unit + norm


@pytest.mark.parametrize(
    "name, size",
    [
        ("flash_base", 112_040_425),
        ("flash_quad_base", 112_022_017),
        ("gau_base", 112_015_873),
        ("flash_base_mlm", 112_002_050),
        ("flash_quad_base_mlm", 111_983_642),
        ("gau_base_mlm", 111_977_498),
    ],
)
def test_parameter_counts(name, size):
    module = models.create(name, scan_layers=True)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 300), jnp.int32))["params"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == count(module.config) == size


def test_the_paper_learns_each_distance_of_short_spans_alone():
    assert FlashConfig().bias_kind == "toeplitz"  # C = 256
    assert FlashConfig(kind="quad", max_length=512).bias_kind == "toeplitz"
    assert FlashConfig(kind="quad", max_length=513).bias_kind == "rope"


def test_refusals():
    for fields, text_of in (
        ({"kind": "quad", "scaling": "log_n"}, "kind 'quad' has no scaling 'log_n'; choose from paper, sum, mean"),
        ({"rotary": 0.7, "head_dim": 10}, "turns 7 dims: want an even number"),
        ({"width": 7}, "need an even width, found 7"),
        ({"chunk": 0}, "chunk must be at least 1, found 0"),
        ({"head_bias": True}, "set tie_embeddings=False"),
        ({"expansion": 0.001}, "expansion 0.001 of width 768 makes gate and values 0 wide"),
        ({"dropout_rate": 1.5}, r"dropout_rate must be in \[0, 1\), found 1.5"),
        ({"final_norm": "groupnorm", "width": 36}, "groupnorm has 32 groups, and width 36"),
        ({"query_block": -1}, "query_block must be 0"),
        ({"bias_scale": 2.0}, "bias_scale is of the t5 bias, and bias is 'paper'"),
        ({"sinusoidal": False, "sinusoidal_scale": 2.0}, "sinusoidal_scale is of the sinusoids"),
    ):
        with pytest.raises(ValueError, match=text_of):
            FlashConfig(**fields)
    with pytest.raises(ValueError, match="it cannot decode"):
        Flash(config("flash-encoder")).init_cache(1, 4)
    with pytest.raises(ValueError, match="a length that a decoder cannot know"):
        Flash(dataclasses.replace(SMALL, kind="quad", count="row")).init_cache(1, 4)
    with pytest.raises(ValueError, match="a sequence of 25 but the Toeplitz bias spans 24: raise max_length"):
        jax.eval_shape(
            Flash(dataclasses.replace(SMALL, kind="quad")).init, jax.random.key(0), jnp.zeros((1, 25), jnp.int32)
        )
