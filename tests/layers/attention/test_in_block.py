"""Linear mixers inside the Transformer's block: their inputs, decoding, scanned layers, and Performer's draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.objectives.language import LanguageModelling

MIXERS = {
    "katharopoulos": "",
    "efficient": "",
    "taylor": "",
    "cosformer": "",
    "performer": "features=6, redraw_every=1",
    "retnet": "",
    "gla": "rank=4",
    "mamba2": "",
    "delta_net": "",
    "gated_delta_net": "",
}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 13)).astype(np.int32)


def make(name, **fields):
    position = "none" if name == "cosformer" else "rope"
    config = TransformerConfig(
        vocab_size=11, width=16, depth=2, heads=2, hidden=16, max_length=32, position=position, scan_layers=True
    )
    return Transformer(TransformerConfig(**(config.__dict__ | {"mixer": name, "mixer_options": MIXERS[name]} | fields)))


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_a_prompt_and_steps_are_the_forward(name):
    model = make(name)
    variables = jax.jit(model.init)(jax.random.key(0), TOKENS)
    if name == "performer":
        w = np.asarray(variables["projections"]["layers"]["attn"]["inputs"]["w"])
        assert w.shape == (2, 6, 8) and (w[0] != w[1]).any()
    lengths = jnp.asarray([3, 9])

    @jax.jit
    def decode(variables, tokens):
        cache = model.init_cache(2, 16)
        logits, cache = model.apply(variables, tokens, lengths, cache, method="prefill")

        def one(cache, t):
            logits, cache = model.apply(variables, tokens[jnp.arange(2), lengths + t], cache, method="step")
            return cache, logits

        return logits, jax.lax.scan(one, cache, jnp.arange(4))[1], model.apply(variables, tokens)

    first, steps, whole = map(np.asarray, decode(variables, TOKENS))
    rows = np.arange(2)
    np.testing.assert_allclose(first, whole[rows, np.asarray(lengths) - 1], atol=1e-4)
    for t in range(4):
        np.testing.assert_allclose(steps[t], whole[rows, np.asarray(lengths) + t], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["none", "full"])
def test_performer_draws_anew_at_each_training_step(remat):
    """In every layer, as a function of the seed and the step; an evaluation changes nothing."""
    goal = LanguageModelling(make("performer", remat=remat), 11)
    batch = {"tokens": jnp.asarray(TOKENS)}
    variables = jax.jit(goal.init)({"params": jax.random.key(0)}, batch)

    @jax.jit
    def step(variables):
        def loss(params):
            value, _, changed = goal.loss(variables | {"params": params}, batch, {"dropout": jax.random.key(1)})
            return value, changed

        gradients, changed = jax.grad(loss, has_aux=True)(variables["params"])
        return gradients, variables | changed

    def rows(variables):
        return np.asarray(variables["projections"]["layers"]["attn"]["inputs"]["w"])

    seen = [rows(variables)]
    for _ in range(3):
        gradients, variables = step(variables)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
        seen.append(rows(variables))
    assert (seen[0] == seen[1]).all() and (seen[1] != seen[2]).all() and (seen[2] != seen[3]).all()
    assert (variables["projections"]["layers"]["attn"]["inputs"]["calls"] == 3).all()
    evaluate = jax.jit(goal.evaluate)
    before = evaluate(variables, batch)["loss"][0]
    assert before == evaluate(variables, batch)["loss"][0] and (rows(variables) == seen[-1]).all()
