"""The platform that a function is traced for, and what functions choose for it."""

import contextlib
import functools
from collections.abc import Collection, Iterator, Mapping
from contextvars import ContextVar

import jax

Choices = dict[str, set[str]]
"""By setting, what `auto` has been."""
_choices: ContextVar[Choices | None] = ContextVar("choices", default=None)


def traced_for() -> str:
    """cpu, gpu or tpu: of the devices of the mesh that is traced under, which for a plan are not there; without a mesh
    the platform of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return jax.default_backend() if device is None else device.platform


@functools.cache
def compiler_options(platform: str, backward: bool) -> dict[str, str]:
    """What a program for devices of `platform` is compiled with (`jax.jit(compiler_options=...)`); {}: as XLA would.

    On CPUs products are XLA's own: those of YNNPACK, its default, take longer here (docs/language.md has figures). Sums
    of a backward pass are YNNPACK's, and those of a forward pass alone are not. {} too where XLA has no such setting.
    """
    if platform != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE" if backward else ""}
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def chosen(setting: str, value: str) -> None:
    """Says that `setting`, which was left to the platform or to shapes, is `value` in what is being traced."""
    if (choices := _choices.get()) is not None:
        choices.setdefault(setting, set()).add(value)


@contextlib.contextmanager
def choices() -> Iterator[Choices]:
    """What is `chosen` while the block traces; of a function that JAX has traced before it hears nothing."""
    made: Choices = {}
    token = _choices.set(made)
    try:
        yield made
    finally:
        _choices.reset(token)


def in_words(choices: Mapping[str, Collection[str]]) -> str:
    """'attention paired; implementation blocked and xla', '' where nothing was chosen."""
    return "; ".join(f"{setting} {' and '.join(sorted(values))}" for setting, values in sorted(choices.items()))
