"""The way of text into a run: documents, tokens, rows of one length, batches.

Batch k is a pure function of (seed, k), for any number of hosts: the order of the documents is drawn from (seed,
epoch), and so is the order of the rows that they are packed into (`flashjax/data/packing.py`). Documents are told apart
by `segment_ids`, unless they are to be read as one text.

Legend: B batch (rows over all hosts), P hosts, L tokens of a row, V tokens of the vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from flashjax.data import described
from flashjax.data.batches import Batches, check_seed
from flashjax.data.config import TextConfig
from flashjax.data.packing import EvalRows, Packing, TrainRows
from flashjax.data.text_sources import open_text
from flashjax.data.token_store import Documents, tokenise
from flashjax.data.tokenizers import Tokenizer, open_tokenizer

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
) -> tuple[Batches, Batches, LanguageInfo]:
    """The training stream and the evaluation set of a language model.

    Leaves of a batch (rows of this host):
        tokens: int32 [B/P, L]; L is `config.length`, and one more where causal: row r + 1 begins with the last token of
            row r, so that inputs `[:, :-1]` and targets `[:, 1:]` have each token once as a target.
        segment_ids: int32 [B/P, L], 1, 2, ... for the documents of a row and 0 for padding. Training batches of
            documents="joined" have none; their evaluation batches have ones, and zeros behind the end of the text.
        mask: float32 [B/P], in evaluation: 0 for the rows that fill the last batch up.

    Each document is `bos text eos`, as far as the tokenizer has these (joined: no bos where it is the eos). Training
    leaves what does not fill a row at the end of an epoch; evaluation pads it.

    Args:
        config: which text and how.
        data_dir: where it is, a directory or file; None for the embedded Bible.
        seed: of the order of documents and rows.
        process_index, process_count: which host this is, and of how many.
        causal: whether a row has a target for its last token; False for masked language models, which need a mask
            token.
    Returns:
        (training, evaluation, what the set holds).
    Raises:
        FileNotFoundError, ValueError, ImportError: the data or the tokenizer are not there or not as they should be;
            the message says what to do.
    """
    check_seed(seed)
    known = described.sizes() if data_dir is None and config.dataset != TextConfig().dataset else None
    tokenizer: Tokenizer
    if known is not None and known.vocab_size and config.tokenizer == TextConfig().tokenizer:
        tokenizer = described.Vocabulary(known.vocab_size)
    else:
        tokenizer = open_tokenizer(config.tokenizer, config.mask_token)
    if not causal and tokenizer.mask is None:
        raise ValueError(
            f"a masked language model needs a mask token, and the tokenizer {tokenizer.name} does not say which is "
            "its: name one of its tokens with --data.mask_token, or take --data.tokenizer bytes"
        )
    separate = config.documents == "separate"
    length, pad = config.length + causal, tokenizer.pad or 0
    row = ((length,), np.int32)
    leaves = {"tokens": row, "segment_ids": row} if separate else {"tokens": row}
    eval_leaves = {"tokens": row, "segment_ids": row, "mask": ((), np.float32)}
    if known is not None:
        steps = described.STEPS
        training: Any = described.Described(config.batch_size, leaves, steps, None)
        evaluation: Any = described.Described(config.eval_batch_size, eval_leaves, steps, steps)
        tokens = steps * config.batch_size * length
        name = f"{config.dataset} (described)"
        return (
            training,
            evaluation,
            LanguageInfo(name, tokenizer.vocab_size, tokenizer, tokens, tokens, tokenizer.token_bytes),
        )
    train, held_out = read_documents(config, data_dir, tokenizer)
    bos = None if tokenizer.bos == tokenizer.eos and not separate else tokenizer.bos

    def packing(documents: Documents, order: int | None) -> Packing:
        return Packing(documents, length, config.length, bos, tokenizer.eos, pad, order)

    train_packing, eval_packing = packing(train, seed), packing(held_out, None)
    if train_packing.tokens < length:
        raise ValueError(
            f"length {config.length} needs {length} tokens, but {train.name} has {train_packing.tokens} to train on: "
            f"want --data.length of at most {train_packing.tokens - causal}"
        )
    if eval_packing.tokens <= causal:
        raise ValueError(f"{held_out.name} has {eval_packing.tokens} tokens to evaluate on: hold more out")
    limit = config.eval_batches and config.eval_batches * config.eval_batch_size
    train_rows, eval_rows = TrainRows(train_packing, seed, separate), EvalRows(eval_packing, limit, separate)
    sizes, eval_sizes = ("batch_size", config.batch_size), ("eval_batch_size", config.eval_batch_size)
    steps, eval_steps = train_rows.rows // config.batch_size, math.ceil(eval_rows.rows / config.eval_batch_size)
    # A row is a slice of an array: one thread makes them in time.
    ahead = {"process": (process_index, process_count), "workers": 0, "threads": 1, "prefetch": config.prefetch}
    training = Batches(train_rows, leaves, sizes, None, steps, **ahead)
    evaluation = Batches(eval_rows, eval_leaves, eval_sizes, eval_steps, eval_steps, **ahead)
    name = train.name if train.name == held_out.name else f"{train.name} / {held_out.name}"
    info = LanguageInfo(
        name, tokenizer.vocab_size, tokenizer, train_packing.tokens, eval_packing.tokens, tokenizer.token_bytes
    )
    return training, evaluation, info


def read_documents(config: TextConfig, data_dir: str | None, tokenizer: Tokenizer) -> tuple[Documents, Documents]:
    """The documents to train and to evaluate on, in tokens; see `language`, also for what it raises."""
    train, held_out = open_text(config, data_dir)
    documents = tokenise(train, tokenizer, config.cache_dir, config.workers)
    if held_out is None:
        return documents.split(config.holdout)
    return documents, tokenise(held_out, tokenizer, config.cache_dir, config.workers)
