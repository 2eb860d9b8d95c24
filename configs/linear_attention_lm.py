"""Which replacement of softmax attention, under one budget: language models that differ in their mixer alone.

    python -m experiments.linear_attention_lm                                    both tables, byte models of the Bible
    python -m experiments.linear_attention_lm --preset quick                     four mixers, to see that it works
    python -m experiments.linear_attention_lm --preset wiki40b --data_dir DIR --data.tokenizer SENTENCEPIECE.model

The first table predicts the next token, the second guesses hidden ones: there mixers without a causal form stand beside
the bidirectional forms of others. All have the same block, width, depth, data, order of data and optimizer, and rotary
positions where the mixer takes them (cosformer, linformer and nystromformer do not: sinusoids are added to their scaled
embeddings); their options give each about the same number of keys to look at. `flash`, `flash_quad` and `gau` are
models of their own (two units for one block).

``demo`` takes half a minute a model on two cores, a quarter of an hour in all. ``wiki40b`` and ``pg19`` have the
budget of the FLASH paper's causal language models at base size (context 8,192, 125 thousand steps of 2^18 tokens); they
are not run here.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from configs.byte_transformer import BYTE_TRANSFORMER
from flashjax.data import TextConfig
from flashjax.models.flash import FlashConfig
from flashjax.models.transformer import TransformerConfig
from flashjax.recipes.language import LanguageRun
from flashjax.training import OptimizerConfig, ScheduleConfig, TrainConfig

FAMILIES = {
    "all pairs": ("softmax", "gau", "flash_quad"),
    "linear": ("katharopoulos", "efficient", "taylor", "cosformer", "performer", "flash"),
    "with decay or delta rule": ("retnet", "gla", "mamba2", "delta_net", "gated_delta_net"),
    "sparse": ("sliding_window", "dilated", "strided", "fixed", "longformer", "bigbird"),
    "low rank": ("linformer", "nystromformer"),
}
"""All models of the tables, by what they are."""
FLASH = {"gau": "gau", "flash_quad": "quad", "flash": "flash"}
"""Models that are no Transformer, by kind of FlashConfig."""
ALL = tuple(name for names in FAMILIES.values() for name in names)
ENCODERS = ("softmax", "flash", "katharopoulos", "longformer", "bigbird", "linformer", "nystromformer")

OPTIONS = (
    "sliding_window: window=64",
    "dilated: window=32, dilation=4",
    "strided: stride=16",
    "fixed: block=32, summary=4",
    "longformer: window=64, global_tokens=1",
    "bigbird: block=16, random=2",
    "linformer: rank=64",
    "nystromformer: landmarks=32",
)
"""For rows of 256 tokens."""
LONG = (
    "sliding_window: window=1024",
    "dilated: window=512, dilation=4",
    "strided: stride=128",
    "fixed: block=256, summary=32",
    "longformer: window=1024, global_tokens=1",
    "bigbird: block=128, random=3",
    "linformer: rank=512",
    "nystromformer: landmarks=256",
)
"""For rows of 8,192 tokens."""


@dataclass(frozen=True, kw_only=True)
class LinearAttentionLm(LanguageRun):
    """Language models of all mixers, and how they are trained."""

    mode: Literal["compare", "redraw", "train", "eval", "predict", "replay"] = "compare"
    """What to do: compare (train and measure what the log lacks, then draw), redraw (from the log alone); or train one
    model (--model.mixer NAME), measure its best checkpoint, let it continue --prompt, repeat a step that was NaN."""
    workdir: str | None = None
    """Directory of the comparison: cells.jsonl, table.md, figure.html; default runs/linear_attention_lm-<preset>. Or
    the run of one model; default the same with -<mixer>."""
    mixers: tuple[str, ...] = ALL
    """Models of the first table: mixers of a Transformer, and flash, flash_quad, gau. Who has no causal form is named
    below it."""
    encoders: tuple[str, ...] = ENCODERS
    """Models of the second table, in which each token sees all: by default those without a causal form, and four that
    have both."""
    seeds: tuple[int, ...] = (0,)
    """Each model is trained with each; the tables have mean and deviation. (--seed is for one model.)"""
    options: tuple[str, ...] = OPTIONS
    """Options of mixers in the tables, each 'NAME: OPTION=VALUE, OPTION=VALUE'."""
    decode_lengths: tuple[int, ...] = (256, 1024, 4096, 16384)
    """Decoding is timed in caches with room for so many tokens."""
    model: TransformerConfig = field(default_factory=TransformerConfig)
    """Architecture of the Transformers."""
    flash: FlashConfig = field(default_factory=FlashConfig)
    """Architecture of flash, flash_quad and gau."""


def demo() -> LinearAttentionLm:
    """128 wide, 2 deep, bytes; two units of the FLASH family for each block, so that parameters are nearly equal."""
    return LinearAttentionLm(
        steps=200,
        model=replace(BYTE_TRANSFORMER, depth=2, max_length=256),
        flash=FlashConfig(
            vocab_size=260,
            width=128,
            depth=4,
            head_dim=64,
            chunk=64,
            max_length=256,
            bias="rope",
            norm="rmsnorm",
            initializer="fan_in",
            scan_layers=True,
        ),
        data=TextConfig(length=256, batch_size=4, eval_batch_size=32, eval_batches=4, documents="joined"),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            b2=0.98,
            weight_decay=0.1,
            clip_norm=1.0,
            schedule=ScheduleConfig(warmup_steps=30),
        ),
        train=TrainConfig(log_every=25, eval_every=100),
    )


def paper(preset: str, dataset: str) -> LinearAttentionLm:
    """Base size at 8,192 tokens, 2^18 of them a step (Hua et al. 2022); rate and schedule are of its masked models."""
    common = {"vocab_size": 32000, "width": 768, "max_length": 8192, "scan_layers": True, "dtype": "bfloat16"}
    return LinearAttentionLm(
        preset=preset,
        steps=125_000,
        options=LONG,
        decode_lengths=(1024, 8192, 32768),
        model=TransformerConfig(**common, depth=12, heads=12, activation="gelu", position="rope", remat="dots"),
        flash=FlashConfig(**common, depth=24, chunk=256, bias="rope", remat="dots"),
        data=TextConfig(
            dataset=dataset, length=8192, batch_size=32, eval_batch_size=32, eval_batches=32, documents="joined"
        ),
        optimizer=OptimizerConfig(
            learning_rate=7e-4,
            b2=0.98,
            weight_decay=0.0,
            clip_norm=0.1,
            schedule=ScheduleConfig(kind="linear", warmup_steps=10_000),
        ),
        train=TrainConfig(log_every=100, eval_every=5000),
    )


def _presets() -> dict[str, LinearAttentionLm]:
    full = demo()
    quick = replace(
        full,
        preset="quick",
        steps=60,
        mixers=("softmax", "katharopoulos", "gla", "sliding_window"),
        encoders=("softmax", "linformer"),
        decode_lengths=(256, 1024),
        data=replace(full.data, eval_batches=2),
    )
    return {"demo": full, "quick": quick, "wiki40b": paper("wiki40b", "wiki40b/en"), "pg19": paper("pg19", "pg19")}


PRESETS = _presets()
