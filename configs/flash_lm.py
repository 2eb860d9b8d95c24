"""FLASH as a causal language model (Hua et al. 2022, "Transformer Quality in Linear Time", arXiv 2202.10447).

    python -m experiments.flash_lm                                                          bytes of the Bible
    python -m experiments.flash_lm --preset wiki40b --data_dir DIR --data.tokenizer SENTENCEPIECE.model
    python -m experiments.flash_lm --preset pg19_quad --data_dir DIR --data.tokenizer SENTENCEPIECE.model
    python -m experiments.flash_lm --preset wiki40b_transformer_pp ...                      its baseline

``wiki40b`` and ``pg19`` train FLASH at base size (24 units of 768) at context length 8,192; with ``_quad`` FLASH-Quad,
``_transformer`` a Transformer (12 blocks of 768, sinusoids, GELU), ``_transformer_pp`` the augmented one (RoPE, gated
units). All have the same tokens a step, 2^18, at every context length of the paper:

    --data.length 1024 --model.max_length 1024 --data.batch_size 256

What is ours: documents are joined into rows without a break, and the vocabulary is that of a SentencePiece model you
name. AdamW's figures, warm-up, steps and clipping are those we remember of the paper's appendix and could not check.

Expected, as published: the perplexity of Transformer++ at each context length from 512 to 8,192, with training up to
4.9 times as fast on Wiki-40B and 12.1 times on PG-19. Hardware there: TPU v4. The runs are not repeated here.

``demo`` is a FLASH of 0.9 M parameters on 4 MB of text; ``demo_quad``, ``demo_gau``, ``demo_transformer`` and
``demo_transformer_pp`` compare with it at about equal parameters.
"""

from dataclasses import dataclass, field, replace

from flashjax import models
from flashjax.data import TextConfig
from flashjax.models.flash import FlashConfig
from flashjax.models.transformer import TransformerConfig
from flashjax.recipes.language import LanguageRun
from flashjax.training import OptimizerConfig, ScheduleConfig, TrainConfig

TOKENS = 2**18
"""Tokens of a step."""
FLASH_VECTORS = (r"gau/(gamma|beta|relative)",)
"""What does not decay although its shape is a matrix's."""


@dataclass(frozen=True, kw_only=True)
class FlashRun(LanguageRun):
    """FLASH or its baseline, and how it is trained."""

    model: FlashConfig | TransformerConfig = field(default_factory=FlashConfig)
    """Architecture; the preset says whether FLASH or a Transformer."""


def no_decay(model: FlashConfig | TransformerConfig) -> tuple[str, ...]:
    """Paths that decay leaves alone, besides vectors."""
    return FLASH_VECTORS if isinstance(model, FlashConfig) else ()


def paper(preset: str, model: FlashConfig | TransformerConfig, data: TextConfig) -> FlashRun:
    """The paper's recipe for rows of data.length."""
    model = replace(model, max_length=data.length, scan_layers=True, remat="dots", dtype="bfloat16")
    return FlashRun(
        preset=preset,
        steps=125_000,
        model=model,
        data=replace(data, batch_size=TOKENS // data.length, eval_batch_size=TOKENS // data.length, eval_batches=64),
        optimizer=OptimizerConfig(
            learning_rate=7e-4,
            eps=1e-6,
            weight_decay=0.01,
            clip_norm=0.1,
            no_decay=no_decay(model),
            schedule=ScheduleConfig(kind="linear", warmup_steps=10_000),
        ),
        train=TrainConfig(log_every=100, eval_every=5_000),
    )


def tiny_models(causal: bool) -> dict[str, FlashConfig | TransformerConfig]:
    """FLASH 128 wide, what it is compared with, and all at about its parameters; by the end of the preset's name."""
    common = {"vocab_size": 260, "width": 128, "causal": causal, "max_length": 512, "initializer": "fan_in"}
    common |= {"scan_layers": True}
    norm = "layernorm" if causal else "scalenorm"
    flash = FlashConfig(**common, depth=8, head_dim=64, chunk=128, norm=norm)
    transformer = TransformerConfig(**common, depth=4, heads=4, hidden=576, position="sinusoidal", embed_scale=True)
    return {
        "": flash,
        "_quad": replace(flash, kind="quad"),
        "_gau": replace(flash, kind="gau", scaling="log_n", count="visible", bias="none"),
        "_transformer": transformer,
        "_transformer_pp": replace(transformer, position="rope", embed_scale=False, activation="geglu", hidden=384),
    }


def tiny(preset: str, model: FlashConfig | TransformerConfig) -> FlashRun:
    """A recipe for minutes on two cores: 35 GFLOP a step of 4,096 tokens took a second there, hence 2,048."""
    return FlashRun(
        preset=preset,
        steps=500,
        model=model,
        data=TextConfig(length=512, batch_size=4, eval_batch_size=16, eval_batches=4, documents="joined"),
        optimizer=OptimizerConfig(
            learning_rate=3e-3,
            weight_decay=0.1,
            clip_norm=1.0,
            no_decay=no_decay(model),
            schedule=ScheduleConfig(warmup_steps=50),
        ),
        train=TrainConfig(log_every=25, eval_every=100),
    )


def _presets() -> dict[str, FlashRun]:
    table = {f"demo{name}": tiny(f"demo{name}", model) for name, model in tiny_models(causal=True).items()}
    for dataset, tfds in (("wiki40b", "wiki40b/en"), ("pg19", "pg19")):
        data = TextConfig(dataset=tfds, length=8192, documents="joined")
        for end, name in (
            ("", "flash_base"),
            ("_quad", "flash_quad_base"),
            ("_transformer", "transformer_base"),
            ("_transformer_pp", "transformer_pp_base"),
        ):
            table[f"{dataset}{end}"] = paper(f"{dataset}{end}", models.config(name), data)
    return table


PRESETS = _presets()
