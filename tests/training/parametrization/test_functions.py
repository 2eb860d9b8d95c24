"""What parametrized models compute, at step 0 and after steps."""

import jax
import numpy as np
import optax
import pytest

from flashjax.training.optimizers import OptimizerConfig, make_optimizer
from tests.training.parametrization.cases import RNGS, batch, images, logits, numbers, shapes, text, under


def test_ntk_is_standard_at_step_0():
    goal = text(tie_embeddings=False)
    ntk, standard = under(goal, "ntk"), under(goal, "standard")

    @jax.jit
    def drawn():
        ours, theirs = (each.of_model(each.init(RNGS, batch(goal))) for each in (ntk, standard))
        return ours["params"], theirs["params"]

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), *drawn())


def test_mup_at_its_base_width_is_standard():
    for goal, width in ((text(), 64), (text(tie_embeddings=False, attention_scale="dim"), 64), (images(), 16)):
        assert under(goal, "mup", base_width=width).table == under(goal, "standard").table


@pytest.mark.parametrize("tied", [True, False])
def test_logits_of_mup_are_divided_by_the_ratio_of_widths(tied):
    """At r = 4 the output multiplier takes logits of the same parameters to a quarter."""
    goal = text(tie_embeddings=tied)
    mup, plain = logits(numbers(goal), under(goal, "mup", base_width=16), under(goal))
    np.testing.assert_allclose(mup, plain / 4, rtol=1e-4, atol=1e-6)


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
    """Queries narrower by sqrt(D), as t5 draws them, times keys are the same numbers."""
    divided, undivided = text(tie_embeddings=False), text(tie_embeddings=False, attention_scale="none")
    narrower = under(undivided, "standard", rules=("query/ multiplier=0.25",))  # 1 / sqrt(16)
    np.testing.assert_allclose(*logits(numbers(divided), narrower, under(divided, "standard")), rtol=1e-4, atol=1e-5)
    queries = [each.table["layers/attn/query/kernel"].std for each in (under(undivided, "t5"), narrower)]
    assert queries[0] == pytest.approx((64 * 16) ** -0.5) and queries[0] == pytest.approx(0.25 * queries[1])


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "fields"), [("ntk", {}), ("fixup", {"norm": "none"})])
def test_presets_learn(preset, fields):
    """Twenty steps of Adam on one batch: with multipliers, and without norms from branches that begin at 0."""
    parametrized = under(text(qkv_bias=False, out_bias=False, mlp_bias=False, **fields), preset)
    rows = batch(parametrized.objective)
    config = OptimizerConfig(learning_rate=0.05 if preset == "ntk" else 2e-3, weight_decay=0.0, clip_norm=None)
    optimizer = make_optimizer(config, 100, shapes(parametrized.objective), parametrized.scales)

    @jax.jit
    def losses():
        params = parametrized.init(RNGS, rows)["params"]

        def step(carry, _):
            params, state = carry
            loss, grads = jax.value_and_grad(lambda p: parametrized.loss({"params": p}, rows, RNGS)[0])(params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), loss

        return jax.lax.scan(step, (params, optimizer.init(params)), None, 20)[1]

    found = losses()
    assert found[-1] < found[0] - 0.3
