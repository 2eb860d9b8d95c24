"""Names of modules and passes, as JAX writes them; and what the backward pass keeps."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from flashjax.analysis import activations
from flashjax.analysis.flops import flops_by
from flashjax.analysis.modules import PASSES, Place, above, place, place_in_hlo


@pytest.mark.parametrize(
    ("stack", "expected"),
    [
        ("jvp(Net)/Net._stages/stage_0/block_1/block_1.attend/attn/BLnhd,BLmhd->BLhnm", "stage_0/block_1/attn"),
        ("transpose(jvp(Net))/stage_0/mlp", "stage_0/mlp"),
        ("jvp(Net)/layers/while/body/closed_call/block", "layers/block"),
        ("optimizer", "optimizer"),
        ("", ""),
    ],
)
def test_paths(stack, expected):
    assert place(stack).module == expected


def test_passes_and_primitives():
    assert place("transpose(jvp(Net))/a/checkpoint/rematted_computation/b") == Place("a/b", "recomputed")
    assert place("transpose(jvp(Net))/a").part == "backward"
    assert place("jvp(Net)/a").part == "forward"
    assert place("prepare").part == "other"
    assert place_in_hlo("jit(step)/jvp(Net)/a/dot_general;jit(step)/jvp(Net)/b/add") == Place("a", "forward")
    assert place_in_hlo("") == Place("", "other")
    assert above("a/b/c", 2) == "a/b"


class Layer(nn.Module):
    remat: bool = False
    scan: bool = False

    @nn.compact
    def __call__(self, x):
        def one(mdl, x):
            return jnp.tanh(nn.Dense(16, use_bias=False, name="dense")(x))

        if self.scan:

            def body(mdl, x, _):
                return one(mdl, x), None

            body = nn.remat(body) if self.remat else body
            x, _ = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(self, x, None)
            return x.sum()
        for _ in range(3):
            x = jnp.tanh(nn.Dense(16, use_bias=False)(x))
        return x.sum()


def traced(model):
    x = jnp.ones((8, 16))
    params = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.make_jaxpr(jax.grad(lambda p, x: model.apply(p, x)))(params, x)


@pytest.mark.parametrize("scan", [False, True])
def test_each_pass_has_its_flops_and_keeps_what_it_needs(scan):
    closed = traced(Layer(scan=scan))
    product = 2 * 8 * 16 * 16
    by_pass = flops_by(closed, lambda _, stack: place(stack).part)
    # The gradient of the first input is not asked for, but a scan's body makes all of them.
    assert by_pass["forward"] == 3 * product and by_pass["backward"] == (6 if scan else 5) * product
    assert set(by_pass) <= set(PASSES)
    one = 4 * 8 * 16
    # Of each layer y and 1 - y; a scan stacks what a turn begins with too, though it is the y of the turn before.
    assert sum(activations.kept(closed).values()) == (9 if scan else 6) * one


def test_one_block_of_a_scan_is_a_turn():
    plain, again = (activations.of_one_block(traced(Layer(scan=True, remat=remat))) for remat in (False, True))
    assert (plain, again) == (3 * 4 * 8 * 16, 4 * 8 * 16)


def test_what_is_computed_again_is_counted_and_not_kept():
    plain, again = traced(Layer(scan=True)), traced(Layer(scan=True, remat=True))
    by_pass = flops_by(again, lambda _, stack: place(stack).part)
    assert by_pass["recomputed"] == by_pass["forward"] == 3 * 2 * 8 * 16 * 16
    assert sum(activations.kept(again).values()) == 3 * 4 * 8 * 16 < sum(activations.kept(plain).values())
