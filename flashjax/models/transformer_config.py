"""The settings of a Transformer: what it is made of, and which settings go together.

Shapes as in `transformer.py`.
"""

import dataclasses
import math
from typing import Any, Literal

from flax import linen as nn

from flashjax.layers import attention
from flashjax.layers.attention import Mixer
from flashjax.layers.attention.softmax import Softmax
from flashjax.layers.extension import Extension, check_causal
from flashjax.layers.initializers import NORMAL
from flashjax.layers.mlp import ACTIVATIONS
from flashjax.layers.norm import NORMS, check_width
from flashjax.layers.positions import RopeParameters, t5_buckets
from flashjax.layers.residual import RESIDUALS, ResidualKind
from flashjax.models.stack import REMAT
from flashjax.models.widths import at_ratio

Position = Literal["rope", "alibi", "t5", "sinusoidal", "learned", "none"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """A language model of one stack of blocks. The defaults are GPT-2's."""

    vocab_size: int = 50257
    """V, tokens of the vocabulary."""
    width: int = 768
    """C, channels of the residual stream."""
    depth: int = 12
    """Blocks."""
    heads: int = 12
    """H, query heads."""
    kv_heads: int = 0
    """Hk, key-value heads, each read by heads / kv_heads query heads; 0: as many as heads."""
    head_dim: int = 0
    """D, width of a head; 0: width / heads."""
    hidden: int = 0
    """Inner width of the feed-forward; 0: 4 x width."""
    activation: str = "gelu_tanh"
    """Of the feed-forward: gelu (erf), gelu_tanh, relu, relu2, silu; gated: swiglu, geglu, geglu_tanh, reglu."""
    norm: Literal["layernorm", "rmsnorm", "scalenorm", "groupnorm", "none"] = "layernorm"
    """Kind of normalisation; groupnorm: of 32 groups of a token's channels."""
    norm_position: Literal["pre", "post", "sandwich"] = "pre"
    """pre: x + f(norm(x)), and a last norm before the head; post: norm(x + f(x)); sandwich: x + norm(f(norm(x))), and a
    last norm."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    residual: ResidualKind = "plain"
    """How a branch joins the stream: plain, x + f(x); deepnorm, alpha x + f(x), with norm_position post (its kernels:
    parametrization.preset deepnorm); rezero, x + a f(x) from a = 0; layerscale, x + g f(x), a g for each channel."""
    qkv_bias: bool = True
    """Biases on queries, keys and values."""
    out_bias: bool = True
    """Bias on the projection that leaves attention."""
    mlp_bias: bool = True
    """Biases in the feed-forward."""
    qk_norm: Literal["none", "both", "keys"] = "none"
    """both: RMSNorm of each head's queries and keys, before rotation; keys: k sqrt(D) / |k|, without gains, so that
    logits are q.k / |k| (Su, kexue.fm 9859)."""
    attention_scale: Literal["sqrt_dim", "dim", "none"] = "sqrt_dim"
    """Divides the logits of softmax attention: sqrt(D), D (muP), or 1 (T5, with parametrization.preset t5)."""
    position: Position = "learned"
    """rope (rotary), alibi, t5 (learned relative bias), sinusoidal or learned (added to the embedding), or none."""
    rope: RopeParameters = dataclasses.field(default_factory=RopeParameters)
    """Rotary frequencies, as Hugging Face's rope_parameters."""
    t5_buckets: int = 32
    """Buckets of the t5 bias."""
    t5_max_distance: int = 128
    """Distance from which on all share a bucket."""
    max_length: int = 1024
    """Longest sequence: of learned positions, and of mixers whose parameters depend on it."""
    mixer: str = "softmax"
    """What mixes tokens; see flashjax.layers.attention.names()."""
    mixer_options: str = ""
    """Its options: NAME=VALUE, NAME=VALUE."""
    full_last: bool = False
    """The last block sees all tokens, without rotation or bias by their positions, and extension.log_n is its alone;
    the mixer's window is for the others (HWFA: Su, kexue.fm 9603)."""
    extension: Extension = dataclasses.field(default_factory=Extension)
    """What softmax attention does beyond the length trained at: other distances, other keys, logits by log n."""
    causal: bool = True
    """A decoder; False: an encoder, in which each token sees all."""
    tie_embeddings: bool = True
    """The head is the embedding."""
    embed_scale: bool = False
    """Embeddings times sqrt(width)."""
    dropout_rate: float = 0.0
    """Dropout of embeddings and of what leaves attention and feed-forward."""
    initializer: Literal["gpt2", "normal", "fan_in"] = "gpt2"
    """Kernels at the start: gpt2 (deviation .02, what leaves a branch over sqrt(2 depth)), normal (.02), or fan_in
    (1 / sqrt(inputs), what leaves a branch over sqrt(2 depth): for narrow models)."""
    scan_layers: bool = False
    """One compiled block for all layers; parameters have a leading dim of layers."""
    remat: Literal["none", "full", "dots"] = "none"
    """Recompute each block in the backward pass: all of it (full), or all but products with weights and what comes
    out of blocked attention (dots)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; softmax, norms and logits are float32 in any case."""

    def __post_init__(self):
        for name in ("vocab_size", "width", "depth", "heads", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name in ("kv_heads", "head_dim", "hidden"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0, for its default, or more, found {getattr(self, name)}")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1), found {self.dropout_rate}")
        if self.width % self.heads and not self.head_dim:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads: set head_dim, or change one")
        if self.heads % self.group:
            raise ValueError(f"{self.heads} heads do not divide into {self.group} key-value heads: change kv_heads")
        self._choose("activation", ACTIVATIONS)
        self._choose("norm", NORMS)
        check_width(self.norm, self.width)
        self._choose("norm_position", ("pre", "post", "sandwich"))
        self._choose("residual", RESIDUALS)
        self._choose("attention_scale", _LOGIT_POWERS)
        self._choose("qk_norm", ("none", "both", "keys"))
        self._choose("position", ("rope", "alibi", "t5", "sinusoidal", "learned", "none"))
        self._choose("initializer", _INITIALIZERS)
        self._choose("remat", REMAT)
        self._choose("dtype", ("float32", "bfloat16"))
        if self.residual == "deepnorm" and self.norm_position != "post":
            raise ValueError(f"residual deepnorm is normalised after the sum: norm_position is {self.norm_position!r}")
        mixer = self.make_mixer()
        mixer.check(causal=self.causal, position=self.position)
        if self.position == "rope":
            self.rope.rotary_dim(self.dim)
            if self.rope.by_length and self.mixer != "softmax":
                raise ValueError(
                    f"rope_type {self.rope.rope_type!r} depends on the length, which a decoder with mixer "
                    f"{self.mixer!r} does not know: use mixer 'softmax' or another rope_type"
                )
        elif self.rope != RopeParameters():
            raise ValueError(
                f"rope is of rotary positions, and position is {self.position!r}: leave rope out, or set "
                "position='rope'"
            )
        if self.position == "t5":
            t5_buckets(not self.causal, self.t5_buckets, self.t5_max_distance)
        if self.position in ("sinusoidal",) and self.width % 2:
            raise ValueError(f"sinusoidal positions need an even width, found {self.width}")
        if (self.extension.active or self.full_last) and self.mixer != "softmax":
            raise ValueError(f"extension and full_last are about softmax attention: mixer is {self.mixer!r}")
        if self.extension.kind != "none":
            check_causal(self.extension, self.causal)
            if self.position not in ("rope", "none"):
                raise ValueError(
                    f"extension {self.extension.kind!r} is a rule for rotary positions: position is {self.position!r}"
                )
            if self.full_last or getattr(mixer, "window", 0):
                raise ValueError(
                    f"extension {self.extension.kind!r} says itself which keys are seen: leave out full_last and the "
                    "mixer's window"
                )
            if (implementation := getattr(mixer, "implementation", "auto")) != "auto":
                raise ValueError(
                    f"extension {self.extension.kind!r} has an attention of its own: leave out the mixer's "
                    f"implementation={implementation}"
                )
        if self.full_last and self.scan_layers:
            raise ValueError("full_last makes the last block another one: set scan_layers=False")

    def _choose(self, name: str, choices: Any) -> None:
        if getattr(self, name) not in choices:
            raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(choices)}")

    @property
    def group(self) -> int:
        """Hk."""
        return self.kv_heads or self.heads

    @property
    def dim(self) -> int:
        """D."""
        return self.head_dim or self.width // self.heads

    @property
    def most_positions(self) -> int | None:
        """Tokens that a sequence may have; None: any number."""
        return self.max_length if self.position == "learned" or self.make_mixer().bounded else None

    @property
    def head_width(self) -> int:
        """D (asked by `flashjax.training.parametrization`)."""
        return self.dim

    @property
    def logit_power(self) -> float | None:
        """p of q.k / D^p; None where the mixer is no softmax attention, or has a factor of its own."""
        mixer = attention.parse(self.mixer, self.mixer_options)
        return _LOGIT_POWERS[self.attention_scale] if isinstance(mixer, Softmax) and not mixer.scale else None

    def at_width(self, width: int, keep: Literal["head_dim", "heads"] = "head_dim") -> "TransformerConfig":
        """The same model narrower or wider, with heads as wide, or with as many heads.

        Raises ValueError where heads or inner width would be no whole numbers.
        """

        def scaled(*names: str) -> dict[str, int]:
            return {
                name: at_ratio(name, getattr(self, name), width, self.width) for name in names if getattr(self, name)
            }

        heads = scaled("heads", "kv_heads") if keep == "head_dim" else scaled("head_dim")
        return dataclasses.replace(self, width=width, **heads, **scaled("hidden"))

    def make_mixer(self, last: bool = False) -> Mixer:
        """The mixer of every block, or of the last."""
        mixer = attention.parse(self.mixer, self.mixer_options)
        if self.attention_scale != "sqrt_dim":
            if not isinstance(mixer, Softmax) or mixer.scale:
                raise ValueError(
                    f"attention_scale {self.attention_scale!r} is of softmax attention without a scale of its own: "
                    f"mixer is {self.mixer!r} with options {self.mixer_options!r}"
                )
            mixer = dataclasses.replace(mixer, scale=float(self.dim ** -_LOGIT_POWERS[self.attention_scale]))
        return dataclasses.replace(mixer, window=0) if last and self.full_last else mixer

    @property
    def initializers(self) -> tuple[Any, Any]:
        """Of kernels, and of kernels that leave a branch."""
        inner, outer = _INITIALIZERS[self.initializer]
        return inner, outer(self.depth)


_LOGIT_POWERS = {"sqrt_dim": 0.5, "dim": 1.0, "none": 0.0}
_INITIALIZERS = {
    # name: (kernels, kernels that leave a branch, as a function of the depth)
    "gpt2": (NORMAL, lambda depth: nn.initializers.normal(0.02 / math.sqrt(2 * depth))),
    "normal": (NORMAL, lambda depth: NORMAL),
    "fan_in": (
        nn.initializers.lecun_normal(),
        lambda depth: nn.initializers.variance_scaling(0.5 / depth, "fan_in", "truncated_normal"),
    ),
}
