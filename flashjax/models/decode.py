"""Generating tokens with any language model that has `init_cache`, `prefill` and `step`.

Shapes: B rows (prompts), N padded length of a prompt, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from flashjax.models.stack import unstack

LEAST, UNIT = 16, 256


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the three are applied in their order."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token (greedy)."""
    top_k: int = 0
    """Draws among this many likeliest tokens; 0: among all."""
    top_p: float = 1.0
    """Draws among the fewest tokens whose probabilities add up to this (nucleus); 1: among all."""

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be over 0 and at most 1 (all tokens)")


GREEDY = Sampling(temperature=0.0)


def sample(logits: Float[Array, "B V"], key: PRNGKeyArray, sampling: Sampling) -> Int[Array, "B"]:
    """A token for each row; what is drawn for a row depends on its number, not on how many rows there are.

    Sources: Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p: the token that crosses the sum is kept).
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / sampling.temperature
    tokens = None  # of the columns, where they are sorted
    if sampling.top_k:
        logits, tokens = jax.lax.top_k(logits, min(sampling.top_k, logits.shape[-1]))
    if sampling.top_p < 1:
        if tokens is None:
            tokens = jnp.argsort(-logits, -1)
            logits = jnp.take_along_axis(logits, tokens, -1)
        p = jax.nn.softmax(logits)
        before = jnp.cumsum(p, -1) - p
        # The first is never cut, whatever rounding says of the sum before it.
        cut = (before >= sampling.top_p) & (jnp.arange(logits.shape[-1]) > 0)
        logits = jnp.where(cut, -jnp.inf, logits)
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))
    drawn = jax.vmap(jax.random.categorical)(keys, logits)
    if tokens is not None:
        drawn = jnp.take_along_axis(tokens, drawn[:, None], -1)[:, 0]
    return drawn.astype(jnp.int32)


def for_decoding(model: nn.Module, variables: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The same model with its layers apart, which decodes faster: a scan copies each layer's weights at every token."""
    config = getattr(model, "config", None)
    if not getattr(config, "scan_layers", False):
        return model, dict(variables)
    apart = dataclasses.replace(model, config=dataclasses.replace(config, scan_layers=False))  # type: ignore[type-var]
    return apart, {name: unstack(tree) for name, tree in variables.items()}


def generate(
    model: nn.Module,
    variables: Mapping[str, Any],
    prompts: Sequence[Sequence[int] | np.ndarray],
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    key: PRNGKeyArray | None = None,
    eos: int | Collection[int] | None = None,
    on_token: Callable[[int, int], None] | None = None,
) -> list[list[int]]:
    """The tokens that follow each prompt; up to `max_new_tokens`, ending with `eos` (or one of them) where that came.

    Prompts may differ in length: they are padded behind to a power of two, and read side by side in one call, so that
    few lengths are compiled. `on_token(row, token)` is told of each token as it comes. Angles that depend on the length
    are those of the longest prompt and `max_new_tokens` more.

    Args:
        key: for drawing; default key(0). Not used where sampling is greedy.

    Raises ValueError for no prompt or an empty one, a token outside of the vocabulary, and where the model has not so
    many positions.
    """
    rows = [np.asarray(prompt, np.int32).reshape(-1) for prompt in prompts]
    _check(model, rows, max_new_tokens)
    model, variables = for_decoding(model, variables)
    key = jax.random.key(0) if key is None else key
    ends = eos if isinstance(eos, Collection) else (eos,)
    lengths = np.asarray([len(row) for row in rows], np.int32)
    longest = int(lengths.max())
    N = _power(longest)
    capacity = max(N, _capacity(longest + max_new_tokens))
    if (most := model.config.most_positions) is not None:
        N, capacity = min(N, most), min(capacity, most)
    tokens = np.zeros((len(rows), N), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row

    prefill, step = _compiled(model, sampling)
    cache = model.init_cache(len(rows), capacity, longest + max_new_tokens)
    drawn, cache = prefill(variables, tokens, lengths, cache, jax.random.fold_in(key, 0))
    out: list[list[int]] = [[] for _ in prompts]
    going = list(range(len(prompts)))
    for i in range(1, max_new_tokens + 1):
        now = np.asarray(drawn).tolist()
        for row in list(going):
            out[row].append(now[row])
            if on_token is not None:
                on_token(row, now[row])
            if now[row] in ends:
                going.remove(row)
        if not going or i == max_new_tokens:
            break
        drawn, cache = step(variables, drawn, cache, jax.random.fold_in(key, i))
    return out


@functools.lru_cache(maxsize=32)
def _compiled(model: Any, sampling: Sampling) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def prefill(variables: Any, tokens: Any, lengths: Any, cache: Any, key: Any) -> Any:
        logits, cache = model.apply(variables, tokens, lengths, cache, method="prefill")
        return sample(logits, key, sampling), cache

    def step(variables: Any, tokens: Any, cache: Any, key: Any) -> Any:
        logits, cache = model.apply(variables, tokens, cache, method="step")
        return sample(logits, key, sampling), cache

    return jax.jit(prefill, donate_argnums=3), jax.jit(step, donate_argnums=2)


def _check(model: Any, prompts: Sequence[np.ndarray], max_new_tokens: int) -> None:
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("a prompt is empty: give at least one token, such as the one that begins a text")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    vocab = model.config.vocab_size
    for prompt in prompts:
        if prompt.min() < 0 or prompt.max() >= vocab:
            raise ValueError(f"token {prompt[(prompt < 0) | (prompt >= vocab)][0]} is not among the model's {vocab}")
    longest, most = max(map(len, prompts)), model.config.most_positions
    if most is not None and longest + max_new_tokens - 1 > most:  # the last token is not read again
        raise ValueError(
            f"a prompt of {longest} tokens and {max_new_tokens} more, but the model has {most} positions: "
            "shorten one of them"
        )


def _power(n: int) -> int:
    return max(LEAST, 1 << (n - 1).bit_length())


def _capacity(n: int) -> int:
    """Few different ones, and little of them unused: each step reads all of it."""
    return _power(n) if n <= UNIT else -(-n // UNIT) * UNIT
