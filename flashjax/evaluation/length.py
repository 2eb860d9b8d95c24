"""How a language model does on sequences longer than those of its training.

Perplexity alone rewards models that forget: one that sees a window does well. So three things are measured, at k times
the training length L:

* the loss of the same last tokens, with ever more before them (Su, kexue.fm 9948), and loss by position;
* how well those tokens are predicted where all that comes before is natural text, and where it is the same text once
  before, so that the answer lies half a sequence back (Su, kexue.fm 9603, repeats texts in the same spirit);
* a key hidden at a depth in other text, which is asked for at the end (Mohtashami and Jaggi 2023).

Shapes: R rows, n tokens that the model reads, V vocabulary. A row holds n + 1 tokens: the last is a target alone.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flashjax.objectives.language import cross_entropy
from flashjax.ops.platform import jit_here

Encode = Callable[[str], Sequence[int] | np.ndarray]


@dataclass(frozen=True)
class ProbeConfig:
    """Which lengths are tried and on how much text."""

    multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    """k: lengths tried, in training lengths L."""
    last: int = 0
    """Tokens at the end of each row whose loss counts, the same at every length; 0: half of L."""
    rows: int = 8
    """Passages of held-out text."""
    depths: int = 5
    """Places of the key, evenly from the beginning (0 %) to the end (100 %)."""
    trials: int = 1
    """Keys, each in another text, at each place."""
    alphabet: str = "0123456789"
    """What keys are made of; letters for a model that was trained on text without digits."""
    key_length: int = 5
    """Characters of a key."""
    needle: str = "\nThe key is {key}.\n"
    """What is hidden; {key} is the key."""
    question: str = "\nThe key is "
    """What is asked at the end; the key should follow."""
    batch: int = 4
    """Rows that the model reads at once."""

    def __post_init__(self):
        if not self.multiples or min(self.multiples) < 1 or list(self.multiples) != sorted(set(self.multiples)):
            raise ValueError(f"multiples must be rising whole numbers from 1 on, found {self.multiples}")
        for name in ("rows", "depths", "trials", "key_length", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        if "{key}" not in self.needle:
            raise ValueError(f"needle {self.needle!r} has no {{key}}")
        if not self.alphabet:
            raise ValueError("alphabet is empty: a key needs characters")


@dataclass(frozen=True)
class Probe:
    """Rows of one length, and where in them what is measured lies."""

    length: int
    """n."""
    tokens: np.ndarray
    """int32 [R, n + 1]: natural rows, repeated rows, rows with a key (depth by depth)."""
    natural: int
    """How many rows are natural; as many are repeated."""
    last: int
    """Targets at the end of natural and repeated rows that count."""
    depths: int
    keys: int
    """Targets at the end of a row with a key."""


def passages(documents: Sequence[np.ndarray], length: int, count: int, first: float = 0.0) -> np.ndarray:
    """``count`` pieces of ``length`` tokens, each within one document, spread evenly over all there are.

    ``first`` from 0 to 1 shifts them all by that part of the distance from one to the next.

    Raises ValueError where no document is so long.
    """
    room = np.array([max(0, len(document) - length + 1) for document in documents])
    if not room.sum():
        longest = max((len(document) for document in documents), default=0)
        raise ValueError(
            f"no held-out document has the {length} tokens that the longest probe reads (the longest has {longest}): "
            "take fewer multiples, another text, or join its documents (--data.documents joined)"
        )
    ends = np.cumsum(room)
    starts = ((np.arange(count) + first) / count * room.sum()).astype(np.int64)
    found = []
    for start in starts:
        document = int(np.searchsorted(ends, start, side="right"))
        at = int(start - (ends[document] - room[document]))
        found.append(documents[document][at : at + length])
    return np.stack(found).astype(np.int32)


def probes(
    config: ProbeConfig, documents: Sequence[np.ndarray], encode: Encode, training_length: int, seed: int = 0
) -> dict[int, Probe]:
    """The rows of each multiple, the same for every model and method that is compared.

    Args:
        documents: held-out text in tokens.
        encode: text -> tokens.
        seed: of the keys.

    Raises ValueError where the text is too short, or a row too short for needle and question.
    """
    last = config.last or training_length // 2
    if last > training_length // 2:
        raise ValueError(f"last ({last}) must be at most half of the training length {training_length}")
    longest = max(config.multiples) * training_length
    texts = passages(documents, longest + 1, config.rows)
    filler = passages(documents, longest + 1, config.depths * config.trials, first=0.5)
    draw = np.random.default_rng(seed)
    keys = ["".join(draw.choice(list(config.alphabet), config.key_length)) for _ in range(len(filler))]
    made = {}
    for multiple in config.multiples:
        n = multiple * training_length
        half = texts[:, -(n // 2 + 1) :]
        repeated = np.concatenate([half, half], 1)[:, -(n + 1) :]
        hidden = [
            _hide(config, encode, row, n, i // config.trials, key) for i, (row, key) in enumerate(_zip(filler, keys))
        ]
        rows = np.concatenate([texts[:, -(n + 1) :], repeated, np.stack([row for row, _ in hidden])])
        sizes = {size for _, size in hidden}
        made[multiple] = Probe(n, rows.astype(np.int32), len(texts), last, config.depths, min(sizes))
    return made


def _zip(filler: np.ndarray, keys: Sequence[str]) -> Iterable[tuple[np.ndarray, str]]:
    return zip(filler, keys, strict=True)


def _hide(
    config: ProbeConfig, encode: Encode, filler: np.ndarray, n: int, depth: int, key: str
) -> tuple[np.ndarray, int]:
    """(n + 1 tokens: text with a needle in it, question, key; how many tokens the key has)."""
    needle, question, answer = (
        np.asarray(encode(text.replace("{key}", key)), np.int32) for text in (config.needle, config.question, key)
    )
    room = n + 1 - len(needle) - len(question) - len(answer)
    if room < 0:
        raise ValueError(
            f"{n} tokens have no room for the needle and the question: shorten them, or --probes.key_length"
        )
    text = filler[-room:] if room else filler[:0]
    at = round(room * depth / max(config.depths - 1, 1))
    return np.concatenate([text[:at], needle, text[at:], question, answer]), len(answer)


@functools.lru_cache(maxsize=2)
def _compiled(model: Any) -> Callable[..., Any]:
    def run(variables: Any, rows: Any) -> Any:
        return cross_entropy(model.apply(variables, rows[:, :-1]), rows[:, 1:])

    return jit_here(run, backward=False)


def token_scores(
    model: nn.Module, variables: Mapping[str, Any], tokens: np.ndarray, batch: int = 4
) -> tuple[np.ndarray, np.ndarray]:
    """(nats of each target, whether it was the likeliest token), both [R, n].

    One compilation for a model and a length: the last batch is filled up.
    """
    run = _compiled(model)
    rows, count = tokens, -(-len(tokens) // batch)
    rows = np.concatenate([tokens, np.repeat(tokens[-1:], count * batch - len(tokens), 0)])
    found = [jax.device_get(run(variables, rows[i * batch : (i + 1) * batch])) for i in range(count)]
    nats, right = (np.concatenate(part)[: len(tokens)] for part in zip(*found, strict=True))
    return np.asarray(nats, np.float64), right


def measure(model: nn.Module, variables: Mapping[str, Any], probe: Probe, batch: int = 4) -> dict[str, Any]:
    """What a model makes of a probe.

    Returns:
        length; loss (nats a token), perplexity and accuracy of the last tokens of natural rows; repeated_loss and
        repeated_accuracy of the same tokens where their text came before; passkey, by depth the share of a key's
        tokens that are right, and passkey_exact, of keys that are right as a whole (what greedy decoding would give);
        by_position, the loss of each target [n].
    """
    nats, right = token_scores(model, variables, probe.tokens, batch)
    R, last = probe.natural, probe.last
    hits = right[2 * R :, -probe.keys :].reshape(probe.depths, -1, probe.keys)
    loss = float(nats[:R, -last:].mean())
    return {
        "length": probe.length,
        "loss": loss,
        "perplexity": float(np.exp(min(loss, 700.0))),
        "accuracy": float(right[:R, -last:].mean()),
        "repeated_loss": float(nats[R : 2 * R, -last:].mean()),
        "repeated_accuracy": float(right[R : 2 * R, -last:].mean()),
        "passkey": hits.mean((1, 2)).tolist(),
        "passkey_exact": hits.all(-1).mean(1).tolist(),
        "by_position": nats[:R].mean(0).tolist(),
    }


def by_bucket(by_position: Sequence[float], size: int) -> list[tuple[int, float]]:
    """(position after the bucket, mean loss in it) of buckets of ``size`` positions; a shorter last one counts too."""
    values = np.asarray(by_position)
    return [(min(i + size, len(values)), float(values[i : i + size].mean())) for i in range(0, len(values), size)]


@dataclass(frozen=True)
class Subject:
    """A model under test, under a name."""

    name: str
    family: str
    model: Callable[[int], nn.Module]
    """The module for k times the training length."""
    variables: Mapping[str, Any]


def study(
    subjects: Iterable[Subject],
    probes: Mapping[int, Probe],
    batch: int = 4,
    on_line: Callable[[Mapping[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """A line for each subject and multiple, and one more: L tokens read by what is made for the longest.

    A line is what `measure` finds, and name, family, multiple and made_for (the multiple that the module is for).
    """
    lines = []
    for subject in subjects:
        longest = max(probes)
        pairs = [(multiple, multiple) for multiple in probes]
        if min(probes) != longest:
            pairs.append((min(probes), longest))
        for multiple, made_for in pairs:
            found = measure(subject.model(made_for), subject.variables, probes[multiple], batch)
            line = {"name": subject.name, "family": subject.family, "multiple": multiple, "made_for": made_for, **found}
            lines.append(line)
            if on_line is not None:
                on_line(line)
    return lines
