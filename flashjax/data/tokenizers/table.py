"""What every tokenizer is (`Tokenizer`), and what all kinds share: a table of the bytes that each token stands for.

Legend: V tokens in the vocabulary, N tokens of a text.
"""

import codecs
import importlib
import re
from collections.abc import Iterable, Mapping, Sequence
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
UNKNOWN = " \u2047 "  # how an unknown token reads, as SentencePiece has it


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


def package(module: str, wanted_by: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"the tokenizer {wanted_by} needs the package {module}: pip install 'flashjax[text]'"
        ) from error
