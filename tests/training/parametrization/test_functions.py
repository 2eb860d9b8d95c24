"""What parametrized models compute, at step 0 and after steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax.training.optimizers import OptimizerConfig, make_optimizer
from tests.training.parametrization.cases import RNGS, batch, begin, images, logits, text, under


def test_ntk_is_standard_at_step_0():
    goal = text(tie_embeddings=False)
    np.testing.assert_allclose(logits(under(goal, "ntk")), logits(under(goal, "standard")), rtol=1e-4, atol=1e-5)


def test_mup_at_its_base_width_is_standard():
    for goal, width in ((text(), 64), (text(tie_embeddings=False, attention_scale="dim"), 64), (images(), 16)):
        mup, standard = under(goal, "mup", base_width=width), under(goal, "standard")
        assert mup.table == standard.table
        np.testing.assert_array_equal(logits(mup), logits(standard))


def test_tied_logits_of_mup_are_divided_by_the_ratio_of_widths():
    """And those of an untied head: at r = 4 the output multiplier takes logits of the same parameters to a quarter."""
    for tied in (True, False):
        goal = text(tie_embeddings=tied)
        mup = under(goal, "mup", base_width=16)
        drawn = begin(mup)
        plain = goal.model.apply({"params": drawn["params"]}, batch(goal)["tokens"][:, :-1])
        np.testing.assert_allclose(logits(mup, drawn), plain / 4, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("scale", "power"), [("sqrt_dim", 0.5), ("dim", 1.0), ("none", 0.0)])
def test_attention_logits_go_by_one_over_d(scale, power):
    """With heads kept, head_dim 16 from 4: the model's own division and the multiplier make d_base^(1 - p) / d."""
    mup = under(text(attention_scale=scale), "mup", base_width=16, keep="heads")
    query = mup.table["layers/attn/query/kernel"].multiplier
    assert query == mup.table["layers/attn/query/bias"].multiplier == pytest.approx(4 ** (power - 1))
    assert 16**-power * query == pytest.approx(4 ** (1 - power) / 16)


@pytest.mark.parametrize(
    ("goal", "fields", "message"),
    [
        (lambda: text(qk_norm="both"), {"keep": "heads"}, "layers/attn/query_norm/scale would undo"),
        (lambda: images(), {"keep": "heads", "base_width": 8}, "makes them together with keys"),
        (lambda: text(norm_position="post"), {}, "no last norm stands before it"),
        (lambda: text(mixer="retnet", position="none"), {"keep": "heads"}, "for softmax attention"),
    ],
)
def test_where_mup_has_no_place_for_a_factor(goal, fields, message):
    with pytest.raises(ValueError, match=message):
        under(goal(), "mup", **({"base_width": 16} | fields))


def test_t5_without_a_division_has_the_logits_of_a_division():
    """Same kernels but for the queries, which are narrower by sqrt(D): queries times keys are the same numbers."""
    divided, undivided = text(tie_embeddings=False), text(tie_embeddings=False, attention_scale="none")
    rules = ("query/kernel$ multiplier=0.25",)  # 1 / sqrt(16)
    ours = under(undivided, "t5")
    lecun = under(undivided, "standard", rules=rules)
    assert ours.table["layers/attn/query/kernel"].std == pytest.approx((64 * 16) ** -0.5)
    np.testing.assert_allclose(
        logits(lecun), logits(under(divided, "standard")), rtol=1e-4, atol=1e-5
    )  # division in the kernel
    moved = ours.of_model(begin(ours))["params"]["layers"]["attn"]["query"]["kernel"]
    kernel = lecun.of_model(begin(lecun))["params"]["layers"]["attn"]["query"]["kernel"]
    np.testing.assert_allclose(moved, kernel, rtol=1e-5)


def test_without_the_division_logits_grow_by_its_root():
    """Attention of "none" is that of "sqrt_dim" on queries times sqrt(D)."""
    with_division, without = text(), text(attention_scale="none")
    params = begin(under(with_division))["params"]
    tokens = batch(with_division)["tokens"][:, :-1]
    wider = jax.tree_util.tree_map_with_path(
        lambda path, x: x * 4 if "query" in jax.tree_util.keystr(path) else x, params
    )
    np.testing.assert_allclose(
        without.model.apply({"params": params}, tokens), with_division.model.apply({"params": wider}, tokens), atol=1e-5
    )


def train(parametrized, steps: int, rate: float):
    """(params, losses) of Adam on one batch, with the table's scales."""
    rows = batch(parametrized.objective)
    params = begin(parametrized)["params"]
    config = OptimizerConfig(learning_rate=rate, weight_decay=0.0, clip_norm=None)
    optimizer = make_optimizer(config, 100, params, parametrized.scales)
    state, losses = optimizer.init(params), []

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(lambda p: parametrized.loss({"params": p}, rows, RNGS)[0])(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    return params, losses


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ntk", "t5", "orthogonal", "deepnorm", "fixup", "t_fixup", "t_fixup_encoder"])
def test_presets_learn(preset):
    fields = {
        "t5": {"attention_scale": "none"},
        "deepnorm": {"residual": "deepnorm", "norm_position": "post"},
        "fixup": {"norm": "none"},
        "t_fixup": {"norm": "none"},
        "t_fixup_encoder": {"norm": "none"},
    }.get(preset, {})
    _, losses = train(under(text(**fields), preset), 20, 0.05 if preset == "ntk" else 2e-3)
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.slow
def test_logits_move_more_in_wider_standard_models_and_not_under_mup():
    """The change of the logits by three steps of Adam, at widths 64 and 512 (Yang et al. 2021, appendix D.1).

    Measured over 64, 128, 256 and 512: standard grows 2.3-fold; mup falls, to 0.62, since what the head begins with
    counts for less.
    """
    change = {}
    for preset, fields in (("standard", {}), ("mup", {"base_width": 64})):
        for width in (64, 512):
            parametrized = under(text(width=width, heads=width // 16, tie_embeddings=False), preset, **fields)
            before = logits(parametrized)
            params, _ = train(parametrized, 3, 1e-2)
            moved = logits(parametrized, {"params": params}) - before
            change[preset, width] = float(jnp.abs(moved).mean())
    assert change["mup", 64] == pytest.approx(change["standard", 64], rel=1e-3)
    assert change["standard", 512] > 1.8 * change["standard", 64]
    assert change["mup", 512] < 1.1 * change["mup", 64]
