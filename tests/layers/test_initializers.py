"""Deviations of what is drawn, within the error of sampling; gains and factors of depth against the papers' numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.layers import gains, initializers
from flashjax.layers.mlp import ACTIVATIONS

DRAWS = (1000, 1000)
GRID = np.linspace(-12, 12, 200_001)
DENSITY = np.exp(-(GRID**2) / 2) / math.sqrt(2 * math.pi)
ON_GRID = {
    "gelu": lambda z: z * (1 + np.vectorize(math.erf)(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
    "silu": lambda z: z / (1 + np.exp(-z)),
    "tanh": np.tanh,
}


def draw(initializer, shape=DRAWS, seed=0):
    return np.asarray(initializer(jax.random.key(seed), shape, jnp.float32), np.float64)


def check_std(values, std):
    """The sample variance of n values deviates from the true one by sqrt((kurtosis - 1) / n) of it; five of those."""
    kurtosis = (values**4).mean() / (values**2).mean() ** 2
    error = math.sqrt((kurtosis - 1) / values.size)
    np.testing.assert_allclose((values**2).mean() / std**2, 1, atol=5 * error)
    np.testing.assert_allclose(values.mean(), 0, atol=5 * std / math.sqrt(values.size))


@pytest.mark.parametrize("name", [name for name in initializers.DISTRIBUTIONS if name != "orthogonal"])
def test_a_million_draws_deviate_as_asked(name):
    values = draw(initializers.DISTRIBUTIONS[name](0.3))
    check_std(values, 0.3)
    ends = {"normal": np.inf, "truncated_normal": 2 * 0.3 / initializers.TRUNCATED_STD, "uniform": math.sqrt(3) * 0.3}
    assert np.abs(values).max() <= ends[name] * (1 + 1e-6)
    if name != "normal":
        assert np.abs(values).max() > 0.999 * ends[name]


def test_truncated_normals_differ_by_their_correction():
    check_std(draw(initializers.truncated_normal_uncorrected(0.02)), 0.02 * initializers.TRUNCATED_STD)
    # sqrt(1 - 4 phi(2) / (2 Phi(2) - 1))
    inside = math.erf(2 / math.sqrt(2))
    assert math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / inside) == pytest.approx(
        initializers.TRUNCATED_STD, abs=1e-15
    )


def test_what_jax_corrects_and_what_it_does_not():
    """`variance_scaling` corrects for the cut, `truncated_normal` does not."""
    check_std(draw(jax.nn.initializers.truncated_normal(1.0)), initializers.TRUNCATED_STD)
    scaled = jax.nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
    check_std(draw(scaled), 1000**-0.5)
    np.testing.assert_allclose(draw(scaled), draw(initializers.by_fan("lecun", "truncated_normal")), rtol=1e-6)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
@pytest.mark.parametrize(
    ("scheme", "variance"),
    [("lecun", 1 / 2000), ("he", 2 / 2000), ("xavier", 2 / 2500), ("torch", 1 / 6000)],
)
def test_schemes_by_fan(scheme, variance, distribution):
    check_std(draw(initializers.by_fan(scheme, distribution), (2000, 500)), math.sqrt(variance))
    check_std(draw(initializers.by_fan(scheme, distribution, gain=0.5), (2000, 500)), 0.5 * math.sqrt(variance))


def test_torch_uniform_is_the_torch_scheme():
    values = draw(initializers.torch_uniform(1000))
    check_std(values, initializers.fan_std("torch", 1000, 1))
    assert np.abs(values).max() <= 1000**-0.5


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (3, 3, 5, 40)])
def test_orthogonal(shape):
    rows, columns = math.prod(shape[:-1]), shape[-1]
    matrix = draw(initializers.orthogonal(1 / math.sqrt(max(rows, columns))), shape).reshape(rows, columns)
    square = matrix @ matrix.T if rows <= columns else matrix.T @ matrix
    np.testing.assert_allclose(square, np.eye(min(rows, columns)), atol=1e-5)
    np.testing.assert_allclose((matrix**2).mean(), 1 / max(rows, columns), rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "inputs", "fans"),
    [
        ((5, 7), None, (5, 7)),
        ((3, 3, 5, 7), None, (45, 63)),
        ((5, 2, 7), 1, (5, 14)),  # [C, H, D]
        ((2, 7, 5), 2, (14, 5)),  # [H, D, C]
    ],
)
def test_fans(shape, inputs, fans):
    assert initializers.fans(shape, inputs) == fans


def test_fans_that_are_none():
    with pytest.raises(ValueError, match="at least two dims"):
        initializers.fans((3,))
    with pytest.raises(ValueError, match="must be 1 to 1"):
        initializers.fans((3, 4), 2)


def test_second_moments_to_six_digits():
    """In closed form where there is one; elsewhere on a fine grid."""
    assert gains.second_moment("relu") == pytest.approx(1 / 2, abs=1e-7)
    assert gains.second_moment("relu2") == pytest.approx(3 / 2, rel=1e-6)
    assert gains.second_moment(lambda x: x) == pytest.approx(1, abs=1e-6)
    for name, f in ON_GRID.items():
        assert gains.second_moment(name) == pytest.approx(np.trapezoid(f(GRID) ** 2 * DENSITY, GRID), abs=5e-7), name
    assert f"{gains.second_moment('gelu'):.6f}" == "0.425221" and f"{gains.second_moment('silu'):.6f}" == "0.355776"
    assert gains.second_moment("swiglu") == gains.second_moment("silu")
    assert gains.gain("relu") == pytest.approx(math.sqrt(2), abs=1e-6)


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "silu", "tanh", "relu2"])
def test_second_moments_against_sampling(name):
    f = jnp.tanh if name == "tanh" else ACTIVATIONS[name][0]
    squares = np.asarray(f(jax.random.normal(jax.random.key(1), DRAWS)), np.float64) ** 2
    error = squares.std() / math.sqrt(squares.size)
    np.testing.assert_allclose(squares.mean(), gains.second_moment(name), atol=5 * error)


def test_unknown_activation():
    with pytest.raises(ValueError, match="unknown activation 'selu'; choose from geglu"):
        gains.second_moment("selu")


def test_factors_of_depth():
    assert gains.deepnorm(18) == gains.DeepNorm(36**0.25, 144**-0.25)
    encoder, decoder = gains.deepnorm_pair(18, 18)
    assert encoder.alpha == pytest.approx(0.81 * 18 ** (5 / 16)) and encoder.beta == pytest.approx(
        0.87 * 18 ** (-5 / 16)
    )
    assert decoder == gains.DeepNorm(54**0.25, 216**-0.25)
    assert gains.gpt2_residual(24) == 24**-0.5
    assert gains.fixup(16, 2) == pytest.approx(16**-0.5) and gains.fixup(16, 3) == pytest.approx(16**-0.25)
    assert gains.t_fixup_encoder(6) == 0.67 * 6**-0.25 and gains.t_fixup_decoder(6) == 54**-0.25
    assert [gains.layerscale(n) for n in (1, 18, 19, 24, 25)] == [0.1, 0.1, 1e-5, 1e-5, 1e-6]
    with pytest.raises(ValueError, match="layers must be at least 1, found 0"):
        gains.deepnorm(0)
    with pytest.raises(ValueError, match="kernels is 1"):
        gains.fixup(4, 1)
