"""Text to tokens and back, behind one small protocol.

| kind | named by | package |
|---|---|---|
| bytes of UTF-8, and special tokens | `bytes`, `bytes:eos` | none |
| SentencePiece | `*.model` | sentencepiece |
| Hugging Face | `tokenizer.json`, or a directory with it | tokenizers |
| GPT-2's byte-level BPE | a directory: `encoder.json`, `vocab.bpe` (`vocab.json`, `merges.txt`) | tokenizers |
| what a GGUF file carries | `*.gguf` | gguf and one of the two above |

Every token stands for some bytes (special ones for none), so decoding is a table, a text's bytes are the sum over its
tokens, and a stream of tokens is decoded without breaking a character.

Legend: V tokens in the vocabulary, N tokens of a text.
"""

import json
from pathlib import Path

from flashjax.data.tokenizers.byte_level import GPT2_FILES, gpt2
from flashjax.data.tokenizers.gguf import from_gguf
from flashjax.data.tokenizers.hugging_face import HuggingFaceTokenizer, roles_beside
from flashjax.data.tokenizers.sentence_piece import SentencePieceTokenizer
from flashjax.data.tokenizers.table import ROLES, ByteTokenizer, StreamDecoder, TableTokenizer, Tokenizer

__all__ = ["StreamDecoder", "TableTokenizer", "Tokenizer", "from_gguf", "open_tokenizer"]


def open_tokenizer(name_or_path: str | Path, mask_token: str | None = None) -> TableTokenizer:
    """The tokenizer that `name_or_path` names.

    Args:
        name_or_path: see the table above.
        mask_token: the token of the vocabulary that hides others in masked language models; None: the one that the
            vocabulary has for it, if any.
    Raises:
        FileNotFoundError: neither a name nor a file or directory.
        ValueError: a file of another kind, or no such mask token.
        ImportError: the package of that kind is not installed; the message names the extra.
    """
    name = str(name_or_path)
    kind, _, specials = name.partition(":")
    path = Path(name_or_path).expanduser()
    if kind == "bytes":
        tokenizer: TableTokenizer = ByteTokenizer(specials.split(",") if specials else ROLES)
    elif not path.exists():
        raise FileNotFoundError(
            f"no tokenizer {name!r}: want `bytes`, or a file or directory (*.model, tokenizer.json, encoder.json with "
            "vocab.bpe, *.gguf)"
        )
    else:
        tokenizer = _open(_inside(path), name)
    if mask_token is not None:
        tokenizer.mask = tokenizer.token(mask_token)
        if tokenizer.mask is None:
            has = ", ".join(tokenizer.names) or "none"
            raise ValueError(f"{name} has no token {mask_token!r} to mask with; its special tokens: {has}")
    return tokenizer


def _inside(path: Path) -> Path:
    """The file of a tokenizer that a directory holds."""
    if path.is_file():
        return path
    for name in ("tokenizer.json", *(vocabulary for vocabulary, _ in GPT2_FILES)):
        if (path / name).exists():
            return path / name
    found = sorted([*path.glob("*.model"), *path.glob("*.gguf")])
    if len(found) == 1:
        return found[0]
    what = f"several ({', '.join(file.name for file in found)}): name one" if found else "none"
    raise FileNotFoundError(
        f"a directory names the tokenizer in it, and {path} has {what}; looked for tokenizer.json, encoder.json, "
        "vocab.json, *.model, *.gguf"
    )


def _open(path: Path, name: str) -> TableTokenizer:
    if path.suffix == ".gguf":
        return from_gguf(path)
    if path.suffix == ".model":
        return SentencePieceTokenizer(name, path.read_bytes())
    for vocabulary, merges in GPT2_FILES:
        if path.name in (vocabulary, merges):
            return HuggingFaceTokenizer(name, gpt2(path.parent / vocabulary, path.parent / merges, name))
    if path.suffix == ".json":
        text = path.read_text(encoding="utf-8")
        return HuggingFaceTokenizer(name, text, roles_beside(path.parent, json.loads(text)))
    raise ValueError(f"{path} is no tokenizer: want *.model, tokenizer.json, encoder.json with vocab.bpe, or *.gguf")
