"""FLOPs against formulae by hand, and against the published table of Swin."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from flashjax.analysis.flops import count_flops, flops_by_primitive, is_exact, turns_of_loops
from flashjax.ops.attention import dot_product_attention


def spec(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matrix_products_are_two_flops_a_multiply_add():
    assert count_flops(jnp.matmul, spec(5, 7), spec(7, 11)) == 2 * 5 * 7 * 11
    assert count_flops(lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k), spec(2, 5, 3, 8), spec(2, 7, 3, 8)) == (
        2 * 2 * 3 * 5 * 7 * 8
    )


def test_trees_of_arguments_and_the_breakdown():
    params = {"kernel": spec(4, 6), "bias": spec(6)}

    def layer(params, x):
        return jnp.tanh(x @ params["kernel"] + params["bias"]).sum()

    assert flops_by_primitive(layer, params, spec(3, 4)) == {"dot_general": 2 * 3 * 4 * 6}
    counts = flops_by_primitive(layer, params, spec(3, 4), elementwise=True)
    assert counts == {"dot_general": 144, "add": 18, "tanh": 18, "reduce_sum": 18}
    assert next(iter(counts)) == "dot_general"


def test_a_backward_pass_costs_two_forwards():
    def loss(w, x):
        return ((x @ w) ** 2).sum()

    assert count_flops(jax.grad(loss, (0, 1)), spec(6, 9), spec(4, 6)) == 3 * (2 * 4 * 6 * 9)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (2, 2), (4, 4)])
def test_convolutions_and_their_gradients(groups, stride):
    # 8 divides by each stride: every tap of the gradients falls where the forward's did, up to the border.
    channels, features, kernel, size = 4, 8, stride, 8
    outputs = 2 * (size // stride) ** 2 * features

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    arguments = spec(2, size, size, channels), spec(kernel, kernel, channels // groups, features)
    forward = 2 * outputs * kernel * kernel * channels // groups
    assert count_flops(convolve, *arguments) == forward
    total = count_flops(jax.value_and_grad(lambda x, w: convolve(x, w).sum(), (0, 1)), *arguments)
    assert total == 3 * forward


PRODUCT = 2 * 4 * 4 * 4


def square(x):
    return x @ x


def test_scans_count_their_length_and_remat_what_is_computed_again():
    def stack(x, remat):
        body = jax.checkpoint(square) if remat else square
        return jax.lax.scan(lambda c, _: (body(c), None), x, None, length=5)[0].sum()

    assert count_flops(lambda x: stack(x, False), spec(4, 4)) == 5 * PRODUCT
    assert count_flops(jax.grad(lambda x: stack(x, False)), spec(4, 4)) == 5 * 3 * PRODUCT
    # The product itself is no residual of its own gradient: nothing is left to compute again.
    assert count_flops(jax.grad(lambda x: stack(x, True)), spec(4, 4)) == 5 * 3 * PRODUCT

    def twice(x):
        return jax.lax.scan(lambda c, _: (jax.checkpoint(lambda c: square(square(c)))(c), None), x, None, length=5)[
            0
        ].sum()

    assert count_flops(jax.grad(twice), spec(4, 4)) == 5 * (2 * 3 + 1) * PRODUCT


def test_branches_and_loops():
    def branch(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: square(square(x)), square, x)

    def loop(x):
        return jax.lax.while_loop(lambda c: c[0, 0] < 3, square, x)

    def switch(x):
        return jax.lax.switch(jnp.int32(x[0, 0]), [lambda x: x, square, lambda x: x], x)

    assert count_flops(branch, spec(4, 4)) == 2 * PRODUCT
    assert count_flops(switch, spec(4, 4)) == PRODUCT
    assert count_flops(loop, spec(4, 4)) == PRODUCT
    assert count_flops(loop, spec(4, 4), while_iterations=7) == 7 * PRODUCT
    assert count_flops(lambda x: jax.lax.fori_loop(0, 6, lambda _, c: square(c), x), spec(4, 4)) == 6 * PRODUCT


def attend(implementation, **seen):
    return lambda x: dot_product_attention(x, x, x, implementation=implementation, **seen)


def test_blocks_of_attention_are_counted_as_often_as_they_are_computed():
    tokens, heads, width = 4096, 2, 64
    x = spec(1, tokens, heads, width)
    whole = 2 * 2 * heads * tokens**2 * width
    assert count_flops(attend("xla"), x) == whole
    assert count_flops(attend("blocked"), x) == pytest.approx(whole, rel=0.01)  # sums of weights are a row beside them
    causal = count_flops(attend("blocked", causal=True), x)
    assert 0.5 * whole < causal < 0.54 * whole  # half, and what is hidden of blocks on the diagonal
    near = count_flops(attend("blocked", causal=True, window=700), x)
    assert near == pytest.approx(whole * (700 + 512) / tokens, rel=0.1)

    def gradient(implementation, **seen):
        return count_flops(jax.grad(lambda x: attend(implementation, **seen)(x).sum()), x)

    # Three times the forward pass, and logits that are made again.
    assert gradient("blocked") == pytest.approx(3.5 * whole, rel=0.01)
    assert gradient("blocked", causal=True) == pytest.approx(3.5 * causal, rel=0.01)


def test_bounds_of_loops_are_known_in_layers_that_are_computed_again():
    @jax.checkpoint
    def layer(x, w):
        return attend("blocked", causal=True)(x @ w), None

    arguments = spec(2, 4096, 2, 16), spec(3, 16, 16)
    closed = jax.make_jaxpr(jax.grad(lambda x, w: jax.lax.scan(layer, x, w)[0].sum()))(*arguments)
    assert is_exact(closed)
    forward = count_flops(lambda x, w: jax.lax.scan(layer, x, w)[0], *arguments)
    again = count_flops(jax.grad(lambda x, w: jax.lax.scan(layer, x, w)[0].sum()), *arguments)
    assert again == pytest.approx(4.5 * forward, rel=0.02)


def test_loops_of_rows_side_by_side_run_as_often_as_the_longest():
    def loop(n, x):
        return jax.lax.fori_loop(0, n, lambda _, c: square(c), x)

    rows = jax.vmap(loop, (0, None))
    assert count_flops(lambda x: rows(jnp.arange(4), x), spec(4, 4)) == 3 * 4 * PRODUCT
    assert is_exact(jax.make_jaxpr(lambda x: rows(jnp.arange(4), x))(spec(4, 4)))


@pytest.mark.parametrize(
    ("begin", "step", "turns"),
    [
        (0, lambda i: i + 2, 5),
        (3, lambda i: 1 + i, 6),
        (1, lambda i: i + i, None),
        (0, lambda i: i + 0, None),
        (0, lambda i: i - 1, None),
    ],
)
def test_loops_that_count_up_are_known_and_others_are_not(begin, step, turns):
    def loop(x):
        return jax.lax.while_loop(lambda c: c[0] < 9, lambda c: (step(c[0]), square(c[1])), (begin, x))

    assert is_exact(jax.make_jaxpr(loop)(spec(4, 4))) == (turns is not None)
    assert count_flops(loop, spec(4, 4)) == (turns or 1) * PRODUCT


def test_a_step_that_is_carried_is_not_known():
    def loop(x):
        return jax.lax.while_loop(lambda c: c[0] < 9, lambda c: (c[0] + c[1], c[1], square(c[2])), (0, 2, x))

    assert not is_exact(jax.make_jaxpr(loop)(spec(4, 4))) and count_flops(loop, spec(4, 4)) == PRODUCT


def test_turns_of_loops_are_said_by_place():
    def rows(x, n):
        with jax.named_scope("fixed"):
            x = jax.lax.scan(lambda c, i: (jax.lax.fori_loop(0, i, lambda _, c: square(c), c), None), x, jnp.arange(4))
        with jax.named_scope("given"):
            return jax.lax.fori_loop(0, n, lambda _, c: square(c), x[0])

    traced = jax.make_jaxpr(rows)(spec(4, 4), jax.ShapeDtypeStruct((), jnp.int32))
    assert turns_of_loops(traced) == [("fixed", 1.5), ("given", None)]


def test_a_loop_whose_bounds_are_an_argument_makes_a_count_a_lower_bound():
    def loop(x, n):
        return jax.lax.fori_loop(0, n, lambda _, c: square(c), x)

    def scanned(x):
        return jax.lax.scan(lambda c, i: (loop(c, 2 * i + 1), None), x, jnp.arange(4))[0]

    count = jax.ShapeDtypeStruct((), jnp.int32)
    assert count_flops(loop, spec(4, 4), count) == PRODUCT and not is_exact(jax.make_jaxpr(loop)(spec(4, 4), count))
    assert count_flops(scanned, spec(4, 4)) == (1 + 3 + 5 + 7) * PRODUCT
    assert is_exact(jax.make_jaxpr(scanned)(spec(4, 4)))
    # What holds no product needs no length.
    assert is_exact(jax.make_jaxpr(lambda x, n: jax.lax.fori_loop(0, n, lambda _, c: c + 1, x))(spec(4, 4), count))


def test_functions_within_functions():
    custom = jax.custom_vjp(square)
    custom.defvjp(lambda x: (square(x), x), lambda x, g: (square(square(g)),))
    tangent = jax.custom_jvp(square)
    tangent.defjvp(lambda primals, tangents: (square(*primals), tangents[0]))
    assert count_flops(jax.jit(lambda x: jax.jit(square)(x)), spec(4, 4)) == PRODUCT
    assert count_flops(custom, spec(4, 4)) == PRODUCT
    assert count_flops(jax.value_and_grad(lambda x: custom(x).sum()), spec(4, 4)) == 3 * PRODUCT
    assert count_flops(tangent, spec(4, 4)) == PRODUCT


def test_a_sharded_map_counts_all_its_devices():
    mesh = jax.make_mesh((len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,))
    rows = 2 * mesh.size
    mapped = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert count_flops(mapped, spec(rows, 4), spec(4, 4)) == 2 * rows * 4 * 4


def test_a_kernel_counts_its_grid():
    def kernel(x_ref, out_ref):
        out_ref[...] = x_ref[...] @ x_ref[...]

    block = pl.BlockSpec((4, 4), lambda i: (i, 0))
    call = pl.pallas_call(
        kernel, grid=(3,), in_specs=[block], out_specs=block, out_shape=jax.ShapeDtypeStruct((12, 4), jnp.float32)
    )
    assert count_flops(call, spec(12, 4)) == 3 * PRODUCT


def swin_by_hand(config, size):
    """Multiply-adds of one image; V2's MLP of position biases left out."""
    width, side = config.embed_dim, size // config.patch_size
    total = side**2 * 3 * config.patch_size**2 * width
    for stage, depth in enumerate(config.depths):
        if stage:  # four neighbours become one token of twice the width
            side, width = side // 2, 2 * width
            total += side**2 * 2 * width * width
        total += depth * side**2 * width * (12 * width + 2 * min(config.window_size, side) ** 2)
    return total + width * config.num_classes


@pytest.mark.parametrize(
    ("name", "size", "macs"),
    [
        ("swin_tiny_patch4_window7_224", 224, 4.494e9),
        ("swin_base_patch4_window12_384", 384, 47.105e9),
        ("swinv2_tiny_window8_256", 256, 5.926e9),
    ],
)
def test_swin_is_as_its_table(name, size, macs):
    models = pytest.importorskip("flashjax.models")
    model = models.create(name)
    variables = jax.eval_shape(model.init, jax.random.key(0), spec(1, size, size, 3))
    counted = count_flops(model.apply, variables, spec(1, size, size, 3)) / 2
    assert counted == pytest.approx(macs, rel=0.01)
    assert counted == pytest.approx(swin_by_hand(model.config, size), rel=0.01)
