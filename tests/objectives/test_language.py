"""Language modelling: which tokens count, what is hidden, sums over an evaluation set, gradients of the loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.objectives.language import LanguageModelling, Masking, cross_entropy

V = 11


class Bigrams(nn.Module):
    """Logits that depend on one token alone; it remembers what it was given."""

    auxiliary: float = 0.0
    vocab: int = V

    @nn.compact
    def __call__(self, tokens, segment_ids, train=False):
        if self.auxiliary:
            self.sow("losses", "balance", jnp.float32(self.auxiliary))
        self.sow("given", "tokens", tokens)
        return self.param("table", nn.initializers.normal(1.0), (V, self.vocab))[tokens]


TOKENS = jnp.asarray([[1, 2, 3, 4, 5, 6], [7, 8, 9, 1, 2, 0]], jnp.int32)
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 2], [1, 1, 1, 1, 1, 0]], jnp.int32)
BYTES = np.arange(V)
TABLE = np.random.default_rng(0).normal(size=(V, V)).astype(np.float32)
VARIABLES = {"params": {"table": jnp.asarray(TABLE)}}


def nats(before, after):
    row = TABLE[before].astype(np.float64)
    return np.log(np.exp(row).sum()) - row[after]


PAIRS = [(1, 2), (2, 3), (4, 5), (5, 6), (7, 8), (8, 9), (9, 1), (1, 2)]
"""What counts: not from 3 to 4, another document, nor from 2 to the padding."""


def test_a_token_is_predicted_from_its_own_document():
    goal = LanguageModelling(Bigrams(), V, token_bytes=BYTES)
    batch = {"tokens": TOKENS, "segment_ids": SEGMENTS}
    loss, metrics, changed = jax.jit(goal.loss)(VARIABLES, jax.jit(goal.prepare)(batch, jax.random.key(0)), {})
    expected = np.mean([nats(*pair) for pair in PAIRS])
    np.testing.assert_allclose([loss, metrics["loss"]], expected, rtol=1e-6)
    hits = np.mean([TABLE[a].argmax() == b for a, b in PAIRS])
    np.testing.assert_allclose(metrics["accuracy"], hits)
    assert changed == {}

    sums = jax.jit(goal.evaluate)(VARIABLES, {**batch, "mask": jnp.asarray([1.0, 0.0])})
    np.testing.assert_allclose(sums["loss"][0], sum(nats(*pair) for pair in PAIRS[:4]), rtol=1e-6)
    assert sums["loss"][1] == sums["accuracy"][1] == 4
    np.testing.assert_allclose(sums["bits_per_byte"][0], sums["loss"][0] / np.log(2))
    assert sums["bits_per_byte"][1] == 2 + 3 + 5 + 6


def test_without_segments_every_token_but_the_first_counts():
    _, weight = LanguageModelling(Bigrams(), V).evaluate(VARIABLES, {"tokens": TOKENS})["loss"]
    assert weight == 10


def test_a_batch_of_padding_has_no_loss():
    goal = LanguageModelling(Bigrams(), V)
    batch = {"tokens": TOKENS, "segment_ids": jnp.zeros_like(SEGMENTS)}
    loss, gradient = jax.jit(jax.value_and_grad(lambda v: goal.loss(v, batch, {})[0]))(VARIABLES)
    assert loss == 0 and not np.any(gradient["params"]["table"])


def test_sown_losses_are_added():
    goal = LanguageModelling(Bigrams(auxiliary=0.25), V)
    loss, metrics, _ = jax.jit(goal.loss)(VARIABLES, {"tokens": TOKENS}, {})
    np.testing.assert_allclose(loss, metrics["cross_entropy"] + 0.25)
    assert metrics["loss"] == loss and metrics["auxiliary_loss"] == 0.25
    assert set(goal.init({"params": jax.random.key(0)}, {"tokens": TOKENS})) == {"params", "given"}


MASKING = Masking(mask_token=10, never=(9,))


def test_hidden_tokens_come_at_their_rates():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 10, (100, 500)), jnp.int32)
    real = jnp.arange(500)[None] < 400
    seen, chosen = MASKING.hide(
        tokens, jnp.broadcast_to(real, tokens.shape), MASKING.draw(jax.random.key(0), tokens.shape, V)
    )
    seen, chosen, tokens = (np.asarray(x) for x in (seen, chosen, tokens))
    may = (tokens != 9) & np.asarray(real)
    assert not chosen[~may].any() and (seen == tokens)[~chosen].all()
    count = chosen.sum()
    assert abs(chosen[may].mean() - 0.15) < 4 * np.sqrt(0.15 * 0.85 / may.sum())
    kept, masked = (seen == tokens)[chosen].mean(), (seen == 10)[chosen].mean()
    # A token drawn evenly from V may be the mask token, or the token itself.
    for found, expected in ((masked, 0.8 + 0.1 / V), (kept, 0.1 + 0.1 / V)):
        assert abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / count)


def test_what_is_drawn_can_be_given():
    drawn = {
        "choose": jnp.asarray([[0.1, 0.1, 0.1, 0.2]]),
        "kind": jnp.asarray([[0.79, 0.81, 0.91, 0.0]]),
        "token": jnp.asarray([[5, 6, 7, 8]]),
    }
    seen, chosen = MASKING.hide(jnp.asarray([[1, 2, 3, 4]]), jnp.ones((1, 4), bool), drawn)
    assert seen.tolist() == [[10, 6, 3, 4]] and chosen.tolist() == [[True, True, True, False]]


def test_an_encoder_guesses_what_is_hidden_and_nothing_else():
    goal = LanguageModelling(Bigrams(), V, causal=False, masking=MASKING)
    batch = jax.jit(goal.prepare)({"tokens": jnp.tile(TOKENS, (20, 1))}, jax.random.key(1))
    assert batch["seen"].shape == batch["tokens"].shape and 0 < batch["chosen"].sum() < batch["tokens"].size / 2
    loss, _, _ = jax.jit(goal.loss)(VARIABLES, batch, {})
    pairs = [(s, t) for s, t, c in zip(*(np.ravel(batch[k]) for k in ("seen", "tokens", "chosen")), strict=True) if c]
    np.testing.assert_allclose(loss, np.mean([nats(*pair) for pair in pairs]), rtol=1e-6)

    rows = {"tokens": jnp.tile(TOKENS, (20, 1)), "mask": jnp.ones(40)}
    evaluate = jax.jit(goal.evaluate)
    first, again = (evaluate(VARIABLES, rows)["loss"] for _ in range(2))
    assert first == again and first[1] > 0
    shifted = evaluate(VARIABLES, {**rows, "tokens": (rows["tokens"] + 1) % V})["loss"]
    assert shifted[1] != first[1]  # other text, other places


def test_gradients_of_the_loss_are_those_of_its_definition():
    logits = jax.random.normal(jax.random.key(0), (2, 3, V))
    targets = jnp.asarray([[0, 4, 10], [2, 2, 7]])
    weight = jnp.arange(6.0).reshape(2, 3)
    plain = lambda x: -(weight * jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0]).sum()  # noqa: E731
    found = jax.jit(jax.grad(lambda x: (weight * cross_entropy(x, targets)[0]).sum()))(logits)
    np.testing.assert_allclose(found, jax.jit(jax.grad(plain))(logits), atol=1e-6)


def test_a_tie_is_no_hit():
    _, hits = cross_entropy(jnp.zeros((1, 2, V)).at[0, 1, 3].set(1.0), jnp.asarray([[0, 3]]))
    assert hits.tolist() == [[False, True]]


def test_errors_name_the_value():
    with pytest.raises(ValueError, match="masking=None"):
        LanguageModelling(Bigrams(), V, causal=False)
    with pytest.raises(ValueError, match="token_bytes holds 3 tokens and the vocabulary 11"):
        LanguageModelling(Bigrams(), V, token_bytes=np.ones(3))
    with pytest.raises(ValueError, match=r"rate is 0\.0"):
        Masking(1, rate=0.0)
    with pytest.raises(ValueError, match=r"masked 0\.8 and random 0\.3"):
        Masking(1, random=0.3)
    with pytest.raises(ValueError, match="the model has 7 logits and the data 11 tokens"):
        LanguageModelling(Bigrams(vocab=7), V).loss({"params": {"table": jnp.zeros((V, 7))}}, {"tokens": TOKENS}, {})
