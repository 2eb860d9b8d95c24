"""What programs on a CPU are compiled with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.ops.platform import compiler_options


def product(x, kernel):
    return x @ kernel


def column_sums(x, kernel):
    del kernel
    return (x * x).sum(0)


@pytest.mark.parametrize(("backward", "handed_on"), [(False, []), (True, [column_sums])])
def test_on_a_cpu_ynnpack_has_the_sums_of_a_backward_pass_alone(backward, handed_on):
    x, kernel = (
        jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32) for shape in [(512, 64), (64, 64)]
    )
    options = compiler_options(backward=backward)
    assert options, "this XLA does not know the setting: measure again what it does by itself"
    for function in (product, column_sums):
        by_itself, ours = (jax.jit(function, compiler_options=o).lower(x, kernel).compile() for o in ({}, options))
        assert "ynn_fusion" in by_itself.as_text()
        assert ("ynn_fusion" in ours.as_text()) == (function in handed_on)
        np.testing.assert_allclose(ours(x, kernel), by_itself(x, kernel), rtol=1e-5, atol=1e-4)


def test_other_platforms_are_left_alone():
    for platform in ("tpu", "gpu"):
        assert compiler_options(backward=True, platform=platform) == {}
        assert compiler_options(backward=False, platform=platform) == {}


def test_a_setting_that_xla_does_not_know_is_left_out(monkeypatch):
    def refuse(*_, **options):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: No such compile option: " + str(options))

    monkeypatch.setattr(jax, "jit", refuse)
    assert compiler_options.__wrapped__(backward=True) == {}
