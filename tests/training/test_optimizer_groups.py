"""Exact tables of what each parameter's rate and decay are multiplied by, and that updates follow them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.swin import SwinTransformer
from flashjax.models.swin_config import SwinConfig
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.training.optimizers import (
    Group,
    OptimizerConfig,
    Scale,
    ScheduleConfig,
    make_optimizer,
    optimizer_rows,
    rate_columns,
)


def abstract(shapes):
    leaf = lambda x: isinstance(x, tuple)  # noqa: E731
    return jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=leaf)


def drawn(module, *args):
    return jax.eval_shape(module.init, jax.random.key(0), *args)["params"]


def table(rows):
    """(rate, decay) by path."""
    return {path: (row.learning_rate, row.decay) for path, row in rows.items()}


SCANNED = abstract(
    {
        "embed": {"embedding": (64, 8)},
        "layers": {"up": {"kernel": (3, 8, 16), "bias": (3, 16)}, "norm": {"scale": (3, 8)}},
        "final_norm": {"scale": (8,)},
        "head": {"kernel": (8, 64)},
    }
)


def test_the_first_group_that_matches_holds_and_masks_stay():
    groups = (Group("layers/.*kernel", 0.5, 2.0), Group("layers", 0.1), Group("head|embed", decay=0.25))
    assert table(optimizer_rows(OptimizerConfig(groups=groups, no_decay=("embed",)), SCANNED)) == {
        "embed/embedding": (1.0, 0.0),
        "final_norm/scale": (1.0, 0.0),
        "head/kernel": (1.0, 0.25),
        "layers/norm/scale": (0.1, 0.0),
        "layers/up/bias": (0.1, 0.0),
        "layers/up/kernel": (0.5, 2.0),
    }


def test_layer_decay_counts_scanned_layers_one_by_one():
    rows = optimizer_rows(OptimizerConfig(layer_decay=0.5), SCANNED)
    assert table(rows) == {
        "embed/embedding": (0.0625, 1.0),
        "final_norm/scale": (0.5, 0.0),
        "head/kernel": (1.0, 1.0),
        "layers/norm/scale": ((0.125, 0.25, 0.5), 0.0),
        "layers/up/bias": ((0.125, 0.25, 0.5), 0.0),
        "layers/up/kernel": ((0.125, 0.25, 0.5), 1.0),
    }
    columns = rate_columns(rows)
    assert (columns["rate"]["layers/up/kernel"], columns["rate"]["head/kernel"]) == ("0.125 to 0.5", "1")
    assert (columns["decay"]["layers/up/kernel"], columns["decay"]["layers/up/bias"]) == ("1", "0")


def test_groups_scales_and_layer_decay_multiply():
    scales = {"layers/up/kernel": Scale((1.0, 2.0, 4.0), 3.0), "head/kernel": Scale(0.5)}
    config = OptimizerConfig(layer_decay=0.5, groups=(Group("kernel", 10.0, 0.5),))
    rows = table(optimizer_rows(config, SCANNED, scales))
    assert rows["layers/up/kernel"] == ((1.25, 5.0, 20.0), 1.5)
    assert rows["head/kernel"] == (5.0, 0.5)
    scales = {"layers/up/kernel": Scale((4.0, 2.0, 1.0))}
    assert optimizer_rows(OptimizerConfig(layer_decay=0.5), SCANNED, scales)["layers/up/kernel"] == Scale(0.5)


def test_layer_decay_of_every_kind_of_model():
    text = {"vocab_size": 16, "width": 8, "depth": 2, "max_length": 8}
    tokens = jnp.zeros((1, 8), jnp.int32)
    transformer = Transformer(TransformerConfig(**text, heads=2, hidden=16, tie_embeddings=False))
    rows = optimizer_rows(OptimizerConfig(layer_decay=0.5), drawn(transformer, tokens))
    firsts = {path.split("/")[0]: row.learning_rate for path, row in rows.items()}
    assert firsts == {
        "embed": 0.125,
        "position": 0.125,
        "layer_0": 0.25,
        "layer_1": 0.5,
        "final_norm": 0.5,
        "head": 1.0,
    }
    flash = Flash(FlashConfig(**text, head_dim=4, chunk=4, scan_layers=True))
    rows = optimizer_rows(OptimizerConfig(layer_decay=0.5), drawn(flash, tokens))
    firsts = {path.split("/")[0]: row.learning_rate for path, row in rows.items()}
    assert firsts == {"embed": 0.125, "position": 0.125, "layers": (0.25, 0.5), "final_norm": 0.5}
    swin = SwinConfig(
        img_size=16,
        patch_size=2,
        embed_dim=4,
        depths=(1, 2),
        num_heads=(1, 2),
        window_size=4,
        num_classes=3,
        pretrained_window_sizes=(0, 0),
        ape=True,
    )
    rows = optimizer_rows(OptimizerConfig(layer_decay=0.5), drawn(SwinTransformer(swin), jnp.zeros((1, 16, 16, 3))))
    found = {"/".join(path.split("/")[:2]): row.learning_rate for path, row in rows.items()}
    assert found == {
        "absolute_pos_embed": 0.0625,
        "patch_embed/norm": 0.0625,
        "patch_embed/proj": 0.0625,
        "stage_0/block_0": 0.125,
        "stage_0/downsample": 0.25,
        "stage_1/block_0": 0.25,
        "stage_1/block_1": 0.5,
        "norm/bias": 0.5,
        "norm/scale": 0.5,
        "head/bias": 1.0,
        "head/kernel": 1.0,
    }


@pytest.mark.parametrize(
    ("config", "scales", "words"),
    [
        (OptimizerConfig(groups=(Group("heat"),)), None, "group 'heat' matches no parameter; nearest paths: head/k"),
        (OptimizerConfig(no_decay=("tabel",)), None, "no_decay 'tabel' matches no parameter"),
        (OptimizerConfig(), {"head/kernal": Scale()}, "scale of 'head/kernal', which is no parameter; nearest: head/k"),
        (OptimizerConfig(), {"layers/up/bias": Scale((1.0, 2.0))}, "layers/up/bias: 2 rates for 3 layers"),
    ],
)
def test_what_matches_nothing_names_what_is_near(config, scales, words):
    with pytest.raises(ValueError, match=words):
        make_optimizer(config, 10, SCANNED, scales)


def test_layer_decay_without_layers_and_prodigy_with_rates_are_refused():
    dense = abstract({"dense": {"kernel": (2, 2)}})
    with pytest.raises(ValueError, match=r"layer_decay finds no blocks.*dense/kernel"):
        optimizer_rows(OptimizerConfig(layer_decay=0.5), dense)
    with pytest.raises(ValueError, match=r"prodigy sets its own rate.*found one for dense/kernel"):
        make_optimizer(OptimizerConfig(name="prodigy", groups=(Group("dense", 0.5),)), 10, dense)
    with pytest.raises(ValueError, match="group 'a': learning_rate is -1"):
        Group("a", -1.0)


@pytest.mark.parametrize(
    ("text", "group"),
    [("head=10", Group("head", 10.0)), ("a=b/kernel$=0.5,0", Group("a=b/kernel$", 0.5, 0.0))],
)
def test_groups_are_written_in_a_word(text, group):
    assert Group.parse(text) == group
    assert Group.parse(str(group)) == group


@pytest.mark.parametrize("text", ["head", "=1", "head=1,2,3", "head=x"])
def test_groups_that_are_not_written_so_are_refused(text):
    with pytest.raises(ValueError, match=r"PATTERN=RATE|could not convert"):
        Group.parse(text)


def test_updates_follow_the_table():
    shapes = {"layers": {"up": {"kernel": (2, 3, 4)}}, "head": {"kernel": (3, 4), "bias": (4,)}}
    params = jax.tree.map(jnp.ones, shapes, is_leaf=lambda x: isinstance(x, tuple))
    config = OptimizerConfig(
        learning_rate=0.1,
        weight_decay=0.5,
        clip_norm=None,
        schedule=ScheduleConfig("constant"),
        layer_decay=0.5,
        groups=(Group("head/kernel", 1.0, 0.5), Group("bias", 0.0)),
    )
    optimizer = make_optimizer(config, 10, params)
    changes, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    new = optax.apply_updates(params, changes)
    np.testing.assert_allclose(new["layers"]["up"]["kernel"][:, 0, 0], [1 - 0.1 * 0.25 * 0.5, 1 - 0.1 * 0.5 * 0.5])
    np.testing.assert_allclose(new["head"]["kernel"], 1 - 0.1 * 0.5 * 0.5)
    changes, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_array_equal(changes["head"]["bias"], 0.0)
