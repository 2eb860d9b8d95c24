"""Presets: rules for the parameters of every model here, by the name of the scheme that they are of.

All leave alone what is no kernel, embedding or bias of a layer (norms, and the inner parameters of mixers), which the
model draws as its paper has it. Biases begin at 0.
"""

import re
from collections.abc import Callable

from flashjax.layers import gains
from flashjax.layers.initializers import TRUNCATED_STD
from flashjax.training.parametrization.table import (
    CONV_OF_BRANCH,
    LEAVES_BRANCH,
    Distribution,
    Leaf,
    Rule,
    Rules,
    Tensor,
)

_INNER = r"(^|/)((attn/inputs|cpb_mlp)/|(query|key|value)_conv/kernel$)"
"""Of mixers, of Swin V2's continuous position bias, and short convolutions."""
_EMBEDDING = r"(^|/)(embed|position)/embedding$"
_HEAD = r"(^|/)head/kernel$"
_PATCHES = r"(^|/)patch_embed/proj/kernel$"
FINAL_NORM = r"(^|/)final_norm/(scale|bias)$"
"""Of the stream before a head; the logits of a tied one are linear in its parameters."""
_ENTERS_BRANCH = r"(^|/)(attn/value|mlp/(up|gate|fc1)|gau/value)/kernel$"
"""The kernels before a branch's last through which its signal goes; queries and keys only weigh it."""
_KERNEL = r"(^|/)kernel$"
_BIAS = r"(^|/)(query|key|value|qkv|out|proj|gate|up|down|fc1|fc2|shared|head|norm\d?|\w+_norm)/bias$"


def _model(tensor: Tensor) -> Leaf:
    del tensor
    return Leaf()


def _zeros(tensor: Tensor) -> Leaf:
    del tensor
    return Leaf("zeros")


def _drawn(distribution: Distribution, std: float | Callable[[Tensor], float]) -> Callable[[Tensor], Leaf]:
    return lambda tensor: Leaf(distribution, std(tensor) if callable(std) else std)


def _preset(*rules: tuple[str, Callable[[Tensor], Leaf]]) -> Rules:
    every = ((_INNER, _model), *rules, (_BIAS, _zeros), (r".*", _model))
    return tuple(Rule(pattern, leaf, accept_unmatched=True) for pattern, leaf in every)


def _by_width(tensor: Tensor) -> float:
    """1 / sqrt(C): what Flax gives an embedding; the logits of a tied head are then of order 1."""
    return tensor.ask("width") ** -0.5


def _lecun(tensor: Tensor) -> float:
    return tensor.std("lecun")


def _gpt2_out(tensor: Tensor) -> float:
    return 0.02 * gains.gpt2_residual(tensor.ask("branches"))


def _t5_query(tensor: Tensor) -> float:
    return (tensor.fans[0] * tensor.ask("head_dim")) ** -0.5


def _orthogonal(tensor: Tensor) -> float:
    return max(tensor.matrix) ** -0.5


def _deepnorm(tensor: Tensor) -> float:
    return gains.deepnorm(_layers(tensor)).beta * tensor.std("xavier")


def _fixup(tensor: Tensor) -> float:
    return gains.fixup(tensor.ask("branches"), kernels=2) * tensor.std("he")


def _fixup_conv(tensor: Tensor) -> Leaf:
    """Zeros for the last convolution of a branch; He's deviation by fan-out, as residual networks here have it."""
    found = re.search(CONV_OF_BRANCH, tensor.path)
    assert found is not None
    convs = tensor.model.convs
    if int(found[2]) == convs:
        return Leaf("zeros")
    return Leaf("normal", gains.fixup(tensor.ask("branches"), convs) * (2 / tensor.fans[1]) ** 0.5)


def _t_fixup(tensor: Tensor) -> float:
    return gains.t_fixup_decoder(_layers(tensor)) * tensor.std("xavier")


def _t_fixup_embedding(tensor: Tensor) -> float:
    return gains.t_fixup_decoder(_layers(tensor)) * _by_width(tensor)


def _t_fixup_encoder(tensor: Tensor) -> float:
    return gains.t_fixup_encoder(_layers(tensor)) * tensor.std("xavier")


def _layers(tensor: Tensor) -> int:
    """Blocks of two branches."""
    return max(tensor.ask("branches") // 2, 1)


def _ntk_kernel(tensor: Tensor) -> Leaf:
    return Leaf("normal", 1.0, multiplier=_lecun(tensor))


def _ntk_embedding(tensor: Tensor) -> Leaf:
    return Leaf("normal", 1.0, multiplier=_by_width(tensor))


def _t5_final_norm(tensor: Tensor) -> Leaf:
    """Divides the logits of a tied head by sqrt(C), and nothing else: they are linear in the last norm's parameters."""
    return Leaf(multiplier=_by_width(tensor)) if tensor.model.tied else Leaf()


_STANDARD = _preset((_EMBEDDING, _drawn("normal", _by_width)), (_KERNEL, _drawn("normal", _lecun)))


def _xavier_but_branches(embedding: Callable[[Tensor], float], branch: Callable[[Tensor], float]) -> Rules:
    """Xavier's normal, but deviations of their own for the embedding and for the kernels that carry a branch."""
    return _preset(
        (_EMBEDDING, _drawn("normal", embedding)),
        (f"{LEAVES_BRANCH}|{_ENTERS_BRANCH}", _drawn("normal", branch)),
        (_KERNEL, _drawn("normal", lambda tensor: tensor.std("xavier"))),
    )


PRESETS: dict[str, Rules] = {
    # What the model draws itself.
    "model": (Rule(r".*", _model),),
    # N(0, 1 / fan-in) (LeCun); embeddings N(0, 1 / C).
    "standard": _STANDARD,
    # N(0, .02^2), over sqrt(branches) where a branch ends (Radford et al. 2019; positions as Hugging Face has them).
    "gpt2": _preset(
        (_EMBEDDING, _drawn("normal", 0.02)),
        (LEAVES_BRANCH, _drawn("normal", _gpt2_out)),
        (_KERNEL, _drawn("normal", 0.02)),
    ),
    # TensorFlow's truncated normal of .02, which deviates by .0176 (Devlin et al. 2019).
    "bert": _preset((f"{_EMBEDDING}|{_KERNEL}", _drawn("truncated_normal", 0.02 * TRUNCATED_STD))),
    # Queries take in what attention leaves out, 1 / sqrt(D) (Raffel et al. 2020): with attention_scale none.
    "t5": _preset(
        (r"(^|/)embed/embedding$", _drawn("normal", 1.0)),
        (r"(^|/)position/embedding$", _drawn("normal", _by_width)),
        (r"(^|/)attn/query/kernel$", _drawn("normal", _t5_query)),
        (FINAL_NORM, _t5_final_norm),
        (_HEAD, _drawn("normal", 1.0)),
        (_KERNEL, _drawn("normal", _lecun)),
    ),
    # Glorot and Bengio 2010.
    "xavier": _preset(
        (_EMBEDDING, _drawn("normal", _by_width)), (_KERNEL, _drawn("uniform", lambda tensor: tensor.std("xavier")))
    ),
    # He et al. 2015.
    "he": _preset(
        (_EMBEDDING, _drawn("normal", _by_width)), (_KERNEL, _drawn("normal", lambda tensor: tensor.std("he")))
    ),
    # Saxe et al. 2014.
    "orthogonal": _preset((_EMBEDDING, _drawn("normal", _by_width)), (_KERNEL, _drawn("orthogonal", _orthogonal))),
    # timm's: N(0, .02^2), patches at torch's default.
    "vit": _preset(
        (_PATCHES, _drawn("uniform", lambda tensor: tensor.std("torch"))),
        (f"{_EMBEDDING}|{_KERNEL}", _drawn("normal", 0.02)),
    ),
    # Jacot et al. 2018: N(0, 1), and 1 / sqrt(fan-in) in the forward pass. The function of "standard" at step 0; at the
    # same learning rate Adam moves what the model sees by 1 / sqrt(fan-in) of what it does there, SGD by 1 / fan-in.
    "ntk": _preset((_EMBEDDING, _ntk_embedding), (_KERNEL, _ntk_kernel)),
    # "standard" at the base width, scaled from there: see `widths`.
    "mup": _STANDARD,
    # Wang et al. 2022: Xavier, with gain beta in feed-forward, values and attention's output; with residual deepnorm.
    "deepnorm": _xavier_but_branches(_by_width, _deepnorm),
    # Zhang et al. 2019. Of Transformers for two kernels a branch, without its scalars: biases stand for those.
    "fixup": _preset(
        (CONV_OF_BRANCH, _fixup_conv),
        (_EMBEDDING, _drawn("normal", _by_width)),
        (f"{LEAVES_BRANCH}|{_HEAD}", _zeros),
        (_ENTERS_BRANCH, _drawn("normal", _fixup)),
        (_KERNEL, _drawn("normal", lambda tensor: tensor.std("he"))),
    ),
    # Huang et al. 2020, of a decoder and of an encoder alone; with norm none.
    "t_fixup": _xavier_but_branches(_t_fixup_embedding, _t_fixup),
    "t_fixup_encoder": _xavier_but_branches(_t_fixup_embedding, _t_fixup_encoder),
}
