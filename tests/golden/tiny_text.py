"""Tiny language models on fixed rows of tokens, in float32, twenty steps: a row of `MODELS` for each kind.

Rows follow a drawn table of which token comes after which, so there is something to learn; two documents are packed
into each, at other places in each row, and padding ends some.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from flashjax.layers import attention
from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.objectives.language import LanguageModelling, Masking
from flashjax.recipes.language import RULES, LanguageRun
from flashjax.training import Experiment, MeshConfig, OptimizerConfig, ScheduleConfig

STEPS, ROWS, LENGTH, VOCAB = 20, 8, 32, 64

_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "width": 32, "depth": 2, "heads": 4, "hidden": 64, "max_length": 64}
_MODERN: dict[str, Any] = {
    **_COMMON,
    "kv_heads": 2,
    "activation": "swiglu",
    "norm": "rmsnorm",
    "qkv_bias": False,
    "out_bias": False,
    "mlp_bias": False,
    "qk_norm": "both",
    "position": "rope",
    "tie_embeddings": False,
    "scan_layers": True,
    "remat": "dots",
}
_GATED: dict[str, Any] = {
    **{name: _COMMON[name] for name in ("vocab_size", "width", "depth", "max_length")},
    "head_dim": 16,
    "chunk": 8,
}
MODELS: dict[str, tuple[type[nn.Module], Any]] = {
    "transformer": (Transformer, TransformerConfig(**_COMMON, dropout_rate=0.1)),
    "transformer_modern": (Transformer, TransformerConfig(**_MODERN)),
    "transformer_blocked": (
        Transformer,
        TransformerConfig(**_MODERN, mixer_options="implementation=blocked"),
    ),
    "transformer_encoder": (
        Transformer,
        TransformerConfig(**_COMMON, causal=False, position="t5", norm="scalenorm", scan_layers=True),
    ),
    "gated_delta_net": (
        Transformer,
        TransformerConfig(**_COMMON, position="none", mixer="gated_delta_net", mixer_options="chunk=8"),
    ),
    "flash": (Flash, FlashConfig(**_GATED, scan_layers=True)),
    "flash_quad": (Flash, FlashConfig(**_GATED, kind="quad", scaling="mean", count="visible", bias="t5")),
    "gau": (Flash, FlashConfig(**_GATED, kind="gau", scaling="log_n", count="visible", bias="none", query_block=0)),
    "flash_quad_encoder": (Flash, FlashConfig(**_GATED, kind="quad", causal=False, norm="scalenorm", query_block=0)),
}
"""Name in the golden files: module, configuration. Encoders guess hidden tokens."""
_OPTIONS = {
    "performer": "features=8, chunk=8",
    "sliding_window": "window=8",
    "dilated": "window=4, dilation=2",
    "strided": "stride=4",
    "fixed": "block=8, summary=2",
    "longformer": "window=8, global_tokens=1",
    "bigbird": "block=4, random=1",
    "linformer": "rank=8, documents=2",
    "nystromformer": "landmarks=4, documents=2",
    **{name: "chunk=8" for name in ("katharopoulos", "efficient", "taylor", "cosformer", "retnet", "gla", "mamba2")},
    **{name: "chunk=8" for name in ("delta_net", "gated_delta_net")},
}
MIXERS: dict[str, tuple[type[nn.Module], Any]] = {
    name: (
        Transformer,
        TransformerConfig(
            **_COMMON,
            causal=name not in ("linformer", "nystromformer", "bigbird"),
            mixer=name,
            mixer_options=_OPTIONS.get(name, ""),
        ),
    )
    for name in attention.names()
}
"""A Transformer with each mixer."""


@dataclasses.dataclass(frozen=True)
class FixedTokens:
    """Batch k is a function of k alone."""

    causal: bool = True
    batch_size: int = ROWS
    steps_per_epoch: int = STEPS
    num_batches: int | None = None
    skipped: int = 0

    @property
    def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {name: jax.ShapeDtypeStruct(rows.shape, rows.dtype) for name, rows in self.batch(0).items()}

    def batch(self, k: int) -> dict[str, np.ndarray]:
        after = np.random.default_rng(7).integers(1, VOCAB - 1, (VOCAB, 3))
        rng = np.random.default_rng((7, k))
        length = LENGTH + self.causal
        tokens = np.zeros((ROWS, length), np.int32)
        tokens[:, 0] = rng.integers(1, VOCAB - 1, ROWS)
        for i in range(1, length):
            tokens[:, i] = after[tokens[:, i - 1], rng.integers(0, 3, ROWS)]
        at = np.arange(length)
        segments = 1 + (at >= rng.integers(5, length - 5, ROWS)[:, None])
        segments = np.where(at < length - 3 * (np.arange(ROWS)[:, None] % 2), segments, 0).astype(np.int32)
        return {"tokens": np.where(segments > 0, tokens, 0), "segment_ids": segments}

    def batches(self, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
        while True:
            yield self.batch(start)
            start += 1


def tiny_text(name: str, mesh: MeshConfig) -> Experiment:
    """The experiment of a row of `MODELS`, or of one of `MIXERS`, on `mesh`."""
    module, model = (MIXERS | MODELS)[name]
    data = FixedTokens(causal=model.causal)
    masking = None if model.causal else Masking(mask_token=VOCAB - 1)
    optimizer = OptimizerConfig(learning_rate=5e-3, clip_norm=1.0, schedule=ScheduleConfig(warmup_steps=3))
    return Experiment(
        name="tiny",
        config=LanguageRun(preset=name, mesh=mesh, optimizer=optimizer),
        objective=LanguageModelling(module(model), VOCAB, model.causal, masking),
        train_data=data,
        eval_data=data,
        steps=STEPS,
        workdir="unused",
        rules=RULES,
    )
