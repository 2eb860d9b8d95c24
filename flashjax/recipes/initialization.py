"""Cells of a study of initialization, and what is measured of each: see `configs.initialization_study`."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from flashjax.layers.gains import deepnorm
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.recipes.short_runs import Budget, ShortRuns
from flashjax.studies import study
from flashjax.studies.study import Cell
from flashjax.training import OptimizerConfig, ScheduleConfig
from flashjax.training.parametrization import ParametrizationConfig

Part = Literal["transfer", "attention", "depth", "coordinates", "map"]
Arrangement = Literal["pre", "pre_scaled", "sandwich", "post", "deepnorm", "rezero"]
AttentionArm = Literal["sqrt_dim", "none", "t5"]

UNIT_EMBEDDING = "embed/embedding$ distribution=normal std=1"
_SHARED = ("model", "budget", "warmup")


def cells(config: Any, part: Part) -> list[Cell]:
    """The grid of a part. muP at its base width is "standard", and stands there alone."""
    common = {"settings": [_settings(config, part)]}
    match part:
        case "transfer":
            found = study.grid(
                **common, preset=("standard", "mup"), width=config.widths, rate=config.rates, seed=config.seeds
            )
            widest = config.widths[-1]
            return [
                cell
                for cell in _without_base(found, config.widths[0])
                if cell["width"] < widest or cell["seed"] == config.seeds[0]
            ]
        case "attention":
            return study.grid(**common, arm=config.attention, rate=config.attention_rates, seed=config.seeds)
        case "depth":
            return study.grid(**common, arrangement=config.arrangements, depth=config.depths, seed=config.seeds[:1])
        case "coordinates":
            found = study.grid(**common, preset=("standard", "mup"), width=config.coordinate_widths, seed=config.seeds)
            return _without_base(found, config.coordinate_widths[0])
        case "map":
            return study.grid(
                **common,
                arrangement=config.map_arrangements,
                depth=config.map_depths,
                width=config.map_widths,
                rate=config.map_rates,
                seed=config.seeds[:1],
            )


def _settings(config: Any, part: Part) -> str:
    """What cells of a part share that is no axis."""
    own = {"attention": ("attention_width",), "depth": ("look_steps", "look_depth", "look_rate")}
    own["coordinates"] = ("coordinate_steps", "look_rate", "coordinate_widths")
    own["transfer"] = ("widths",)
    kept = {*_SHARED, *own.get(part, ())}
    return study.digest(config, [name for name in config.__dataclass_fields__ if name not in kept])


def _without_base(found: Sequence[Cell], base: int) -> list[Cell]:
    return [cell for cell in found if (cell["preset"], cell["width"]) != ("mup", base)]


def measure(config: Any, part: Part, group: Sequence[Cell]) -> list[dict[str, Any]]:
    """The figures of cells of a part."""
    return [_MEASURES[part](config, cell) for cell in group]


def _transfer(config: Any, cell: Cell) -> dict[str, Any]:
    base = config.widths[0]
    runs = _runs(config.model.at_width(cell["width"]), config.budget, config.warmup, cell["preset"], base)
    return _trained(runs, cell)


def _attention(config: Any, cell: Cell) -> dict[str, Any]:
    width, arm = config.attention_width, cell["arm"]
    model = replace(config.model, width=width, heads=1, attention_scale="sqrt_dim" if arm == "sqrt_dim" else "none")
    rules = (f"attn/query/kernel$ distribution=normal std={1 / width!r}",) if arm == "t5" else ()
    return _trained(_runs(model, config.budget, config.warmup, rules=rules), cell)


def _map(config: Any, cell: Cell) -> dict[str, Any]:
    model, preset, rules = arranged(
        replace(config.model.at_width(cell["width"]), depth=cell["depth"]), cell["arrangement"]
    )
    return _trained(_runs(model, config.budget, config.warmup, preset, rules=rules), cell)


def _depth(config: Any, cell: Cell) -> dict[str, Any]:
    model, preset, rules = arranged(replace(config.model, depth=cell["depth"]), cell["arrangement"])
    runs = _runs(model, config.budget, config.warmup, preset, rules=(*rules, UNIT_EMBEDDING))
    steps = config.look_steps if cell["depth"] == config.look_depth else 0
    looks = runs.looks(cell["seed"], 2.0**config.look_rate, steps)
    return {"looks": [_plain(look) for look in looks]}


def _coordinates(config: Any, cell: Cell) -> dict[str, Any]:
    budget = replace(config.budget, steps=config.coordinate_steps)
    runs = _runs(config.model.at_width(cell["width"]), budget, 0, cell["preset"], config.coordinate_widths[0])
    return _plain(runs.changes(cell["seed"], 2.0**config.look_rate))


_MEASURES = {
    "transfer": _transfer, "attention": _attention, "depth": _depth, "coordinates": _coordinates, "map": _map
}  # fmt: skip


def arranged(model: TransformerConfig, name: Arrangement) -> tuple[TransformerConfig, str, tuple[str, ...]]:
    """(model, preset of its parametrization, changes of that) of an arrangement."""
    match name:
        case "pre" | "sandwich" | "post":
            return replace(model, norm_position=name), "standard", ()
        case "pre_scaled":
            ends = {"attn/out": model.heads * model.dim, "mlp/down": model.hidden or 4 * model.width}
            return (
                replace(model, norm_position="pre"),
                "standard",
                tuple(
                    f"{path}/kernel$ distribution=normal std={(2 * model.depth * fan_in) ** -0.5!r}"
                    for path, fan_in in ends.items()
                ),
            )
        case "deepnorm":
            return replace(model, norm_position="post", residual="deepnorm"), "deepnorm", ()
        case "rezero":
            return replace(model, norm_position="pre", residual="rezero"), "standard", ()
    raise ValueError(f"unknown arrangement {name!r}")


@functools.lru_cache(maxsize=4)  # cells that differ in rate and seed alone follow each other
def _runs(
    model: TransformerConfig,
    budget: Budget,
    warmup: int,
    preset: str = "standard",
    base: int = 0,
    rules: tuple[str, ...] = (),
) -> ShortRuns:
    schedule = ScheduleConfig(kind="constant", warmup_steps=warmup)
    parametrization = ParametrizationConfig(preset, base if preset == "mup" else 0, rules=rules)
    optimizer = OptimizerConfig(weight_decay=0.0, clip_norm=None, b2=0.99, schedule=schedule)
    return ShortRuns(Transformer(model), budget, parametrization, optimizer)


def _trained(runs: ShortRuns, cell: Cell) -> dict[str, Any]:
    """Losses of a training; None in place of what is no finite number."""
    losses, held_out = runs.train(cell["seed"], 2.0 ** cell["rate"])
    every = max(len(losses) // 10, 1)
    return {
        "loss": _number(held_out),
        "first": _number(losses[0]),
        "last": _number(losses[-every:].mean()),
        "curve": [_number(loss) for loss in losses[::every]],
    }


def _number(value: Any) -> float | None:
    return round(float(value), 6) if math.isfinite(value) else None


def _plain(tree: Any) -> Any:
    """Arrays as lists that JSON has, six digits."""
    if isinstance(tree, Mapping):
        return {name: _plain(value) for name, value in tree.items()}
    array = np.asarray(tree, float)
    return [_plain(x) for x in array] if array.ndim else (float(f"{array:.6g}") if np.isfinite(array) else None)


def predicted(arrangement: Arrangement, entering: float, attn: Sequence[float], mlp: Sequence[float]) -> dict[str, Any]:
    """Second moment of the stream after each block, and its correlation with what entered, from moments of branches.

    Supposes that what a branch adds is uncorrelated with the stream, which weights drawn at random make it. With s the
    stream's moment and b a branch's: before a branch (pre), s + b, and s_0 / s of the squared correlation is left;
    after it (post), the sum is normalised to 1 and of the correlation each branch leaves 1 / sqrt(1 + b / s), which for
    b = s is 2^(-1/2); deepnorm the same with alpha^2 s; sandwich adds branches of moment 1; rezero none.
    """
    alpha = deepnorm(len(attn)).alpha if arrangement == "deepnorm" else 1.0
    s, kept = entering, 1.0
    moments, left = [], []
    for pair in zip(attn, mlp, strict=True):
        for b in pair:
            b = {"sandwich": 1.0, "rezero": 0.0}.get(arrangement, b)
            before = alpha**2 * s
            s, kept = before + b, kept * math.sqrt(before / (before + b))
            if arrangement in ("post", "deepnorm"):
                s = 1.0
        moments.append(s)
        left.append(kept)
    return {"moment": moments, "kept": left}
