"""Initialization, parametrization, normalization: what a model does at step 0, and at which learning rates it trains.

    python -m experiments.initialization_study                     five parts, a page; small language models of bytes
    python -m experiments.initialization_study --preset quick      fewer cells, to see that everything works
    python -m experiments.initialization_study --parts transfer    one part
    python -m experiments.initialization_study --look_at gpt2      signals by layer of any model

What it took and what came out is in docs/initialization.md.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from flashjax.models.transformer import TransformerConfig
from flashjax.recipes.initialization import Arrangement, AttentionArm, Part
from flashjax.recipes.short_runs import VOCABULARY, Budget

Exponents = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class InitializationStudy:
    """Parts of a study, each a grid of cells of its own."""

    preset: str = "full"
    """Named study; other flags change single values of it."""
    mode: Literal["study", "measure", "redraw"] = "study"
    """All; the cells alone (further processes of a study); or the page again from the logs alone."""
    workdir: str | None = None
    """Directory of the study: <part>.jsonl, figure.html; default runs/initialization_study-<preset>."""
    look_at: str | None = None
    """Any model by name (swin_tiny_patch4_window7_224, gpt2, flash_base, resnet18 ...): its signals by layer at step 0
    and after look_steps steps, on embedded text or digits, instead of the parts."""
    look_batch: int = 4
    """look_at: examples of a step."""
    processes: int = 1
    """Processes of this machine that share the cells."""
    parts: tuple[Part, ...] = ("transfer", "attention", "depth", "coordinates", "map")
    """In this order."""
    seeds: tuple[int, ...] = (0, 1)
    """Each draws parameters and text; the widest models of `transfer` have the first alone."""
    model: TransformerConfig = field(
        default_factory=lambda: TransformerConfig(
            vocab_size=VOCABULARY,
            width=64,
            depth=2,
            heads=2,
            norm="rmsnorm",
            activation="gelu",
            qkv_bias=False,
            out_bias=False,
            mlp_bias=False,
            position="rope",
            tie_embeddings=False,
            initializer="fan_in",
            scan_layers=True,
        )
    )
    """What all parts vary; kernels begin at N(0, 1 / fan-in)."""
    budget: Budget = field(default_factory=Budget)
    """Of each training."""
    warmup: int = 5
    """Steps of linear warm-up, after which the rate stays."""
    widths: tuple[int, ...] = (64, 128, 256, 512)
    """transfer: heads stay as wide; the first is muP's base."""
    rates: Exponents = tuple(range(-11, -3))
    """transfer: powers of 2."""
    attention: tuple[AttentionArm, ...] = ("sqrt_dim", "none", "t5")
    """attention: divided by sqrt(D); not divided; not divided, with queries drawn smaller by sqrt(D)."""
    attention_width: int = 128
    """attention: width of the model and of its one head."""
    attention_rates: Exponents = tuple(range(-11, -2))
    """attention: powers of 2."""
    arrangements: tuple[Arrangement, ...] = ("pre", "pre_scaled", "sandwich", "post", "deepnorm", "rezero")
    """depth and map: where norms stand and how branches join."""
    depths: tuple[int, ...] = (6, 12, 24, 48, 96)
    """depth: blocks of two branches."""
    look_steps: int = 20
    """depth: steps after which the models of `look_depth` blocks are looked at again; so of look_at."""
    look_depth: int = 24
    """depth: which of the depths is trained."""
    look_rate: int = -8
    """depth, coordinates and look_at: exponent of the learning rate."""
    coordinate_widths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    """coordinates: the first is muP's base."""
    coordinate_steps: int = 5
    """coordinates: steps."""
    map_arrangements: tuple[Arrangement, ...] = ("pre", "post")
    """map: of these, every depth, width and rate."""
    map_depths: tuple[int, ...] = (2, 8, 24)
    """map: blocks."""
    map_widths: tuple[int, ...] = (32, 128)
    """map: channels."""
    map_rates: Exponents = tuple(range(-11, -4))
    """map: powers of 2."""


FULL = InitializationStudy()
SHORT = replace(
    FULL,
    preset="short",
    budget=Budget(steps=50, length=16),
    rates=tuple(range(-10, -3)),
    depths=(6, 24, 96),
    coordinate_widths=(64, 256, 1024),
    map_depths=(2, 24),
)
QUICK = replace(
    SHORT,
    preset="quick",
    seeds=(0,),
    widths=(64, 256),
    rates=(-9, -7, -5),
    attention_rates=(-9, -7, -5),
    depths=(6, 24),
    arrangements=("pre", "post"),
    look_steps=0,
    coordinate_widths=(64, 256),
    map_arrangements=("post",),
    map_widths=(32,),
    map_rates=(-9, -7, -5),
)
PRESETS = {study.preset: study for study in (FULL, SHORT, QUICK)}
