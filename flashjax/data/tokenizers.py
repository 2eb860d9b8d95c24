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

import codecs
import hashlib
import importlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

ROLES = ("pad", "bos", "eos", "mask")
# What the special tokens of public vocabularies are called, where no file beside them says which is which.
USUAL_NAMES = {
    "pad": ("<pad>", "[PAD]"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "[SEP]", "<|endoftext|>"),
    "mask": ("<mask>", "[MASK]"),
}
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
SPACE = "\u2581"  # how SentencePiece writes a space
UNKNOWN = " \u2047 "  # how it reads an unknown token


@runtime_checkable
class Tokenizer(Protocol):
    """V tokens, and what text each of them stands for."""

    @property
    def name(self) -> str:
        """What was asked for."""
        ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: bytes of UTF-8 text that each token stands for; 0 for special and unknown ones.

        Of the text as the tokenizer normalises it; SentencePiece's space before a text counts as one.
        """
        ...

    @property
    def pad(self) -> int | None: ...

    @property
    def bos(self) -> int | None:
        """What begins a text; None where texts begin without such a token."""
        ...

    @property
    def eos(self) -> int | None: ...

    @property
    def mask(self) -> int | None: ...

    @property
    def fingerprint(self) -> str:
        """Equal only where every text becomes the same tokens."""
        ...

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """The tokens of `text`, int32 [N], without bos and eos.

        What looks like a special token is text like any other, unless `specials` (for prompts that hold them).
        """
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special tokens have none, and bytes that are no UTF-8 become U+FFFD."""
        ...

    def stream(self) -> "StreamDecoder":
        """Decodes what continues a text, token by token."""
        ...


class StreamDecoder:
    """Decodes tokens as they come, and holds the bytes of a character back until it is whole.

    Args:
        pieces: the bytes of each token.
    """

    def __init__(self, pieces: Sequence[bytes]):
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, ids: int | Iterable[int]) -> str:
        """The text that `ids` complete; empty while a character is under way."""
        ids = ids if isinstance(ids, Iterable) else [ids]
        return self._decoder.decode(_join(self._pieces, ids))

    def finish(self) -> str:
        """The rest: U+FFFD where a character was cut."""
        return self._decoder.decode(b"", final=True)


def _join(pieces: Sequence[bytes], ids: Iterable[int]) -> bytes:
    numbers = [int(index) for index in ids]
    if bad := [index for index in numbers if not 0 <= index < len(pieces)]:
        raise ValueError(f"token {bad[0]} is not in the vocabulary: it has {len(pieces)}")
    return b"".join([pieces[index] for index in numbers])


class TableTokenizer:
    """What all kinds share; a kind adds `_encode(text) -> ids`.

    Args:
        name: what was asked for.
        pieces: V times the bytes that a token stands for.
        names: special tokens as they are written -> id.
        roles: `pad`, `bos`, `eos`, `mask` -> id, as far as there is one.
        fingerprint: of all that decides which tokens a text becomes.
        unknown: a token that stands for text nobody knows.
        leading_space: whether a text's first token says a space that the text does not have.
    """

    def __init__(
        self,
        name: str,
        pieces: Sequence[bytes],
        names: Mapping[str, int],
        roles: Mapping[str, int | None],
        fingerprint: str,
        unknown: int | None = None,
        leading_space: bool = False,
    ):
        self.name, self.vocab_size, self.fingerprint = name, len(pieces), fingerprint
        self.names = dict(names)
        self.pad, self.bos, self.eos, self.mask = (roles.get(role) for role in ROLES)
        self.token_bytes = np.array([len(piece) for piece in pieces], np.int32)
        self._pieces, self._leading_space = list(pieces), leading_space
        if unknown is not None:
            self.token_bytes[unknown] = 0
            self._pieces[unknown] = UNKNOWN.encode()

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        if not specials or not self.names:
            return np.asarray(self._encode(text), np.int32)
        longest_first = sorted(self.names, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
        ids = [[self.names[part]] if part in self.names else self._encode(part) for part in parts if part]
        return np.concatenate([np.asarray(part, np.int32) for part in ids] or [np.zeros(0, np.int32)])

    def decode(self, ids: Iterable[int]) -> str:
        text = _join(self._pieces, ids)
        return (text.removeprefix(b" ") if self._leading_space else text).decode("utf-8", "replace")

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self._pieces)

    def token(self, text: str) -> int | None:
        """The token that is written `text` in the vocabulary."""
        return self.names.get(text)

    def _encode(self, text: str) -> Sequence[int] | np.ndarray:
        raise NotImplementedError


class ByteTokenizer(TableTokenizer):
    """The 256 bytes of UTF-8, then special tokens in the order asked for, written `<eos>`.

    With all four the vocabulary is 260, which two or four devices of a tensor axis share evenly.
    """

    def __init__(self, specials: Sequence[str] = ROLES):
        unknown = sorted(set(specials) - set(ROLES))
        if unknown or len(set(specials)) != len(specials):
            what = f"no special token {unknown[0]!r}" if unknown else "a special token twice"
            raise ValueError(f"bytes:{','.join(specials)} names {what}: want some of {', '.join(ROLES)}")
        roles = {role: 256 + offset for offset, role in enumerate(specials)}
        pieces = [bytes([value]) for value in range(256)] + [b""] * len(specials)
        name = "bytes" if tuple(specials) == ROLES else f"bytes:{','.join(specials)}"
        super().__init__(name, pieces, {f"<{role}>": index for role, index in roles.items()}, roles, "bytes")

    def _encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode("utf-8"), np.uint8)


class SentencePieceTokenizer(TableTokenizer):
    """A SentencePiece model.

    Args:
        name: what was asked for.
        model: the serialised model.
        roles: ids of the special tokens; those not given are what the model says, or the usual names.
    """

    def __init__(self, name: str, model: bytes, roles: Mapping[str, int | None] | None = None):
        module = _package("sentencepiece", name)
        try:
            self._processor: Any = module.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{name} is no SentencePiece model: {error}") from error
        processor = self._processor
        pieces, names = [], {}
        for index in range(processor.vocab_size()):
            piece = processor.id_to_piece(index)
            if processor.is_byte(index):
                pieces.append(_byte(piece))
            elif processor.is_control(index) or processor.is_unknown(index) or processor.is_unused(index):
                pieces.append(b"")
                if processor.is_control(index):
                    names[piece] = index
            else:
                pieces.append(piece.replace(SPACE, " ").encode())
        found: dict[str, int | None] = {
            "pad": processor.pad_id(),
            "bos": processor.bos_id(),
            "eos": processor.eos_id(),
            "mask": next((self.token(usual) for usual in USUAL_NAMES["mask"] if self.token(usual) is not None), None),
        }
        found = {role: index for role, index in found.items() if index is not None and index >= 0} | dict(roles or {})
        super().__init__(
            name,
            pieces,
            names,
            found,
            hashlib.sha256(model).hexdigest(),
            processor.unk_id(),
            leading_space=processor.encode("a", out_type=str)[0].startswith(SPACE),
        )

    def token(self, text: str) -> int | None:
        index = self._processor.piece_to_id(text)
        return index if self._processor.id_to_piece(index) == text else None

    def _encode(self, text: str) -> Sequence[int]:
        return self._processor.encode(text)


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
        module = _package("tokenizers", name)
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
            return _gpt2(path.parent / vocabulary, path.parent / merges, name)
    if path.suffix == ".json":
        text = path.read_text(encoding="utf-8")
        return HuggingFaceTokenizer(name, text, _configured(path.parent, json.loads(text)))
    raise ValueError(f"{path} is no tokenizer: want *.model, tokenizer.json, encoder.json with vocab.bpe, or *.gguf")


def _configured(directory: Path, spec: Mapping[str, Any]) -> dict[str, int | None]:
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


def _gpt2(vocabulary: Path, merges: Path, name: str) -> HuggingFaceTokenizer:
    for file in (vocabulary, merges):
        if not file.exists():
            raise FileNotFoundError(f"no {file}: GPT-2's tokenizer is two files, {vocabulary.name} and {merges.name}")
    lines = merges.read_text(encoding="utf-8").split("\n")
    pairs = [line for line in lines[lines[0].startswith("#version") :] if line]
    tokens = json.loads(vocabulary.read_text(encoding="utf-8"))
    special = [token for token in ("<|endoftext|>", "<|pad|>") if token in tokens]
    return HuggingFaceTokenizer(name, _byte_level(tokens, pairs, special, [], "gpt-2", name))


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


def _byte_level(
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
    module = _package("tokenizers", name)
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


def from_gguf(path: str | Path) -> TableTokenizer:
    """The tokenizer that a GGUF file carries (keys `tokenizer.ggml.*`), of type `gpt2` or `llama`.

    bos is None where the file says that texts begin without one (`add_bos_token`).

    Raises:
        FileNotFoundError, ValueError: no such file, no tokenizer in it, or one of another type.
        ImportError: gguf, or the package of that type, is not installed.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    fields = _package("gguf", str(path)).GGUFReader(path).fields

    def field(key: str, default: Any = None) -> Any:
        found = fields.get(f"tokenizer.ggml.{key}")
        return default if found is None else found.contents()

    kind, tokens = field("model"), field("tokens")
    if kind not in ("gpt2", "llama"):
        what = "no tokenizer" if kind is None else f"a tokenizer of type {kind!r}"
        raise ValueError(f"{path} holds {what}; known types: gpt2, llama")
    keys = {"pad": "padding", "bos": "bos", "eos": "eos", "mask": "mask"}
    roles = {role: field(f"{key}_token_id") for role, key in keys.items()}
    if field("add_bos_token") is False:
        roles["bos"] = None
    types = field("token_type", [1] * len(tokens))
    if kind == "llama":
        scores, prefix = field("scores"), bool(field("add_space_prefix", True))
        squeeze = bool(field("remove_extra_whitespaces", False))
        return SentencePieceTokenizer(str(path), _sentencepiece_model(tokens, scores, types, prefix, squeeze), roles)
    special = [token for token, type in zip(tokens, types, strict=True) if type == 3]
    added = [token for token, type in zip(tokens, types, strict=True) if type == 4]
    ids = {token: index for index, token in enumerate(tokens)}
    text = _byte_level(ids, field("merges"), special, added, field("pre", "no name"), str(path))
    return HuggingFaceTokenizer(str(path), text, roles)


def _sentencepiece_model(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], prefix: bool, squeeze: bool
) -> bytes:
    """The model file again of which a GGUF holds the pieces; the numbers of the types are SentencePiece's own."""
    schema: Any = importlib.import_module("sentencepiece.sentencepiece_model_pb2")
    model = schema.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind)
    model.trainer_spec.model_type = schema.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = 6 in types
    model.trainer_spec.vocab_size = len(tokens)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = prefix
    model.normalizer_spec.remove_extra_whitespaces = squeeze
    return model.SerializeToString()


def _decoder(spec: Mapping[str, Any] | None, name: str):
    """(piece -> bytes, whether a text's first token says a space too many) for the decoder of a tokenizer.json."""
    steps = [] if spec is None else spec["decoders"] if spec["type"] == "Sequence" else [spec]
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        alphabet = _byte_alphabet()
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
                return _byte(piece)
            return piece.replace(SPACE, " ").encode()

        return sentence_piece, leading
    if not steps:
        return lambda piece: f" {piece}".encode(), True  # words, which the package joins by spaces
    known = "ByteLevel, WordPiece, BPEDecoder, Metaspace, Replace with ByteFallback"
    raise ValueError(f"{name} has a decoder of {', '.join(kinds)}; known: {known}")


def _byte(piece: str) -> bytes:
    """The byte that `<0x0A>` names."""
    return bytes([int(piece[3:5], 16)])


def _byte_alphabet() -> dict[str, bytes]:
    """Character -> byte in byte-level vocabularies: a byte with a visible Latin-1 character is that one, the others are
    the characters from U+0100 on, in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [value for value in range(256) if value not in visible]
    characters = [chr(value) for value in visible] + [chr(256 + i) for i in range(len(hidden))]
    return {char: bytes([value]) for char, value in zip(characters, visible + hidden, strict=True)}


def _package(module: str, wanted_by: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the tokenizer {wanted_by} needs the package {module}: pip install 'flashjax[text]'"
        ) from error
