"""Language models on this machine: flashjax against the torch packages that a user would pick instead, in one run.

    python -m benchmarks.sequence [--lengths 512 2048 8192] [--rounds 3] [--only performer] [--json FILE]

It needs the extra `parity`.

Four families, each with its peers: the Transformer (Llama block; Hugging Face eager and SDPA at the same sizes),
FLASH (flash-pytorch), Performer (performer-pytorch) and causal linear attention (linear-attention-transformer). Every
model is causal, float32, 256 wide with the parameters of 4 Transformer blocks, and reads the same number of tokens a
step at every length: 8,192 by default, cut into rows of that length.

Forward and training step (forward, backward, AdamW) take turns round by round; a ratio is the median over rounds of the
peer's time by ours: above 1, flashjax is faster. Decoding is one token of one row after a prompt of that length; a peer
without a cache recomputes the whole, and its time is that of a forward pass. Peak memory is that of a training step, of
a process of its own, above what the process held before it. 'flash by transformer' sets our FLASH against our
Transformer at equal parameters.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import Step, median_ratio, take_turns

WIDTH, DEPTH, HEADS, VOCAB = 256, 4, 4, 256
FAMILIES = {
    "transformer": ("flashjax transformer", "hugging face eager", "hugging face sdpa"),
    "flash": ("flashjax flash", "flash-pytorch"),
    "performer": ("flashjax performer", "performer-pytorch"),
    "linear": ("flashjax efficient", "linear-attention-transformer"),
}


@dataclass
class Contender:
    """Steps over the same tokens; None: the package has no such thing."""

    parameters: int
    forward: Step
    train: Step
    decode: Callable[[], Step] | None
    """Makes a cache of the length and returns a step of one token."""


def flashjax_contender(name: str, length: int, rows: int) -> Contender:
    """Our model of that family."""
    import jax
    import jax.numpy as jnp
    import optax

    from flashjax.models.flash import Flash, FlashConfig
    from flashjax.models.transformer import Transformer, TransformerConfig
    from flashjax.objectives.language import cross_entropy

    if name == "flash":
        made: Any = FlashConfig(vocab_size=VOCAB, width=WIDTH, depth=2 * DEPTH, max_length=length)
        model: Any = Flash(made)
    else:
        shared = dict(vocab_size=VOCAB, width=WIDTH, depth=DEPTH, heads=HEADS, max_length=length, position="rope")
        llama = dict(activation="swiglu", norm="rmsnorm", hidden=688, qkv_bias=False, out_bias=False, mlp_bias=False)
        mixers = {"transformer": {}, "performer": {"mixer": "performer"}, "efficient": {"mixer": "efficient"}}
        own = llama if name == "transformer" else {}
        model = Transformer(TransformerConfig(**shared, **own, **mixers[name]))
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, VOCAB, (rows, length + 1)), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), tokens[:, :-1])
    params, further = variables["params"], {n: v for n, v in variables.items() if n not in ("params", "losses")}
    optimizer = optax.adamw(1e-3, weight_decay=0.05)
    held = {"params": params, "state": jax.jit(optimizer.init)(params)}

    def apply(params: Any, tokens: Any) -> Any:
        return model.apply({"params": params, **further}, tokens)

    def update(params: Any, state: Any, tokens: Any) -> Any:
        def loss(params: Any) -> Any:
            return cross_entropy(apply(params, tokens[:, :-1]), tokens[:, 1:])[0].mean()

        value, grads = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    forward_jit = jax.jit(apply).lower(params, tokens[:, :-1]).compile()
    train_jit = jax.jit(update, donate_argnums=(0, 1)).lower(params, held["state"], tokens).compile()
    prompt = tokens[:, :-1]

    def forward() -> None:
        jax.block_until_ready(forward_jit(held["params"], prompt))

    def train() -> None:
        held["params"], held["state"], value = train_jit(held["params"], held["state"], tokens)
        jax.block_until_ready((held, value))

    def decode() -> Step:
        everything = {"params": held["params"], **further}
        cache = model.init_cache(1, length + 64)
        lengths = jnp.full((1,), length, jnp.int32)
        prefill = jax.jit(lambda v, t, n, c: model.apply(v, t, n, c, method="prefill"), donate_argnums=3)
        step_jit = jax.jit(lambda v, t, c: model.apply(v, t, c, method="step"), donate_argnums=2)
        live = {"cache": prefill(everything, prompt[:1], lengths, cache)[1]}

        def step() -> None:
            logits, live["cache"] = step_jit(everything, prompt[:1, 0], live["cache"])
            jax.block_until_ready(logits)

        return step

    return Contender(sum(x.size for x in jax.tree.leaves(params)), forward, train, decode)


def torch_contender(name: str, length: int, rows: int) -> Contender:
    """The peer's model, at the sizes of ours."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(0)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB, (rows, length + 1)))
    if name.startswith("hugging face"):
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            intermediate_size=688,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            max_position_embeddings=length + 64,
            tie_word_embeddings=True,
            attn_implementation=name.split()[-1],
        )
        model: Any = LlamaForCausalLM(config)

        def logits(x: Any) -> Any:
            return model(x, use_cache=False).logits
    elif name == "flash-pytorch":
        from flash_pytorch import FLASHTransformer

        model = FLASHTransformer(num_tokens=VOCAB, dim=WIDTH, depth=2 * DEPTH, causal=True, norm_type="layernorm")
        logits = model
    elif name == "performer-pytorch":
        from performer_pytorch import PerformerLM

        sizes = dict(num_tokens=VOCAB, max_seq_len=length, dim=WIDTH, depth=DEPTH, heads=HEADS, dim_head=WIDTH // HEADS)
        model = PerformerLM(**sizes, causal=True, tie_embed=True)
        logits = model
    else:
        from linear_attention_transformer import LinearAttentionTransformerLM

        sizes = dict(num_tokens=VOCAB, max_seq_len=length, dim=WIDTH, depth=DEPTH, heads=HEADS, dim_head=WIDTH // HEADS)
        model = LinearAttentionTransformerLM(**sizes, causal=True, use_axial_pos_emb=False)
        logits = model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05, fused=True)
    prompt = tokens[:, :-1]

    def forward() -> None:
        model.eval()
        with torch.inference_mode():
            logits(prompt)

    def train() -> None:
        model.train()
        optimizer.zero_grad(set_to_none=True)
        cross_entropy(logits(prompt).reshape(-1, VOCAB), tokens[:, 1:].reshape(-1)).backward()
        optimizer.step()

    def decode() -> Step:
        live: dict[str, Any] = {}
        with torch.inference_mode():
            live["past"] = model(prompt[:1], use_cache=True).past_key_values

        def step() -> None:
            with torch.inference_mode():
                live["past"] = model(prompt[:1, :1], past_key_values=live["past"], use_cache=True).past_key_values

        return step

    cached = decode if name.startswith("hugging face") else None
    return Contender(sum(p.numel() for p in model.parameters()), forward, train, cached)


def make(name: str, length: int, rows: int) -> Contender:
    """The contender `name` of `FAMILIES`."""
    if name.startswith("flashjax "):
        return flashjax_contender(name.removeprefix("flashjax "), length, rows)
    return torch_contender(name, length, rows)


def peak_of_a_step(name: str, length: int, rows: int) -> int:
    """Bytes that a training step adds at most to what its process holds before it (Linux)."""
    contender = make(name, length, rows)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    contender.train()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])


def measure(family: str, length: int, tokens: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Figures of each contender of a family at one length."""
    names, rows = FAMILIES[family], max(1, tokens // length)
    made = {name: make(name, length, rows) for name in names}
    figures: dict[str, dict[str, Any]] = {name: {"parameters": made[name].parameters} for name in names}
    for phase in ("forward", "train"):
        times = take_turns({name: getattr(made[name], phase) for name in names}, rounds, warm_up=1)
        for name in names:
            figures[name] |= {
                f"{phase}_tokens_per_second": rows * length / statistics.median(times[name]),
                f"{phase}_ratio": median_ratio(times[name], times[names[0]]),
            }
    steps = {name: make_step() for name in names if (make_step := made[name].decode) is not None}
    if any(made[name].decode is None for name in names):
        one = {name: make(name, length, 1).forward for name in names if made[name].decode is None}
        steps |= one
    times = take_turns(steps, max(rounds, 5), warm_up=2)
    for name in names:
        figures[name]["decode_ms"] = 1e3 * statistics.median(times[name])
        figures[name]["decode_ratio"] = median_ratio(times[name], times[names[0]])
        figures[name]["decode_cached"] = made[name].decode is not None
    return figures


def in_own_process(*arguments: str) -> Any:
    """What this module prints last, as JSON, from a process of its own; None where it fails."""
    command = [sys.executable, "-m", "benchmarks.sequence", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  failed: {' '.join(arguments)}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the figures; it reads as plain text too."""
    header = ("length", "model", "parameters", "forward tok/s", "by ours", "train tok/s", "by ours")
    header += ("decode ms", "by ours", "peak MiB", "by ours")
    lines = [header]
    for row in rows:
        lines.append(
            (
                f"{row['length']}",
                row["name"],
                f"{row['parameters'] / 1e6:.2f} M",
                f"{row['forward_tokens_per_second']:,.0f}",
                f"{row['forward_ratio']:.2f}",
                f"{row['train_tokens_per_second']:,.0f}",
                f"{row['train_ratio']:.2f}",
                f"{row['decode_ms']:.2f}" + ("" if row["decode_cached"] else " (no cache)"),
                f"{row['decode_ratio']:.2f}",
                "n/a" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:,.0f}",
                "n/a" if row["peak_ratio"] is None else f"{row['peak_ratio']:.2f}",
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192], help="tokens of a row")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step (default 8192)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--only", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), help="families")
    parser.add_argument("--no_memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--cell", nargs=2, metavar=("FAMILY", "LENGTH"), help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "LENGTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        return print(json.dumps(measure(args.cell[0], int(args.cell[1]), args.tokens, args.rounds)))
    if args.peak:
        length = int(args.peak[1])
        return print(json.dumps(peak_of_a_step(args.peak[0], length, max(1, args.tokens // length))))

    print(f"{args.tokens} tokens a step, float32, {os.cpu_count()} cores ({platform.machine()})")
    rows: list[dict[str, Any]] = []
    for length in args.lengths:
        for family in args.only:
            shared = ("--tokens", str(args.tokens), "--rounds", str(args.rounds))
            figures = in_own_process("--cell", family, str(length), *shared) or {}
            peaks: dict[str, int | None] = {name: None for name in figures}
            if not args.no_memory:
                peaks = {name: in_own_process("--peak", name, str(length), *shared) for name in figures}
            own = peaks.get(FAMILIES[family][0])
            for name, values in figures.items():
                peak = peaks[name]
                ratio = None if peak is None or not own else peak / own
                rows.append({"length": length, "name": name, **values, "peak_bytes": peak, "peak_ratio": ratio})
                print(table(rows[-1:]).splitlines()[-1], flush=True)
    print("\n" + table(rows))
    for length in args.lengths:
        found = {row["name"]: row for row in rows if row["length"] == length}
        if {"flashjax flash", "flashjax transformer"} <= found.keys():
            ours = [found[f"flashjax {name}"] for name in ("flash", "transformer")]
            words = [
                f"{what} {ours[0][f'{what}_tokens_per_second'] / ours[1][f'{what}_tokens_per_second']:.2f}x"
                for what in ("forward", "train")
            ]
            print(f"flash by transformer at {length}: {', '.join(words)}")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "tokens": args.tokens, "rounds": args.rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
