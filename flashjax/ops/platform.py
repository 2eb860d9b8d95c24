"""The platform that a function is traced for, and what functions choose for it."""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import jax

Choices = dict[str, set[str]]
"""By setting, what `auto` has been."""
_choices: ContextVar[Choices | None] = ContextVar("choices", default=None)
_as_elsewhere: ContextVar[bool] = ContextVar("as_elsewhere", default=False)


def traced_device() -> Any:
    """A device of the mesh that is traced under, which for a plan is not there; without a mesh, or where that does not
    say what its devices are, the first of this process."""
    mesh = jax.sharding.get_abstract_mesh()
    return (None if mesh.empty else mesh.abstract_device) or jax.devices()[0]


def traced_for() -> str:
    """cpu, gpu or tpu: of the devices that are traced for."""
    return traced_device().platform


def device_kind() -> str:
    """JAX's name for the devices that are traced for, such as "TPU v5 lite"."""
    return traced_device().device_kind


def cores_of_device() -> int:
    """Of a TPU that is traced for: 2 where JAX counts a chip of two cores as one device (v5p). Of others 1."""
    return getattr(traced_device(), "num_cores", None) or 1


def on_one_cpu() -> bool:
    """Whether what is traced is for a single CPU device, on which nothing is split."""
    mesh = jax.sharding.get_abstract_mesh()
    alone = mesh.empty or (mesh.size == 1 and not mesh.manual_axes)
    return traced_for() == "cpu" and alone and not _as_elsewhere.get()


@contextlib.contextmanager
def as_elsewhere() -> Iterator[None]:
    """What the block traces is written as for other devices than one CPU: slower on that, but with derivatives in
    forward mode (`jax.jvp`), except of blocked attention and kernels. Not what a `jax.jit` has traced before it."""
    token = _as_elsewhere.set(True)
    try:
        yield
    finally:
        _as_elsewhere.reset(token)


@functools.cache
def compiler_options(*, backward: bool, platform: str | None = None) -> dict[str, str]:
    """What a program is compiled with (`jax.jit(compiler_options=...)`) for devices of `platform`, where None those of
    this process; {}: as XLA would by itself, and where it has no such setting.

    On CPUs XLA hands products, convolutions and sums to YNNPACK by default. Here it hands on the sums alone, and those
    only of a program with a `backward` pass, where XLA's own, of a bias's gradient over all tokens, take longest. Of a
    step's time by default that leaves 0.56 for ResNet-20, 0.7 for ResNet-50, 0.9 for FLASH, 0.95 for the Transformer, 1
    for Swin-T; of a forward pass's 0.9, 0.74 and 0.85 for the Transformer, FLASH and Swin-T (two cores, float32).

    On TPUs XLA makes a ring of small products of one whose operand is gathered, from a size on, and gathers activations
    for it in the backward pass of parameters that are split. Here weights are gathered whole, beside what comes before.
    By the compiler's estimates that leaves 0.54 of the step of FLASH, 0.76 of the Transformer's (fsdp 16) and 0.89 of
    that with a tensor axis of 4, and less memory (docs/plan.md).
    """
    name = platform or jax.default_backend()
    options = {}
    if name == "cpu":
        options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE" if backward else ""}
    elif name == "tpu":
        options = {"xla_jf_spmd_threshold_for_windowed_einsum_mib": str(2**20)}
    if options and name == jax.default_backend():  # of a plan's devices no function of this process can be compiled
        try:
            jax.jit(lambda: 0, compiler_options=options).lower().compile()
        except jax.errors.JaxRuntimeError:
            return {}
    return options


def jit_here(function: Callable[..., Any], *, backward: bool, **options: Any) -> Any:
    """`jax.jit` for devices of this process, with their `compiler_options`; `options` are its own.

    Not for decoding steps: SmolLM2's takes 33 ms on a CPU that way, and 30 with XLA's default.
    """
    return jax.jit(function, compiler_options=compiler_options(backward=backward), **options)


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
