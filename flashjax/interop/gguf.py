"""GGUF files as torch-named states: what llama.cpp runs, in the words of Hugging Face.

A GGUF file holds one model: its tensors, many of them quantised, its sizes and its tokenizer. Read are the dense
architectures llama (Mistral and SmolLM among them), qwen2, qwen3 and gpt2. Facts are those of llama.cpp's converter:
the rows of q and k of llama files are reordered so that the two dims that rotate together are neighbours (here they
are put back into halves); kernels of gpt2 are transposed; Llama 3's scaled frequencies are a tensor of divisors.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np

_ROTARY = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
_GPT2 = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
    "attention.layer_norm_epsilon": "layer_norm_epsilon",
}
# Architecture -> our words for its sizes.
_FIELDS = {"llama": _ROTARY, "qwen2": _ROTARY, "qwen3": _ROTARY, "gpt2": _GPT2}
_NEEDED = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
# Read elsewhere, or without a bearing on the function.
_READ = ("vocab_size", "attention.value_length", "rope.dimension_count", "tensor_data_layout", "rope.scaling.")
# The only value under which a file means what these architectures do.
_NEUTRAL = {"expert_count": 0, "use_parallel_residual": False, "attention.causal": True}

_ROTARY_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
    "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{i}.attn_norm": "transformer.h.{i}.ln_1",
    "blk.{i}.attn_qkv": "transformer.h.{i}.attn.c_attn",
    "blk.{i}.attn_output": "transformer.h.{i}.attn.c_proj",
    "blk.{i}.ffn_norm": "transformer.h.{i}.ln_2",
    "blk.{i}.ffn_up": "transformer.h.{i}.mlp.c_fc",
    "blk.{i}.ffn_down": "transformer.h.{i}.mlp.c_proj",
}
_FREQUENCIES = "rope_freqs.weight"


def read(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The model of a GGUF file: (torch names to float32 arrays, a `config.json` of Hugging Face as a dict).

    Args:
        path: one whole file; quantised tensors of every kind that the package `gguf` can dequantise.

    Raises:
        ModuleNotFoundError: the package `gguf` is not installed.
        FileNotFoundError: no such file.
        ValueError: damaged, in parts, of another architecture, or with a feature that the model has not.
    """
    path = Path(path)
    reader = _open(path)
    # Not the tokenizer: flashjax.data.tokenizers reads it.
    wanted = re.compile(r"(?!tokenizer\.)|tokenizer\.ggml\.\w+_token_id$")
    metadata = {key: field.contents() for key, field in reader.fields.items() if wanted.match(key)}
    architecture = metadata.get("general.architecture")
    if architecture not in _FIELDS:
        raise ValueError(f"{path}: architecture {architecture!r}; known: {', '.join(_FIELDS)}")
    if metadata.get("split.count", 1) > 1:
        raise ValueError(f"{path}: one of {metadata['split.count']} parts; join them: llama-gguf-split --merge")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _config(path, architecture, metadata, tensors)
    state = {}
    for name, tensor in tensors.items():
        if name != _FREQUENCIES:
            state[_rename(path, architecture, name)] = _turned(architecture, name, _dequantise(path, tensor), config)
    return state, config


def _open(path: Path) -> Any:
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path.name} is read by the package gguf, which is not installed: pip install 'flashjax[text]'"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{path}: damaged, or no GGUF file ({error}); fetch it again") from error
    if reader.byte_order != "I":
        raise ValueError(f"{path}: of the other byte order; convert it: gguf-convert-endian")
    return reader


def _dequantise(path: Path, tensor: Any) -> np.ndarray:
    from gguf import quants

    try:
        return quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise ValueError(
            f"{path}: tensor {tensor.name!r} is of type {tensor.tensor_type.name}, which the installed gguf cannot "
            "dequantise; use a file in another quantisation, such as Q8_0"
        ) from error


def _config(path: Path, architecture: str, metadata: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """The sizes in Hugging Face's words, checked."""
    own = {
        key.removeprefix(f"{architecture}."): value
        for key, value in metadata.items()
        if key.startswith(f"{architecture}.")
    }
    if lacking := [key for key in _NEEDED if key not in own]:
        raise ValueError(f"{path}: lacks {', '.join(f'{architecture}.{key}' for key in lacking)}; fetch it again")
    if "token_embd.weight" not in tensors:
        raise ValueError(f"{path}: lacks the tensor 'token_embd.weight'; a model with its vocabulary is needed")
    fields = _FIELDS[architecture]
    config: dict[str, Any] = {"model_type": architecture}
    for key, value in own.items():
        full = f"{architecture}.{key}"
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise ValueError(f"{path}: {full} differs from layer to layer, which the model's layers do not")
            value = value[0]
        if key in _NEUTRAL:
            if value != _NEUTRAL[key]:
                raise ValueError(f"{path}: {full} is {value!r}, only {_NEUTRAL[key]!r} is known (dense, causal models)")
        elif key in fields:
            config[fields[key]] = _short(value)
        elif not key.startswith(_READ):
            raise ValueError(f"{path}: {full} ({value!r}) is not known to flashjax, so the model may be another one")
    config["vocab_size"] = int(tensors["token_embd.weight"].shape[1])
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for key, word in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        if (number := metadata.get(f"tokenizer.ggml.{key}_token_id")) is not None:
            config[f"{word}_token_id"] = int(number)
    if architecture == "gpt2":
        return config
    config.setdefault("num_key_value_heads", config["num_attention_heads"])
    config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for key in ("attention.value_length", "rope.dimension_count"):
        if own.get(key, config["head_dim"]) != config["head_dim"]:
            raise ValueError(
                f"{path}: {architecture}.{key} is {own[key]}; only the head's {config['head_dim']} is known"
            )
    if config.get("sliding_window"):
        if architecture != "llama":
            raise ValueError(
                f"{path}: windows in {architecture} files are not known; load the safetensors of this model"
            )
        config["model_type"] = "mistral"
    config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    config["rope_parameters"] = _rope(path, architecture, own, tensors, config)
    return config


def _rope(path: Path, architecture: str, own: dict[str, Any], tensors: dict[str, Any], config: dict[str, Any]) -> dict:
    """`rope_parameters` as transformers 5 spells them."""
    theta = config.pop("rope_theta", 10000.0)
    scaling = {
        key.removeprefix("rope.scaling."): value for key, value in own.items() if key.startswith("rope.scaling.")
    }
    kind, factor = scaling.pop("type", "none"), _short(scaling.pop("factor", 1.0))
    original = scaling.pop("original_context_length", None)
    scaling.pop("finetuned", None)
    fast, slow = scaling.pop("yarn_beta_fast", 32.0), scaling.pop("yarn_beta_slow", 1.0)
    for key in ("attn_factor", "yarn_attn_factor", "yarn_ext_factor"):
        if scaling.get(key) in (1.0, -1.0, 0.0) and not (key == "yarn_ext_factor" and scaling[key] == 0.0):
            del scaling[key]
    if scaling:
        raise ValueError(
            f"{path}: {architecture}.rope.scaling.{next(iter(scaling))} is {next(iter(scaling.values()))!r}, which has "
            "no equal among rope_parameters; load the safetensors of this model"
        )
    if _FREQUENCIES in tensors:
        if kind != "none":
            raise ValueError(f"{path}: both {_FREQUENCIES} and {architecture}.rope.scaling.type {kind!r}; one is known")
        divisors = _dequantise(path, tensors[_FREQUENCIES])
        return {"rope_theta": theta, **_from_divisors(divisors, theta, config)}
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {"rope_type": "default", "rope_theta": theta}
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if kind == "yarn":
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original or config["max_position_embeddings"],
            "beta_fast": _short(fast),
            "beta_slow": _short(slow),
        }
    raise ValueError(f"{path}: {architecture}.rope.scaling.type {kind!r}; known: none, linear, yarn")


def _from_divisors(divisors: np.ndarray, theta: float, config: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's rule where the divisors of the frequencies are its, else the divisors themselves as LongRoPE's."""
    half, factor = divisors.size, float(divisors.max())
    frequencies = theta ** (-np.arange(half) / half)
    for original in (8192, 4096):
        turns = original * frequencies / (2 * math.pi)
        smooth = np.clip((turns - 1) / 3, 0, 1)  # low_freq_factor 1, high_freq_factor 4
        if np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": _short(factor),
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    listed = [float(divisor) for divisor in divisors]
    return {
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": listed,
        "long_factor": listed,
        "attention_factor": 1.0,
        "original_max_position_embeddings": config["max_position_embeddings"],
    }


def _rename(path: Path, architecture: str, name: str) -> str:
    """`blk.3.attn_q.bias` -> `model.layers.3.self_attn.q_proj.bias`."""
    names = _GPT2_NAMES if architecture == "gpt2" else _ROTARY_NAMES
    stem, _, leaf = name.rpartition(".")
    number = re.match(r"blk\.(\d+)\.", stem)
    general = f"blk.{{i}}.{stem[number.end() :]}" if number else stem
    if general not in names or leaf not in ("weight", "bias"):
        raise ValueError(f"{path}: tensor {name!r} belongs to no {architecture} model that flashjax knows")
    return names[general].replace("{i}", number[1] if number else "") + f".{leaf}"


def _turned(architecture: str, name: str, tensor: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    """A tensor as Hugging Face keeps it."""
    if architecture == "gpt2" and name.startswith("blk.") and tensor.ndim == 2:
        return tensor.T  # kernels [in, out] there
    if architecture == "llama" and (match := re.search(r"attn_([qk])\.(weight|bias)$", name)):
        return halves(tensor, config["num_attention_heads" if match[1] == "q" else "num_key_value_heads"])
    return tensor


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * D, ...] of a query or key projection, for RoPE that turns dims 2i and 2i + 1 together, in the
    order for RoPE that turns dims i and i + D/2 together: the same scores."""
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(np.swapaxes(pairs, 1, 2)).reshape(rows.shape)


def _short(value: Any) -> Any:
    """A float32 of the file as the decimal that was meant: 9.999999747378752e-06 -> 1e-05."""
    return float(np.format_float_positional(np.float32(value), unique=True)) if isinstance(value, float) else value
