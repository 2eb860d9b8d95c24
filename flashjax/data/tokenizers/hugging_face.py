"""Tokenizers of the package `tokenizers`, from their tokenizer.json."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashjax.data.tokenizers.byte_level import byte_alphabet
from flashjax.data.tokenizers.sentence_piece import SPACE, byte_named
from flashjax.data.tokenizers.table import ROLES, USUAL_NAMES, TableTokenizer, package


class HuggingFaceTokenizer(TableTokenizer):
    """A tokenizer of the package `tokenizers`; its normaliser, splitter, model and added tokens are all in its JSON.

    Args:
        name: what was asked for.
        text: the JSON.
        roles: ids of the special tokens; those not given are found by the usual names.
    """

    def __init__(self, name: str, text: str, roles: Mapping[str, int | None] | None = None):
        self._text = text
        self._load(name)
        spec = json.loads(text)
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        added = self._tokenizer.get_added_tokens_decoder()
        pieces = [b""] * (max(vocabulary.values()) + 1)
        convert, leading_space = _decoder(spec["decoder"], name)
        for piece, index in vocabulary.items():
            if index in added:
                pieces[index] = b"" if added[index].special else piece.encode()
            else:
                pieces[index] = convert(piece)
        found = {
            role: next((vocabulary[n] for n in names if n in vocabulary), None) for role, names in USUAL_NAMES.items()
        }
        unknown = spec["model"].get("unk_token")
        if spec["model"]["type"] == "Unigram" and spec["model"].get("unk_id") is not None:
            unknown = spec["model"]["vocab"][spec["model"]["unk_id"]][0]
        super().__init__(
            name,
            pieces,
            {token.content: index for index, token in added.items() if token.special},
            found | dict(roles or {}),
            hashlib.sha256(self._tokenizer.to_str().encode()).hexdigest(),
            vocabulary.get(unknown) if unknown is not None else None,
            leading_space,
        )

    def _load(self, name: str) -> None:
        module = package("tokenizers", name)
        try:
            self._tokenizer: Any = module.Tokenizer.from_str(self._text)
        except Exception as error:  # the package raises nothing narrower
            raise ValueError(f"{name} is no tokenizer.json: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # what looks like a special token is text

    def token(self, text: str) -> int | None:
        return self._tokenizer.token_to_id(text)

    def _encode(self, text: str) -> Sequence[int]:
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def __getstate__(self) -> dict[str, Any]:  # the package's own pickle forgets `encode_special_tokens`
        return {key: value for key, value in self.__dict__.items() if key != "_tokenizer"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load(self.name)


def roles_beside(directory: Path, spec: Mapping[str, Any]) -> dict[str, int | None]:
    """What the files beside a tokenizer.json say about the special tokens."""
    settings: dict[str, Any] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if (directory / file).exists():
            settings |= json.loads((directory / file).read_text(encoding="utf-8"))
    ids = {token["content"]: token["id"] for token in spec.get("added_tokens", [])}
    roles: dict[str, int | None] = {}
    for role in ROLES:
        if f"{role}_token" in settings:
            entry = settings[f"{role}_token"]
            roles[role] = ids.get(entry["content"] if isinstance(entry, dict) else entry)
    if settings.get("add_bos_token") is False:
        roles["bos"] = None
    return roles


def _decoder(spec: Mapping[str, Any] | None, name: str):
    """(piece -> bytes, whether a text's first token says a space too many) for the decoder of a tokenizer.json."""
    steps = [] if spec is None else spec["decoders"] if spec["type"] == "Sequence" else [spec]
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()
        return lambda piece: b"".join(alphabet[char] if char in alphabet else char.encode() for char in piece), False
    if "WordPiece" in kinds:
        prefix = kinds["WordPiece"]["prefix"]

        def word_piece(piece: str) -> bytes:
            return (piece.removeprefix(prefix) if piece.startswith(prefix) else f" {piece}").encode()

        return word_piece, True
    if "BPEDecoder" in kinds:
        suffix = kinds["BPEDecoder"]["suffix"]
        return lambda piece: piece.replace(suffix, " ").encode(), False
    replaced = [step for step in steps if step["type"] == "Replace" and step["pattern"] == {"String": SPACE}]
    if "Metaspace" in kinds or replaced:
        fallback, metaspace = "ByteFallback" in kinds, kinds.get("Metaspace", {})
        leading = "Strip" in kinds or metaspace.get("prepend_scheme", "never") != "never"

        def sentence_piece(piece: str) -> bytes:
            if fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
                return byte_named(piece)
            return piece.replace(SPACE, " ").encode()

        return sentence_piece, leading
    if not steps:
        return lambda piece: f" {piece}".encode(), True  # words, which the package joins by spaces
    known = "ByteLevel, WordPiece, BPEDecoder, Metaspace, Replace with ByteFallback"
    raise ValueError(f"{name} has a decoder of {', '.join(kinds)}; known: {known}")
