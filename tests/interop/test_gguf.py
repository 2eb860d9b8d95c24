"""GGUF files, written by the package `gguf` at tiny size."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from flashjax import interop
from flashjax.interop import gguf as ours
from flashjax.interop import paths
from flashjax.interop.transformer import config_from_hf
from flashjax.layers.positions import rope_frequencies, rotate
from flashjax.models.transformer import Transformer
from tests.interop.test_swin import assert_same
from tests.interop.test_transformer import CONFIGS, random

gguf = pytest.importorskip("gguf", reason="the extra `text` is not installed: gguf is missing")

# Our names of a layer's modules -> the file's.
NAMES = {
    "attn_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "attn/query": "attn_q",
    "attn/key": "attn_k",
    "attn/value": "attn_v",
    "attn/query_norm": "attn_q_norm",
    "attn/key_norm": "attn_k_norm",
    "attn/out": "attn_output",
    "mlp/gate": "ffn_gate",
    "mlp/up": "ffn_up",
    "mlp/down": "ffn_down",
}
TOP = {"embed/embedding": "token_embd", "position/embedding": "position_embd", "head/kernel": "output"}


def tensors_of(layout: str) -> dict[str, np.ndarray]:
    """What llama.cpp's converter makes of our random variables, written down independently of the tables."""
    config = CONFIGS[layout]
    result: dict[str, np.ndarray] = {}
    for path, leaf in paths.flatten(random(config)).items():
        *parents, last = path.split("/")
        turned = leaf.T if last == "kernel" else leaf
        if path in TOP:
            result[f"{TOP[path]}.weight"] = turned
        elif parents[0] == "final_norm":
            result[f"output_norm.{'bias' if last == 'bias' else 'weight'}"] = turned
        else:
            name = NAMES["/".join(parents[1:])]
            if layout in ("llama", "mistral") and name in ("attn_q", "attn_k"):
                heads = config.heads if name == "attn_q" else config.group
                turned = turned.reshape(heads, 2, -1, *turned.shape[1:]).swapaxes(1, 2).reshape(turned.shape)
            number = parents[0].removeprefix("layer_")
            result[f"blk.{number}.{name}.{'bias' if last == 'bias' else 'weight'}"] = turned
    if layout == "gpt2":
        for i in range(config.depth):
            for kind in ("weight", "bias"):
                parts = [result.pop(f"blk.{i}.attn_{part}.{kind}") for part in "qkv"]
                result[f"blk.{i}.attn_qkv.{kind}"] = np.concatenate(parts)
    return result


def write(path: Path, layout: str, tensors: dict[str, np.ndarray], change: dict[str, Any] | None = None) -> Path:
    """A file as the converter writes it; `change` replaces or (None) drops entries."""
    config = CONFIGS[layout]
    kind = {"mistral": "llama"}.get(layout, layout)
    writer = gguf.GGUFWriter(path, kind)
    entries: dict[str, Any] = {
        "block_count": config.depth,
        "context_length": config.max_length,
        "embedding_length": config.width,
        "feed_forward_length": config.hidden,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.group,
        "attention.key_length": config.dim,
        "attention.value_length": config.dim,
        "attention.layer_norm_rms_epsilon": config.norm_epsilon,
        "rope.freq_base": config.rope.rope_theta,
        "rope.dimension_count": config.dim,
    }
    if layout == "gpt2":
        entries = {key: value for key, value in entries.items() if key in ours._NEEDED}
        entries["attention.layer_norm_epsilon"] = config.norm_epsilon
    if config.rope.rope_type == "yarn":
        entries["rope.scaling.type"] = "yarn"
        entries["rope.scaling.factor"] = config.rope.factor
        entries["rope.scaling.original_context_length"] = config.rope.original_max_position_embeddings
    if layout == "mistral":
        entries["attention.sliding_window"] = 5
    for key, value in (entries | (change or {})).items():
        key = key if key.startswith(("general.", "split.", "tokenizer.")) else f"{kind}.{key}"
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case list():
                writer.add_array(key, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("layout", CONFIGS)
def test_a_file_of_each_architecture(layout: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", layout, tensors_of(layout), {"tokenizer.ggml.eos_token_id": 3})
    loaded = interop.load(path)
    rope = dataclasses.replace(
        loaded.config.rope, beta_fast=None, beta_slow=None
    )  # written out where they are 32 and 1
    assert dataclasses.replace(loaded.config, rope=rope) == CONFIGS[layout]
    assert (loaded.layout, loaded.eos, loaded.tokenizer) == (layout, (3,), path)
    assert_same(loaded.variables, random(CONFIGS[layout]))


def test_neighbouring_dims_become_halves() -> None:
    """Scores by rotations of dims 2i and 2i + 1 are those of dims i and i + D/2 after the rows are reordered."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 5, 4)).astype(np.float32)
    q, k = (rng.standard_normal((heads * 6, 4)).astype(np.float32) for heads in (2, 1))
    frequencies, _ = rope_frequencies({"rope_theta": 10.0}, 6, 5)

    def scores(q: np.ndarray, k: np.ndarray, interleaved: bool) -> np.ndarray:
        heads = [jnp.asarray(x @ rows.T).reshape(1, 5, -1, 6) for rows in (q, k)]
        q_rotated, k_rotated = (rotate(y, jnp.arange(5), frequencies, interleaved=interleaved) for y in heads)
        return np.einsum("bihd,bjkd->bhij", q_rotated, k_rotated)

    reordered = scores(ours.halves(q, 2), ours.halves(k, 1), False)
    np.testing.assert_allclose(reordered, scores(q, k, True), atol=1e-5)
    assert np.abs(reordered - scores(q, k, False)).max() > 0.1


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_tensors_are_dequantised(kind: str, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIGS["qwen2"], width=32, hidden=64, head_dim=32, heads=1)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "qwen2")
    expected, of_kind = {}, gguf.GGMLQuantizationType[kind]
    state = interop.to_torch(Transformer(config), random(config))
    back = {theirs: name for name, theirs in ours._ROTARY_NAMES.items()}
    for name, array in state.items():
        stem, _, leaf = name.rpartition(".")
        number = "".join(filter(str.isdigit, stem))
        theirs = back[stem.replace(f".{number}.", ".{i}.") if number else stem].replace("{i}", number)
        if name == "lm_head.weight":
            continue
        data = gguf.quants.quantize(array, of_kind) if array.ndim == 2 else array
        expected[name] = gguf.quants.dequantize(data, of_kind) if array.ndim == 2 else array
        writer.add_tensor(f"{theirs}.{leaf}", data, raw_dtype=of_kind if array.ndim == 2 else None)
    for key, value in {
        "block_count": 2,
        "context_length": 16,
        "embedding_length": 32,
        "feed_forward_length": 64,
    }.items():
        writer.add_uint32(f"qwen2.{key}", value)
    writer.add_head_count(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    state, values = ours.read(tmp_path / "model.gguf")
    assert values["num_key_value_heads"] == 1
    assert values["head_dim"] == 32
    assert state.keys() == expected.keys()
    for name, array in expected.items():
        assert state[name].dtype == np.float32
        np.testing.assert_array_equal(state[name], array)
    assert_same(interop.load(tmp_path / "model.gguf").variables["params"]["layer_1"]["attn"]["key"],
                {"kernel": expected["model.layers.1.self_attn.k_proj.weight"].T.copy(),
                 "bias": expected["model.layers.1.self_attn.k_proj.bias"]})  # fmt: skip


def rope_of(path: Path) -> dict[str, Any]:
    values = ours.read(path)[1]
    config_from_hf(values)
    return values["rope_parameters"]


def test_scaled_rotations(tmp_path: Path) -> None:
    tensors, path = tensors_of("llama"), tmp_path / "model.gguf"
    write(path, "llama", tensors, {"rope.scaling.type": "linear", "rope.scaling.factor": 2.5})
    assert rope_of(path) == {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.5}
    # Llama 3's are a tensor of divisors: its rule, which three pairs of frequencies are enough to tell.
    llama3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    llama3 |= {"original_max_position_embeddings": 8192, "rope_theta": 5e5}
    plain, _ = rope_frequencies({"rope_theta": 5e5}, 6, 16)
    scaled, _ = rope_frequencies(llama3, 6, 16)
    divisors = np.asarray(plain / scaled, np.float32)
    write(path, "llama", tensors | {"rope_freqs.weight": divisors}, {"rope.freq_base": 5e5})
    assert rope_of(path) == llama3
    # Divisors of no known rule are kept as they are.
    write(path, "llama", tensors | {"rope_freqs.weight": np.array([1.0, 1.5, 3.0], np.float32)})
    found, _ = rope_frequencies(rope_of(path), 6, 16)
    plain, _ = rope_frequencies({"rope_theta": 1e6}, 6, 16)
    np.testing.assert_allclose(found, plain / np.array([1.0, 1.5, 3.0]), rtol=1e-6)
    with pytest.raises(ValueError, match=r"both rope_freqs\.weight and llama\.rope\.scaling\.type 'linear'"):
        ours.read(write(path, "llama", tensors | {"rope_freqs.weight": divisors}, {"rope.scaling.type": "linear"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "mamba"}, "architecture 'mamba'; known: llama, qwen2, qwen3, gpt2"),
        ({"split.count": 3}, "one of 3 parts; join them: llama-gguf-split --merge"),
        ({"block_count": None}, r"lacks llama\.block_count; fetch it again"),
        ({"expert_count": 8}, r"llama\.expert_count is 8, only 0 is known"),
        ({"attention.head_count_kv": [1, 2]}, r"llama\.attention\.head_count_kv differs from layer to layer"),
        ({"attention.value_length": 4}, r"llama\.attention\.value_length is 4; only the head's 6 is known"),
        ({"rope.dimension_count": 4}, r"llama\.rope\.dimension_count is 4"),
        ({"rope.scaling.type": "longrope"}, r"llama\.rope\.scaling\.type 'longrope'; known: none, linear, yarn"),
        ({"rope.scaling.yarn_log_multiplier": 0.5}, r"yarn_log_multiplier is 0\.5, which has no equal"),
        ({"logit_scale": 0.5}, r"llama\.logit_scale \(0\.5\) is not known to flashjax"),
    ],
)
def test_what_is_not_known_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", "llama", {"token_embd.weight": np.zeros((11, 8), np.float32)}, change)
    with pytest.raises(ValueError, match=message) as error:
        interop.load(path)
    assert str(path) in str(error.value)


def test_strange_and_missing_tensors(tmp_path: Path) -> None:
    path, tensors = tmp_path / "model.gguf", tensors_of("qwen3")
    with pytest.raises(ValueError, match=r"tensor 'blk\.0\.ffn_gate_exps\.weight' belongs to no qwen3 model"):
        interop.load(write(path, "qwen3", tensors | {"blk.0.ffn_gate_exps.weight": np.zeros((2, 8, 8), np.float32)}))
    del tensors["blk.1.ffn_up.weight"]
    with pytest.raises(interop.ConversionError, match=r"missing \(1\):\n  layers\.1\.mlp\.up_proj\.weight"):
        interop.load(write(path, "qwen3", tensors))
    del tensors["token_embd.weight"]
    with pytest.raises(ValueError, match=r"lacks the tensor 'token_embd\.weight'"):
        interop.load(write(path, "qwen3", tensors))


def test_damaged_files(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", "llama", tensors_of("llama")).read_bytes()
    for i, content in enumerate(
        [b"", b"GGUF", b"not a model at all", *(whole[: len(whole) * k // 8] for k in range(1, 8))]
    ):
        path = tmp_path / f"{i}.gguf"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged, or no GGUF file \(.*\); fetch it again"):
            interop.load(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        interop.load(tmp_path / "absent.gguf")


def test_the_package_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'flashjax\[text\]'"):
        ours.read(tmp_path / "model.gguf")
