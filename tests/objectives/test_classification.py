"""The classification objective on a small model with dropout, batch norm and a sown loss."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.objectives.classification import Classification

CLASSES = 7


class Small(nn.Module):
    """Pools, normalises by the batch, sows a loss if asked, and classifies."""

    classes: int = CLASSES
    sows: bool = True

    @nn.compact
    def __call__(self, images, train: bool = False):
        x = nn.Dense(8)(images.mean((1, 2)))
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        if self.sows:
            self.sow("losses", "balance", 0.25 * jnp.ones(2))
        return nn.Dense(self.classes, dtype=jnp.bfloat16)(x)


class Table(nn.Module):
    """Gives the pixels of an image's first row back as its logits."""

    @nn.compact
    def __call__(self, images, train: bool = False):
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * images[:, 0, :, 0]


def prepare_train(batch, key):
    noise = jax.random.normal(key, batch["image"].shape)
    return {"image": batch["image"] / 255.0 + noise, "target": jax.nn.one_hot(batch["label"], CLASSES)}


def prepare_eval(batch):
    return {**batch, "image": batch["image"].astype(jnp.float32)}


def objective(model):
    return Classification(model, CLASSES, prepare_train, prepare_eval)


def raw_batch(size=4):
    draw = np.random.default_rng(0)
    return {
        "image": jnp.asarray(draw.integers(0, 256, (size, 6, 6, 3)), jnp.uint8),
        "label": jnp.asarray(draw.integers(0, CLASSES, size), jnp.int32),
    }


def loss_of(task):
    return jax.jit(task.loss, static_argnames="train")


@pytest.fixture(scope="module")
def started():
    task = objective(Small())
    batch = raw_batch()
    variables = jax.jit(task.init)({"params": jax.random.key(0)}, batch)
    return task, variables, jax.jit(task.prepare)(batch, jax.random.key(1))


def test_init_holds_the_state_and_no_sown_loss(started):
    _, variables, _ = started
    assert set(variables) == {"params", "batch_stats"}


def test_init_under_jit_runs_no_forward_pass():
    task = objective(Small(sows=False))
    compiled = jax.jit(task.init).lower({"params": jax.random.key(0)}, raw_batch(512)).compile()
    assert " dot(" not in compiled.as_text()


def test_loss_is_cross_entropy_in_float32_plus_what_is_sown(started):
    task, variables, prepared = started
    loss, metrics, _ = loss_of(task)(variables, prepared, {}, train=False)
    logits = jax.jit(task.model.apply)(variables, prepared["image"])
    assert logits.dtype == jnp.bfloat16
    expected = -(prepared["target"] * jax.nn.log_softmax(logits.astype(jnp.float32))).sum(-1).mean()
    assert loss.dtype == jnp.float32
    assert set(metrics) == {"loss", "accuracy", "auxiliary_loss"}
    assert metrics["auxiliary_loss"] == pytest.approx(0.5)
    np.testing.assert_allclose(loss, expected + 0.5, rtol=1e-6)
    assert metrics["loss"] == loss
    assert metrics["accuracy"] == np.mean(np.argmax(logits, -1) == np.argmax(prepared["target"], -1))


def test_training_updates_collections_and_evaluation_does_not(started):
    task, variables, prepared = started
    rngs = {"dropout": jax.random.key(2)}
    loss, _, collections = loss_of(task)(variables, prepared, rngs, train=True)
    assert set(collections) == {"batch_stats"}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), collections["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(changed))
    assert loss_of(task)(variables, prepared, {}, train=False)[2] == {}
    other, _, _ = loss_of(task)(variables, prepared, {"dropout": jax.random.key(3)}, train=True)
    assert loss != other


def test_a_model_without_sown_losses_or_state_reports_neither():
    task = objective(Table())
    batch = {"image": jnp.ones((2, 3, CLASSES, 1)), "target": jnp.full((2, CLASSES), 1 / CLASSES)}
    variables = jax.jit(task.init)({"params": jax.random.key(0)}, batch)
    loss, metrics, collections = loss_of(task)(variables, batch, {}, train=True)
    assert set(metrics) == {"loss", "accuracy"} and collections == {}
    np.testing.assert_allclose(loss, np.log(CLASSES), rtol=1e-6)


def test_gradients_flow_through_micro_batches_as_through_the_whole(started):
    task, _, _ = started
    task = dataclasses.replace(task, model=Table())
    images = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2, CLASSES, 1)), jnp.float32)
    prepared = {"image": images, "target": jax.nn.one_hot(jnp.arange(4), CLASSES)}
    variables = jax.jit(task.init)({"params": jax.random.key(0)}, prepared)
    gradient = jax.jit(jax.grad(lambda v, b: task.loss(v, b, {}, train=True)[0]))
    halves = [gradient(variables, jax.tree.map(lambda x: x[i : i + 2], prepared)) for i in (0, 2)]  # noqa: B023
    whole = gradient(variables, prepared)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *halves)
    np.testing.assert_allclose(mean["params"]["scale"], whole["params"]["scale"], rtol=1e-5)


def test_evaluation_counts_each_real_row_once():
    logits = np.zeros((5, CLASSES), np.float32)
    labels = np.array([3, 3, 6, 6, 0], np.int32)
    logits[0, 3] = 9.0  # right at once
    logits[1] = [0, 5, 0, 4, 0, 0, 0]  # second
    logits[2] = [9, 8, 7, 6, 5, 4, 3]  # the last of seven
    logits[3] = 0.0  # a tie: the lower classes come first, 6 is not among five
    logits[4] = np.nan  # padding
    batch = {
        "image": jnp.asarray(logits)[:, None, :, None],
        "label": jnp.asarray(labels),
        "mask": jnp.array([1.0, 1.0, 1.0, 1.0, 0.0]),
    }
    task = objective(Table())
    variables = {"params": {"scale": jnp.ones(())}}
    sums = jax.jit(task.evaluate)(variables, batch)
    assert {name: float(weight) for name, (_, weight) in sums.items()} == {"loss": 4, "top1": 4, "top5": 4}
    assert float(sums["top1"][0]) == 1
    assert float(sums["top5"][0]) == 2
    exact = logits[:4].astype(np.float64)
    expected = sum(np.log(np.exp(row).sum()) - row[label] for row, label in zip(exact, labels, strict=False))
    np.testing.assert_allclose(sums["loss"][0], expected, rtol=1e-5)


def test_predict_gives_probabilities():
    task = objective(Small())
    batch = raw_batch(3)
    variables = jax.jit(task.init)({"params": jax.random.key(0)}, batch)
    probabilities = jax.jit(task.predict)(variables, batch)
    assert probabilities.shape == (3, CLASSES) and probabilities.dtype == jnp.float32
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)


def test_another_number_of_logits_is_an_error():
    task = objective(Small(classes=5))
    batch = raw_batch()
    variables = jax.jit(task.init)({"params": jax.random.key(0)}, batch)
    with pytest.raises(ValueError, match="5 logits and the data 7 classes; create the model with num_classes=7"):
        task.predict(variables, batch)
