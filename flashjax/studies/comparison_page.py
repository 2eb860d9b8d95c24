"""A comparison as a Markdown table and as a page, from the lines of its log alone."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from flashjax.drawing import STYLE, line_chart, scatter, table, text_table
from flashjax.pages import write_page
from flashjax.studies.cells import Line
from flashjax.studies.comparison import TABLES
from flashjax.training.parameters import human_bytes


@dataclass(frozen=True)
class Row:
    """One model, over its seeds."""

    name: str
    family: str
    lines: Sequence[Line]

    def mean(self, what: str) -> float:
        return statistics.fmean(line[what] for line in self.lines)

    def words(self, what: str, digits: int = 3) -> str:
        """Mean and, of several seeds, standard deviation."""
        values = [line[what] for line in self.lines]
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{self.mean(what):.{digits}f}{spread}"

    @property
    def speed(self) -> float:
        """Train tokens/s; the most of the seeds, since other work on the machine only slows."""
        return max(line["tokens_per_second"] for line in self.lines)

    @property
    def decode(self) -> dict[int, float]:
        """Seconds a token, by the tokens that the cache has room for; the least of the seeds."""
        times: dict[int, list[float]] = {}
        for line in self.lines:
            for length, seconds in line["decode_seconds"].items():
                if seconds is not None:
                    times.setdefault(int(length), []).append(seconds)
        return {length: min(found) for length, found in times.items()}


def rows(lines: Sequence[Line], which: str) -> list[Row]:
    """The models of a table, least loss first."""
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        if line["table"] == which and "error" not in line:
            found.setdefault((line["name"], line["options"]), []).append(line)
    made = [Row(name, same[0]["family"], same) for (name, _), same in found.items()]
    return sorted(made, key=lambda row: row.mean("loss"))


def reasons(lines: Sequence[Line], which: str) -> list[str]:
    """Who is not in a table, and why."""
    told = {line["name"]: line["error"] for line in lines if line["table"] == which and "error" in line}
    return [f"{name}: {words.removeprefix('error: ')}" for name, words in told.items()]


def figures(models: Sequence[Row], anchor: str = "softmax") -> tuple[list[str], list[list[str]]]:
    """(heads, rows) of a table."""
    lengths = sorted({length for row in models for length in row.decode})
    base = next((row.speed for row in models if row.name == anchor), None)
    bits = all("bits_per_byte" in line for row in models for line in row.lines)
    heads = ["model", "parameters", "loss", *(["bits/byte"] if bits else ["accuracy"])]
    heads += ["train tokens/s", *([f"of {anchor}"] if base else []), "step memory", "process peak"]
    heads += [f"ms/token at {length:,}" for length in lengths]
    body = []
    for row in models:
        speed, step = row.speed, row.lines[0]["step_bytes"]
        body.append(
            [
                row.name,
                f"{row.lines[0]['parameters']:,}",
                row.words("loss"),
                row.words("bits_per_byte") if bits else f"{row.mean('accuracy'):.1%}",
                f"{speed:,.0f}",
                *([f"{speed / base:.2f}x"] if base else []),
                "n/a" if step is None else human_bytes(step),
                human_bytes(max(line["process_bytes"] for line in row.lines)),
                *(f"{1e3 * row.decode[n]:.2f}" if n in row.decode else "n/a" for n in lengths),
            ]
        )
    return heads, body


def budget(lines: Sequence[Line]) -> str:
    """What all models were given, and where, in words."""
    line = next((line for line in lines if "error" not in line), None)
    if line is None:
        return "no model is trained"
    tokens = line["steps"] * line["batch_size"] * line["length"]
    seeds = len({line["seed"] for line in lines})
    where = f"{line['devices']} x {line['device_kind']}" + (f", {line['cores']} cores" if line["cores"] else "")
    return (
        f"{line['steps']} steps of {line['batch_size']} rows of {line['length']} tokens, {tokens:,} in all; {seeds} "
        f"seed{'s' * (seeds > 1)}; {where}."
    )


CAVEATS = (
    "Loss is in nats a token of the held-out text. Speeds are the best of the seeds. Step memory is what the compiled "
    "train step takes beside its inputs; process peak counts Python and the compiler too. Decoding: one row, median of "
    "a few steps, by the tokens that its cache has room for.",
    "Read with care: a small budget shows what learns fast, not what is best at scale, and the options of each mixer "
    "are one choice among many.",
)


def current(lines: Sequence[Line]) -> tuple[list[Line], str]:
    """(the lines under the budget of the last one, a sentence about the others)."""
    if not lines:
        return [], ""
    chosen = [line for line in lines if line["budget"] == lines[-1]["budget"]]
    others = len(lines) - len(chosen)
    return chosen, f"{others} cells of the log had another budget and are not here." if others else ""


def markdown(lines: Sequence[Line]) -> str:
    """Both tables, with what is not in them."""
    lines, left_out = current(lines)
    parts = [budget(lines)]
    for which, title in TABLES.items():
        models = rows(lines, which)
        if models:
            parts.append(f"{title}\n\n{text_table(*figures(models))}")
        parts += [f"Not in it: {words}" for words in reasons(lines, which)]
    return "\n\n".join([*parts, *CAVEATS, *([left_out] if left_out else [])]) + "\n"


def write(path: str | Path, title: str, lines: Sequence[Line]) -> Path:
    """Writes the page: of each table its figures, loss by speed, and decoding by length."""
    lines, left_out = current(lines)
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f'<p class="note">{escape(note)}</p>' for note in (budget(lines), *CAVEATS, left_out) if note]
    for which, words in TABLES.items():
        models = rows(lines, which)
        if models:
            parts += [f"<h2>{words}</h2>", table(*figures(models))]
            points: dict[str, list[tuple[float, float, str]]] = {}
            for row in models:
                points.setdefault(row.family, []).append((row.speed, row.mean("loss"), row.name))
            if len(models) > 1:
                drawn = scatter("Loss by speed", points, "train tokens/s", "loss on held-out text")
                parts.append(f'<section class="charts">{drawn}</section>')
            parts += _decoding(models)
        parts += [f'<p class="note">Not in it: {escape(words)}</p>' for words in reasons(lines, which)]
    return write_page(path, title, STYLE, parts)


def _decoding(models: Sequence[Row], anchor: str = "softmax") -> list[str]:
    """A chart for each family, each with the anchor to be seen against."""
    families: dict[str, list[Row]] = {}
    for row in models:
        if len(row.decode) > 1:
            families.setdefault(row.family, []).append(row)
    first = [row for row in models if row.name == anchor and len(row.decode) > 1]
    drawn = []
    for family, found in families.items():
        shown = [*first, *(row for row in found if row.name != anchor)]
        if len(shown) == len(first) and len(families) > 1:
            continue
        curves: Mapping[str, list[tuple[float, float]]] = {
            row.name: [(float(n), 1e3 * seconds) for n, seconds in sorted(row.decode.items())] for row in shown
        }
        lengths = sorted({n for row in shown for n in row.decode})
        drawn.append(line_chart(f"Decoding, {family}", curves, "length", doublings=lengths, note="ms a token"))
    return [f'<section class="charts">{"".join(drawn)}</section>'] if drawn else []
