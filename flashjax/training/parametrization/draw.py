"""Parameters drawn from a table, and multiplied by it."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from flashjax.layers.initializers import DISTRIBUTIONS
from flashjax.training.optimizers.layers import LAYER, SCANNED
from flashjax.training.parametrization.table import Leaf, Table, Tensor
from flashjax.training.sharding import path_string

PyTree = Any


def draw(table: Table, parameters: Mapping[str, Tensor], params: PyTree, key: PRNGKeyArray) -> PyTree:
    """`params`, as the model drew them, with those of the table's own distributions in their place.

    What is drawn for a path follows from the key, the path and the number of the layer alone: scanned layers begin as
    layers apart do, and on any mesh as on one device.
    """

    def one(path: Any, leaf: Array) -> Array:
        name = path_string(path)
        return _draw(table[name], parameters[name], leaf, key)

    return jax.tree_util.tree_map_with_path(one, params)


def _draw(leaf: Leaf, tensor: Tensor, drawn: Array, key: PRNGKeyArray) -> Array:
    match leaf.distribution:
        case "model":
            return drawn
        case "zeros":
            return jnp.zeros_like(drawn)
        case "ones":
            return jnp.ones_like(drawn)
    assert leaf.std is not None
    initializer = DISTRIBUTIONS[leaf.distribution](leaf.std)
    shape = tensor.matrix if leaf.distribution == "orthogonal" else tensor.shape

    def layer(number: int | Array) -> Array:
        name = LAYER.sub("layers/", tensor.path)
        own = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(name.encode())), number)
        return initializer(own, shape, drawn.dtype).reshape(tensor.shape)

    if SCANNED.search(tensor.path):
        return jax.vmap(layer)(jnp.arange(drawn.shape[0]))
    match = LAYER.search(tensor.path)
    return layer(int(match[1]) if match else 0)


def multiply(multipliers: Mapping[str, float], params: PyTree) -> PyTree:
    """What the model sees: each parameter times its multiplier; those that the mapping has not stay as they are."""
    return _each(multipliers, params, lambda leaf, multiplier: leaf * multiplier)


def divide(multipliers: Mapping[str, float], params: PyTree) -> PyTree:
    """The reverse of `multiply`, of host arrays; leaves that are `jax.ShapeDtypeStruct`s stay so."""
    return _each(multipliers, params, lambda leaf, m: leaf if isinstance(leaf, jax.ShapeDtypeStruct) else leaf / m)


def _each(multipliers: Mapping[str, float], params: PyTree, change: Callable[[Any, float], Any]) -> PyTree:
    if not multipliers:
        return params

    def one(path: Any, leaf: Any) -> Any:
        multiplier = multipliers.get(path_string(path))
        return leaf if multiplier is None else change(leaf, multiplier)

    return jax.tree_util.tree_map_with_path(one, params)
