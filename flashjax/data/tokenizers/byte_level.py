"""Byte-level BPE (GPT-2 and after it): from a vocabulary and merges to the JSON of the package `tokenizers`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from flashjax.data.tokenizers.table import package

GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))

# Where a text is cut before pairs of bytes are merged, as the vocabularies' own tokenizer.json say it; the names are
# those of GGUF. None: GPT-2's own expression, which the package has built in.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS: dict[str, tuple[str, ...] | None] = {
    "gpt-2": None,
    "smollm": ("digits",),
    "starcoder": ("digits",),
    "llama-bpe": (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_REST}",),
    "qwen2": (rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_REST}",),
}


def byte_level(
    tokens: Mapping[str, int],
    merges: Sequence[str],
    special: Sequence[str],
    added: Sequence[str],
    split: str,
    name: str,
) -> str:
    """The JSON of a byte-level BPE tokenizer.

    Args:
        tokens: token, in the alphabet of bytes -> id.
        merges: pairs, the most wanted first.
        special, added: tokens that are no text, and text that is one token whatever stands around it.
        split: a key of `_SPLITS`.
    """
    module = package("tokenizers", name)
    if split not in _SPLITS:
        raise ValueError(f"{name} splits text the way of {split!r}; known: {', '.join(_SPLITS)}")
    pairs = [tuple(pair.split(" ")) for pair in merges]
    # Llama 3 takes a word that is a token as it is, whatever its merges make of it.
    model = module.models.BPE(vocab=dict(tokens), merges=pairs, ignore_merges=split == "llama-bpe")
    tokenizer = module.Tokenizer(model)
    steps = module.pre_tokenizers
    rule = _SPLITS[split]
    if rule is None:
        tokenizer.pre_tokenizer = steps.ByteLevel(add_prefix_space=False)
    elif rule == ("digits",):
        tokenizer.pre_tokenizer = steps.Sequence([steps.Digits(individual_digits=True), steps.ByteLevel(False)])
    else:
        cut = steps.Split(module.Regex(rule[0]), behavior="isolated")
        tokenizer.pre_tokenizer = steps.Sequence([cut, steps.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = module.decoders.ByteLevel()
    tokenizer.add_special_tokens([module.AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.add_tokens([module.AddedToken(t, special=False, normalized=False) for t in added])
    return tokenizer.to_str()


def gpt2(vocabulary: Path, merges: Path, name: str) -> str:
    """The same of GPT-2's two files. Raises FileNotFoundError where one is not there."""
    for file in (vocabulary, merges):
        if not file.exists():
            raise FileNotFoundError(f"no {file}: GPT-2's tokenizer is two files, {vocabulary.name} and {merges.name}")
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [line for line in lines[lines[0].startswith("#version") :] if line]
    tokens = json.loads(vocabulary.read_text(encoding="utf-8"))
    special = [token for token in ("<|endoftext|>", "<|pad|>") if token in tokens]
    return byte_level(tokens, pairs, special, [], "gpt-2", name)


def byte_alphabet() -> dict[str, bytes]:
    """Character -> byte in byte-level vocabularies: a byte with a visible Latin-1 character is that one, the others are
    the characters from U+0100 on, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in visible]
    characters = [chr(value) for value in visible] + [chr(256 + i) for i in range(len(hidden))]
    return {char: bytes([value]) for char, value in zip(characters, visible + hidden, strict=True)}
