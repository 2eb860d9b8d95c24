"""Text to tokens and back, behind one small protocol."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np


class StreamDecoder(Protocol):
    """Decodes tokens as they come; holds bytes back until their character is whole."""

    def __call__(self, ids: Iterable[int] | int) -> str:
        """The text that `ids` complete."""
        ...

    def finish(self) -> str:
        """What is left: a cut character becomes U+FFFD."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """V tokens, and what text each of them stands for."""

    @property
    def name(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [V]: bytes of UTF-8 text that each token stands for; 0 for special ones."""
        ...

    @property
    def eos(self) -> int | None: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def pad(self) -> int | None: ...
    @property
    def mask(self) -> int | None: ...
    @property
    def fingerprint(self) -> str:
        """Equal only where all text becomes the same tokens."""
        ...

    def encode(self, text: str, specials: bool = False) -> np.ndarray:
        """int32 [N]; with `specials`, special tokens written out in `text` become those tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The text; special tokens have none."""
        ...

    def stream(self) -> StreamDecoder: ...


def open_tokenizer(name_or_path: str | Path, mask_token: str | None = None) -> Tokenizer:
    """The tokenizer that `name_or_path` names (see `TextConfig.tokenizer`)."""
    raise NotImplementedError("being built")


def from_gguf(path: str | Path) -> Tokenizer:
    """The tokenizer that a GGUF file carries."""
    raise NotImplementedError("being built")
