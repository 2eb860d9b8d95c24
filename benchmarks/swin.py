"""Swin-T on this machine: flashjax against Hugging Face's torch implementation, eager and compiled, in one run.

    python -m benchmarks.swin [--json FILE] [--batch 8] [--rounds 8] [--together 1 2 4 0] [--no_compile]  (extra parity)

Forward (inference) and training step (forward, backward, AdamW) at 224 in float32 under the same weights. The
contenders take turns, round by round, so that drift slows all of them; a ratio is the median over rounds of torch's
time by flashjax's: above 1, flashjax is faster. Stochastic depth is off: Hugging Face applies it to one branch only.
"""

import argparse
import json
import os
import platform
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from flax import linen as nn

from benchmarks.turns import Step, median_ratio, take_turns
from flashjax import interop, models
from flashjax.analysis.flops import count_flops
from flashjax.ops.platform import jit_here

NAME = "swin_tiny_patch4_window7_224"


def torch_steps(batch: int, images: np.ndarray, labels: np.ndarray, compiled: bool) -> tuple[Step, Step, dict]:
    """(forward, training step, weights) of Hugging Face's model."""
    torch.manual_seed(0)
    config = transformers.SwinConfig(num_labels=1000, drop_path_rate=0.0)
    model = transformers.SwinForImageClassification(config)
    weights = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)
    run = torch.compile(model) if compiled else model
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            _ = run(pixel_values=x).logits

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(run(pixel_values=x).logits, y).backward()
        optimizer.step()

    return forward, train, weights


def jax_steps(
    model: nn.Module, weights: dict, images: np.ndarray, labels: np.ndarray
) -> tuple[Step, Step, dict[str, int]]:
    """(forward, training step, FLOPs of each) of flashjax's model under the same weights."""
    params = jax.tree.map(jnp.asarray, interop.from_torch(NAME, weights)["params"])
    optimizer = optax.adamw(1e-3, weight_decay=0.05)
    x, y = jnp.asarray(images), jnp.asarray(labels)

    def apply(params, x):
        return model.apply({"params": params}, x)

    def update(params, state, x, y):
        def loss(params):
            logits = model.apply({"params": params}, x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    state = jax.jit(optimizer.init)(params)
    flops = {"forward": count_flops(apply, params, x), "train": count_flops(update, params, state, x, y)}
    apply_jit = jit_here(apply, backward=False)
    update_jit = jit_here(update, backward=True, donate_argnums=(0, 1))
    held = {"params": jax.tree.map(jnp.copy, params), "state": state}

    def forward() -> None:
        jax.block_until_ready(apply_jit(params, x))

    def train() -> None:
        held["params"], held["state"], value = update_jit(held["params"], held["state"], x, y)
        jax.block_until_ready((held, value))

    return forward, train, flops


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch (default 8)")
    parser.add_argument("--rounds", type=int, default=8, help="measured rounds (default 8)")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out (compiling takes minutes)")
    parser.add_argument(
        "--together",
        type=int,
        nargs=4,
        default=(),
        help="images that flashjax's stages compute at a time (default all)",
    )
    args = parser.parse_args()
    model = models.create(NAME, drop_path_rate=0.0, together=tuple(args.together))
    rng = np.random.default_rng(0)
    images = rng.normal(size=(args.batch, 224, 224, 3)).astype(np.float32)
    labels = rng.integers(0, 1000, args.batch).astype(np.int32)

    made = {"torch eager": torch_steps(args.batch, images, labels, compiled=False)}
    if not args.no_compile:
        made["torch.compile"] = torch_steps(args.batch, images, labels, compiled=True)
    *jax_made, flops = jax_steps(model, made["torch eager"][2], images, labels)
    result: dict = {"batch": args.batch, "rounds": args.rounds, "cores": os.cpu_count(), "machine": platform.machine()}
    result["together"] = list(args.together)
    result["versions"] = {m.__name__: m.__version__ for m in (jax, torch, transformers)}
    how = f"float32, {os.cpu_count()} cores, images at a time: {args.together or 'all'}"
    print(f"Swin-T 224, batch {args.batch}, {how}; {result['versions']}")
    print(f"{'':10}{'contender':15}{'median ms':>10}{'least ms':>10}{'GFLOP/s':>9}{'time / flashjax':>17}")
    for i, phase in enumerate(("forward", "train")):
        contenders = {"flashjax": jax_made[i]} | {name: steps[i] for name, steps in made.items()}
        times = take_turns(contenders, args.rounds)
        result[phase] = {}
        for name, seconds in times.items():
            ratio = median_ratio(seconds, times["flashjax"])
            median, least = statistics.median(seconds), min(seconds)
            result[phase][name] = {"median_s": median, "least_s": least, "ratio_to_flashjax": ratio}
            rate = flops[phase] / least / 1e9
            print(f"{phase:10}{name:15}{median * 1e3:10.1f}{least * 1e3:10.1f}{rate:9.1f}{ratio:17.2f}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
