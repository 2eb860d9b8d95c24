"""What forward passes on a CPU are compiled with."""

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.ops.platform import forward_options


def test_a_forward_pass_on_a_cpu_goes_without_ynnpack_and_is_the_same_function():
    def f(x):
        return (x @ x).sum(0)

    x = jnp.asarray(np.random.default_rng(0).normal(size=(256, 256)), jnp.float32)
    options = forward_options("cpu")
    assert options, "this XLA does not know the setting: measure again what it does by itself"
    default, without = (jax.jit(f, compiler_options=o).lower(x).compile() for o in ({}, options))
    assert "ynn_fusion" in default.as_text() and "ynn_fusion" not in without.as_text()
    np.testing.assert_allclose(without(x), default(x), rtol=1e-5, atol=1e-4)


def test_other_platforms_are_left_alone():
    assert forward_options("tpu") == forward_options("gpu") == {}


def test_a_setting_that_xla_does_not_know_is_left_out(monkeypatch):
    def refuse(*_, **options):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option: " + str(options))

    monkeypatch.setattr(jax, "jit", refuse)
    assert forward_options.__wrapped__("cpu") == {}
