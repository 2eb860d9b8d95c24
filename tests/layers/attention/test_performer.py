"""FAVOR+: the estimator against the paper's formulae, its draws, and when it draws anew."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers import attention
from flashjax.layers.attention import performer

DRAWS = 100_000


@pytest.fixture(scope="module")
def pair():
    """x, y in 4 dims, and the estimates of exp(x.y) by single draws of w, of each kernel."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4)) * 0.4
    w = rng.normal(size=(DRAWS, 1, 4)).astype(np.float32)

    def all_kernels(x, y, w):
        return {kernel: performer.estimate(x, y, w, kernel) for kernel in performer.SOFTMAX}

    estimates = jax.jit(jax.vmap(all_kernels, (None, None, 0)))(x, y, w)
    return x, y, {kernel: np.asarray(e, np.float64) for kernel, e in estimates.items()}


@pytest.mark.parametrize("kernel", performer.SOFTMAX)
def test_the_estimate_has_the_mean_and_the_error_of_the_paper(pair, kernel):
    """Choromanski et al. 2020, lemmas 1 and 2, for one draw."""
    x, y, estimates = pair
    exact = np.exp(x @ y)
    e = estimates[kernel]
    assert abs(e.mean() - exact) < 3 * e.std() / np.sqrt(DRAWS)
    plus, minus = np.exp(-((x + y) ** 2).sum()), np.exp(-((x - y) ** 2).sum())
    positive = exact**2 * (1 - plus) / plus
    want = {
        "positive": positive,
        "hyperbolic": positive * (1 - plus) / 2,
        "trig": (1 - minus) ** 2 / (2 * plus * exact**2),
    }[kernel]
    squares = (e - exact) ** 2
    assert abs(squares.mean() - want) < 4 * squares.std() / np.sqrt(DRAWS) < 0.1 * want


def test_rows_are_orthogonal_and_as_long_as_independent_ones():
    """And no direction is preferred: without the correction of signs, the first entry would be below 0 on average."""
    draw = jax.jit(jax.vmap(lambda key: [performer.draw(key, 11, 4, True, lengths) for lengths in ("chi", "sqrt")]))
    chi, sqrt = (np.asarray(w, np.float64) for w in draw(jax.random.split(jax.random.key(0), 4000)))
    for w in (chi, sqrt):
        grams = np.einsum("rid,rjd->rij", w, w)
        for block in (slice(0, 4), slice(4, 8), slice(8, 11)):
            inside = grams[:, block, block] * (1 - np.eye(grams[0, block, block].shape[0]))
            assert np.abs(inside).max() < 1e-4
        assert np.abs(grams[:, 0, 4]).max() > 1
    np.testing.assert_allclose((sqrt**2).sum(-1), 4, rtol=1e-5)
    squares = (chi**2).sum(-1)  # chi^2 of 4 degrees: mean 4, variance 8
    assert abs(squares.mean() - 4) < 4 * np.sqrt(8 / squares.size)
    assert abs(squares.var() - 8) < 0.3
    assert (np.abs(chi.mean(0)) < 4.5 / np.sqrt(4000)).all()


def test_orthogonal_rows_err_less_and_more_rows_by_one_over_the_root():
    rng = np.random.default_rng(1)
    q, k = jnp.asarray(rng.normal(size=(2, 6, 8)) * 0.35, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 600)
    exact = np.exp(np.asarray(q @ k.T, np.float64))
    errors = {}
    for orthogonal in (True, False):

        def one(key, orthogonal=orthogonal):
            w = performer.draw(key, 128, 8, orthogonal)
            x, y = jnp.broadcast_arrays(q[:, None], k[None])
            return jax.vmap(lambda row: performer.estimate(x, y, row[None]))(w)

        rows = np.asarray(jax.jit(lambda keys, one=one: jax.lax.map(one, keys, batch_size=100))(keys), np.float64)
        for m in (8, 32, 128):
            error = ((rows[:, :m].mean(1) - exact) / exact) ** 2
            errors[orthogonal, m] = np.sqrt(error.mean())
    for m in (8, 32, 128):
        assert errors[True, m] < 0.97 * errors[False, m]
    slope = np.polyfit(np.log([8, 32, 128]), np.log([errors[False, m] for m in (8, 32, 128)]), 1)[0]
    assert abs(slope + 0.5) < 0.07


def tokens(scale=1.0):
    rng = np.random.default_rng(2)
    return [jnp.asarray(rng.normal(size=(1, 9, 2, 8)) * s, jnp.float32) for s in (scale, scale, 1)]


def softmax_attention(q, k, v):
    logits = np.einsum("bihd,bjhd->bhij", q, k) * 8**-0.5
    logits = np.where(np.tril(np.ones((9, 9))), logits, -np.inf)
    w = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhij,bjhe->bihe", w / w.sum(-1, keepdims=True), v)


def test_many_features_make_it_softmax_attention():
    q, k, v = tokens(0.5)
    w = performer.draw(jax.random.key(0), 4096, 8)
    for kernel in performer.SOFTMAX:
        mixer = attention.get("performer", features=4096, kernel=kernel, eps=0.0)
        o = mixer.reference(q, k, v, projection=w)
        assert np.abs(o - softmax_attention(q, k, v)).max() < 0.08
    with_both = attention.get("performer", features=4096).reference(q, k, v, projection=w)
    sequence = attention.get("performer", features=4096, stabiliser="sequence").reference(q, k, v, projection=w)
    np.testing.assert_allclose(with_both, sequence, atol=5e-3)  # they differ by what 1e-4 is added to


def test_queries_and_keys_of_any_length_are_finite():
    q, k, v = tokens(200.0)
    mixer = attention.get("performer", features=32)
    w = performer.draw(jax.random.key(0), 32, 8)

    def total(q, k, v):
        o = mixer.parallel(q, k, v, projection=w)
        return (o * o).sum(), o

    gradients, o = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(q, k, v)
    assert np.isfinite(o).all() and all(np.isfinite(g).all() for g in gradients)
    assert np.abs(o).max() <= np.abs(v).max() * 1.001


def test_the_projection_is_drawn_anew_in_training_alone():
    module = attention.get("performer", features=5, redraw_every=2).inputs(2, 4, 16, jnp.float32)
    x = jnp.zeros((1, 3, 8))
    init, apply = jax.jit(module.init), jax.jit(module.apply)
    variables = init(jax.random.key(0), x)
    assert list(variables) == ["projections"]
    train = jax.jit(lambda variables: module.apply(variables, x, mutable=["projections"]))
    seen = [np.asarray(variables["projections"]["w"])]
    for _ in range(5):
        made, variables = train(variables)
        seen.append(np.asarray(made["projection"]))
        np.testing.assert_array_equal(apply(variables, x)["projection"], seen[-1])
    changes = [bool((a != b).any()) for a, b in itertools.pairwise(seen)]
    assert changes == [False, False, True, False, True]
    again = init(jax.random.key(0), x)
    for _ in range(5):
        again = train(again)[1]
    np.testing.assert_array_equal(again["projections"]["w"], seen[-1])
    assert (init(jax.random.key(1), x)["projections"]["w"] != seen[0]).any()


def test_a_fixed_projection_stays():
    module = attention.get("performer", features=5, redraw_every=0).inputs(2, 4, 16, jnp.float32)
    variables = module.init(jax.random.key(0), jnp.zeros((1, 3, 8)))
    _, changed = module.apply(variables, jnp.zeros((1, 3, 8)), mutable=["projections"])
    np.testing.assert_array_equal(changed["projections"]["w"], variables["projections"]["w"])


def test_the_number_of_features_and_what_cannot_be():
    assert attention.get("performer").rows(64) == 266 and attention.get("performer", kernel="trig").width(64) == 532
    for name in ("kernel", "lengths", "stabiliser"):
        with pytest.raises(ValueError, match=f"unknown {name} 'chy'; choose"):
            attention.get("performer", **{name: "chy"})
    q, k, v = tokens()
    with pytest.raises(ValueError, match="set features=7"):
        attention.get("performer").parallel(q, k, v, projection=jnp.zeros((7, 8)))
    decoder = attention.get("performer", features=7, stabiliser="sequence")
    with pytest.raises(ValueError, match="use stabiliser=running"):
        decoder.recurrent(q, k, v, projection=jnp.zeros((7, 8)))
    with pytest.raises(ValueError, match="no estimate of exp"):
        performer.estimate(q, k, jnp.zeros((7, 8)), "relu")
