"""Language modelling: the next token (a decoder) or the hidden ones (an encoder), in nats a token and bits a byte.

Shapes: B rows, L tokens of a row, N tokens that the model reads (L, or L - 1 where targets are the next tokens), V
vocabulary.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from flashjax.objectives import auxiliary

Batch = Mapping[str, Array]
Variables = Mapping[str, Any]


@dataclass(frozen=True)
class Masking:
    """Which tokens an encoder has to guess, and what stands in their place (Devlin et al. 2019, section 3.1)."""

    mask_token: int
    """Stands for a hidden token."""
    rate: float = 0.15
    """Part of the tokens that is to be guessed."""
    masked: float = 0.8
    """Of those, the part that is replaced by the mask token."""
    random: float = 0.1
    """Of those, the part that is replaced by a token drawn evenly from the vocabulary; the rest stay as they are."""
    never: tuple[int, ...] = ()
    """Tokens that are never to be guessed, as those that begin and end a text."""

    def __post_init__(self):
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; it must be over 0 and at most 1")
        if min(self.masked, self.random) < 0 or self.masked + self.random > 1:
            raise ValueError(f"masked {self.masked} and random {self.random} must be shares that add up to at most 1")

    def draw(self, key: PRNGKeyArray, shape: tuple[int, ...], vocab_size: int) -> dict[str, Array]:
        """What `hide` needs: two uniform numbers and a token for each token."""
        choose, kind, token = jax.random.split(key, 3)
        return {
            "choose": jax.random.uniform(choose, shape),
            "kind": jax.random.uniform(kind, shape),
            "token": jax.random.randint(token, shape, 0, vocab_size, jnp.int32),
        }

    def hide(
        self, tokens: Int[Array, "B L"], real: Bool[Array, "B L"], drawn: Mapping[str, Array]
    ) -> tuple[Int[Array, "B L"], Bool[Array, "B L"]]:
        """(tokens as the model sees them, which of them are to be guessed); padding and `never` are not."""
        for token in self.never:
            real &= tokens != token
        chosen = real & (drawn["choose"] < self.rate)
        kind = drawn["kind"]
        seen = jnp.where(kind < self.masked, self.mask_token, tokens)
        seen = jnp.where((kind >= self.masked) & (kind < self.masked + self.random), drawn["token"], seen)
        return jnp.where(chosen, seen, tokens), chosen


@dataclass(frozen=True)
class LanguageModelling:
    """The objective of a model that maps tokens to logits of tokens; its methods are pure and meant to be jitted.

    A batch has `tokens` int32 [B, L] and, where rows are packed, `segment_ids` int32 [B, L] (documents from 1, 0 for
    padding); evaluation batches also `mask` float32 [B], 0 for rows that fill up the last one.
    """

    model: nn.Module
    """Called as `model(tokens, segment_ids, train=...)`; returns logits [B, N, V]."""
    vocab_size: int
    """V; the model's logits must have as many."""
    causal: bool = True
    """Reads tokens 0 to L - 2 and predicts 1 to L - 1, each from its own document alone; False: guesses hidden ones."""
    masking: Masking | None = None
    """How tokens are hidden, where the model is not causal."""
    token_bytes: np.ndarray | None = field(default=None, compare=False)
    """Bytes of text that each token stands for, int [V]; None: no bits_per_byte."""

    def __post_init__(self):
        if self.causal == (self.masking is not None):
            raise ValueError("a causal model predicts the next token (masking=None), any other one needs a Masking")
        if self.token_bytes is not None and len(self.token_bytes) != self.vocab_size:
            raise ValueError(f"token_bytes holds {len(self.token_bytes)} tokens and the vocabulary {self.vocab_size}")

    def init(self, rngs: Mapping[str, PRNGKeyArray], batch: Batch) -> dict[str, Any]:
        """All variables of the model for rows as those of `batch`; losses sown on the way are left out."""
        shape = batch["tokens"].shape
        tokens = jnp.zeros((shape[0], shape[1] - self.causal), jnp.int32)
        return auxiliary.init(self.model, rngs, tokens, None)

    def prepare(self, batch: Batch, key: PRNGKeyArray) -> dict[str, Array]:
        """Draws what is hidden from `key`; a causal batch stays as it is. Every leaf keeps its leading dim B."""
        if self.masking is None:
            return dict(batch)
        return {**batch, **self._hidden(batch, self.masking.draw(key, batch["tokens"].shape, self.vocab_size))}

    def loss(
        self, variables: Variables, batch: Batch, rngs: Mapping[str, PRNGKeyArray], train: bool = True
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]], dict[str, Any]]:
        """Mean cross entropy of the tokens to predict in a prepared (micro-)batch, float32, plus the sown losses.

        Returns the loss, the metrics (loss, accuracy and, where the model sows losses, their sum auxiliary_loss and the
        rest cross_entropy) and the collections that the model changed. A batch without a token to predict has loss 0.

        Raises ValueError where the model has not `vocab_size` logits.
        """
        inputs, ids, targets, counted = self._parts(batch)
        logits, sown, changed = auxiliary.apply(self.model, variables, inputs, ids, train=train, rngs=rngs)
        losses, hits = cross_entropy(self._checked(logits), targets)
        weight = jnp.maximum(counted.sum(dtype=jnp.float32), 1.0)
        loss = jnp.where(counted, losses, 0).sum() / weight
        metrics = {"accuracy": (hits & counted).sum(dtype=jnp.float32) / weight}
        if sown is not None:
            metrics |= {"cross_entropy": loss, "auxiliary_loss": sown}
            loss = loss + sown
        return loss, {"loss": loss, **metrics}, changed

    def evaluate(self, variables: Variables, batch: Batch) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
        """(sum, number of tokens) of loss and accuracy, and (bits, bytes) as bits_per_byte where bytes are known.

        Rows with mask 0 count nowhere. What is hidden from an encoder is drawn from the tokens themselves: the same in
        every evaluation.
        """
        if self.masking is not None:
            key = jax.random.fold_in(jax.random.key(0), batch["tokens"].sum(dtype=jnp.uint32))
            batch = {**batch, **self._hidden(batch, self.masking.draw(key, batch["tokens"].shape, self.vocab_size))}
        inputs, ids, targets, counted = self._parts(batch)
        logits = self.model.apply(variables, inputs, ids, train=False)
        losses, hits = cross_entropy(self._checked(logits), targets)
        nats, weight = jnp.where(counted, losses, 0).sum(), counted.sum(dtype=jnp.float32)
        sums = {"loss": (nats, weight), "accuracy": ((hits & counted).sum(dtype=jnp.float32), weight)}
        if self.token_bytes is not None:
            size = jnp.asarray(self.token_bytes, jnp.float32)[targets]
            sums["bits_per_byte"] = (nats / math.log(2), jnp.where(counted, size, 0).sum())
        return sums

    def _hidden(self, batch: Batch, drawn: Mapping[str, Array]) -> dict[str, Array]:
        assert self.masking is not None
        tokens = batch["tokens"]
        real = batch["segment_ids"] > 0 if "segment_ids" in batch else jnp.ones(tokens.shape, bool)
        seen, chosen = self.masking.hide(tokens, real, drawn)
        return {"seen": seen, "chosen": chosen}

    def _parts(self, batch: Batch) -> tuple[Array, Array | None, Array, Array]:
        """(what the model reads [B, N], its segments or None, what it should say [B, N], where that counts [B, N])."""
        tokens, ids = batch["tokens"], batch.get("segment_ids")
        if self.masking is not None:
            inputs, targets, counted = batch["seen"], tokens, batch["chosen"]
        else:
            inputs, targets = tokens[:, :-1], tokens[:, 1:]
            counted = jnp.ones(targets.shape, bool)
            if ids is not None:
                counted = (ids[:, 1:] == ids[:, :-1]) & (ids[:, 1:] > 0)
                ids = ids[:, :-1]
        if "mask" in batch:
            counted &= batch["mask"][:, None] > 0
        return inputs, ids, targets, counted

    def _checked(self, logits: Any) -> Float[Array, "B N V"]:
        if logits.shape[-1] != self.vocab_size:
            raise ValueError(
                f"the model has {logits.shape[-1]} logits and the data {self.vocab_size} tokens; "
                f"create the model with vocab_size={self.vocab_size}"
            )
        return logits.astype(jnp.float32)


def cross_entropy(
    logits: Float[Array, "B N V"], targets: Int[Array, "B N"]
) -> tuple[Float[Array, "B N"], Bool[Array, "B N"]]:
    """(-log softmax(logits)[target], whether the target has the one largest logit)."""
    largest = logits.max(-1)
    said = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    ties = (logits == largest[..., None]).astype(jnp.float32).sum(-1)  # in the pass that sums the exponentials
    return _nats(logits, targets), (said == largest) & (ties == 1)


@jax.custom_vjp
def _nats(logits: Array, targets: Array) -> Array:
    return _nats_forward(logits, targets)[0]


def _nats_forward(logits: Array, targets: Array) -> Any:
    total = jax.nn.logsumexp(logits, axis=-1)
    said = jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return total - said, (logits, targets, total)


def _nats_backward(kept: Any, d: Array) -> Any:
    """(softmax - one-hot) d in one pass; the gradient of a gather would be a scatter into a second matrix."""
    logits, targets, total = kept
    one = jnp.arange(logits.shape[-1]) == targets[..., None]
    grad = (jnp.exp(logits - total[..., None]) - one) * d[..., None]
    return grad, np.zeros(targets.shape, jax.dtypes.float0)


_nats.defvjp(_nats_forward, _nats_backward)
