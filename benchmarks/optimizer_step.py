"""The AdamW update of 100 M parameters, flashjax against PyTorch's fused and foreach AdamW, in one run on the CPU.

    python -m benchmarks.optimizer_step [--layers 9] [--rounds 7] [--json FILE]
    python -m benchmarks.optimizer_step --bytes      # only the bytes of optimizer state of every algorithm

It needs the extra `parity` for the first form.

The tensors are GPT-2's: embeddings of 50,257 words and 1,024 positions, 768 wide, and `--layers` blocks (9: 103 M).
Gradients are fixed. An update reads parameters, gradients and two moments and writes all but the gradients, 28 bytes a
parameter in float32, so it is bound by memory: `GB/s` is that traffic over the time, beside that of a plain copy. The
clipped forms read the gradients once more: the norm first. Contenders take turns round by round; a ratio is the median
over rounds of PyTorch's time by ours: above 1, flashjax is faster. The fastest round of each, and its ratio, is what a
machine that others use too disturbs least.

Bytes of state are counted on shapes, exactly, of a stack of matrices 768 x 3072: what the algorithm itself keeps for
each parameter, without parameters and gradients (8 bytes more in float32).
"""

import argparse
import json
import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.turns import Step, median_ratio, take_turns
from flashjax.training import OptimizerConfig, ScheduleConfig
from flashjax.training.optimizers import ALGORITHMS, make_average, make_optimizer

WIDTH, WORDS, POSITIONS = 768, 50257, 1024
PEERS = ("fused", "foreach")
TRAFFIC = 28
"""Bytes that the update of a float32 parameter must move."""


def shapes(layers: int) -> dict[str, Any]:
    """GPT-2's tensors, `layers` blocks deep."""
    block = {
        "attn": {"qkv": {"kernel": (WIDTH, 3 * WIDTH), "bias": (3 * WIDTH,)}, "out": _dense(WIDTH, WIDTH)},
        "mlp": {"up": _dense(WIDTH, 4 * WIDTH), "down": _dense(4 * WIDTH, WIDTH)},
        "attn_norm": {"scale": (WIDTH,), "bias": (WIDTH,)},
        "mlp_norm": {"scale": (WIDTH,), "bias": (WIDTH,)},
    }
    return {
        "embed": {"embedding": (WORDS, WIDTH)},
        "position": {"embedding": (POSITIONS, WIDTH)},
        **{f"layer_{i}": block for i in range(layers)},
        "final_norm": {"scale": (WIDTH,), "bias": (WIDTH,)},
    }


def _dense(inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {"kernel": (inputs, outputs), "bias": (outputs,)}


def draw(layers: int, seed: int) -> dict[str, Any]:
    """Normal float32 arrays of those shapes."""
    rng = np.random.default_rng(seed)
    of = lambda shape: 0.02 * rng.standard_normal(shape, np.float32)  # noqa: E731
    return jax.tree.map(of, shapes(layers), is_leaf=lambda x: isinstance(x, tuple))


def ours(layers: int, clip: float | None) -> Step:
    """An update as the trainer compiles it, parameters and state donated."""
    params = jax.tree.map(jnp.asarray, draw(layers, 0))
    gradients = jax.tree.map(jnp.asarray, draw(layers, 1))
    config = OptimizerConfig(weight_decay=0.1, clip_norm=clip, schedule=ScheduleConfig("constant"))
    optimizer = make_optimizer(config, 1000, params)

    def update(held: Any, gradients: Any) -> Any:
        params, state = held
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=0)
    held = (params, jax.jit(optimizer.init)(params))

    def step() -> None:
        nonlocal held
        held = jax.block_until_ready(compiled(held, gradients))

    return step


def torchs(layers: int, clip: float | None, **form: bool) -> Step:
    """PyTorch's AdamW, decaying what ours does."""
    import torch

    def tensors(seed: int) -> list[torch.Tensor]:
        return [torch.from_numpy(x) for x in jax.tree.leaves(draw(layers, seed))]

    params = [torch.nn.Parameter(x) for x in tensors(0)]
    for param, gradient in zip(params, tensors(1), strict=True):
        param.grad = gradient
    groups = [
        {"params": [p for p in params if (p.ndim > 1) == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, **form)

    def step() -> None:
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()

    return step


def copying(layers: int) -> Step:
    """A plain copy of as many floats as there are parameters: 8 bytes each."""
    import torch

    source = torch.empty(count(layers)).normal_()
    target = torch.empty_like(source)
    return lambda: (target.copy_(source), None)[1]


def count(layers: int) -> int:
    leaves = jax.tree.leaves(shapes(layers), is_leaf=lambda x: isinstance(x, tuple))
    return sum(math.prod(shape) for shape in leaves)


def state_bytes(name: str, **fields: Any) -> float:
    """Bytes a parameter that an algorithm keeps, an average for evaluation among them."""
    kernel = {"layer_0": {"kernel": jax.ShapeDtypeStruct((768, 3072), jnp.float32)}}
    constant = ScheduleConfig("constant")
    config = OptimizerConfig(name=name, schedule=constant, **fields)
    state = jax.eval_shape(make_optimizer(config, 1, kernel).init, kernel)
    average = kernel if make_average(config, None) is not None else {}
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state, average)) if x.ndim)
    return held / kernel["layer_0"]["kernel"].size


def bytes_table() -> dict[str, dict[str, float]]:
    """By algorithm: bytes a parameter in float32, and with a first moment in bfloat16 where there is one."""
    found = {}
    for name, algorithm in ALGORITHMS.items():
        fields = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
        found[name] = {"float32": state_bytes(name, **fields)}
        if "mu_dtype" in algorithm.arguments:
            found[name]["bfloat16"] = state_bytes(name, mu_dtype="bfloat16", **fields)
    return found


def measure(layers: int, rounds: int, peers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Seconds by form (plain, clipped) and contender, and of the copy."""
    found: dict[str, dict[str, Any]] = {}
    for form, clip in (("plain", None), ("clipped", 1.0)):
        contenders: dict[str, Callable[[], None]] = {
            "flashjax": ours(layers, clip),
            **{f"torch {peer}": torchs(layers, clip, **{peer: True}) for peer in peers},
        }
        if clip is None:
            contenders["copy"] = copying(layers)
        found[form] = take_turns(contenders, rounds)
        del contenders
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=9, help="blocks (default 9: 103 M parameters)")
    parser.add_argument("--rounds", type=int, default=7, help="times that each contender has its turn (default 7)")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS, help="forms of PyTorch's (default: both)")
    parser.add_argument("--bytes", action="store_true", help="only count bytes of state")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    figures: dict[str, Any] = {"bytes": bytes_table()}
    print(f"{'bytes of state a parameter':28}  float32  bfloat16 first moment")
    for name, held in figures["bytes"].items():
        print(f"{name:28}  {held['float32']:7.3g}  {format(held['bfloat16'], '.3g') if 'bfloat16' in held else '':>8}")
    if not args.bytes:
        parameters = count(args.layers)
        print(f"\n{parameters:,} parameters, float32, {os.cpu_count()} cores ({platform.machine()})")
        print(f"{'update':9}  {'by':14}  {'ms':>8}  {'GB/s':>6}  {'ratio':>6}  {'fastest ms':>10}  {'ratio':>6}")
        figures |= {"parameters": parameters, "seconds": measure(args.layers, args.rounds, args.peers)}
        for form, times in figures["seconds"].items():
            for name, seconds in times.items():
                moved = parameters * (8 if name == "copy" else TRAFFIC + 4 * (form == "clipped"))
                middle = statistics.median(seconds)
                ratio = median_ratio(seconds, times["flashjax"])
                best = min(seconds)
                print(
                    f"{form:9}  {name:14}  {1e3 * middle:8.1f}  {moved / middle / 1e9:6.1f}  {ratio:5.2f}x"
                    f"  {1e3 * best:10.1f}  {best / min(times['flashjax']):5.2f}x"
                )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
