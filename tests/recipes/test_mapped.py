"""Mapped trainings: equal to the same training alone, without mapping and by other means."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax.models.convnet import ConvNet, ConvNetConfig
from flashjax.objectives.classification import Classification
from flashjax.recipes.mapped import MappedTraining, digit_splits
from flashjax.training.optimizers import OptimizerConfig

TINY = ConvNetConfig(widths=(4,), kernels=(9,), strides=(7,))


def goal():
    return Classification(ConvNet(TINY), 10, prepare_train=lambda batch, _: dict(batch), prepare_eval=dict)


@pytest.fixture(scope="module")
def splits():
    return digit_splits(40)


def test_the_digits_are_split_by_class_and_normalised(splits):
    train, held_out = splits
    assert len(train["label"]) == 40 and len(held_out["label"]) == 4960
    assert np.bincount(train["label"]).tolist() == [4] * 10
    assert train["image"].mean() == pytest.approx(0, abs=1e-5) and train["image"].std() == pytest.approx(1, abs=1e-5)
    assert (train["target"].argmax(-1) == train["label"]).all()
    images = {row.tobytes() for row in train["image"]}
    assert not any(row.tobytes() in images for row in held_out["image"])
    with pytest.raises(ValueError, match="train_images is 5000; of 5000 digits up to 4000"):
        digit_splits(5000)


def alone(name, steps, params):
    """(initial state, step): one training as Optax has it, which takes its rate and decay with each step."""
    mask = jax.tree.map(lambda x: x.ndim > 1, params)

    def optimizer(rate, decay):
        schedule = optax.cosine_decay_schedule(rate, steps)
        if name == "adamw":
            return optax.adamw(schedule, weight_decay=decay, mask=mask)
        return optax.chain(optax.add_decayed_weights(decay, mask), optax.adam(schedule))

    @jax.jit
    def step(params, state, image, label, rate, decay):
        def loss(p):
            logits = ConvNet(TINY).apply({"params": p}, image)
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

        updates, state = optimizer(rate, decay).update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    return optimizer(0.0, 0.0).init(params), step


@pytest.mark.parametrize("name", ["adam_l2", "adamw"])
def test_a_cell_is_the_training_that_optax_makes(splits, name):
    train, held_out = splits
    held_out = {key: value[:100] for key, value in held_out.items()}
    mapped = MappedTraining(goal(), OptimizerConfig(name=name, clip_norm=None), train, held_out, 3, 10)
    rates, decays = [0.01, 0.02, 0.01], [0.0, 0.1, 4.0]
    found = mapped(5, rates, decays)
    assert mapped.steps == 12
    params_key, order_key = jax.random.split(jax.random.key(5))
    start = jax.jit(ConvNet(TINY).init)(params_key, jnp.asarray(train["image"][:1]))["params"]
    orders = [np.asarray(jax.random.permutation(key, 40)).reshape(4, 10) for key in jax.random.split(order_key, 3)]
    opening, step = alone(name, 12, start)
    logits = jax.jit(lambda params, images: ConvNet(TINY).apply({"params": params}, images))
    for i, (rate, decay) in enumerate(zip(rates, decays, strict=True)):
        params, state = start, opening
        for rows in (rows for order in orders for rows in order):
            params, state = step(params, state, train["image"][rows], train["label"][rows], rate, decay)
        for before, split in (("train", train), ("eval", held_out)):
            scores = logits(params, split["image"])
            error = (np.argmax(scores, -1) != split["label"]).mean()
            loss = optax.softmax_cross_entropy_with_integer_labels(scores, split["label"]).mean()
            assert found[f"{before}_error"][i] == pytest.approx(float(error), abs=1e-6)
            assert found[f"{before}_loss"][i] == pytest.approx(float(loss), rel=2e-4)


def test_other_rates_compile_nothing_and_company_changes_nothing(splits):
    train, held_out = splits
    held_out = {key: value[:100] for key, value in held_out.items()}
    mapped = MappedTraining(goal(), OptimizerConfig(clip_norm=None), train, held_out, 2, 20)
    first = mapped(0, [0.01, 0.1], [0.1, 0.2])
    again = mapped(0, [0.01, 0.3], [0.1, 0.4])
    assert mapped._compiled._cache_size() == 1
    assert first["train_loss"][0] == again["train_loss"][0] and first["train_loss"][1] != again["train_loss"][1]
    assert mapped(1, [0.01, 0.1], [0.1, 0.2])["train_loss"][0] != first["train_loss"][0]
    assert mapped._compiled._cache_size() == 1
    assert mapped.flops() > 0
    with pytest.raises(ValueError, match="batch_size is 41, of 40 images"):
        MappedTraining(goal(), OptimizerConfig(), train, held_out, 2, 41)
