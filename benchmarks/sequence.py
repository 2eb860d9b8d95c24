"""Language models on this machine: flashjax against the torch packages that a user would pick instead, in one run.

    python -m benchmarks.sequence [--lengths 512 2048 8192] [--rounds 3] [--only performer] [--json FILE]
    python -m benchmarks.sequence --lengths 2048 --models "hugging face sdpa"     # one cell: a minute

It needs the extra `parity`.

Four families, each with its peers: the Transformer (Llama block; Hugging Face eager and SDPA at the same sizes),
FLASH (flash-pytorch), Performer (performer-pytorch) and causal linear attention (linear-attention-transformer). Every
model is causal, float32, 256 wide with the parameters of 4 Transformer blocks, and reads the same number of tokens a
step at every length: 8,192 by default, cut into rows of that length.

Each model is a process of its own. Forward and training step (forward, backward, AdamW) take turns round by round; a
ratio is the median over rounds of the peer's time by ours: above 1, flashjax is faster. Decoding is one token of one
row after a prompt of that length; a peer without a cache recomputes the whole, and its time is that of a forward pass.
Peak memory is that of the first training step, above what the process held before it. A process that the system kills
for its memory, or that takes longer than `--limit` for one thing, is said to have been, and the others go on. 'flash
by transformer' sets our FLASH against our Transformer at equal parameters.
"""

import argparse
import contextlib
import gc
import json
import os
import platform
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.turns import Step, median_ratio

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


def peak_of_a_step(contender: Contender) -> int:
    """Bytes that a training step adds at most to what the process holds before it (Linux)."""
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    contender.train()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return 1024 * int(line.split()[1])


def serve(name: str, length: int, rows: int) -> None:
    """Does what it is told, line by line, and answers each with a line of JSON: parameters, bytes or seconds."""
    Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this goes and nothing else
    answer, sys.stdout = sys.stdout, sys.stderr  # what packages print is no answer
    contender = make(name, length, rows)
    steps: dict[str, Step] = {"forward": contender.forward, "train": contender.train}
    print(json.dumps([contender.parameters, contender.decode is not None]), file=answer, flush=True)
    for line in sys.stdin:
        what = line.strip()
        if what == "peak":
            print(peak_of_a_step(contender), file=answer, flush=True)
            continue
        if what == "decode" and what not in steps:
            steps[what] = contender.decode() if contender.decode else make(name, length, 1).forward
        started = time.perf_counter()
        steps[what]()
        print(time.perf_counter() - started, file=answer, flush=True)


class LostError(Exception):
    """A process has no more to say; why."""


class Worker:
    """A model in a process of its own, or why there is none any more."""

    def __init__(self, name: str, length: int, rows: int, limit: float):
        self.name, self.limit, self.lost = name, limit, ""
        command = [sys.executable, "-m", "benchmarks.sequence", "--serve", name, str(length), str(rows)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (a pipe that nobody reads would fill up)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        self.process = subprocess.Popen(command, text=True, bufsize=1, **pipes)

    def ask(self, what: str = "") -> Any:
        """The answer. Raises LostError, now and from then on, where none comes."""
        if self.lost:
            raise LostError(self.lost)
        process = self.process
        assert process.stdin is not None and process.stdout is not None
        try:
            if what:
                print(what, file=process.stdin, flush=True)
            if not select.select([process.stdout], [], [], self.limit)[0]:
                self.lost = f"killed: over {self.limit:.0f} s"
            elif line := process.stdout.readline():
                return json.loads(line)
        except BrokenPipeError:  # it has died before it was asked
            pass
        self.lost = self.lost or self._reason()
        self.close()
        raise LostError(self.lost)

    def _reason(self) -> str:
        self.errors.seek(0)
        last = (self.errors.read().strip().splitlines() or ["no word"])[-1]
        if self.process.wait() == -signal.SIGKILL or "can't allocate memory" in last or "MemoryError" in last:
            return "killed: memory"
        return f"failed: {last[:80]}"

    def close(self) -> None:
        if not self.errors.closed:
            self.process.kill()
            self.process.communicate()
            self.errors.close()


def measure(names: list[str], length: int, rows: int, rounds: int, limit: float) -> list[dict[str, Any]]:
    """Figures of each model at one length, the first one ours; what is missing was lost, and `lost` says why."""
    workers = [Worker(name, length, rows, limit) for name in names]
    figures: dict[str, dict[str, Any]] = {name: {"length": length, "name": name} for name in names}
    try:
        for worker in workers:
            mine = figures[worker.name]
            with contextlib.suppress(LostError):
                mine["parameters"], mine["decode_cached"] = worker.ask()
                mine["peak_bytes"] = worker.ask("peak")
        for what, turns, warm_up in (("forward", rounds, 1), ("train", rounds, 1), ("decode", max(rounds, 5), 2)):
            times: dict[str, list[float]] = {name: [] for name in names}
            for turn in range(-warm_up, turns):
                for worker in workers:
                    with contextlib.suppress(LostError):
                        seconds = worker.ask(what)
                        times[worker.name] += [seconds] if turn >= 0 else []
            for name, own in times.items():
                if len(own) == turns:
                    figures[name][f"{what}_seconds"] = own
    finally:
        for worker in workers:
            figures[worker.name]["lost"] = worker.lost
            worker.close()
    ours = figures[names[0]]
    for mine in figures.values():
        for what in ("forward", "train", "decode"):
            if (own := mine.get(f"{what}_seconds")) is None:
                continue
            mine[f"{what}_tokens_per_second"] = (1 if what == "decode" else rows * length) / statistics.median(own)
            if (reference := ours.get(f"{what}_seconds")) is not None:
                mine[f"{what}_ratio"] = median_ratio(own, reference)
        if "peak_bytes" in mine and "peak_bytes" in ours:
            mine["peak_ratio"] = mine["peak_bytes"] / ours["peak_bytes"]
    return list(figures.values())


def _figure(row: dict[str, Any], name: str, form: str, unit: float = 1) -> str:
    return "n/a" if row.get(name) is None else format(row[name] / unit, form)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the figures; it reads as plain text too."""
    header = ("length", "model", "parameters", "forward tok/s", "by ours", "train tok/s", "by ours")
    header += ("decode ms", "by ours", "peak MiB", "by ours", "lost")
    lines = [header]
    for row in rows:
        decode = "n/a"
        if seconds := row.get("decode_seconds"):
            decode = f"{1e3 * statistics.median(seconds):.2f}" + ("" if row["decode_cached"] else " (no cache)")
        lines.append(
            (
                f"{row['length']}",
                row["name"],
                _figure(row, "parameters", ".2f", 1e6) + " M",
                _figure(row, "forward_tokens_per_second", ",.0f"),
                _figure(row, "forward_ratio", ".2f"),
                _figure(row, "train_tokens_per_second", ",.0f"),
                _figure(row, "train_ratio", ".2f"),
                decode,
                _figure(row, "decode_ratio", ".2f"),
                _figure(row, "peak_bytes", ",.0f", 2**20),
                _figure(row, "peak_ratio", ".2f"),
                row["lost"],
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192], help="tokens of a row")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens of a step, cut into rows (default 8192)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--only", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), help="families")
    peers = [name for names in FAMILIES.values() for name in names[1:]]
    parser.add_argument("--models", nargs="+", choices=peers, help="these peers alone, each against ours")
    parser.add_argument("--limit", type=float, default=120, help="seconds that a model may take for one thing")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--serve", nargs=3, metavar=("NAME", "LENGTH", "ROWS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve[0], int(args.serve[1]), int(args.serve[2]))

    print(f"{args.tokens} tokens a step, float32, {os.cpu_count()} cores ({platform.machine()})")
    rows: list[dict[str, Any]] = []
    for length in args.lengths:
        for family in args.only:
            ours, *others = FAMILIES[family]
            if args.models and not (others := [name for name in others if name in args.models]):
                continue
            found = measure([ours, *others], length, max(1, args.tokens // length), args.rounds, args.limit)
            rows += found
            print("\n".join(table(found).splitlines()[2:]), flush=True)
    print("\n" + table(rows))
    for length in args.lengths:
        at = {row["name"]: row for row in rows if row["length"] == length}
        ours = [at.get(f"flashjax {name}", {}) for name in ("flash", "transformer")]
        words = [
            f"{what} {ours[0][f'{what}_tokens_per_second'] / ours[1][f'{what}_tokens_per_second']:.2f}x"
            for what in ("forward", "train")
            if all(f"{what}_tokens_per_second" in row for row in ours)
        ]
        if words:
            print(f"flash by transformer at {length}: {', '.join(words)}")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "tokens": args.tokens, "rounds": args.rounds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
