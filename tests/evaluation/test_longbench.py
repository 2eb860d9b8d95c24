"""LongBench's metrics against values worked out by hand, its files, and what becomes of an input that is too long."""

import json

import numpy as np
import pytest

from flashjax.evaluation import longbench
from flashjax.evaluation.longbench import TASKS, middle_truncated, read, run, score


@pytest.mark.parametrize(
    ("metric", "prediction", "answer", "value"),
    [
        # {cat, sat} of 3 and of 2 words, without article and comma.
        ("qa_f1", "The cat, sat down", "a Cat sat", 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("qa_f1", "", "x", 0.0),
        # Sentences "the cat sat", " it ran": common {the, cat, it} of 5 and of 5 different words.
        ("rouge_l", "the cat sat. it ran", "the cat lay. it slept", 0.6),
        ("rouge_l", "b a", "a b", 0.5),  # one of two words in order
        ("rouge_l", "...", "a", 0.0),
        ("count", "3 or 4, so 3", "3", 2 / 3),
        ("count", "none", "3", 0.0),
        ("retrieval", "Paragraph 12 or 3", "Paragraph 12", 0.5),
        ("retrieval_zh", "段落12", "段落12", 1.0),
        # "abcd" and "abxd": 2 x 3 of 8 characters, the comments before passed over.
        ("code_similarity", "# note\n`x`\nabcd\nrest", "abxd", 0.75),
        ("code_similarity", "# only", "x", 0.0),
        ("classification", "it is a number of things", "number of", 1.0),  # "num", "number" are parts of the answer
        ("classification", "number of or place", "number of", 0.5),
        ("classification", "place", "number of", 0.0),
    ],
)
def test_metrics_by_hand(metric, prediction, answer, value):
    classes = ["number", "number of", "place"]
    assert getattr(longbench, metric)(prediction, answer, classes) == pytest.approx(value, abs=1e-7)


def test_chinese_words_are_those_that_the_segmenter_finds(monkeypatch):
    monkeypatch.setattr(longbench, "_cut", lambda text: text.split("/"))
    assert longbench.qa_f1_zh("天气/，/很好", "天气/不/好") == pytest.approx(2 * 0.5 * (1 / 3) / (0.5 + 1 / 3))
    assert longbench.rouge_l_zh("天气/很好", "天气/不好") == pytest.approx(0.5)


def test_without_the_segmenter_chinese_tasks_name_it(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(longbench.importlib, "import_module", absent)
    with pytest.raises(ImportError, match="pip install jieba"):
        longbench.qa_f1_zh("天气", "天气")


def test_the_middle_goes():
    np.testing.assert_array_equal(middle_truncated(range(10), 4), [0, 1, 8, 9])
    np.testing.assert_array_equal(middle_truncated(range(10), 5), [0, 1, 8, 9])  # halves of equal size, as official
    np.testing.assert_array_equal(middle_truncated(range(4), 4), range(4))


@pytest.mark.parametrize("limit", [1, 0, -384])
def test_nothing_is_left_of_a_prompt_without_room(limit):
    with pytest.raises(ValueError, match=f"limit {limit} leaves nothing"):
        middle_truncated(range(1000), limit)
    with pytest.raises(ValueError, match=f"{512 + limit} tokens have no room for gov_report.*read 514 or more"):
        run({"gov_report": []}, list, lambda tokens, most: "", 512 + limit)


def test_all_21_tasks_are_there():
    assert len(TASKS) == 21 and sum(task.metric.__name__.endswith("_zh") for task in TASKS.values()) == 4
    assert [name for name, task in TASKS.items() if task.first_line] == ["trec", "triviaqa", "samsum", "lsht"]


def write(path, *questions):
    path.write_text("".join(json.dumps(q) + "\n" for q in questions))


def test_files_are_asked_and_scored(tmp_path):
    question = {"context": "c " * 40, "input": "who?", "answers": ["cat", "a dog"], "length": 5000}
    write(tmp_path / "hotpotqa_e.jsonl", question, question | {"answers": ["fish"], "length": 10})
    write(tmp_path / "trec.jsonl", question | {"answers": ["y"], "all_classes": ["x", "y"]})
    (tmp_path / "other.jsonl").write_text("not of LongBench\n")
    asked = []

    def answer(tokens, most):
        asked.append((len(tokens), most))
        return "y\nQuestion: x" if most == 64 else "the dog"

    results = run(read(tmp_path), lambda text: list(text.encode()), answer, limit=80)
    assert results == {"hotpotqa_e": {"score": 50.0, "4-8k": 100.0, "0-4k": 0.0}, "trec": {"score": 100.0}}
    assert asked == [(48, 32), (48, 32), (16, 64)]
    told = []
    run(read(tmp_path, ["trec"]), lambda text: told.append(text) or [1], answer, 80, {"trec": "Q {input}: {context}"})
    assert told == [f"Q who?: {question['context']}"]


def test_what_is_not_there_is_an_error_that_says_what(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such directory"):
        read(tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"<task>\.jsonl"):
        read(tmp_path)
    with pytest.raises(ValueError, match="'hotpot'; nearest: hotpotqa"):
        read(tmp_path, ["hotpot"])
    write(tmp_path / "lcc.jsonl", {"context": "x", "input": ""})
    with pytest.raises(ValueError, match="line 1: has no answers"):
        read(tmp_path)
    with pytest.raises(ValueError, match="names no paragraph"):
        score("passage_retrieval_en", ["1"], [{"answers": ["12"]}])
