"""Where transformers keeps the models that `flashjax.models.transformer` can be, and how it words their sizes.

Layouts are the `model_type` of a `config.json`: `gpt2`, `llama` (SmolLM and TinyLlama among them), `mistral`, `qwen2`,
`qwen3`. The last four name tensors alike and differ in the leaves they have.
"""

import dataclasses
import functools
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.interop import rules as declare
from flashjax.interop.mapping import ConversionError
from flashjax.interop.paths import flatten, unstack
from flashjax.interop.rules import Layout, Lookup, Names, Rule, Share, Table
from flashjax.interop.transforms import LINEAR
from flashjax.layers.extension import Extension
from flashjax.layers.positions import RopeParameters
from flashjax.models.transformer import Transformer, TransformerConfig

_STACKS = {"layers": "layer_{i}"}
_ROTARY = ("llama", "mistral", "qwen2", "qwen3")
# Buffers of older versions: the causal mask, the frequencies.
_LAYOUTS = {
    "gpt2": Layout("wte.weight", "transformer.", ("lm_head.",), (r"h\.\d+\.attn\.(masked_)?bias",)),
    **dict.fromkeys(
        _ROTARY, Layout("embed_tokens.weight", "model.", ("lm_head.",), (r"(.*\.)?rotary_emb\.(original_)?inv_freq",))
    ),
}


def abstract(model: Transformer) -> dict[str, dict]:
    """Shape and dtype of every variable of the model; nothing is computed."""
    return _abstract(model.config)


@functools.lru_cache(maxsize=16)
def _abstract(config: TransformerConfig) -> dict[str, dict]:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens)


def table(model: Transformer) -> Table:
    """The table for one model, with the layouts that have a place for all of its leaves.

    What a model does with its weights (its mixer, its window) is not asked here, so that a checkpoint can be read into
    one that does something else; `config_to_hf` asks.
    """
    leaves = list(unstack(flatten(abstract(model)), _STACKS))
    everything = Table(_LAYOUTS, _RULES, lambda found, names: [], _STACKS)
    fitting = [name for name in _LAYOUTS if all(everything.place(path, name) for path in leaves)]
    return Table(
        {name: _layout(name, model.config.tie_embeddings) for name in fitting or _LAYOUTS},
        _RULES,
        lambda found, names: _explain(model.config, found, names),
        _STACKS,
    )


def _layout(name: str, tied: bool) -> Layout:
    embedding = "wte.weight" if name == "gpt2" else "embed_tokens.weight"
    return dataclasses.replace(_LAYOUTS[name], copies={"lm_head.weight": embedding} if tied else {})


def extras(model: Transformer, layout: str) -> dict[str, np.ndarray]:
    """Nothing: transformers 5 saves no buffers of these models."""
    return {}


def layouts(config: TransformerConfig) -> list[str]:
    """The kinds of models of transformers that compute the same as this one, the most usual one first.

    Raises ConversionError where there is none; the message says for each what stands in the way.
    """
    reasons = {name: _differences(config, name) for name in _LAYOUTS}
    if fitting := [name for name, reason in reasons.items() if not reason]:
        return fitting
    lines = [f"  {name}: has not {'; '.join(reason)}" for name, reason in reasons.items()]
    raise ConversionError("\n".join(["no kind of model that flashjax knows of transformers is like this one", *lines]))


def _differences(config: TransformerConfig, layout: str) -> list[str]:
    """The fields of the configuration that models of this layout cannot have."""
    window = _window(config)
    wanted: dict[str, tuple[Any, ...]] = {
        "causal": (True,),
        "norm_position": ("pre",),
        "residual": ("plain",),
        "attention_scale": ("sqrt_dim",),
        "embed_scale": (False,),
        "full_last": (False,),
        "extension": (Extension(),),
    }
    if layout == "gpt2":
        wanted |= {
            "norm": ("layernorm",),
            "position": ("learned",),
            "kv_heads": (0, config.heads),
            "head_dim": (0, config.width / config.heads),
            "activation": tuple(_PLAIN.values()),
            "qk_norm": ("none",),
            "qkv_bias": (True,),
            "out_bias": (True,),
            "mlp_bias": (True,),
        }
    else:
        wanted |= {
            "norm": ("rmsnorm",),
            "position": ("rope",),
            "activation": tuple(_GATED.values()),
            "qk_norm": ("both",) if layout == "qwen3" else ("none",),
            "qkv_bias": {"mistral": (False,), "qwen2": (True,)}.get(layout, (config.out_bias,)),
            "out_bias": (False,) if layout in ("mistral", "qwen2") else (True, False),
            "mlp_bias": (True, False) if layout == "llama" else (False,),
        }
    problems = [
        f"{field} {getattr(config, field)!r}"
        for field, values in wanted.items()
        if getattr(config, field) not in values
    ]
    if window is None:
        problems.append(f"mixer {config.mixer!r} ({config.mixer_options})".removesuffix(" ()"))
    elif window and layout in ("gpt2", "llama"):
        problems.append(f"a window ({window})")
    rope = config.rope
    # These models turn whole heads in transformers, whatever the factor says, but where the rule itself reads it.
    if layout != "gpt2" and rope.partial_rotary_factor != 1 and rope.rope_type != "proportional":
        problems.append(f"rope.partial_rotary_factor {rope.partial_rotary_factor}")
    return problems


def _window(config: TransformerConfig) -> int | None:
    """The sliding window of all layers, 0 without; None where the mixer is not plain softmax attention."""
    mixer = config.make_mixer()
    options = {name: value for name, value in vars(mixer).items() if name not in ("window", "implementation")}
    if config.mixer != "softmax" or any(options.values()):
        return None
    return int(getattr(mixer, "window", 0))


def _rules() -> list[Rule]:
    block = "layer_{i}"

    def at(gpt2: Names | None = None, rotary: str = "", only: tuple[str, ...] = _ROTARY) -> dict[str, Any]:
        return ({"gpt2": gpt2} if gpt2 else {}) | (dict.fromkeys(only, rotary) if rotary else {})

    rules = [
        *declare.tensor("embed/embedding", **at("wte.weight", "embed_tokens.weight")),
        *declare.tensor("position/embedding", **at("wpe.weight")),
        *declare.norm(f"{block}/attn_norm", **at("h.{i}.ln_1", "layers.{i}.input_layernorm")),
        *declare.norm(f"{block}/mlp_norm", **at("h.{i}.ln_2", "layers.{i}.post_attention_layernorm")),
        *declare.norm("final_norm", **at("ln_f", "norm")),
        *declare.tensor("head/kernel", LINEAR, **at("lm_head.weight", "lm_head.weight")),
    ]
    for part, name in enumerate(("query", "key", "value")):
        # Kernels lie side by side along their outputs, which are the last dim there, and so do the biases.
        joined = Share("h.{i}.attn.c_attn", part, 3, axis=-1)
        rules += declare.linear_untransposed(f"{block}/attn/{name}", **at(joined))
        rules += declare.linear(f"{block}/attn/{name}", **at(None, f"layers.{{i}}.self_attn.{name[0]}_proj"))
        norm = at(None, f"layers.{{i}}.self_attn.{name[0]}_norm", only=("qwen3",))
        rules += declare.norm(f"{block}/attn/{name}_norm", **norm)
    rules += declare.linear_untransposed(f"{block}/attn/out", **at("h.{i}.attn.c_proj"))
    rules += declare.linear(f"{block}/attn/out", **at(None, "layers.{i}.self_attn.o_proj"))
    for name, gpt2 in (("gate", None), ("up", "h.{i}.mlp.c_fc"), ("down", "h.{i}.mlp.c_proj")):
        rules += declare.linear_untransposed(f"{block}/mlp/{name}", **at(gpt2))
        rules += declare.linear(f"{block}/mlp/{name}", **at(None, f"layers.{{i}}.mlp.{name}_proj"))
    return rules


_RULES = _rules()


def _explain(config: TransformerConfig, found: Lookup, names: Collection[str]) -> list[str]:
    """One sentence for each field in which the state and the configuration differ, with what to pass instead."""
    looks: dict[str, Any] = {"depth": 0}
    while found(f"layer_{looks['depth']}/attn_norm/scale"):
        looks["depth"] += 1
    if embedding := found("embed/embedding"):
        looks["vocab_size"], looks["width"] = embedding
    if positions := found("position/embedding"):
        looks["max_length"] = positions[0]
    if up := found("layer_0/mlp/up/kernel"):
        looks["hidden"] = up[1]
    if query := found("layer_0/attn/query/kernel"):
        looks["head_dim"] = query[1] // config.heads
    if (key := found("layer_0/attn/key/kernel")) and looks.get("head_dim"):
        looks["kv_heads"] = key[1] // looks["head_dim"]
    ours = {"hidden": config.hidden or 4 * config.width, "head_dim": config.dim, "kv_heads": config.group}
    hints = [
        f"the state looks like {field} {value}: pass {field}={value}"
        for field, value in looks.items()
        if value != ours.get(field, getattr(config, field))
    ]
    head = found("head/kernel") is not None
    if head != (not config.tie_embeddings):
        have = "has a head of its own" if head else "has no head, as one tied to the embedding"
        hints.append(f"the state {have}: pass tie_embeddings={not head}")
    return hints


# config.json -------------------------------------------------------------------------------------------------------

_PLAIN = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
_GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu": "geglu",
    "gelu_new": "geglu_tanh",
    "gelu_pytorch_tanh": "geglu_tanh",
    "relu": "reglu",
}
# What transformers 5 takes for a key that is not there; a size that is not there is an error.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": {"num_key_value_heads": None, "head_dim": None, "attention_bias": False, "mlp_bias": False},
    "mistral": {"num_key_value_heads": 8, "head_dim": None, "sliding_window": 4096},
    "qwen2": {"num_key_value_heads": 32, "head_dim": None, "use_sliding_window": False, "sliding_window": 4096},
    "qwen3": {
        "num_key_value_heads": 32,
        "head_dim": 128,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": 4096,
    },
}
for _name in _ROTARY:
    _DEFAULTS[_name] |= {"hidden_act": "silu", "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
for _name in ("qwen2", "qwen3"):
    _DEFAULTS[_name] |= {"max_window_layers": 28, "layer_types": None}
# Other words for the sizes of gpt2 that transformers takes too.
_GPT2_WORDS = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}


def config_from_hf(values: Mapping[str, Any]) -> TransformerConfig:
    """The configuration of a model by its `config.json`.

    Dropout is left at 0. `rope_parameters` and the older `rope_scaling` are both read.

    Raises ValueError for a model of another kind, a size that is not there, and every feature that the Transformer has
    not; the message names it.
    """
    kind = values.get("model_type")
    if kind not in _DEFAULTS:
        raise ValueError(f"model_type {kind!r}; known: {', '.join(_DEFAULTS)} (dense decoders)")
    if values.get("quantization_config"):
        raise ValueError("quantised weights (quantization_config): take the plain ones, or a .gguf file")
    if kind == "gpt2":
        values = {_GPT2_WORDS.get(key, key): value for key, value in values.items()}
    given = _Given(kind, values)
    return _gpt2_config(given) if kind == "gpt2" else _rotary_config(given)


class _Given(dict):
    """The entries of a `config.json` with the defaults of its kind."""

    def __init__(self, kind: str, values: Mapping[str, Any]):
        super().__init__(_DEFAULTS[kind] | dict(values))
        self.kind = kind

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"the configuration ({self.kind}) lacks {key}")

    def activation(self, key: str, known: Mapping[str, str]) -> str:
        if self[key] not in known:
            raise ValueError(f"{key} {self[key]!r} of {self.kind}; known: {', '.join(known)}")
        return known[self[key]]


def _gpt2_config(given: _Given) -> TransformerConfig:
    for key, neutral in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if given[key] != neutral:
            raise ValueError(f"{key}={given[key]} is a variant of gpt2 that flashjax has not")
    return TransformerConfig(
        vocab_size=given["vocab_size"],
        width=given["n_embd"],
        depth=given["n_layer"],
        heads=given["n_head"],
        hidden=_unless(given["n_inner"], 4 * given["n_embd"]),
        activation=given.activation("activation_function", _PLAIN),
        norm_epsilon=given["layer_norm_epsilon"],
        max_length=given["n_positions"],
        tie_embeddings=given["tie_word_embeddings"],
    )


def _rotary_config(given: _Given) -> TransformerConfig:
    kind, width, heads = given.kind, given["hidden_size"], given["num_attention_heads"]
    dim = _unless(given["head_dim"], 0 if width % heads else width // heads)
    bias = bool(given.get("attention_bias")) if kind in ("llama", "qwen3") else kind == "qwen2"
    window, rope = _sliding(given), RopeParameters.from_config(given)
    if rope.partial_rotary_factor != 1 and rope.rope_type != "proportional":
        raise ValueError(
            f"partial_rotary_factor {rope.partial_rotary_factor} of {kind}: transformers turns whole heads of these "
            "models, whatever it says, so take it out of the configuration"
        )
    return TransformerConfig(
        vocab_size=given["vocab_size"],
        width=width,
        depth=given["num_hidden_layers"],
        heads=heads,
        kv_heads=_unless(given["num_key_value_heads"], heads),
        head_dim=dim or 0,
        hidden=_unless(given["intermediate_size"], 4 * width),
        activation=given.activation("hidden_act", _GATED),
        norm="rmsnorm",
        norm_epsilon=given["rms_norm_eps"],
        qkv_bias=bias,
        out_bias=bias and kind != "qwen2",
        mlp_bias=kind == "llama" and bool(given["mlp_bias"]),
        qk_norm="both" if kind == "qwen3" else "none",
        position="rope",
        rope=rope,
        max_length=given["max_position_embeddings"],
        mixer_options=f"window={window}" if window else "",
        tie_embeddings=given["tie_word_embeddings"],
        initializer="normal",
    )


def _sliding(given: _Given) -> int:
    """The window of all layers, 0 for none; ValueError where layers differ."""
    if given.kind == "llama":
        return 0
    if given.kind == "mistral":
        window, types = given["sliding_window"], None
    else:
        window = given["sliding_window"] if given["use_sliding_window"] else None
        types = given["layer_types"]
        if types is None and window is not None:
            first = given["max_window_layers"]
            types = ["full_attention" if i < first else "sliding_attention" for i in range(given["num_hidden_layers"])]
    if types is not None:
        if len(set(types)) != 1:
            raise ValueError(f"layer_types {', '.join(sorted(set(types)))}: flashjax's layers are all of one type")
        if types[0] not in ("full_attention", "sliding_attention"):
            raise ValueError(f"layer_types {types[0]!r}; known: full_attention, sliding_attention")
        if types[0] == "full_attention":
            return 0
        if window is None:
            raise ValueError("layer_types are sliding_attention, but there is no sliding_window")
    return window or 0


def config_to_hf(config: TransformerConfig, layout: str | None = None) -> dict[str, Any]:
    """The `config.json` of a model: the inverse of `config_from_hf`, up to what only training and decoding see.

    Args:
        layout: the `model_type` to write; None: the most usual that fits.

    Raises:
        ConversionError: no layout fits, or not this one; the message names the fields.
        ValueError: rotary frequencies that transformers has not.
    """
    fitting = layouts(config)
    layout = layout or fitting[0]
    if layout not in _LAYOUTS:
        raise ConversionError(f"unknown layout {layout!r}; known: {', '.join(_LAYOUTS)}")
    if layout not in fitting:
        raise ConversionError(f"the {layout} layout has not {'; '.join(_differences(config, layout))}")
    common = {
        "architectures": [_CLASSES[layout]],
        "model_type": layout,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": "float32",
    }
    hidden = config.hidden or 4 * config.width
    if layout == "gpt2":
        return common | {
            "n_embd": config.width,
            "n_layer": config.depth,
            "n_head": config.heads,
            "n_inner": hidden,
            "n_positions": config.max_length,
            "activation_function": _word(_PLAIN, config.activation),
            "layer_norm_epsilon": config.norm_epsilon,
        }
    if config.rope.rope_type.startswith("ntk"):
        raise ValueError(f"rope_type {config.rope.rope_type!r} is flashjax's own: transformers has none like it")
    # Of dynamic it is the length from which on angles stretch.
    length = config.rope.original_max_position_embeddings if config.rope.rope_type == "dynamic" else config.max_length
    rotary = common | {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.group,
        "head_dim": config.dim,
        "intermediate_size": hidden,
        "hidden_act": _word(_GATED, config.activation),
        "rms_norm_eps": config.norm_epsilon,
        "max_position_embeddings": length,
        "rope_parameters": config.rope.to_dict(),
    }
    window = _window(config) or None
    if layout == "llama":
        return rotary | {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    if layout == "mistral":
        return rotary | {"sliding_window": window}
    kinds = {
        "use_sliding_window": bool(window),
        "sliding_window": window,
        "max_window_layers": 0 if window else config.depth,
    }
    return rotary | kinds | ({"attention_bias": config.qkv_bias} if layout == "qwen3" else {})


_CLASSES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def _word(words: Mapping[str, str], ours: str) -> str:
    return next(theirs for theirs, name in words.items() if name == ours)


def _unless(value: Any, default: Any) -> Any:
    return default if value is None else value
