"""Probes of length: their rows, and what they find of a model that copies, whole or within a window."""

import csv
import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.evaluation import length_methods, length_report
from flashjax.evaluation.length import ProbeConfig, Subject, by_bucket, measure, passages, probes, study, token_scores
from flashjax.layers.positions import RopeParameters
from flashjax.models.transformer import TransformerConfig

L = 48
CONFIG = ProbeConfig(multiples=(1, 2, 4), rows=3, depths=3, trials=2, alphabet="xyz", key_length=3, batch=4)
DRAW = np.random.default_rng(0)
TEXTS = [DRAW.integers(256, 512, 700), DRAW.integers(256, 512, 30), DRAW.integers(256, 512, 250)]


def encode(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Copies:
    """Says what last followed the same three tokens, nearer than `window`; 90 % sure. Otherwise it guesses evenly."""

    window: int = 10**6

    def apply(self, variables, tokens):
        past = jnp.stack(
            [jnp.pad(tokens, ((0, 0), (n, 0)), constant_values=-1)[:, : tokens.shape[1]] for n in range(3)]
        )
        before = jnp.pad(past, ((0, 0), (0, 0), (1, 0)), constant_values=-2)[..., :-1]  # context of each token
        same = (past[:, :, :, None] == before[:, :, None, :]).all(0)
        i = jnp.arange(tokens.shape[1])
        same &= (i[None] <= i[:, None]) & (i[:, None] - i[None] < self.window)
        last = jnp.where(same, i, -1).max(-1)
        told = jnp.take_along_axis(tokens, jnp.maximum(last, 0), 1)
        sure = jax.nn.one_hot(told, 512) * math.log(0.9 * 511 / 0.1)
        return jnp.where((last >= 0)[..., None], sure, 0.0)


@pytest.fixture(scope="module")
def rows():
    return probes(CONFIG, TEXTS, encode, L)


def test_all_lengths_end_with_the_same_tokens(rows):
    assert {k: probe.length for k, probe in rows.items()} == {1: L, 2: 2 * L, 4: 4 * L}
    longest = rows[4].tokens[:3]
    for probe in rows.values():
        assert probe.tokens.shape == (3 + 3 + 6, probe.length + 1) and probe.last == L // 2
        natural, repeated = probe.tokens[:3], probe.tokens[3:6]
        np.testing.assert_array_equal(natural, longest[:, -probe.length - 1 :])
        half = probe.length // 2 + 1
        np.testing.assert_array_equal(repeated[:, -half:], natural[:, -half:])
        np.testing.assert_array_equal(repeated[:, -half - probe.last : -half], natural[:, -probe.last :])
    for row in longest:  # a piece of one document
        text = row.astype(np.uint16).tobytes()
        assert any(text in document.astype(np.uint16).tobytes() for document in TEXTS)


def test_keys_lie_at_their_depths(rows):
    for probe in rows.values():
        for i, row in enumerate(probe.tokens[6:]):
            text = "".join(chr(t) if t < 256 else "." for t in row)
            found = re.search(r"\nThe key is ([xyz]{3})\.\n", text)
            assert found and text.endswith(f"\nThe key is {found[1]}") and len(text) == probe.length + 1
            room = len(text) - len(found[0]) - len("\nThe key is xyz")
            assert found.start() == round(room * (i // 2) / 2)


def test_a_model_that_copies_finds_what_it_can_see(rows):
    """Whole: every key, every repeated token. Within 60 tokens: none that lies further back."""
    for k, probe in rows.items():
        whole = measure(Copies(), {}, probe)
        begin = 3 / 24 if k == 1 else 0  # the repeat begins there: its first three tokens have another context
        assert whole["accuracy"] == 0 and whole["repeated_accuracy"] == 1 - begin
        assert whole["passkey"] == whole["passkey_exact"] == [1.0, 1.0, 1.0]
        assert whole["loss"] == pytest.approx(math.log(512), rel=1e-5)
        assert whole["repeated_loss"] == pytest.approx(begin * math.log(512) - (1 - begin) * math.log(0.9), rel=1e-4)
        near = measure(Copies(60), {}, probe)
        assert near["repeated_accuracy"] == (1 - begin if k <= 2 else 0.0)
        assert near["passkey_exact"] == ([1.0] * 3 if k == 1 else [0.0, 1.0, 1.0] if k == 2 else [0.0, 0.0, 1.0])


def test_scores_do_not_depend_on_the_batch(rows):
    tokens = rows[1].tokens[:5]
    for batch in (2, 5):
        nats, right = token_scores(Copies(), {}, tokens, batch)
        assert nats.shape == right.shape == (5, L)
        alone, _ = token_scores(Copies(), {}, tokens[4:], 1)
        np.testing.assert_allclose(nats[4:], alone)


def test_buckets_of_positions():
    assert by_bucket([1.0, 3.0, 5.0, 7.0, 2.0], 2) == [(2, 2.0), (4, 6.0), (5, 2.0)]


def test_passages_are_even_and_whole():
    texts = [np.arange(10), np.arange(100, 104)]
    assert passages(texts, 4, 4)[:, 0].tolist() == [0, 2, 4, 6]
    assert passages(texts, 4, 2, first=0.99)[:, 0].tolist() == [3, 100]
    with pytest.raises(ValueError, match=r"has the 11 tokens .* longest has 10"):
        passages(texts, 11, 1)


def test_wrong_probes_are_named():
    with pytest.raises(ValueError, match="multiples must be rising"):
        ProbeConfig(multiples=(2, 1))
    with pytest.raises(ValueError, match=r"has no \{key\}"):
        ProbeConfig(needle="key")
    with pytest.raises(ValueError, match="no room for the needle"):
        probes(dataclasses.replace(CONFIG, needle="{key}" + "x" * L), TEXTS, encode, L)
    with pytest.raises(ValueError, match=r"last .30. must be at most half"):
        probes(dataclasses.replace(CONFIG, last=30), TEXTS, encode, L)


def test_a_study_as_table_files_and_page(rows, tmp_path):
    subjects = [
        Subject("baseline", "as it is", lambda k: Copies(), {}),
        Subject("rerope", "distances", lambda k: Copies(60 * k), {}),
    ]
    lines = study(subjects, rows)
    assert [(line["multiple"], line["made_for"]) for line in lines[:4]] == [(1, 1), (2, 2), (4, 4), (1, 4)]
    table = length_report.text_table(lines).splitlines()
    assert [cell.strip() for cell in table[0].split("|")[1:-1]][:5] == ["method", "1x", "2x", "4x", "1x, made for 4x"]
    assert [cell.strip() for cell in table[2].split("|")[-4:-1]] == ["100.0 %", "100 %", "100 %"]
    (general,) = length_report.cautions(lines, 1 / 3)
    assert "may be noise" in general
    blind = [line | {"repeated_accuracy": 0.01, "passkey": [0.1]} for line in lines]
    assert "hardly copies" in length_report.cautions(blind, 1 / 3)[1] and "finds no keys" in "".join(
        length_report.cautions(blind, 1 / 3)
    )
    json_file, csv_file = length_report.write_files(tmp_path, lines, {"trained_length": L})
    assert json.loads(json_file.read_text())["lines"] == lines
    read = list(csv.DictReader(csv_file.open()))
    assert len(read) == 8 and float(read[0]["loss"]) == lines[0]["loss"] and read[0]["passkey_depth_50"] == "1.0"
    page = length_report.write_figure(tmp_path / "figure.html", "A & B", lines, L, ["<note>"], 1 / 3).read_text()
    assert "A &amp; B" in page and "&lt;note&gt;" in page and "Guessing finds 33%" in page
    assert page.count('class="heat"') == 2 and page.count("<svg") == 2 + 3
    assert not re.search(r"https?://|<script|@import|url\(", page)


# What a method does to a configuration.

SMALL = TransformerConfig(vocab_size=8, width=16, depth=5, heads=2, position="rope")


@pytest.mark.parametrize("name", length_methods.METHODS)
def test_every_method_is_a_configuration(name):
    made = length_methods.changed(SMALL, name, 128, 16)
    assert (made == SMALL) == (name == "baseline")
    assert dataclasses.replace(made, rope=SMALL.rope, extension=SMALL.extension) == SMALL
    length_methods.changed(SMALL, name, 128, 1)


@pytest.mark.parametrize("name", length_methods.TRAINED)
def test_every_trained_model_is_a_configuration_whatever_the_frequencies(name):
    made = length_methods.trained(dataclasses.replace(SMALL, rope=RopeParameters(rope_theta=1e5)), name, 128)
    assert (made.rope.rope_theta == 1e5) == (made.position == "rope")


def test_distances_of_the_methods_stay_within_training():
    from flashjax.layers.extension import distances

    for name in ("rerope", "leaky_rerope", "self_extend", "dual_chunk", "window", "sinks", "lambda"):
        for s in (1, 6):
            table = distances(length_methods.changed(SMALL, name, 32, s).extension, 192)[: 32 * s, : 32 * s]
            assert np.nanmax(table) <= 31, (name, s)


def test_models_to_be_trained():
    made = {name: length_methods.trained(SMALL, name, 128) for name in length_methods.TRAINED}
    assert made["rope"] == SMALL and made["alibi"].position == "alibi" and made["key_norm"].qk_norm == "keys"
    hwfa = made["hwfa"]
    window = hwfa.make_mixer().window
    assert (window - 1) * 4 + 1 <= 96 < window * 4 + 1 and hwfa.make_mixer(last=True).window == 0
    # A factor that was trained stays with whatever else is changed.
    assert length_methods.changed(made["log_n"], "rerope", 128, 2).extension.log_n == "plain"


def test_names_of_methods():
    assert length_methods.parse("rerope") == ("rope", "rerope") and length_methods.family("rerope") == "distances"
    assert length_methods.parse("log_n") == ("rope", "log_n") and length_methods.parse("alibi") == ("alibi", "baseline")
    assert length_methods.parse("key_norm/yarn") == ("key_norm", "yarn")
    assert length_methods.family("log_n/baseline") == "trained"
    with pytest.raises(ValueError, match="unknown method 'rerop'; nearest: rerope"):
        length_methods.parse("rerop")
    with pytest.raises(ValueError, match="position='alibi'"):
        length_methods.changed(length_methods.trained(SMALL, "alibi", 128), "rerope", 128, 2)
    scaled = length_methods.changed(SMALL, "yarn", 128, 4)
    with pytest.raises(ValueError, match="scaled already"):
        length_methods.changed(scaled, "ntk", 128, 2)
