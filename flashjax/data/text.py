"""The way of text into a run: documents, tokens, rows of one length, batches."""

from dataclasses import dataclass

import numpy as np

from flashjax.data.config import TextConfig
from flashjax.data.tokenizers import Tokenizer

__all__ = ["LanguageInfo", "TextConfig", "language"]


@dataclass(frozen=True)
class LanguageInfo:
    """What a text data set holds, and in which tokens.

    Attributes:
        name: what it is called.
        vocab_size: V.
        tokenizer: turns text into tokens and back.
        train_tokens, eval_tokens: tokens of one pass, with those that begin and end a document.
        token_bytes: int32 [V], bytes of text that each token stands for (0: special), for bits per byte.
    """

    name: str
    vocab_size: int
    tokenizer: Tokenizer
    train_tokens: int
    eval_tokens: int
    token_bytes: np.ndarray


def language(
    config: TextConfig,
    data_dir: str | None,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
    causal: bool = True,
):
    """(training pipeline, evaluation pipeline, LanguageInfo); leaves as in the contract of issue 5."""
    raise NotImplementedError("being built")
