"""Tiny models under parametrizations, for the tests beside."""

import dataclasses

import jax

from flashjax.models.resnet import ResNet
from flashjax.models.resnet_variants import cifar
from flashjax.models.swin import SwinConfig, SwinTransformer
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.objectives.classification import Classification
from flashjax.objectives.language import LanguageModelling
from flashjax.training.parametrization import ParametrizationConfig, Parametrized, parametrize

VOCAB, LENGTH = 64, 16
TEXT = TransformerConfig(
    vocab_size=VOCAB, width=64, depth=2, heads=4, max_length=32, initializer="fan_in", scan_layers=True
)
IMAGES = SwinConfig(
    img_size=32, num_classes=10, embed_dim=16, depths=(1, 1), num_heads=(2, 4), window_size=4, drop_path_rate=0.0
)
RNGS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


def text(**fields) -> LanguageModelling:
    config = dataclasses.replace(TEXT, **fields)
    return LanguageModelling(Transformer(config), config.vocab_size)


def images(**fields) -> Classification:
    return classification(SwinTransformer(dataclasses.replace(IMAGES, **fields)))


def convolutions(**fields) -> Classification:
    return classification(ResNet(cifar(8, **fields)))


def classification(model) -> Classification:
    return Classification(model, 10, lambda batch, key: dict(batch), lambda batch: dict(batch))


def batch(goal) -> dict:
    if isinstance(goal, LanguageModelling):
        return {"tokens": jax.random.randint(jax.random.key(2), (4, LENGTH + 1), 0, VOCAB)}
    return {"image": jax.random.normal(jax.random.key(2), (4, 32, 32, 3))}


def shapes(goal):
    """Parameters of an objective, abstract."""
    return jax.eval_shape(lambda: goal.init(RNGS, batch(goal)))["params"]


def under(goal, preset: str = "model", **fields) -> Parametrized:
    return parametrize(goal, ParametrizationConfig(preset=preset, **fields), shapes(goal), shapes)


def begin(parametrized: Parametrized) -> dict:
    """Variables of step 0."""
    return jax.jit(lambda: parametrized.init(RNGS, batch(parametrized.objective)))()


def logits(parametrized: Parametrized, variables=None) -> jax.Array:
    """Of the batch; by default at step 0."""
    goal = parametrized.objective
    rows = batch(goal)
    inputs = rows["tokens"][:, :-1] if "tokens" in rows else rows["image"]
    variables = begin(parametrized) if variables is None else variables
    return jax.jit(lambda v: goal.model.apply(parametrized.of_model(v), inputs, train=False))(variables)
