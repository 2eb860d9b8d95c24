"""Residual networks against torchvision, transformers, and plain torch code written here from their descriptions.

In float32, evaluating and training: logits, gradients, running statistics, three updates of SGD.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax import interop
from flashjax.models.resnet import ResNet, ResNetConfig
from flashjax.models.resnet_variants import PREACT, cifar, wide

REASON = "parity needs the extra: pip install 'flashjax[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
torchvision = pytest.importorskip("torchvision", reason=REASON)
nn = torch.nn

TORCHVISION = {
    "basic": ("BasicBlock", dict(layers=[1, 2, 1, 1]), dict(depths=(1, 2, 1, 1))),
    "bottleneck": ("Bottleneck", dict(layers=[1, 1, 2, 1]), dict(depths=(1, 1, 2, 1), block="bottleneck")),
    "resnext": (
        "Bottleneck",
        dict(layers=[1, 1, 1, 1], groups=8, width_per_group=4),
        dict(depths=(1, 1, 1, 1), block="bottleneck", groups=8, width_per_group=4),
    ),
    "wide": (
        "Bottleneck",
        dict(layers=[1, 1, 1, 1], width_per_group=128),
        dict(depths=(1, 1, 1, 1), block="bottleneck", width_per_group=128),
    ),
}


class Unit(nn.Module):
    """One block of the nets for CIFAR, with torchvision's names.

    After activation: (conv, norm, relu) n - 1 times, conv, norm; plus shortcut; relu. Before it: (norm, relu, conv) n
    times; plus shortcut. `activated`: a pre-activation projection takes what the first relu gives.
    """

    def __init__(self, entering, width, stride, bottleneck, preact, activated):
        super().__init__()
        leaving = 4 * width if bottleneck else width
        plan = [(width, 1, 1), (width, 3, stride), (leaving, 1, 1)] if bottleneck else [(width, 3, stride)]
        plan = plan if bottleneck else [*plan, (width, 3, 1)]
        self.preact, self.activated, self.count = preact, activated, len(plan)
        channels = entering
        for k, (out, size, step) in enumerate(plan, start=1):
            setattr(self, f"conv{k}", nn.Conv2d(channels, out, size, step, size // 2, bias=False))
            setattr(self, f"bn{k}", nn.BatchNorm2d(channels if preact else out))
            channels = out
        self.downsample = None
        if stride != 1 or entering != leaving:
            parts = [nn.Conv2d(entering, leaving, 1, stride, bias=False)]
            self.downsample = nn.Sequential(*parts, *([] if preact else [nn.BatchNorm2d(leaving)]))

    def forward(self, x):
        y, shortcut = x, x
        for k in range(1, self.count + 1):
            conv, norm = getattr(self, f"conv{k}"), getattr(self, f"bn{k}")
            if self.preact:
                y = norm(y).relu()
                if k == 1 and self.activated and self.downsample is not None:
                    shortcut = y
                y = conv(y)
            else:
                y = norm(conv(y))
                y = y if k == self.count else y.relu()
        y = y + (shortcut if self.downsample is None else self.downsample(shortcut))
        return y if self.preact else y.relu()


class Plain(nn.Module):
    """A net of three stages for small images: a 3x3 stem, `count` blocks a stage, mean over the map, a linear head."""

    def __init__(self, count, widths, stem, bottleneck=False, preact=False, activated=False, classes=7, chans=3):
        super().__init__()
        self.conv1 = nn.Conv2d(chans, stem, 3, 1, 1, bias=False)
        self.bn1 = None if preact else nn.BatchNorm2d(stem)
        entering = stem
        for i, width in enumerate(widths, start=1):
            units = []
            for j in range(count):
                units.append(Unit(entering, width, 2 if i > 1 and j == 0 else 1, bottleneck, preact, activated))
                entering = 4 * width if bottleneck else width
            setattr(self, f"layer{i}", nn.Sequential(*units))
        self.bn = nn.BatchNorm2d(entering) if preact else None
        self.fc = nn.Linear(entering, classes)

    def forward(self, x):
        x = self.conv1(x)
        x = x if self.bn1 is None else self.bn1(x).relu()
        x = self.layer3(self.layer2(self.layer1(x)))
        x = x if self.bn is None else self.bn(x).relu()
        return self.fc(x.mean((2, 3)))


SMALL = {
    "resnet14_cifar": (dict(count=2, widths=(16, 32, 64), stem=16), cifar(14)),
    "resnet14_cifar_bottleneck": (
        dict(count=2, widths=(16, 32, 64), stem=16, bottleneck=True),
        cifar(14, "bottleneck"),
    ),
    "preact_resnet14_cifar": (
        dict(count=2, widths=(16, 32, 64), stem=16, preact=True),
        cifar(14, **PREACT, preact_projection="raw"),
    ),
    "preact_resnet14_cifar_bottleneck": (
        dict(count=2, widths=(16, 32, 64), stem=16, preact=True, bottleneck=True),
        cifar(14, "bottleneck", **PREACT, preact_projection="raw"),
    ),
    "wrn_16_2": (dict(count=2, widths=(32, 64, 128), stem=16, preact=True, activated=True), wide(16, 2)),
    "wrn_10_1": (dict(count=1, widths=(16, 32, 64), stem=16, preact=True, activated=True), wide(10, 1)),
}
"""The first block of WRN-10-1 changes nothing, so its shortcut is the raw input."""


def shake(module, bias=0.0):
    """Random weights and statistics in which every number matters; norms of scales near one and biases near `bias`."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            noise = torch.randn(value.shape, generator=generator)
            if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")):
                value.copy_(1 + 0.1 * noise.clamp(-3, 3))
            elif value.ndim == 4:
                value.copy_(noise * (1 / value[0].numel()) ** 0.5)
            elif value.is_floating_point():
                value.copy_(noise * 0.1 + (bias if name.endswith("bias") else 0))
    return module


def pair(case, bias=0.0):
    """(torch module, Flax module, the same variables)."""
    if case in TORCHVISION:
        block, theirs, ours = TORCHVISION[case]
        kinds = torchvision.models.resnet
        reference, model = (
            kinds.ResNet(getattr(kinds, block), num_classes=7, **theirs),
            ResNet(ResNetConfig(num_classes=7, **ours)),
        )
    else:
        plain, config = SMALL[case]
        reference, model = Plain(**plain), ResNet(dataclasses.replace(config, num_classes=7))
    state = {name: value.numpy().copy() for name, value in shake(reference, bias).state_dict().items()}
    return reference, model, jax.tree.map(jnp.asarray, interop.from_torch(model, state))


def images(case, batch=4, seed=1):
    shape = (batch, 64, 48, 3) if case in TORCHVISION else (batch, 28, 24, 3)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch_layout(x):
    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def close(ours, theirs, relative, name="", least=0.0):
    """By length, not by entry: a rectifier whose input is 1e-8 from zero may fall to either side."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert np.linalg.norm(ours - theirs) <= relative * max(np.linalg.norm(theirs), least), name


@pytest.mark.parametrize("case", [*TORCHVISION, *SMALL])
def test_logits_and_gradients_when_evaluating(case):
    reference, model, variables = pair(case)
    x = images(case)
    x_torch = to_torch_layout(x).requires_grad_()
    want = reference.eval()(x_torch)
    weights = np.random.default_rng(2).normal(size=want.shape).astype(np.float32)
    (want * torch.from_numpy(weights)).sum().backward()

    def total(x, variables):
        out = model.apply(variables, x)
        return (out * weights).sum(), out

    (_, out), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(x, variables)
    assert np.abs(want.detach().numpy()).max() > 0.1
    close(out, want.detach(), 1e-4)
    close(gradient, x_torch.grad.numpy().transpose(0, 2, 3, 1), 1e-3)


@functools.partial(jax.jit, static_argnames=("model", "optimizer"))
def update(model, optimizer, params, stats, opt_state, x, labels):
    def loss(params):
        logits, changed = model.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), (logits, changed)

    (_, (logits, changed)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return logits, grads, optax.apply_updates(params, updates), changed["batch_stats"], opt_state


@pytest.mark.parametrize("case", ["basic", "bottleneck", "resnext", *SMALL])
def test_three_updates_of_training(case):
    """Batch statistics, gradients, momentum, L2: parameters and running statistics stay together.

    Most units are on (biases near 3): one within rounding of its change of side moves all gradients before it by
    1e-3, and where many are, torch's float32 leaves its own float64 within a step.
    """
    reference, model, variables = pair(case, bias=3.0)
    sgd = torch.optim.SGD(reference.train().parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    optimizer = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(0.01, momentum=0.9))
    params, stats = variables["params"], variables["batch_stats"]
    opt_state = optimizer.init(params)
    for step in range(3):
        x = images(case, batch=8, seed=step)
        labels = np.random.default_rng(step).integers(0, 7, 8)
        sgd.zero_grad()
        want = reference(to_torch_layout(x))
        nn.functional.cross_entropy(want, torch.from_numpy(labels)).backward()
        logits, grads, params, stats, opt_state = update(model, optimizer, params, stats, opt_state, x, labels)
        if step == 0:
            close(logits, want.detach(), 1e-4)
            mine = interop.to_torch(model, {"params": grads, "batch_stats": stats})
            theirs = {name: p.grad.numpy() for name, p in reference.named_parameters()}
            whole = np.sqrt(sum((gradient**2).sum() for gradient in theirs.values()))
            for name, gradient in theirs.items():  # some are zero but for rounding: a norm undoes what they change
                close(mine[name], gradient, 1e-3, name, least=1e-2 * whole)
        sgd.step()
    state = interop.to_torch(model, {"params": params, "batch_stats": stats})
    for name, value in reference.state_dict().items():
        if value.is_floating_point():
            close(state[name], value.numpy(), 1e-3, name)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_whole_models_of_torchvision_go_there_and_back(name):
    reference = shake(getattr(torchvision.models, name)(weights=None))
    state = {key: value.numpy().copy() for key, value in reference.state_dict().items()}
    variables = interop.from_torch(name, state)
    back = interop.to_torch(name, variables)
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert value.shape == back[key].shape and value.dtype == back[key].dtype, key
        if not key.endswith("num_batches_tracked"):
            np.testing.assert_array_equal(back[key], value, key)
    reference.load_state_dict({key: torch.from_numpy(value) for key, value in back.items()}, strict=True)


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_transformers(kind):
    hf = pytest.importorskip("transformers", reason=REASON)
    widths = (64, 128, 256, 512)
    options = hf.ResNetConfig(
        hidden_sizes=[w * (4 if kind == "bottleneck" else 1) for w in widths],
        depths=[1, 2, 1, 1],
        layer_type=kind,
        num_labels=7,
    )
    reference = shake(hf.ResNetForImageClassification(options)).eval()
    model = ResNet(ResNetConfig(num_classes=7, depths=(1, 2, 1, 1), block=kind))
    state = {name: value.numpy().copy() for name, value in reference.state_dict().items()}
    variables = interop.from_torch(model, state)
    x = images("basic")
    with torch.no_grad():
        want = reference(to_torch_layout(x)).logits
    close(jax.jit(model.apply)(variables, x), want, 1e-4)
    back = interop.to_torch(model, variables, "hf")
    reference.load_state_dict({key: torch.from_numpy(value) for key, value in back.items()}, strict=True)
