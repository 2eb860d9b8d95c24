"""Text into batches: a pure function of (seed, k) for any number of hosts, documents apart, every token once."""

import dataclasses
import json

import numpy as np
import pytest

from flashjax.data import TextConfig, batches, language, packing, prepare_text
from flashjax.data.packing import EvalRows, Packing, TrainRows
from flashjax.data.text_sources import JsonLines
from flashjax.data.tokenizers import open_tokenizer
from tests.data.helpers import documents, equal, forbid, texts

CONFIG = TextConfig(dataset="jsonl", length=16, batch_size=4, eval_batch_size=4, holdout=0.2)
BYTES = open_tokenizer("bytes")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    where = tmp_path_factory.mktemp("text")
    (where / "train.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts()))
    (where / "valid.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(9, seed=1)))
    return str(where)


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


def test_masked_models_read_rows_that_do_not_overlap(root):
    train, evaluation, _ = language(CONFIG, root, 0, causal=False)
    assert train.spec["tokens"].shape == evaluation.spec["tokens"].shape == (4, 16)
    with pytest.raises(ValueError, match=r"needs a mask token, .* bytes:eos does not say .* --data\.mask_token"):
        language(dataclasses.replace(CONFIG, tokenizer="bytes:eos"), root, 0, causal=False)
    assert language(dataclasses.replace(CONFIG, tokenizer="bytes:eos"), root, 0)[2].tokenizer.mask is None


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
