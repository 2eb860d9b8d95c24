"""Tiny models under parametrizations, for the tests beside.

Compiling is what these tests cost: objectives and their shapes are made once for the same arguments, and what holds for
any parameters is checked on `numbers`, which compile nothing.
"""

import dataclasses
import functools

import jax
import numpy as np

from flashjax.models.resnet import ResNet
from flashjax.models.resnet_variants import cifar
from flashjax.models.swin import SwinTransformer
from flashjax.models.swin_config import SwinConfig
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


@functools.cache
def text(**fields) -> LanguageModelling:
    config = dataclasses.replace(TEXT, **fields)
    return LanguageModelling(Transformer(config), config.vocab_size)


@functools.cache
def images(**fields) -> Classification:
    return classification(SwinTransformer(dataclasses.replace(IMAGES, **fields)))


@functools.cache
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
    if goal not in _SHAPES:
        _SHAPES[goal] = _shapes(goal)
    return _SHAPES[goal]


_SHAPES = {}


def _shapes(goal):
    return jax.eval_shape(lambda: goal.init(RNGS, batch(goal)))["params"]


def under(goal, preset: str = "model", **fields) -> Parametrized:
    return parametrize(goal, ParametrizationConfig(preset=preset, **fields), shapes(goal), shapes)


def numbers(goal) -> dict:
    """Variables of an objective: any."""
    rng = np.random.default_rng(0)
    return {"params": jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape, np.float32), shapes(goal))}


def logits(variables: dict, *parametrized: Parametrized) -> list[jax.Array]:
    """Of the batch under each, from one compiled function; all are of text."""

    tokens = batch(parametrized[0].objective)["tokens"][:, :-1]

    @jax.jit
    def of_each(variables):
        return [one.objective.model.apply(one.of_model(variables), tokens, train=False) for one in parametrized]

    return of_each(variables)
