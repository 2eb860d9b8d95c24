"""Figures of layers against explicit forward and backward passes, on all meshes, and that looking changes nothing."""

import dataclasses
import functools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax.layers.positions import rope_frequencies, rotary_turn, rotate
from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.resnet import ResNet, ResNetConfig
from flashjax.models.stack import stack
from flashjax.models.swin import SwinTransformer
from flashjax.models.swin_config import SwinConfig
from flashjax.models.transformer import Block, Transformer, TransformerConfig
from flashjax.objectives.classification import Classification
from flashjax.objectives.language import LanguageModelling
from flashjax.training import CheckpointConfig, MeshConfig, OptimizerConfig, Program, RunConfig, TrainConfig, fit
from flashjax.training.experiment import Experiment
from flashjax.training.interrupts import Interrupted
from flashjax.training.sharding import on_mesh
from flashjax.training.step import TrainState, step_rngs
from flashjax.training.watch import Look, flat, layers
from flashjax.training.writers import read_json_lines
from tests.training import toy

V, N, B = 32, 12, 8
MODEL = TransformerConfig(
    vocab_size=V,
    width=16,
    depth=2,
    heads=2,
    kv_heads=1,
    max_length=N,
    norm="rmsnorm",
    position="rope",
    initializer="fan_in",
)
SCANNED = dataclasses.replace(MODEL, scan_layers=True)


class Tokens:
    """Batch k is a pure function of k."""

    batch_size, steps_per_epoch, num_batches, skipped = B, 4, None, 0
    spec = {"tokens": jax.ShapeDtypeStruct((B, N + 1), jnp.int32)}

    def __init__(self, num_batches=None):
        self.num_batches = num_batches

    def batch(self, k):
        return {"tokens": np.random.default_rng([3, k]).integers(0, V, (B, N + 1), dtype=np.int32)}

    def batches(self, start=0):
        k = start
        while self.num_batches is None or k < self.num_batches:
            yield self.batch(k)
            k += 1


def text(workdir, model=MODEL, mesh=None, watch=2, data=None, module=Transformer, **train) -> Experiment:
    config = RunConfig(
        preset="toy",
        mesh=mesh or MeshConfig(data=8),
        watch=watch,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        checkpoint=CheckpointConfig(metric="loss", mode="min"),
        train=TrainConfig(log_every=1, progress=False, eval_every=4, **train),
    )
    goal = LanguageModelling(module(model), V)
    return Experiment("toy", config, goal, data or Tokens(), Tokens(1), 6, str(workdir))


def look(experiment, devices=None, state=None):
    program = Program(experiment, devices)
    state = program.init() if state is None else jax.device_put(state, program.shardings)
    config = experiment.config
    seen = Look(experiment.objective, program.optimizer, config.seed, config.train.accumulate, program.constrain_micro)
    batch = program.put(experiment.train_data.batch(0), experiment.train_data.spec)
    return flat(jax.device_get(jax.jit(on_mesh(seen, program.mesh))(state, batch)), seen.order), state, batch, program


@functools.cache
def one_device(scan=False):
    """The figures of the first step, the state before it, the batch and the program."""
    return look(text("unused", SCANNED if scan else MODEL, MeshConfig(data=1)), jax.devices()[:1])


def test_figures_by_hand():
    line, state, batch, program = one_device()
    experiment = program.experiment
    params, tokens = state.params, batch["tokens"]
    turn = rotary_turn(None, *rope_frequencies(MODEL.rope, MODEL.dim), below=N)
    context = {"positions": jnp.arange(N)[None], "segment_ids": None, "bias": None, "valid": None, "turn": turn}
    blocks = [
        lambda x, i=i: Block(MODEL).apply({"params": params[f"layer_{i}"]}, x, None, context)[0] for i in range(2)
    ]

    def forward(added):
        x = params["embed"]["embedding"][tokens[:, :-1]]
        stream = [x]
        for block, more in zip(blocks, added, strict=True):
            x = block(x) + more
            stream.append(x)
        y = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + MODEL.norm_epsilon) * params["final_norm"]["scale"]
        logp = jax.nn.log_softmax(y @ params["embed"]["embedding"].T)
        return -jnp.take_along_axis(logp, tokens[:, 1:, None], -1).mean(), (stream, y)

    zeros = [jnp.zeros((B, N, MODEL.width))] * 2
    backward, (stream, y) = jax.jit(jax.grad(forward, has_aux=True))(zeros)
    expected = {"activation_moment/entering": np.square(stream[0]).mean()}
    for i in range(2):
        expected[f"activation_moment/layer_{i}"] = np.square(stream[i + 1]).mean()
        expected[f"activation_mean/layer_{i}"] = np.mean(stream[i + 1])
        expected[f"backward_moment/layer_{i}"] = np.square(backward[i]).mean()
    expected["activation_moment/final_norm"] = np.square(y).mean()

    def loss(params):
        return experiment.objective.loss({"params": params}, batch, {"dropout": jax.random.key(0)})[0]

    grads = jax.jit(jax.grad(loss))(params)
    updates, _ = jax.jit(program.optimizer.update)(grads, state.opt_state, params)
    for row in ("embed", "layer_0", "layer_1", "final_norm"):
        leaves = [
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree[row])]) for tree in (params, grads, updates)
        ]
        size, gradient, update = (np.sqrt(np.square(x).mean()) for x in leaves)
        expected |= {f"parameter_rms/{row}": size, f"gradient_rms/{row}": gradient}
        expected[f"update_ratio/{row}"] = update / size
    for name, value in expected.items():
        np.testing.assert_allclose(line[name], value, rtol=2e-4, atol=1e-7, err_msg=name)
    assert [n for n in line if n.startswith("activation_moment")] == [
        *("activation_moment/entering", "activation_moment/layer_0", "activation_moment/layer_1"),
        "activation_moment/final_norm",
    ]

    # Logits: rotate queries and keys by hand, all pairs, each key head for two query heads.
    x = stream[1]
    scale = params["layer_1"]["attn_norm"]["scale"]
    h = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + MODEL.norm_epsilon) * scale
    part = params["layer_1"]["attn"]
    frequencies, factor = rope_frequencies(MODEL.rope, MODEL.dim, N)
    q = (h @ part["query"]["kernel"] + part["query"]["bias"]).reshape(B, N, 2, 8)
    k = (h @ part["key"]["kernel"] + part["key"]["bias"]).reshape(B, N, 1, 8)
    q, k = (rotate(z, context["positions"], frequencies, factor) for z in (q, k))
    logits = jnp.einsum("bnhd,bmhd->bhnm", q, jnp.repeat(k, 2, 2)) / np.sqrt(8)
    np.testing.assert_allclose(line["logit_rms/layer_1"], np.sqrt(np.square(logits).mean()), rtol=1e-4)


@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.slow), "full"])
def test_scanned_layers_have_the_figures_of_layers_apart(remat):
    apart, state, *_ = one_device()
    scanned = text("unused", dataclasses.replace(SCANNED, remat=remat), MeshConfig(data=1))
    params = stack(state.params)
    scanned_program = Program(scanned, jax.devices()[:1])
    state = state.replace(params=params, opt_state=scanned_program.optimizer.init(params))
    line, *_ = look(scanned, jax.devices()[:1], state)
    assert line.keys() == apart.keys()
    for name, value in apart.items():
        np.testing.assert_allclose(line[name], value, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    ("mesh", "accumulate"),
    [
        (MeshConfig(data=2, sequence=2, tensor=2), 1),
        pytest.param(MeshConfig(data=2, fsdp=4), 1, marks=pytest.mark.slow),
        (MeshConfig(data=1), 4),
    ],
)
def test_meshes_and_micro_batches_have_the_figures_of_one_device(mesh, accumulate):
    one, state, *_ = one_device(scan=True)
    devices = jax.devices() if accumulate == 1 else jax.devices()[:1]
    many, *_ = look(text("unused", SCANNED, mesh, accumulate=accumulate), devices, jax.device_get(state))
    assert one.keys() == many.keys()
    for name, value in one.items():
        np.testing.assert_allclose(many[name], value, rtol=2e-4, atol=1e-7, err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole")
    return path, fit(text(path, SCANNED))


@pytest.mark.slow
def test_looking_changes_nothing_and_leaves_lines(tmp_path, whole):
    where, watched = whole
    plain = fit(text(tmp_path, SCANNED, watch=0))
    different = jax.tree.map(lambda a, b: not np.array_equal(a, b), plain.state, watched.state)
    assert not any(jax.tree.leaves(different))
    losses = [
        [line["loss"] for line in read_json_lines(path / "metrics.jsonl") if "loss" in line]
        for path in (tmp_path, where)
    ]
    assert losses[0] == losses[1]
    assert not (tmp_path / "watch.jsonl").exists()
    lines = read_json_lines(where / "watch.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 4, 6]
    assert lines[0]["activation_moment/layer_1"] != lines[1]["activation_moment/layer_1"]


@pytest.mark.slow
def test_a_resumed_run_has_each_line_once(tmp_path, whole):
    class Stops(Tokens):
        def batches(self, start=0):
            for k, rows in enumerate(super().batches(start), start):
                if k == 4 and start == 0:
                    os.kill(os.getpid(), signal.SIGTERM)
                yield rows

    with pytest.raises(Interrupted):
        fit(text(tmp_path, SCANNED, data=Stops()))
    assert [line["step"] for line in read_json_lines(tmp_path / "watch.jsonl")] == [1, 2, 4]
    fit(text(tmp_path, SCANNED, data=Stops()))
    assert (tmp_path / "watch.jsonl").read_text() == (whole[0] / "watch.jsonl").read_text()


def test_a_new_run_without_looks_leaves_no_old_lines(tmp_path):
    (tmp_path / "watch.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    fit(toy.experiment(tmp_path, steps=1))
    assert not (tmp_path / "watch.jsonl").exists()


def test_an_update_that_is_not_finite_is_seen(tmp_path):
    built = toy.experiment(tmp_path, steps=6, poison=(3,))
    fit(dataclasses.replace(built, config=dataclasses.replace(built.config, watch=1)))
    lines = read_json_lines(tmp_path / "watch.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    finite = [np.isfinite(line["gradient_rms/dense"]) for line in lines]
    assert finite == [True, True, True, False, True, True]
    assert lines[4]["parameter_rms/dense"] == lines[3]["parameter_rms/dense"], "the update was not applied"


def images(model) -> Classification:
    def prepare(batch, key=None):
        return batch

    return Classification(model, 10, prepare, prepare)


@pytest.mark.parametrize(
    ("model", "rows", "with_logits"),
    [
        pytest.param(
            SwinTransformer(SwinConfig(img_size=16, patch_size=2, embed_dim=8, depths=(1, 2), num_heads=(1, 2),
                                       window_size=4, num_classes=10, version=2, pretrained_window_sizes=(0, 0),
                                       remat=True)),
            ["patch_embed", "stage_0/block_0", "stage_0/downsample", "stage_1/block_0", "stage_1/block_1", "norm",
             "head"],
            True,
            marks=pytest.mark.slow,
        ),
        (
            ResNet(ResNetConfig(num_classes=10, depths=(1, 1), widths=(8, 16), stem="cifar", stem_width=8)),
            ["stem_conv", "stem_norm", "stage_0/block_0", "stage_1/block_0", "head"],
            False,
        ),
    ],
)  # fmt: skip
def test_models_of_images(model, rows, with_logits):
    goal = images(model)
    key = jax.random.key(0)
    batch = {"image": jax.random.normal(key, (4, 16, 16, 3)), "target": jax.nn.one_hot(jnp.arange(4), 10)}
    variables = jax.jit(goal.init)({"params": key, "dropout": key}, batch)
    params = variables.pop("params")
    optimizer = optax.sgd(0.1)
    state = TrainState(jnp.zeros((), jnp.int32), params, variables, optimizer.init(params), None, jnp.zeros((), bool))
    seen = Look(goal, optimizer, 0)
    line = flat(jax.device_get(jax.jit(seen)(state, batch)), seen.order)
    at = rows.index("stage_0/block_0")
    for figure, named in (("activation_moment", [*rows[:at], "entering", *rows[at:]]), ("backward_moment", rows)):
        assert [name.split("/", 1)[1] for name in line if name.startswith(f"{figure}/")] == named
    assert any(n.startswith("logit_rms/") for n in line) == with_logits
    _, drop = step_rngs(0, state.step)
    rngs = dict(zip(("dropout", "drop_path"), jax.random.split(drop), strict=True))
    apply = jax.jit(functools.partial(model.apply, train=True, mutable=True))
    logits = apply({"params": params, **variables}, batch["image"], rngs=rngs)[0]
    np.testing.assert_allclose(line["activation_moment/head"], np.square(logits).mean(), rtol=1e-4)


def test_layers_of_parameters():
    paths = ["embed/e", "stage_0/block_0/attn/w", "stage_0/block_0/b", "stage_0/down/w", "top", "layers/attn/w"]
    assert list(layers(paths).values()) == [
        "embed", "stage_0/block_0", "stage_0/block_0", "stage_0/down", "top", "layers"
    ]  # fmt: skip


def test_flash_shows_logits(tmp_path):
    model = FlashConfig(kind="gau", vocab_size=V, width=16, depth=2, head_dim=8, max_length=N, initializer="fan_in")
    line, *_ = look(text(tmp_path, model, MeshConfig(data=1), module=Flash), jax.devices()[:1])
    assert line["logit_rms/layer_1"] > 0 and line["backward_moment/layer_0"] > 0


def test_a_negative_watch_is_refused(tmp_path):
    built = toy.experiment(tmp_path, steps=1)
    with pytest.raises(ValueError, match="watch is -1"):
        fit(dataclasses.replace(built, config=dataclasses.replace(built.config, watch=-1)))
