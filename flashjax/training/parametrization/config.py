"""The settings of a parametrization."""

from dataclasses import dataclass
from typing import Literal

from flashjax.training.parametrization.presets import PRESETS
from flashjax.words import nearest

Keep = Literal["head_dim", "heads"]


@dataclass(frozen=True)
class ParametrizationConfig:
    """How parameters begin, and by which factors they act and learn; the multipliers are part of the model."""

    preset: str = "model"
    """model (what the model draws), standard (LeCun), gpt2, bert, t5, xavier, he, orthogonal, vit, ntk, mup, deepnorm,
    fixup, t_fixup, t_fixup_encoder; --dry_run shows the table."""
    base_width: int = 0
    """Of mup: width of the model at which it is the same as standard, and for which the learning rate is meant."""
    keep: Keep = "head_dim"
    """Of mup: what the base model has as this one has it; heads: then logits go by 1 / head_dim."""
    rules: tuple[str, ...] = ()
    """Changes of single values, 'PATTERN FIELD=VALUE ...' by path: 'head/kernel$ distribution=zeros learning_rate=.1'.
    Fields: distribution, std, multiplier, learning_rate, decay."""

    def __post_init__(self):
        if self.preset not in PRESETS:
            near = nearest(self.preset, PRESETS)
            raise ValueError(
                f"unknown parametrization.preset {self.preset!r}; nearest: {near}. All: {', '.join(PRESETS)}"
            )
        if self.keep not in ("head_dim", "heads"):
            raise ValueError(f"parametrization.keep must be head_dim or heads, found {self.keep!r}")
        if (self.preset == "mup") != (self.base_width > 0):
            raise ValueError(
                f"parametrization.base_width is {self.base_width} with preset {self.preset!r}: mup needs the width "
                "from which it scales, and no other preset has one"
            )
