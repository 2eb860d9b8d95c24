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
def forward_options(platform: str) -> dict[str, str]:
    """What a program of forward passes alone is compiled with for devices of `platform`
    (`jax.jit(compiler_options=...)`); {}: as XLA would by itself.

    On CPUs without YNNPACK, XLA's default there, which takes longer than XLA's own products and sums: a forward pass of
    the Transformer, FLASH and Swin-T takes 0.9, 0.74 and 0.85 of the time without. A training step of Swin-T would take
    1.35 times the time, so those are left alone. {} too where XLA has no such setting.
    """
    if platform != "cpu":
        return {}
    options = {"xla_cpu_experimental_ynn_fusion_type": ""}
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
