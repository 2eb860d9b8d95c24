"""The small network: equal to Linen's own convolutions, and refuses what does not fit."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.models.convnet import ConvNet, ConvNetConfig, patches


class Plain(nn.Module):
    """The same with nn.Conv."""

    config: ConvNetConfig

    @nn.compact
    def __call__(self, x):
        for i, (width, kernel, stride) in enumerate(
            zip(self.config.widths, self.config.kernels, self.config.strides, strict=True)
        ):
            x = nn.relu(nn.Conv(width, (kernel, kernel), stride, padding="VALID", name=f"conv{i}")(x))
        return nn.Dense(self.config.num_classes, name="head")(x.reshape(len(x), -1))


@pytest.mark.parametrize("config", [ConvNetConfig(), ConvNetConfig(7, (3, 4, 5), (5, 3, 2), (2, 1, 3))])
def test_it_is_a_network_of_convolutions(config):
    images = jax.random.normal(jax.random.key(0), (3, 28, 23, 2))
    params = jax.jit(ConvNet(config).init)(jax.random.key(1), images)["params"]
    shapes = jax.tree.map(jnp.shape, jax.eval_shape(Plain(config).init, jax.random.key(1), images)["params"])
    same = jax.tree.map(lambda leaf, shape: leaf.reshape(shape), params, shapes, is_leaf=lambda x: hasattr(x, "ndim"))
    found = jax.jit(ConvNet(config).apply)({"params": params}, images)
    expected = jax.jit(Plain(config).apply)({"params": same}, images)
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_the_default_has_8330_parameters():
    shapes = jax.eval_shape(ConvNet(ConvNetConfig()).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 8330


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="a kernel of 7 does not fit into 28 x 5"):
        patches(jnp.zeros((1, 28, 5, 1)), 7, 3)
    with pytest.raises(ValueError, match="a value for each layer"):
        ConvNetConfig(strides=(1,))
