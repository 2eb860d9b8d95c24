"""Twenty steps of the tiny form of each family of presets on eight devices, against the losses of an earlier day."""

import jax
import numpy as np
import pytest

from configs.swin_imagenet import PRESETS
from flashjax.training import MeshConfig, Program
from tests.golden.golden import expected, how
from tests.golden.tiny import STEPS, tiny

MESH = MeshConfig(data=2, fsdp=2, tensor=2)
RTOL = 2e-5
"""Of the loss and the gradient's norm, each step. Other meshes differ by 1e-6 over the twenty steps (one device, data 2
x fsdp 4, this one), of which 5e-7 is the file's rounding."""


@pytest.mark.parametrize(
    "preset",
    [
        "tiny_1k",
        "v2_tiny_w8",
        pytest.param("demo", marks=pytest.mark.slow),  # compiling takes all the time
        pytest.param("tiny_22k_to_1k", marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_losses(preset):
    experiment = tiny(PRESETS[preset], MESH)
    program, data = Program(experiment), experiment.train_data
    state, found = program.init(), {"loss": [], "grad_norm": []}
    for k in range(STEPS):
        state, metrics = program.train_step(state, program.put(data.batch(k), data.spec))
        for name, values in found.items():
            values.append(float(metrics[name]))
    assert jax.device_count() == 8
    golden = expected("losses.json", preset, found, round_to=6)
    for name, values in found.items():
        np.testing.assert_allclose(
            values, golden[name], rtol=RTOL, err_msg=f"{preset}: {name} of each step; {how('losses.json')}"
        )
