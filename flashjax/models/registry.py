"""Named models: a name stands for a module class and a configuration."""

import dataclasses
import fnmatch
from typing import Any

from flax import linen as nn

from flashjax.words import nearest

_MODELS: dict[str, tuple[type[nn.Module], Any]] = {}


def register(module: type[nn.Module], variants: dict[str, Any]) -> None:
    """Adds named configurations of `module`. A name that is already taken is a ValueError."""
    for name, config in variants.items():
        if name in _MODELS:
            raise ValueError(f"model {name!r} is registered twice")
        _MODELS[name] = (module, config)


def names(pattern: str = "*") -> list[str]:
    """The known model names that match a shell-style pattern, sorted."""
    return sorted(fnmatch.filter(_MODELS, pattern))


def config(name: str, **overrides: Any) -> Any:
    """The configuration behind `name` with some fields replaced.

    Raises ValueError for an unknown name or field and says which ones are nearest.
    """
    if name not in _MODELS:
        raise ValueError(f"unknown model {name!r}; nearest: {nearest(name, _MODELS)}")
    base = _MODELS[name][1]
    fields = [field.name for field in dataclasses.fields(base)]
    for key in overrides:
        if key not in fields:
            raise ValueError(f"model {name!r} has no argument {key!r}; nearest: {nearest(key, fields)}")
    return dataclasses.replace(base, **{key: _hashable(value) for key, value in overrides.items()})


def create(name: str, **overrides: Any) -> nn.Module:
    """The module behind `name`; overrides are fields of its configuration. Raises as `config` does."""
    resolved = config(name, **overrides)
    return _MODELS[name][0](resolved)


def _hashable(value: Any) -> Any:
    """Lists, as JSON and command lines give them, become the tuples that a configuration holds."""
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value
