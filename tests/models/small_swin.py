"""A small Swin for tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flashjax.models.swin import SwinTransformer
from flashjax.models.swin_config import SwinConfig

SMALL = dict(
    img_size=32, patch_size=2, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=5,
    pretrained_window_sizes=(0, 0),
)  # fmt: skip


def small(version: int = 1, **overrides) -> SwinTransformer:
    return SwinTransformer(SwinConfig(version=version, **{**SMALL, **overrides}))


def noise(*shape: int, seed: int = 0) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def parameters(model: SwinTransformer):
    """Parameters that all matter: no zeros, no ones."""
    shape = (1, *model.config.image_shape, 3)
    rng = np.random.default_rng(0)

    def value(path, leaf):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(centre, 0.1, leaf.shape), jnp.float32)

    abstract = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape)))
    return jax.tree_util.tree_map_with_path(value, abstract)


@functools.partial(jax.jit, static_argnames=("model", "train", "method"))
def apply(model: SwinTransformer, variables, images, **kwargs):
    return model.apply(variables, images, **kwargs)
