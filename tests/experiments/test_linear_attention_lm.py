"""What the comparison of mixers makes of its settings: architectures, and which parameters decay."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from configs.linear_attention_lm import FLASH, PRESETS
from experiments.linear_attention_lm import architecture, contestant
from flashjax.layers.positions import RopeParameters
from flashjax.models.flash import Flash
from flashjax.training.optimizers.groups import decay_mask


@pytest.mark.parametrize("name", [*FLASH, "softmax"])
def test_gains_and_offsets_of_flash_do_not_decay(name, tmp_path):
    (tmp_path / "a.txt").write_text("In the beginning " * 200)
    demo = PRESETS["demo"]
    data = dataclasses.replace(demo.data, dataset="text", length=32)
    flash = dataclasses.replace(demo.flash, width=32, depth=2)
    built = contestant(dataclasses.replace(demo, data_dir=str(tmp_path), data=data, flash=flash), name, True, 0)
    patterns = built.config.optimizer.no_decay
    if name == "softmax":
        assert patterns == ()
        return
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = jax.eval_shape(Flash(built.config.model).init, jax.random.key(0), tokens)["params"]
    decays = decay_mask(params, patterns)["layers"]["gau"]
    assert not decays["gamma"] and not decays["beta"] and decays["shared"]["kernel"]


def test_mixers_without_rotations_are_compared_whatever_the_frequencies():
    demo = PRESETS["demo"]
    given = dataclasses.replace(demo.model, rope=RopeParameters(rope_theta=1e5))
    config = dataclasses.replace(demo, model=given)
    assert architecture(config, "gla", True).rope == given.rope
    assert architecture(config, "cosformer", True).position == "sinusoidal"
