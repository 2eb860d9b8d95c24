"""The walk on two parameters: by hand, and as the optimizers that train everything else."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax.recipes import optimizer_page
from flashjax.recipes.optimizer_walk import ALGORITHMS, Walk, cells, verdict, walk
from flashjax.training.optimizers import OptimizerConfig, ScheduleConfig, make_optimizer

WALK = Walk(steps=30)


def test_three_steps_by_hand():
    # c = (10, 1), o = (2, 2), x = (-1, -1), lr 0.05, wd 0.5. Step 1: g = (-30, -3); with L2 g - 0.5.
    l2, w = walk(WALK, "adam_l2"), walk(WALK, "adamw")
    np.testing.assert_allclose(l2[0].gradient, [-30, -3])
    np.testing.assert_allclose(l2[0].decay_in_gradient, [-0.5, -0.5])
    np.testing.assert_allclose(l2[0].m, [-3.05, -0.35])  # 0.1 g
    np.testing.assert_allclose(l2[0].v, [0.93025, 0.01225])  # 0.001 g^2
    np.testing.assert_allclose(l2[0].m_hat, [-30.5, -3.5])  # g again
    np.testing.assert_allclose(l2[0].v_hat, [930.25, 12.25])
    np.testing.assert_allclose(l2[0].adaptive, [-0.05, -0.05], rtol=1e-8)  # lr times the sign of g
    np.testing.assert_allclose(l2[0].shrink, [-0.05 * 0.5 / 30.5, -0.05 * 0.5 / 3.5], rtol=1e-8)
    np.testing.assert_allclose(w[0].m_hat, [-30, -3])
    np.testing.assert_allclose(w[0].decay, [-0.025, -0.025])  # lr wd x
    np.testing.assert_allclose(w[0].after, [-0.925, -0.925], rtol=1e-8)
    # Steps 2 and 3 of AdamW's first parameter, by sums over all gradients instead of recurrences.
    x, gradients = -1.0, []
    for t in (1, 2, 3):
        gradients.append(10 * (x - 2))
        m = sum(0.9 ** (t - i) * g for i, g in enumerate(gradients, 1)) / sum(0.9 ** (t - i) for i in range(1, t + 1))
        v = sum(0.999 ** (t - i) * g * g for i, g in enumerate(gradients, 1))
        v /= sum(0.999 ** (t - i) for i in range(1, t + 1))
        x -= 0.05 * m / (v**0.5 + 1e-8) + 0.05 * 0.5 * x
        assert w[t - 1].after[0] == pytest.approx(x, rel=1e-13)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_it_is_what_trains_everything_else(algorithm):
    config = OptimizerConfig(
        name=algorithm,
        learning_rate=WALK.learning_rate,
        weight_decay=WALK.weight_decay,
        clip_norm=None,
        decay_vectors=True,
        schedule=ScheduleConfig(kind="constant"),
    )
    x = jnp.array(WALK.start, jnp.float32)
    optimizer = make_optimizer(config, WALK.steps, {"x": x})
    state = optimizer.init({"x": x})
    update = jax.jit(optimizer.update)
    for step in walk(WALK, algorithm):
        gradient = jnp.array(WALK.curvatures) * (x - jnp.array(WALK.minimum))
        updates, state = update({"x": gradient}, state, {"x": x})
        x = optax.apply_updates({"x": x}, updates)["x"]
        np.testing.assert_allclose(x, step.after, atol=2e-5)  # 30 steps in float32


def test_parts_of_an_update_add_up_and_adamw_shrinks_both_alike():
    for step in walk(WALK, "adam_l2"):
        loss_part = step.adaptive - step.shrink
        np.testing.assert_allclose(step.after, step.x - loss_part - step.shrink, rtol=1e-13)
    ratios = [step.shrink / step.x for step in walk(WALK, "adamw")]
    np.testing.assert_allclose(ratios, WALK.learning_rate * WALK.weight_decay)
    last = walk(Walk(), "adam_l2")[-1].after
    np.testing.assert_allclose(last, [20 / 10.5, 2 / 1.5], atol=2e-3)  # least of loss + L2: c o / (c + wd)


def test_table_and_page(tmp_path):
    walks = {name: walk(WALK, name) for name in ALGORITHMS}
    heads, rows = cells(walks["adamw"][:2])
    assert len(rows) == 4 and all(len(row) == len(heads) for row in rows)
    assert rows[0][heads.index("new x")] == "-0.925" and rows[0][heads.index("lr wd x")] == "-0.025"
    assert "x₂ 8.7 times as fast as x₁" in verdict(WALK, walks)
    html = optimizer_page.write(tmp_path / "page.html", optimizer_page.walk_parts(WALK, walks)).read_text()
    assert html.count("<polyline") == 2 and html.count("<ellipse") == 5 and not re.search(r"https?://|<script", html)


def test_problems_without_an_answer_are_refused():
    with pytest.raises(ValueError, match="curvatures are"):
        Walk(curvatures=(1, 0))
    with pytest.raises(ValueError, match="nothing to decay"):
        Walk(start=(0, 1))
    with pytest.raises(ValueError, match="shown is 9, of 3 steps"):
        Walk(steps=3, shown=9)
