"""Twenty steps of the tiny form of each family of presets on eight devices, against the losses of an earlier day.

Images on a mesh of data, fsdp and tensor; text on one of data, sequence and tensor.
"""

import functools

import jax
import numpy as np
import pytest

from configs.swin_imagenet import PRESETS
from flashjax.training import MeshConfig, Program
from tests.golden.golden import expected, how
from tests.golden.tiny import STEPS, tiny
from tests.golden.tiny_resnet import tiny_resnet
from tests.golden.tiny_text import MODELS, tiny_text

IMAGES = MeshConfig(data=2, fsdp=2, tensor=2)
TEXT = MeshConfig(data=2, sequence=2, tensor=2)
RESNETS = ("resnet20_cifar", "wrn_28_10")
EXPERIMENTS = {
    **{name: functools.partial(tiny, PRESETS[name], IMAGES) for name in ("tiny_1k", "v2_tiny_w8", "demo")},
    "tiny_22k_to_1k": functools.partial(tiny, PRESETS["tiny_22k_to_1k"], IMAGES),
    **{name: functools.partial(tiny_resnet, name, IMAGES) for name in RESNETS},
    **{name: functools.partial(tiny_text, name, TEXT) for name in MODELS},
}
RTOL = 2e-5
"""Of the loss and the gradient's norm, each step. Other meshes differ by 1e-6 over the twenty steps (one device, data 2
x fsdp 4, this one), of which 5e-7 is the file's rounding."""
RESNET_RTOL = 5e-4
"""Of residual networks, whose batch statistics let rounding grow: on another CPU the last steps differed by 1.1e-4."""


@pytest.mark.slow  # compiling takes all the time
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_losses(name):
    experiment = EXPERIMENTS[name]()
    program, data = Program(experiment), experiment.train_data
    state, found = program.init(), {"loss": [], "grad_norm": []}
    for k in range(STEPS):
        state, metrics = program.train_step(state, program.put(data.batch(k), data.spec))
        for figure, values in found.items():
            values.append(float(metrics[figure]))
    assert jax.device_count() == 8
    golden = expected("losses.json", name, found, round_to=6)
    rtol = RESNET_RTOL if name in RESNETS else RTOL
    for figure, values in found.items():
        np.testing.assert_allclose(
            values, golden[figure], rtol=rtol, err_msg=f"{name}: {figure} of each step; {how('losses.json')}"
        )
