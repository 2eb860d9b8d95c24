"""Swin and Swin V2 against Hugging Face and timm: logits, features and gradients with converted weights.

Which reference can be asked what:
- Sizes that need padding: Hugging Face only. It pads before the shift as the official detection backbone does; timm
  shifts first, which is another function.
- Maps smaller than the window: timm (whose classifier shrinks the window as the official one does, on square maps) and
  Hugging Face's backbone (which never shrinks, as the official detection backbone). Hugging Face's V1 classifier
  shrinks the window but not its bias table, and fails.
- Features of every stage before its merging: timm; with the norms of a pyramid: Hugging Face's backbone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flashjax import models
from flashjax.interop import from_torch

REASON = "parity needs the extra: pip install 'flashjax[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
timm_v1 = pytest.importorskip("timm.models.swin_transformer", reason=REASON)
timm_v2 = pytest.importorskip("timm.models.swin_transformer_v2", reason=REASON)
hf = pytest.importorskip("transformers", reason=REASON)

NAMES = {1: "swin_tiny_patch4_window7_224", 2: "swinv2_tiny_window8_256"}
BASE = dict(img_size=32, patch_size=2, embed_dim=24, depths=(2, 2), num_heads=(2, 4), window_size=4, num_classes=7)
PRETRAINED = "pretrained_window_sizes"


def shake(module):
    """Random weights in which every parameter matters, norms near one, one V2 head beyond the clamp of its scale.

    Mild ones: sharp attention everywhere makes float32 gradients of torch itself differ from float64 by 2e-3.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name and name.endswith("weight")
            parameter.copy_(noise * 0.1 + 1 if is_norm else noise * 0.1)
            if name.endswith("logit_scale"):
                parameter.copy_(1 + 0.3 * noise)
                parameter[0] = 5.0 if ".0.blocks.0." in name else 1.0  # ln(100) is 4.6
    return module.eval()


def hf_model(version, backbone=False, **config):
    config = dict(config)
    pretrained = {PRETRAINED: config.pop(PRETRAINED)} if version == 2 else {}
    options = hf.SwinConfig if version == 1 else hf.Swinv2Config
    stages = {"out_features": [f"stage{i + 1}" for i in range(len(config["depths"]))]} if backbone else {}
    options = options(
        image_size=config["img_size"],
        patch_size=config["patch_size"],
        embed_dim=config["embed_dim"],
        depths=list(config["depths"]),
        num_heads=list(config["num_heads"]),
        window_size=config["window_size"],
        mlp_ratio=config.get("mlp_ratio", 4.0),
        qkv_bias=config.get("qkv_bias", True),
        use_absolute_embeddings=config.get("ape", False),
        num_labels=config["num_classes"],
        **pretrained,
        **stages,
    )
    if backbone:
        return shake(hf.SwinBackbone(options))
    return shake((hf.SwinForImageClassification if version == 1 else hf.Swinv2ForImageClassification)(options))


def timm_model(version, **config):
    return shake((timm_v1.SwinTransformer if version == 1 else timm_v2.SwinTransformerV2)(**config))


def flax_model(version, module, **config):
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    variables = jax.tree.map(jnp.asarray, from_torch(NAMES[version], state, **config))
    return models.create(NAMES[version], **config), variables


def images(*size, batch=2):
    return np.random.default_rng(1).normal(size=(batch, *size, 3)).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("model", "method"))
def outputs_and_gradient(model, variables, x, weights, method=None):
    """The outputs and the gradient of their weighted sum with respect to the images."""

    def total(x):
        outputs = model.apply(variables, x, method=method)
        return sum((out * w).sum() for out, w in zip(jax.tree.leaves(outputs), weights, strict=True)), outputs

    (_, outputs), gradient = jax.value_and_grad(total, has_aux=True)(x)
    return jax.tree.leaves(outputs), gradient


def compare(model, variables, reference, x, method=None, atol=1e-4):
    """`reference` maps torch images to a list of tensors laid out as our outputs."""
    x_torch = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = reference(x_torch)
    weights = [np.random.default_rng(2).normal(size=out.shape).astype(np.float32) for out in expected]
    sum((out * torch.from_numpy(w)).sum() for out, w in zip(expected, weights, strict=True)).backward()
    outputs, gradient = outputs_and_gradient(model, variables, x, weights, method)
    assert len(outputs) == len(expected)
    for out, want in zip(outputs, expected, strict=True):
        assert np.abs(want.detach().numpy()).max() > 0.1  # something to compare
        np.testing.assert_allclose(out, want.detach().numpy(), atol=atol, rtol=0)
    want = x_torch.grad.numpy().transpose(0, 2, 3, 1)
    assert np.abs(gradient - want).max() <= 1e-3 * np.abs(want).max()


def channels_last(maps):
    return [x.permute(0, 2, 3, 1) for x in maps]


CLASSIFIERS = {
    "even": (dict(), (32, 32)),
    "not square": (dict(), (32, 48)),
    "padded at every level": (dict(window_size=5), (37, 51)),
    "odd maps": (dict(window_size=3, depths=(1, 2, 2), num_heads=(1, 2, 3)), (26, 26)),
    "window equals map": (dict(window_size=8), (32, 32)),
    "wide heads, no bias": (dict(num_heads=(1, 3), qkv_bias=False, mlp_ratio=2.5), (32, 32)),
    "patch of 4": (dict(patch_size=4, img_size=48, window_size=3), (46, 50)),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", CLASSIFIERS)
def test_classifier_equals_hugging_face(case, version):
    overrides, size = CLASSIFIERS[case]
    config = {**BASE, **overrides, "pretrained_window_sizes": (0,) * len({**BASE, **overrides}["depths"])}
    reference = hf_model(version, **config)
    model, variables = flax_model(version, reference, **config)
    compare(model, variables, lambda x: [reference(x).logits], images(*size))


def test_absolute_positions_equal_hugging_face_at_its_size_and_resized():
    config = dict(BASE, ape=True)
    reference = hf_model(1, **config)
    model, variables = flax_model(1, reference, **config)
    compare(model, variables, lambda x: [reference(x).logits], images(32, 32))
    resized = functools.partial(reference, interpolate_pos_encoding=True)
    compare(model, variables, lambda x: [resized(x).logits], images(48, 40))


TIMM = {
    "fine-tuned from another window": (dict(), (3, 2)),
    "window over map": (dict(window_size=8, depths=(2, 2, 2), num_heads=(2, 4, 6)), (0, 0, 0)),
    "odd maps": (dict(window_size=7, depths=(2, 2, 2), num_heads=(2, 4, 6), img_size=28), (7, 7, 3)),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("case", TIMM)
def test_classifier_and_features_equal_timm(case, version):
    overrides, pretrained = TIMM[case]
    config = {**BASE, **overrides} | (dict(pretrained_window_sizes=pretrained) if version == 2 else {})
    reference = timm_model(version, **config)
    model, variables = flax_model(version, reference, **config)
    x = images(*model.config.image_shape)
    compare(model, variables, lambda x: [reference(x)], x)
    pyramid = functools.partial(reference.forward_intermediates, intermediates_only=True)
    compare(model, variables, lambda x: channels_last(pyramid(x)), x, method="features")


BACKBONES = {
    "even": (dict(), (32, 32)),
    "padded": (dict(window_size=5), (37, 51)),
    "window over map": (dict(window_size=7), (20, 12)),
}


@pytest.mark.parametrize("case", BACKBONES)
def test_pyramid_equals_hugging_face(case):
    overrides, size = BACKBONES[case]
    config = {**BASE, **overrides}
    reference = hf_model(1, backbone=True, **config)
    config |= dict(feature_norms=True, always_partition=True)
    model, variables = flax_model(1, reference, **config)
    compare(model, variables, lambda x: channels_last(reference(x).feature_maps), images(*size), method="features")


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_full_size_equals_timm(version):
    size = {1: 224, 2: 256}[version]
    torch.manual_seed(0)
    reference = {1: timm_v1, 2: timm_v2}[version].__dict__[NAMES[version]](num_classes=1000).eval()
    if version == 2:  # its branches start at zero
        with torch.no_grad():
            for name, parameter in reference.named_parameters():
                if "blocks" in name and "norm" in name and name.endswith("weight"):
                    parameter.fill_(1.0)
    model, variables = flax_model(version, reference)
    compare(model, variables, lambda x: [reference(x)], images(size, size, batch=1))


@pytest.mark.slow
def test_full_size_equals_hugging_face():
    torch.manual_seed(0)
    reference = hf.SwinForImageClassification(hf.SwinConfig(num_labels=1000)).eval()
    model, variables = flax_model(1, reference)
    compare(model, variables, lambda x: [reference(x).logits], images(224, 224, batch=1))
