"""The configuration of FLASH, FLASH-Quad and models of gated attention units: `flash.py` says of what."""

import dataclasses
from typing import ClassVar, Literal

from flashjax.layers.initializers import KERNELS
from flashjax.layers.norm import NORMS, check_width
from flashjax.models.stack import REMAT
from flashjax.models.widths import at_ratio

TOEPLITZ_SPAN = 512
"""Up to this many tokens the paper learns a bias for each distance; beyond, one formed by rotations."""
SCALINGS = {"flash": ("paper", "sum", "mean"), "quad": ("paper", "sum", "mean"), "gau": ("paper", "log_n")}
"""What each kind may divide its logits by."""


@dataclasses.dataclass(frozen=True)
class FlashConfig:
    """A language model of gated attention units alone. The defaults are FLASH at base size, causal."""

    kind: Literal["flash", "quad", "gau"] = "flash"
    """Attention of the units: flash (mixed chunk: squared ReLU inside chunks, linear across them), quad (FLASH-Quad:
    squared ReLU over the whole length), gau (softmax over the whole length)."""
    vocab_size: int = 32000
    """V, tokens of the vocabulary."""
    width: int = 768
    """d, channels of the residual stream."""
    depth: int = 24
    """Units; two of them hold about the parameters of one Transformer block."""
    expansion: float = 2.0
    """e / d, width of gate and values."""
    head_dim: int = 128
    """s, width of the one head."""
    chunk: int = 256
    """C, tokens of a chunk of flash."""
    causal: bool = True
    """A decoder; False: each token sees all."""
    max_length: int = 8192
    """Tokens that the model is made for: n of `count` "context", and the span of a Toeplitz bias of quad and gau."""
    scaling: Literal["paper", "sum", "mean", "log_n"] = "paper"
    """Weights: paper, relu(Q K^T / n + b)^2; sum, relu((Q K^T + b) / n)^2; mean, relu(Q K^T / sqrt(s) + b)^2 / n;
    inside chunks C for n. Of gau: paper, softmax(Q K^T / sqrt(s) + b); log_n, the same with Q K^T log(n) / log(512)."""
    count: Literal["context", "visible", "row"] = "context"
    """What n is, outside chunks: context, max_length whatever the row (what training at that length divides by);
    visible, the keys that a query sees; row, tokens of the row and its padding (the pseudo-code to the letter, which
    cannot decode). A causal flash has C for n everywhere."""
    bias: Literal["paper", "toeplitz", "rope", "t5", "none"] = "paper"
    """b: toeplitz, a number for each distance; rope, <R_i a, R_j c>; t5, one for each of 32 buckets; none; paper,
    toeplitz where C (of flash; of quad and gau: max_length) is 512 or less and rope beyond."""
    bias_scale: float = 1.0
    """Multiplies the t5 bias."""
    rotary: float = 1.0
    """Part of the s dims of queries and keys that turns with position; 0: none."""
    rotary_interleaved: bool = False
    """Turn neighbouring dims together instead of halves of the rotated part."""
    sinusoidal: bool = True
    """Adds a sinusoidal embedding with one learned scale."""
    sinusoidal_scale: float | None = None
    """That scale at the start; None: 1 / sqrt(d)."""
    norm: Literal["layernorm", "rmsnorm", "scalenorm", "groupnorm", "none"] = "layernorm"
    """Before each unit; the paper has scalenorm for masked and layernorm for causal language models."""
    final_norm: Literal["layernorm", "rmsnorm", "scalenorm", "groupnorm", "none"] | None = None
    """Before the head; None: as norm."""
    norm_epsilon: float = 1e-5
    """Added to the variance."""
    residual: Literal["plain", "rezero", "layerscale"] = "plain"
    """How a unit joins the stream: plain, x + f(x); rezero, x + a f(x) from a = 0; layerscale, x + g f(x) with a g for
    each channel."""
    shift_tokens: bool = False
    """The first half of what enters a unit comes from the token before (flash-pytorch, not the paper)."""
    tie_embeddings: bool = True
    """The head is the embedding."""
    head_bias: bool = False
    """Bias of a head of its own."""
    dropout_rate: float = 0.0
    """Dropout of embeddings and of what leaves each unit."""
    initializer: Literal["normal", "fan_in"] = "normal"
    """Kernels at the start: normal (deviation .02) or fan_in (1 / sqrt(inputs): for narrow models)."""
    query_block: int = 1024
    """Queries that quad and gau take at a time; 0: all, as a row split over the sequence axis wants."""
    scan_layers: bool = False
    """One compiled unit for all layers; parameters have a leading dim of layers."""
    remat: Literal["none", "full", "dots"] = "none"
    """Recompute each unit in the backward pass: all of it (full), or all but products with weights (dots)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Compute dtype; weights of attention, states, norms and logits are float32 in any case."""

    def __post_init__(self):
        for name in ("vocab_size", "width", "depth", "head_dim", "chunk", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, found {getattr(self, name)}")
        for name, choices in (
            ("kind", tuple(SCALINGS)),
            ("count", ("context", "visible", "row")),
            ("bias", ("paper", "toeplitz", "rope", "t5", "none")),
            ("norm", NORMS),
            ("residual", ("plain", "rezero", "layerscale")),
            ("initializer", KERNELS),
            ("remat", REMAT),
            ("dtype", ("float32", "bfloat16")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose from {', '.join(choices)}")
        if self.scaling not in SCALINGS[self.kind]:
            raise ValueError(
                f"kind {self.kind!r} has no scaling {self.scaling!r}; choose from {', '.join(SCALINGS[self.kind])}"
            )
        if self.final_norm is not None and self.final_norm not in NORMS:
            raise ValueError(f"unknown final_norm {self.final_norm!r}; choose from {', '.join(NORMS)}")
        for name in {self.norm, self.final_norm or self.norm}:
            check_width(name, self.width)
        if self.inner < 1:
            raise ValueError(f"expansion {self.expansion} of width {self.width} makes gate and values 0 wide: raise it")
        if not 0 <= self.dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1), found {self.dropout_rate}")
        if self.query_block < 0:
            raise ValueError(f"query_block must be 0, for all queries at once, or more, found {self.query_block}")
        if self.bias_scale != 1 and self.bias != "t5":
            raise ValueError(f"bias_scale is of the t5 bias, and bias is {self.bias!r}: leave it out, or set bias='t5'")
        if self.sinusoidal_scale is not None and not self.sinusoidal:
            raise ValueError("sinusoidal_scale is of the sinusoids: leave it out, or set sinusoidal=True")
        if self.width % 2 and (self.sinusoidal or self.shift_tokens):
            raise ValueError(f"sinusoidal and shift_tokens need an even width, found {self.width}")
        if not 0 <= self.rotary <= 1 or self.rotary_dim % 2:
            raise ValueError(
                f"rotary {self.rotary} of head_dim {self.head_dim} turns {self.rotary_dim} dims: want an even number"
            )
        if self.bias_kind == "rope" and self.head_dim % 2:
            raise ValueError(f"a bias formed by rotations needs an even head_dim, found {self.head_dim}")
        if self.head_bias and self.tie_embeddings:
            raise ValueError("head_bias is of a head of its own: set tie_embeddings=False")

    @property
    def inner(self) -> int:
        """e."""
        return int(self.expansion * self.width)

    @property
    def rotary_dim(self) -> int:
        """Dims of queries and keys that turn."""
        return int(self.rotary * self.head_dim)

    @property
    def span(self) -> int:
        """Tokens within which b is asked for."""
        return self.chunk if self.kind == "flash" else self.max_length

    @property
    def bias_kind(self) -> str:
        """The bias behind "paper"."""
        return self.bias if self.bias != "paper" else "toeplitz" if self.span <= TOEPLITZ_SPAN else "rope"

    @property
    def most_positions(self) -> int | None:
        """Tokens that a sequence may have; None: any number."""
        return self.span if self.kind != "flash" and self.bias_kind == "toeplitz" else None

    @property
    def projections(self) -> int:
        """Queries and keys made of Z: a pair, of flash two pairs."""
        return 4 if self.kind == "flash" else 2

    @property
    def head_width(self) -> int:
        """s (asked by `flashjax.training.parametrization`)."""
        return self.head_dim

    logit_power: ClassVar[None] = None
    """Weights are no softmax of q.k / s^p."""

    def at_width(self, width: int, keep: Literal["head_dim", "heads"] = "head_dim") -> "FlashConfig":
        """The same model narrower or wider, with s as it is, or in proportion."""
        s = self.head_dim if keep == "head_dim" else at_ratio("head_dim", self.head_dim, width, self.width)
        return dataclasses.replace(self, width=width, head_dim=s)


def lucidrains(config: FlashConfig) -> FlashConfig:
    """`config` in the conventions of flash-pytorch 0.1.9, whose `FLASHTransformer` (kind flash) or `GAU` (kind quad).

    Not the paper's: T5 buckets, scaled by sqrt(s), of GAU by sqrt(d); the bias of GAU inside the division by n, and no
    rotation there; rotations of the first 32 dims, interleaved; token shift; a LayerNorm before a head with a bias; n
    counts padding.
    """
    gau = config.kind == "quad"
    return dataclasses.replace(
        config,
        scaling="sum" if gau else "paper",
        count="row",
        bias="t5",
        bias_scale=(config.width if gau else config.head_dim) ** 0.5,
        rotary=0.0 if gau else min(32, config.head_dim) / config.head_dim,
        rotary_interleaved=True,
        sinusoidal_scale=1.0,
        norm="scalenorm",
        final_norm="layernorm",
        shift_tokens=not gau,
        tie_embeddings=False,
        head_bias=True,
    )
