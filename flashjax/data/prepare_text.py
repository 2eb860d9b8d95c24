"""Text -> the token cache that flashjax trains from.

    python -m flashjax.data.prepare_text --dataset c4/en --data_dir DIR --tokenizer MODEL --cache_dir OUT

A run makes the cache itself if it is not there. Making it ahead of time is for large text and for many hosts: they then
find it in OUT (a directory that all of them see), with the same flags below `--data.`. What is there already stays.
"""

import argparse
import logging
import sys
from pathlib import Path

from flashjax.data.config import TextConfig
from flashjax.data.text import read_documents
from flashjax.data.token_store import default_cache
from flashjax.data.tokenizers import open_tokenizer


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 when the cache is there, 2 when something is missing."""
    parser = argparse.ArgumentParser(
        prog="python -m flashjax.data.prepare_text",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dataset", default="text", help="text, jsonl, kjv or the name of a TFDS set")
    parser.add_argument("--data_dir", help="directory or file of the text")
    parser.add_argument("--tokenizer", default="bytes", help="bytes, or a tokenizer's file or directory")
    parser.add_argument("--cache_dir", type=Path, default=default_cache(), help="where the tokens go (%(default)s)")
    parser.add_argument("--document_separator", help="text: `blank`, or the string that ends a document")
    parser.add_argument("--text_key", help="jsonl, TFDS: where the text of a record is")
    parser.add_argument("--workers", type=int, help="processes (default: one for each core)")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        config = TextConfig(
            dataset=args.dataset,
            tokenizer=args.tokenizer,
            document_separator=args.document_separator,
            text_key=args.text_key,
            cache_dir=str(args.cache_dir),
            workers=args.workers,
        )
        parts = read_documents(config, args.data_dir, open_tokenizer(config.tokenizer))
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for use, documents in zip(("train on", "evaluate on"), parts, strict=True):
        tokens = int((documents.ends - documents.starts).sum())
        print(f"{documents.name}: {len(documents):,} documents, {tokens:,} tokens to {use}")
    print(f"ready in {args.cache_dir}. Train with: --data.cache_dir {args.cache_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
