"""What programs for a CPU are compiled with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops.platform import compiler_options


@pytest.mark.parametrize("backward", [False, True])
def test_products_of_a_cpu_are_xlas_own_and_the_function_stays_the_same(backward):
    def f(x):
        return (x @ x).sum(0)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)), jnp.float32)
    options = compiler_options("cpu", backward)
    assert options, "this XLA does not know the setting: measure again what it does by itself"
    compiled = jax.jit(f, compiler_options=options).lower(x).compile()
    fusions = [line for line in compiled.as_text().splitlines() if "dot(" in line or "dot_general" in line]
    assert fusions and not any("ynn" in line for line in fusions)
    np.testing.assert_allclose(compiled(x), jax.jit(f)(x), rtol=1e-5, atol=1e-4)


def test_other_platforms_are_left_alone():
    assert compiler_options("tpu", True) == compiler_options("gpu", False) == {}


def test_a_setting_that_xla_does_not_know_is_left_out(monkeypatch):
    def refuse(*_, **options):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option: " + str(options))

    monkeypatch.setattr(jax, "jit", refuse)
    assert compiler_options.__wrapped__("cpu", True) == {}
