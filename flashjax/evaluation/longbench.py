"""LongBench: 21 long-context tasks in English, Chinese and code, read from JSON lines, answered and scored.

A task is a file `<task>.jsonl` (`<task>_e.jsonl` of LongBench-E) whose lines have `context`, `input`, `answers`,
`all_classes` and `length`. An input that is too long loses its middle: the first half and the last half of what fits
stay. Answers are greedy. A score is the mean over the questions of the best score over the right answers, times 100.

Source: Bai et al. 2024 and the metrics of its code. Prompts here are our own; to compare with published figures pass
the official ones (`dataset2prompt.json`).
"""

import difflib
import importlib
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flashjax.words import nearest

Metric = Callable[[str, str, Sequence[str]], float]
"""(prediction, right answer, all classes) -> 0 to 1."""
PUNCTUATION_ZH = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def qa_f1(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of the bags of words, in lower case, without punctuation and articles."""

    def words(text: str) -> list[str]:
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        return re.sub(r"\b(a|an|the)\b", " ", text).split()

    return _f1(words(prediction), words(answer))


def qa_f1_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F1 of the bags of Chinese words, without punctuation.

    Raises ImportError where the package jieba, which finds words, is missing.
    """
    drop = set(string.punctuation + PUNCTUATION_ZH)

    def words(text: str) -> list[str]:
        kept = ("".join("".join(c for c in word.lower() if c not in drop).split()) for word in _cut(text))
        return [word for word in kept if word]

    return _f1(words(prediction), words(answer))


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    same = sum((Counter(prediction) & Counter(answer)).values())
    if not same:
        return 0.0
    precision, recall = same / len(prediction), same / len(answer)
    return 2 * precision * recall / (precision + recall)


def rouge_l(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """F of ROUGE-L over sentences, as the package `rouge` has it.

    The words of the longest common subsequences of all pairs of sentences, once each, over the different words of the
    answer (recall) and of the prediction (precision).
    """

    def sentences(text: str) -> list[list[str]]:
        return [" ".join(part.split()).split(" ") for part in text.split(".") if part]

    told, right = sentences(prediction), sentences(answer)
    if not told or not right:
        return 0.0
    common = {word for r in right for t in told for word in _longest_common(r, t)}
    precision = len(common) / len({word for t in told for word in t})
    recall = len(common) / len({word for r in right for word in r})
    return 2 * precision * recall / (precision + recall + 1e-8)


def rouge_l_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """`rouge_l` of the words that jieba finds. Raises ImportError where it is missing."""
    return rouge_l(" ".join(_cut(prediction)), " ".join(_cut(answer)))


def _longest_common(x: Sequence[str], y: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several, the one that leaves y's end first."""
    size = np.zeros((len(x) + 1, len(y) + 1), np.int32)
    for i, a in enumerate(x, 1):
        for j, b in enumerate(y, 1):
            size[i, j] = size[i - 1, j - 1] + 1 if a == b else max(size[i - 1, j], size[i, j - 1])
    i, j, found = len(x), len(y), []
    while i and j:
        if x[i - 1] == y[j - 1]:
            found.append(x[i - 1])
            i, j = i - 1, j - 1
        elif size[i - 1, j] > size[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def classification(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """1 over the number of classes that the prediction names, if the right one is among them.

    A class whose name is a part of the right one's does not count. The official code drops from the list while it goes
    over it, so that of two such classes in a row the second stays; so does this.
    """
    named = [name for name in classes if name in prediction]
    for name in named:
        if name in answer and name != answer:
            named.remove(name)
    return 1 / len(named) if answer in named else 0.0


def retrieval(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Share of the prediction's numbers that are the paragraph's, whose name is "Paragraph N"."""
    return _numbers(prediction, _paragraph(r"Paragraph (\d+)", answer))


def retrieval_zh(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """`retrieval` of a paragraph named 段落N."""
    return _numbers(prediction, _paragraph(r"段落(\d+)", answer))


def count(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Share of the prediction's numbers that are right."""
    return _numbers(prediction, str(answer))


def _paragraph(pattern: str, answer: str) -> str:
    found = re.search(pattern, answer)
    if found is None:
        raise ValueError(f"the answer {answer!r} names no paragraph ({pattern})")
    return found[1]


def _numbers(prediction: str, right: str) -> float:
    numbers = re.findall(r"\d+", prediction)
    return sum(number == right for number in numbers) / len(numbers) if numbers else 0.0


def code_similarity(prediction: str, answer: str, classes: Sequence[str] = ()) -> float:
    """Edit similarity of the first line that is code, in whole percent.

    It is `SequenceMatcher`'s ratio, as the official `fuzzywuzzy` computes it where python-Levenshtein is not there.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    if line == answer:
        return 1.0
    if not line or not answer:
        return 0.0
    return round(100 * difflib.SequenceMatcher(None, line, answer).ratio()) / 100


def _cut(text: str) -> list[str]:
    """Chinese text in words."""
    try:
        jieba = importlib.import_module("jieba")
    except ImportError as error:
        raise ImportError("Chinese tasks of LongBench need the package jieba: pip install jieba") from error
    return list(jieba.cut(text, cut_all=False))


@dataclass(frozen=True)
class Task:
    """How a task is asked and scored."""

    metric: Metric
    max_new_tokens: int
    prompt: str
    """With {context} and {input}."""
    first_line: bool = False
    """Only the first line of an answer counts: the context shows examples, and models go on with more."""


_READ = "{context}\n\nAnswer the question about the text above in a few words.\nQuestion: {input}\nAnswer:"
_SUM = "{context}\n\nSummarise the text above.\nSummary:"
_READ_ZH = "{context}\n\n请根据上文用几个词回答问题。\n问题：{input}\n回答："
TASKS: dict[str, Task] = {
    "narrativeqa": Task(qa_f1, 128, _READ),
    "qasper": Task(qa_f1, 128, _READ),
    "multifieldqa_en": Task(qa_f1, 64, _READ),
    "multifieldqa_zh": Task(qa_f1_zh, 64, _READ_ZH),
    "hotpotqa": Task(qa_f1, 32, _READ),
    "2wikimqa": Task(qa_f1, 32, _READ),
    "musique": Task(qa_f1, 32, _READ),
    "dureader": Task(rouge_l_zh, 128, _READ_ZH),
    "gov_report": Task(rouge_l, 512, _SUM),
    "qmsum": Task(rouge_l, 512, _READ.replace(" in a few words", "")),
    "multi_news": Task(rouge_l, 512, _SUM),
    "vcsum": Task(rouge_l_zh, 512, "{context}\n\n请总结上面的会议记录。\n总结："),
    "trec": Task(classification, 64, "{context}\n{input}", True),
    "triviaqa": Task(qa_f1, 32, "{context}\n\n{input}", True),
    "samsum": Task(rouge_l, 128, "{context}\n\n{input}", True),
    "lsht": Task(classification, 64, "{context}\n{input}", True),
    "passage_count": Task(
        count, 32, "{context}\n\nSome of these paragraphs are repeated. How many different ones are there?\nNumber: "
    ),
    "passage_retrieval_en": Task(
        retrieval, 32, "{context}\n\nWhich paragraph is this the abstract of?\n{input}\nAnswer: Paragraph"
    ),
    "passage_retrieval_zh": Task(retrieval_zh, 32, "{context}\n\n下面的摘要出自哪一段？\n{input}\n答案：段落"),
    "lcc": Task(code_similarity, 64, "{context}"),
    "repobench-p": Task(code_similarity, 64, "{context}{input}"),
}


def read(directory: str | Path, names: Iterable[str] = ()) -> dict[str, list[dict[str, Any]]]:
    """The questions of each task that has a file in ``directory``, or of ``names`` alone.

    Raises:
        FileNotFoundError: no directory, or no file of a task.
        ValueError: a name that is no task (with the nearest), or a line that lacks something.
    """
    directory = Path(directory).expanduser()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory; it should hold LongBench's JSON lines, <task>.jsonl")
    for name in (names := tuple(names)):
        if _base(name) not in TASKS:
            raise ValueError(f"unknown LongBench task {name!r}; nearest: {nearest(name, TASKS)}")
    there = {path.stem: path for path in sorted(directory.glob("*.jsonl")) if _base(path.stem) in TASKS}
    missing = [name for name in names if name not in there]
    if missing or not there:
        raise FileNotFoundError(f"{directory} has no {', '.join(f'{n}.jsonl' for n in missing) or '<task>.jsonl'}")
    return {name: _questions(there[name]) for name in names or there}


def _questions(path: Path) -> list[dict[str, Any]]:
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        question = json.loads(line)
        lacks = [key for key in ("context", "input", "answers") if key not in question]
        if lacks:
            raise ValueError(f"{path}, line {number}: has no {', '.join(lacks)}")
        found.append(question)
    if not found:
        raise ValueError(f"{path} holds no question")
    return found


def _base(name: str) -> str:
    return name.removesuffix("_e")


def prompts(path: str | Path) -> dict[str, str]:
    """The prompt of each task, from a `dataset2prompt.json`."""
    found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    if unknown := [name for name, text in found.items() if not isinstance(text, str)]:
        raise ValueError(f"{path}: the prompt of {unknown[0]!r} is no text")
    return found


def middle_truncated(tokens: Sequence[int] | np.ndarray, limit: int) -> np.ndarray:
    """The first and the last ``limit // 2`` of more than ``limit`` tokens; else all.

    Raises ValueError for a limit below 2, which leaves none.
    """
    if limit < 2:
        raise ValueError(f"limit {limit} leaves nothing of a prompt: it must be 2 or more")
    tokens = np.asarray(tokens)
    half = limit // 2
    return tokens if len(tokens) <= limit else np.concatenate([tokens[:half], tokens[len(tokens) - half :]])


def score(name: str, predictions: Sequence[str], questions: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{"score": 0 to 100}, and for LongBench-E also "0-4k", "4-8k" and "8k+" by the length of the input in words."""
    task = TASKS[_base(name)]
    scores, bins = [], {"0-4k": [], "4-8k": [], "8k+": []}
    for prediction, question in zip(predictions, questions, strict=True):
        if task.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        classes = question.get("all_classes") or ()
        scores.append(max(task.metric(prediction, answer, classes) for answer in question["answers"]))
        length = question.get("length", 0)
        bins["0-4k" if length < 4000 else "4-8k" if length < 8000 else "8k+"].append(scores[-1])
    result = {"score": 100 * float(np.mean(scores))}
    if name.endswith("_e"):
        result |= {key: 100 * float(np.mean(values)) for key, values in bins.items() if values}
    return result


def check_room(tasks: Iterable[str], limit: int) -> None:
    """Raises ValueError where ``limit`` tokens have no room for a task's longest answer and two tokens of a prompt."""
    for name in tasks:
        if limit < (least := TASKS[_base(name)].max_new_tokens + 2):
            raise ValueError(
                f"{limit} tokens have no room for {name}, whose answers alone take up to {least - 2}: read {least} or "
                "more, or ask other tasks"
            )


def run(
    tasks: Mapping[str, Sequence[Mapping[str, Any]]],
    encode: Callable[[str], Sequence[int] | np.ndarray],
    answer: Callable[[np.ndarray, int], str],
    limit: int,
    prompts: Mapping[str, str] | None = None,
    most: int | None = None,
) -> dict[str, dict[str, float]]:
    """Asks every question and scores the answers by task.

    Args:
        encode: text -> tokens.
        answer: (prompt tokens, most new tokens) -> text.
        limit: tokens of prompt and answer together; the prompt's middle goes where it is longer.
        prompts: of some tasks, instead of our own.
        most: questions of each task; None: all.

    Raises ValueError as `check_room` does.
    """
    check_room(tasks, limit)
    results = {}
    for name, questions in tasks.items():
        task, questions = TASKS[_base(name)], questions[:most]
        words = (prompts or {}).get(_base(name), task.prompt)
        told = []
        for question in questions:
            text = words.replace("{context}", question["context"]).replace("{input}", question["input"])
            tokens = middle_truncated(encode(text), limit - task.max_new_tokens)
            told.append(answer(tokens, task.max_new_tokens))
        results[name] = score(name, told, questions)
    return results
