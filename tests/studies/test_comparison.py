"""Comparisons without their training: tables and pages from lines, contestants, what is left out."""

import re

import pytest

from flashjax.studies import comparison_page as page


def line(name, seed=0, loss=2.0, table="causal", **more):
    return {
        **dict(table=table, name=name, family="all pairs" if name == "softmax" else "linear", options="", seed=seed),
        **dict(budget="b", steps=300, batch_size=16, length=256, parameters=930_000, loss=loss, accuracy=0.41),
        **dict(bits_per_byte=loss / 0.69, tokens_per_second=20_000.0 / loss, step_bytes=2**20 * 3, process_bytes=2**30),
        **dict(decode_seconds={"256": 1e-3, "1024": 3e-3 if name == "softmax" else 1e-3}),
        **dict(device_kind="cpu", devices=1, cores=2),
    } | more


LINES = [
    *(line("softmax", seed, loss) for seed, loss in ((0, 1.9), (1, 2.1))),
    *(line("taylor", seed, loss, step_bytes=None) for seed, loss in ((0, 1.8), (1, 1.8))),
    line("gau", 0, 3.0, decode_seconds={"256": 2e-3, "1024": None}),
    {**line("linformer"), "error": "error: linformer has no causal form"},
    line("linformer", loss=2.5, table="masked", decode_seconds={}),
    line("old", budget="a"),
]
LINES = [LINES[-1], *LINES[:-1]]


def test_the_table_has_means_deviations_and_reasons():
    text = page.markdown(LINES)
    first, second = text.split("Hidden tokens")
    heads, _, *body = [row for row in first.splitlines() if row.startswith("|")]
    cells = {row.split("|")[1].strip(): [c.strip() for c in row.strip("|").split("|")] for row in body}
    assert list(cells) == ["taylor", "softmax", "gau"]  # least loss first; another budget is not here
    heads = [c.strip() for c in heads.strip("|").split("|")]
    softmax, taylor, gau = (dict(zip(heads, cells[name], strict=True)) for name in ("softmax", "taylor", "gau"))
    assert softmax["loss"] == "2.000 ± 0.141" and softmax["parameters"] == "930,000"
    assert softmax["of softmax"] == "1.00x" and taylor["of softmax"] == "1.06x"  # the best of the seeds
    assert softmax["step memory"] == "3.0 MiB" and taylor["step memory"] == "n/a"
    assert softmax["ms/token at 1,024"] == "3.00" and gau["ms/token at 1,024"] == "n/a" and gau["loss"] == "3.000"
    assert "Not in it: linformer: linformer has no causal form" in first
    assert "300 steps of 16 rows of 256 tokens, 1,228,800 in all; 2 seeds; 1 x cpu, 2 cores." in first
    assert "2.500" in second and "ms/token" not in second
    assert "1 cells of the log had another budget" in second


def test_the_page_needs_nothing_beside_it(tmp_path):
    html = page.write(tmp_path / "figure.html", "Models <all>", LINES).read_text()
    assert "Models &lt;all&gt;" in html and not re.search(r"https?://|<script", html)
    assert (
        html.count("<svg") == 2
    )  # loss by speed, but not of the table with one model; decoding of the linear ones, and of softmax with them
    assert html.count("<h2>Decoding, linear</h2>") == 1 and "length 1024: 1" in html and "length 1024: 3" in html
    assert "linformer has no causal form" in html


def test_accuracy_stands_in_for_bits_where_bytes_are_not_known():
    lines = [{k: v for k, v in line("softmax").items() if k != "bits_per_byte"}]
    assert "accuracy" in page.markdown(lines) and "41.0%" in page.markdown(lines)


def test_a_log_of_failures_alone_is_drawn_too(tmp_path):
    failed = [{**line("gla"), "error": "error: not done"}]
    assert "no model is trained" in page.markdown(failed) and "Not in it: gla: not done" in page.markdown(failed)
    assert page.write(tmp_path / "figure.html", "x", failed).is_file()


@pytest.mark.parametrize("count", [1, 2])
def test_deviation_needs_two_seeds(count):
    row = page.Row("a", "linear", [line("a", seed, 2.0 + seed) for seed in range(count)])
    assert row.words("loss") == ("2.000" if count == 1 else "2.500 ± 0.707")
