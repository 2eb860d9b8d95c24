"""Language models on this machine: flashjax against the torch packages that a user would pick instead, in one run.

    python -m benchmarks.sequence [--lengths 512 2048 8192] [--rounds 3] [--only performer] [--json FILE]
    python -m benchmarks.sequence --lengths 2048 --models "hugging face sdpa"     # one cell: a minute
    python -m benchmarks.sequence --growth [gla flash ...]     # our linear forms alone: what 2k, 8k, 32k tokens cost

It needs the extra `parity`.

Four families, each with its peers: the Transformer (Llama block; Hugging Face eager and SDPA at the same sizes),
FLASH (flash-pytorch), Performer (performer-pytorch) and causal linear attention (linear-attention-transformer). Every
model is causal, float32, 256 wide with the parameters of 4 Transformer blocks, and reads the same number of tokens a
step at every length: 8,192 by default, cut into rows of that length. The Performers read one row: the peer,
which has no CUDA kernel here, makes the state after each token, features x width numbers a head and token.

Each model is a process of its own. Forward and training step (forward, backward, AdamW) take turns round by round; a
ratio is the median over rounds of the peer's time by ours: above 1, flashjax is faster. Decoding is one token of one
row after a prompt of that length; a peer without a cache recomputes the whole, and its time is that of a forward pass.
Peak memory is that of the first training step, above what the process held before it. `--limit` bounds what a model
may take for a cell: it takes no further turn then, and one that does not come to an end within it, or that the system
kills for its memory, is said to be lost. 'flash by transformer' sets our FLASH against our Transformer at equal
parameters.

`--growth` measures one block (two units of FLASH) and one row of each length, and says as which power of the length
the time and the memory of a step grow from the first to the last: 1 is linear, 2 quadratic.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
from pathlib import Path
from typing import Any

from benchmarks.sequence_models import DEPTH, PREFIX
from benchmarks.sequence_workers import LostError, Worker, take_turns
from benchmarks.turns import median_ratio

FAMILIES = {
    "transformer": ("flashjax transformer", "hugging face eager", "hugging face sdpa"),
    "flash": ("flashjax flash", "flash-pytorch"),
    "performer": ("flashjax performer", "performer-pytorch"),
    "linear": ("flashjax efficient", "linear-attention-transformer"),
}
TOKENS = {"performer": 512}
"""Tokens of a step, where a family is to read fewer."""
LINEAR = ("katharopoulos", "performer", "retnet", "gla", "mamba2", "delta_net", "gated_delta_net", "flash")
GROWTH_LENGTHS = (2048, 8192, 32768)


def measure(
    names: list[str], length: int, rows: int, rounds: int, limit: float, depth: int = DEPTH, decode: bool = True
) -> list[dict[str, Any]]:
    """Figures of each model at one length, the first one ours; what is missing was lost, and `lost` says why."""
    workers = [Worker(name, length, rows, limit, depth) for name in names]
    figures: dict[str, dict[str, Any]] = {name: {"length": length, "name": name, "rows": rows} for name in names}
    cells = [("forward", rounds, 1), *([("decode", max(rounds, 5), 2)] if decode else []), ("train", rounds, 1)]
    try:
        for worker in workers:
            with contextlib.suppress(LostError):
                mine = figures[worker.name]
                mine["parameters"], mine["decode_cached"] = worker.ask()
        for what, turns, warm_up in cells:
            if what == "train":
                for worker in workers:
                    with contextlib.suppress(LostError):
                        figures[worker.name]["peak_bytes"] = worker.ask("peak")
            for name, own in take_turns(workers, what, turns, warm_up).items():
                if own:
                    figures[name][f"{what}_seconds"] = own
    finally:
        for worker in workers:
            figures[worker.name]["lost"] = worker.lost
            worker.close()
    ours = figures[names[0]]
    for mine in figures.values():
        for what, _, _ in cells:
            if (own := mine.get(f"{what}_seconds")) is None:
                continue
            mine[f"{what}_tokens_per_second"] = (1 if what == "decode" else rows * length) / statistics.median(own)
            if (reference := ours.get(f"{what}_seconds")) is not None:
                both = min(len(own), len(reference))
                mine[f"{what}_ratio"] = median_ratio(own[:both], reference[:both])
        if "peak_bytes" in mine and "peak_bytes" in ours:
            mine["peak_ratio"] = mine["peak_bytes"] / ours["peak_bytes"]
    return list(figures.values())


def _figure(row: dict[str, Any], name: str, form: str, unit: float = 1) -> str:
    return "n/a" if row.get(name) is None else format(row[name] / unit, form)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of the figures; it reads as plain text too."""
    header = ["length", "model", "parameters", "forward tok/s", "by ours", "train tok/s", "by ours"]
    header += ["decode ms", "by ours", "peak MiB", "by ours", "lost"]
    lines = [header]
    for row in rows:
        decode = "n/a"
        if seconds := row.get("decode_seconds"):
            decode = f"{1e3 * statistics.median(seconds):.2f}" + ("" if row["decode_cached"] else " (no cache)")
        lines.append(
            [
                f"{row['rows']} x {row['length']}",
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
            ]
        )
    return _aligned(lines)


def growth_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a row a model, with its figures at each length in order and the power that they grow with."""
    lines = [["model", "forward tok/s", "power", "train tok/s", "power", "peak MiB", "power", "lost"]]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = sorted((row for row in rows if row["name"] == name), key=lambda row: row["length"])
        lines.append([name.removeprefix(PREFIX)])
        for key, unit in (("forward_tokens_per_second", 1), ("train_tokens_per_second", 1), ("peak_bytes", 2**20)):
            lines[-1].append(", ".join(_figure(row, key, ",.0f", unit) for row in own))
            # Of tokens a second the time is the inverse, for as many tokens as the length.
            lines[-1].append(_power(own, key) if key == "peak_bytes" else _power(own, key, 1, -1))
        lines[-1].append("; ".join(row["lost"] for row in own if row["lost"]))
    return _aligned(lines)


def _power(rows: list[dict[str, Any]], key: str, plus: int = 0, sign: int = 1) -> str:
    """plus + sign times the slope of log figure by log length, between the ends."""
    first, last = rows[0], rows[-1]
    if first.get(key) is None or last.get(key) is None or first is last:
        return "n/a"
    slope = math.log(last[key] / first[key]) / math.log(last["length"] / first["length"])
    return f"{plus + sign * slope:.2f}"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens of a row")
    parser.add_argument("--tokens", type=int, help="tokens of a step, cut into rows (default 8192; Performers: a row)")
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds (default 3)")
    parser.add_argument("--only", nargs="+", default=list(FAMILIES), choices=list(FAMILIES), help="families")
    peers = [name for names in FAMILIES.values() for name in names[1:]]
    parser.add_argument("--models", nargs="+", choices=peers, help="these peers alone, each against ours")
    parser.add_argument("--growth", nargs="*", metavar="MIXER", help="our linear forms alone, over longer rows")
    parser.add_argument("--limit", type=float, default=120, help="seconds that a model may take for a cell")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    args = parser.parse_args()
    print(f"float32, {os.cpu_count()} cores ({platform.machine()})")
    rows: list[dict[str, Any]] = []
    if args.growth is not None:
        for name in args.growth or LINEAR:
            for length in args.lengths or GROWTH_LENGTHS:
                rows += measure([PREFIX + name], length, 1, args.rounds, args.limit, depth=1, decode=False)
            print(growth_table([row for row in rows if row["name"] == PREFIX + name]).splitlines()[-1], flush=True)
        print("\n" + growth_table(rows))
    else:
        rows = side_by_side(args)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, "rounds": args.rounds}, indent=2) + "\n")


def side_by_side(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All families that are asked for at all lengths, printed as they come."""
    rows: list[dict[str, Any]] = []
    lengths = args.lengths or (512, 2048, 8192)
    for length in lengths:
        for family in args.only:
            ours, *others = FAMILIES[family]
            if args.models and not (others := [name for name in others if name in args.models]):
                continue
            tokens = args.tokens or TOKENS.get(family, 8192)
            found = measure([ours, *others], length, max(1, tokens // length), args.rounds, args.limit)
            rows += found
            print("\n".join(table(found).splitlines()[2:]), flush=True)
    print("\n" + table(rows))
    for length in lengths:
        at = {row["name"]: row for row in rows if row["length"] == length}
        ours = [at.get(PREFIX + name, {}) for name in ("flash", "transformer")]
        words = [
            f"{what} {ours[0][f'{what}_tokens_per_second'] / ours[1][f'{what}_tokens_per_second']:.2f}x"
            for what in ("forward", "train")
            if all(f"{what}_tokens_per_second" in row for row in ours)
        ]
        if words:
            print(f"flash by transformer at {length}: {', '.join(words)}")
    return rows


if __name__ == "__main__":
    main()
