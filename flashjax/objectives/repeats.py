"""Language modelling in which some rows repeat themselves, so that a small model learns to copy from its context."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from flashjax.objectives.language import Batch, LanguageModelling


@dataclass(frozen=True)
class Repeats(LanguageModelling):
    """`LanguageModelling` whose training rows, a part of them, repeat their first P tokens until they are full.

    P is drawn for each row, from `shortest` to half of the row. What is evaluated is as it is.
    """

    rate: float = 0.0
    """Part of the rows that repeat themselves."""
    shortest: int = 8
    """Least P."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.rate <= 1:
            raise ValueError(f"the rate of repeats is {self.rate}; it must be from 0 to 1")

    def prepare(self, batch: Batch, key: PRNGKeyArray) -> dict[str, Array]:
        """The batch with rows that repeat, as one document each."""
        batch = super().prepare(batch, key)
        if not self.rate:
            return batch
        tokens = batch["tokens"]
        B, L = tokens.shape
        choose, period = jax.random.split(jax.random.fold_in(key, 1))
        chosen = jax.random.bernoulli(choose, self.rate, (B, 1))
        P = jax.random.randint(period, (B, 1), min(self.shortest, L // 2), L // 2 + 1)
        repeated = jnp.take_along_axis(tokens, jnp.arange(L) % P, axis=1)
        batch["tokens"] = jnp.where(chosen, repeated, tokens)
        if "segment_ids" in batch:
            batch["segment_ids"] = jnp.where(chosen, 1, batch["segment_ids"])
        return batch
