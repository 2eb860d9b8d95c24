"""Hundred-step traces of the optimizers against PyTorch's and timm's, clipping, schedules, layer-wise decay."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax import models
from flashjax.models.swin import SwinTransformer
from flashjax.training.optimizers import (
    ALGORITHMS,
    OptimizerConfig,
    ScheduleConfig,
    make_average,
    make_optimizer,
    make_schedule,
    optimizer_rows,
)
from flashjax.training.optimizers.groups import leaves_by_path

REASON = "parity needs the extra: pip install 'flashjax[parity]'"
torch = pytest.importorskip("torch", reason=REASON)
timm = pytest.importorskip("timm", reason=REASON)
timm_optim = pytest.importorskip("timm.optim")
timm_scheduler = pytest.importorskip("timm.scheduler")

TOTAL, WARMUP, PEAK, DECAY = 60, 12, 1e-2, 0.1


# Traces: the same gradients, decay on kernels alone, the rate rising and falling; compared is the largest difference of
# a parameter over the largest way that one of its tensor went in a hundred steps.


@dataclasses.dataclass(frozen=True)
class Trace:
    """An algorithm, what it is compared with, and the differences that are allowed."""

    reference: Callable[[Any], Any]
    """Groups of parameters to the optimizer."""
    float32: float
    float64: float
    config: dict[str, Any] = dataclasses.field(default_factory=lambda: {"weight_decay": DECAY})
    shapes: dict[str, tuple[int, ...]] = dataclasses.field(
        default_factory=lambda: {"layer_0/kernel": (129, 160), "layer_0/bias": (30,), "head/kernel": (7, 5)}
    )
    constant: bool = False
    """Under a constant rate: LARS as You et al. and Optax have it multiplies by the rate inside the momentum."""
    transposed: bool = False
    """PyTorch's kernels are [out, in], which Muon's scale of an update depends on."""
    peak: float = PEAK
    drift: float = 0.0
    """Added to every gradient: Prodigy's rate grows where parameters go one way."""


def sgd(groups, nesterov=False):
    return torch.optim.SGD(groups, PEAK, momentum=0.9, nesterov=nesterov)


def schedule_free(groups):
    found = pytest.importorskip("schedulefree", reason=REASON).AdamWScheduleFree(groups, PEAK)
    found.train()
    return found


def prodigy(groups):
    return pytest.importorskip("prodigyopt", reason=REASON).Prodigy(groups, 1.0, use_bias_correction=True)


MOMENTUM = {"weight_decay": DECAY, "momentum": 0.9}
# Adafactor of Optax factors what is at least 128 wide; PyTorch whatever has two dims.
FACTORED = {"layer_0/kernel": (129, 160), "layer_0/bias": (30,)}
SQUARE = {"layer_0/kernel": (48, 64)}
TRACES = {
    "adamw": Trace(lambda groups: torch.optim.AdamW(groups, PEAK), 2e-5, 1e-12),
    "adamw_paper": Trace(lambda groups: torch.optim.AdamW(groups, PEAK), 2e-5, 1e-12, {"weight_decay": DECAY * PEAK}),
    "adam": Trace(lambda groups: torch.optim.Adam(groups, PEAK, weight_decay=0), 2e-5, 1e-12, {}),
    "adam_l2": Trace(lambda groups: torch.optim.Adam(groups, PEAK), 2e-5, 1e-12),
    "sgd": Trace(sgd, 1e-6, 1e-12, MOMENTUM),
    "sgd nesterov": Trace(lambda groups: sgd(groups, True), 1e-6, 1e-12, {**MOMENTUM, "nesterov": True}),
    "nadam": Trace(lambda groups: torch.optim.NAdam(groups, PEAK), 2e-5, 1e-9),
    "nadamw": Trace(lambda groups: torch.optim.NAdam(groups, PEAK, decoupled_weight_decay=True), 2e-5, 1e-9),
    # Optax subtracts numbers near 2000 for the rectification, in float32; its eps stands behind another correction.
    "radam": Trace(lambda groups: torch.optim.RAdam(groups, PEAK), 2e-3, 1e-6),
    "adamax": Trace(lambda groups: torch.optim.Adamax(groups, PEAK), 1e-5, 1e-7),
    "adagrad": Trace(lambda groups: torch.optim.Adagrad(groups, PEAK), 1e-5, 1e-6),  # eps inside the root
    "rmsprop": Trace(lambda groups: torch.optim.RMSprop(groups, PEAK, momentum=0.9), 1e-6, 1e-12, MOMENTUM),
    "adafactor": Trace(lambda groups: torch.optim.Adafactor(groups, PEAK), 1e-4, 1e-6, shapes=FACTORED),
    "adan": Trace(lambda groups: timm_optim.Adan(groups, PEAK, no_prox=True), 2e-5, 1e-12),
    "lion": Trace(lambda groups: timm_optim.Lion(groups, PEAK), 1e-5, 1e-12),
    "lamb": Trace(lambda groups: timm_optim.Lamb(groups, PEAK, max_grad_norm=None, always_adapt=True), 2e-5, 1e-12),
    "lars": Trace(
        lambda groups: timm_optim.Lars(groups, PEAK, momentum=0.9, always_adapt=True),
        2e-4,  # ways of 1e-4, of parameters of 1
        1e-7,  # timm adds eps to the norm
        {"weight_decay": 0.0},
        constant=True,
    ),
    "adabelief": Trace(lambda groups: timm_optim.AdaBelief(groups, PEAK, rectify=False), 2e-5, 1e-12),
    "novograd": Trace(lambda groups: timm_optim.NvNovoGrad(groups, PEAK), 1e-6, 1e-6),  # timm's norms are float32
    "muon": Trace(
        lambda groups: torch.optim.Muon(groups, PEAK, nesterov=False, eps=1e-8),
        2e-5,
        1e-7,
        {"weight_decay": DECAY, "nesterov": False},
        shapes=SQUARE,
        transposed=True,
    ),
    # Optax corrects the bias of Nesterov's two terms, PyTorch does not.
    "muon nesterov": Trace(
        lambda groups: torch.optim.Muon(groups, PEAK, eps=1e-8), 2e-2, 2e-2, shapes=SQUARE, transposed=True
    ),
    # What is trained, and what is evaluated.
    "schedule_free_adamw": Trace(schedule_free, 2e-5, 1e-12, constant=True),
    # Its rate comes of sums over all parameters.
    "prodigy": Trace(prodigy, 1e-3, 1e-12, {"weight_decay": 0.0}, peak=1.0, drift=0.3),
}


def difference(name: str, trace: Trace, dtype: Any) -> float:
    """The largest difference after a hundred steps, over the largest way."""
    draw = np.random.default_rng(0)
    turn = np.transpose if trace.transposed else np.asarray
    start = {path: (0.3 * draw.normal(size=shape)).astype(dtype) for path, shape in trace.shapes.items()}
    schedule = ScheduleConfig("constant")
    if not trace.constant:
        schedule = ScheduleConfig("linear", warmup_steps=10, warmup_init_lr=1e-3, min_lr=1e-4)
    config = OptimizerConfig(
        name=name.split()[0], learning_rate=trace.peak, clip_norm=None, schedule=schedule, **trace.config
    )
    params = {path: jnp.asarray(value) for path, value in start.items()}
    optimizer, rate = make_optimizer(config, 100, params), make_schedule(config, 100)
    state = optimizer.init(params)

    weights = {path: torch.nn.Parameter(torch.tensor(turn(value).copy())) for path, value in start.items()}
    decays = trace.config.get("weight_decay") != 0.0
    reference = trace.reference(
        [{"params": [w], "weight_decay": DECAY if w.ndim > 1 and decays else 0.0} for w in weights.values()]
        if name != "adam"
        else list(weights.values())
    )

    @jax.jit
    def step(params, state, gradient):
        changes, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, changes), state

    for update in range(100):
        gradient = {
            path: (0.3 * draw.normal(size=shape) + trace.drift).astype(dtype) for path, shape in trace.shapes.items()
        }
        for path, weight in weights.items():
            weight.grad = torch.tensor(turn(gradient[path]).copy())
        for group in reference.param_groups:
            group["lr"] = float(rate(update))
        reference.step()
        params, state = step(params, state, gradient)

    def largest(ours: Any) -> float:
        theirs = {path: turn(weight.detach().numpy()) for path, weight in weights.items()}
        return max(
            float(np.abs(ours[path] - theirs[path]).max() / np.abs(theirs[path] - start[path]).max()) for path in start
        )

    found = largest(params)
    if (average := make_average(config, None)) is not None:
        reference.eval()
        found = max(found, largest(average(params, params, state, jnp.asarray(100))))
    return found


@pytest.mark.parametrize("name", TRACES)
def test_a_hundred_steps_equal_the_reference_in_float32(name, monkeypatch):
    if name.startswith("muon"):  # whose iteration PyTorch runs in bfloat16
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    found = difference(name, TRACES[name], np.float32)
    print(f"{name}: {found:.1e}")
    assert found < TRACES[name].float32


@pytest.mark.parametrize("name", TRACES)
def test_a_hundred_steps_equal_the_reference_in_float64(name, monkeypatch):
    if name.startswith("muon"):
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    with jax.enable_x64(True):
        found = difference(name, TRACES[name], np.float64)
    print(f"{name}: {found:.1e}")
    assert found < TRACES[name].float64


def test_every_algorithm_is_traced():
    assert {name.split()[0] for name in TRACES} == ALGORITHMS.keys()


# Clipping and schedules.


def official(**changes):
    schedule = ScheduleConfig(warmup_steps=WARMUP, warmup_init_lr=1e-6, min_lr=1e-5, late_by_one=True)
    return OptimizerConfig(learning_rate=1e-2, weight_decay=0.05, clip_norm=1.0, schedule=schedule, **changes)


def timm_cosine(optimizer):
    return timm_scheduler.CosineLRScheduler(
        optimizer,
        t_initial=TOTAL - WARMUP,
        lr_min=1e-5,
        warmup_lr_init=1e-6,
        warmup_t=WARMUP,
        cycle_limit=1,
        t_in_epochs=False,
        warmup_prefix=True,
    )


def timm_rates(scheduler, optimizer) -> Iterator[float]:
    """The rate of each update, where the scheduler is called after it."""
    for update in range(TOTAL + 5):
        yield optimizer.param_groups[0]["lr"]
        scheduler.step_update(update)


def test_rates_equal_timm_called_after_each_step():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    rates = list(timm_rates(timm_cosine(optimizer), optimizer))
    actual = make_schedule(official(), TOTAL)(jnp.arange(TOTAL + 5))
    # Optax forms the rise in float32 from the peak down: the first rates carry the rounding of the peak.
    np.testing.assert_allclose(actual, rates, rtol=1e-5, atol=1e-7 * 1e-2)


def test_falls_by_steps_equal_timm():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = timm_scheduler.StepLRScheduler(
        optimizer,
        decay_t=20,
        decay_rate=0.3,
        warmup_t=WARMUP,
        warmup_lr_init=1e-6,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    rates = list(timm_rates(scheduler, optimizer))
    schedule = ScheduleConfig(
        "step", decay_every=20, decay_rate=0.3, warmup_steps=WARMUP, warmup_init_lr=1e-6, late_by_one=True
    )
    actual = make_schedule(OptimizerConfig(learning_rate=1e-2, schedule=schedule), TOTAL)(jnp.arange(TOTAL + 5))
    np.testing.assert_allclose(actual, rates, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_falls_at_milestones_equal_timm_whose_milestones_come_one_update_early(warmup):
    """timm compares its milestones with t + 1; where t is the update before, as here, they fall where they are named.

    The warm-up lags behind by one as that of its other schedules does, so with one ours lags, with milestones one less.
    """
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    scheduler = timm_scheduler.MultiStepLRScheduler(
        optimizer,
        decay_t=[20, 33, 50],
        decay_rate=0.3,
        warmup_t=warmup,
        warmup_lr_init=1e-6,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    rates = list(timm_rates(scheduler, optimizer))
    lag = {"milestones": (19, 32, 49), "warmup_steps": warmup, "warmup_init_lr": 1e-6, "late_by_one": True}
    for fields in [lag] if warmup else [lag, {"milestones": (20, 33, 50)}]:
        schedule = ScheduleConfig("multistep", decay_rate=0.3, **fields)
        actual = make_schedule(OptimizerConfig(learning_rate=1e-2, schedule=schedule), TOTAL)(jnp.arange(TOTAL + 5))
        np.testing.assert_allclose(actual, rates, rtol=1e-5, atol=1e-9)


def test_one_hundred_clipped_updates_equal_torch():
    draw = np.random.default_rng(0)
    shapes = {"kernel": (5, 3), "bias": (3,)}
    start = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [
        {name: (3 * draw.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()} for _ in range(100)
    ]

    weights = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    decays = {"kernel": 0.05, "bias": 0.0}
    groups = [{"params": [weight], "weight_decay": decays[name]} for name, weight in weights.items()]
    reference = torch.optim.AdamW(groups, lr=1e-2)
    scheduler = timm_cosine(reference)

    params = jax.tree.map(jnp.asarray, start)
    optimizer = make_optimizer(official(), TOTAL, params)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for index, gradient in enumerate(gradients):
        for name, weight in weights.items():
            weight.grad = torch.tensor(gradient[name])
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        reference.step()
        scheduler.step_update(index)

        changes, state = update(jax.tree.map(jnp.asarray, gradient), state, params)
        params = optax.apply_updates(params, changes)

    for name, weight in weights.items():
        np.testing.assert_allclose(params[name], weight.detach().numpy(), rtol=1e-5, atol=1e-6)


# Layer-wise decay.


def test_layer_decay_equals_timm_on_swin():
    sizes = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": (2, 3, 1), "window_size": 4}
    theirs = timm.models.swin_transformer.SwinTransformer(**sizes, num_heads=(1, 2, 4), num_classes=5)
    names = {id(param): name for name, param in theirs.named_parameters()}
    groups = timm_optim.param_groups_layer_decay(theirs, layer_decay=0.7)
    scales = {names[id(param)]: group["lr_scale"] for group in groups for param in group["params"]}

    config = dataclasses.replace(
        models.config("swin_tiny_patch4_window7_224"),
        **sizes,
        num_heads=(1, 2, 4),
        num_classes=5,
        pretrained_window_sizes=(0, 0, 0),
    )
    params = jax.eval_shape(SwinTransformer(config).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    rows = optimizer_rows(OptimizerConfig(layer_decay=0.7), params)
    assert leaves_by_path(params).keys() == rows.keys()

    pairs = {
        "patch_embed.proj.weight": "patch_embed/proj/kernel",
        "patch_embed.norm.weight": "patch_embed/norm/scale",
        "norm.weight": "norm/scale",
        "head.fc.weight": "head/kernel",
        # timm's stages begin with the merging that ends the stage before in the official code.
        "layers.1.downsample.reduction.weight": "stage_0/downsample/reduction/kernel",
        "layers.2.downsample.norm.bias": "stage_1/downsample/norm/bias",
    }
    for stage, depth in enumerate(sizes["depths"]):
        for block in range(depth):
            ours = f"stage_{stage}/block_{block}"
            pairs[f"layers.{stage}.blocks.{block}.attn.qkv.weight"] = f"{ours}/attn/qkv/kernel"
            pairs[f"layers.{stage}.blocks.{block}.norm1.bias"] = f"{ours}/norm1/bias"
    for name, path in pairs.items():
        assert rows[path].learning_rate == pytest.approx(scales[name], rel=1e-12), (name, path)
    found = {round(row.learning_rate, 12) for row in rows.values()}
    assert found == {round(scale, 12) for scale in scales.values()}
