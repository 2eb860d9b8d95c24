"""LongBench's questions as a study of length extrapolation asks them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from flashjax.data import open_tokenizer
from flashjax.evaluation.length import Subject
from flashjax.recipes import extrapolation


def study(tmp_path, **changes) -> SimpleNamespace:
    question = {"context": "a b", "input": "", "answers": ["x"]}
    (tmp_path / "lcc.jsonl").write_text(json.dumps(question) + "\n")
    probes = SimpleNamespace(multiples=(1, 2))
    given = {"longbench": tmp_path, "longbench_tasks": (), "longbench_prompts": None, "longbench_questions": None}
    return SimpleNamespace(probes=probes, **{**given, **changes})


def test_a_prompt_begins_as_texts_do_and_an_answer_ends_as_they_do(tmp_path, monkeypatch):
    asked = []

    def generate(model, variables, prompts, most, sampling, eos):
        asked.append((*prompts, eos))
        return [[120]]

    monkeypatch.setattr(extrapolation, "generate", generate)
    config, tokenizer = study(tmp_path), open_tokenizer("bytes")
    tested = [Subject("baseline", "as it is", lambda k: k, {})]
    tasks = extrapolation.questions(config, 40)
    found = extrapolation.answers(config, tested, tasks, tokenizer, 40, (7, 258))
    assert found == {"baseline": {"lcc": {"score": 100.0}}}
    np.testing.assert_array_equal(asked[0][0], [257, *b"a b"])
    assert asked[0][1] == (7, 258)


def test_questions_are_refused_before_anything_is_measured(tmp_path):
    assert extrapolation.questions(study(tmp_path, longbench=None), 1) == {}
    with pytest.raises(ValueError, match="64 tokens have no room for lcc"):
        extrapolation.questions(study(tmp_path), 32)
