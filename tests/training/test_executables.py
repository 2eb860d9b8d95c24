"""A compiled step in a file: made, loaded, and refused where it is another's or damaged."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl

from flashjax.analysis import kernels
from flashjax.training import MeshConfig, executables
from flashjax.training.program import Program
from tests.training import toy


def program(where, devices=8, mesh=None, **changes):
    made = toy.experiment(where, mesh=mesh or MeshConfig(data=2, fsdp=-1), **changes)
    return Program(made, jax.devices()[:devices])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The toy's step on data 2, fsdp 4, in a file."""
    where = tmp_path_factory.mktemp("saved")
    made = program(where)
    lowered = made.lower_step()
    with executables.compiling_anew():
        compiled = lowered.compile()
    return executables.save(where / "steps" / "step.bin", compiled, executables.describe(lowered, made.mesh))


def test_a_step_comes_back_and_does_the_same(saved, tmp_path):
    made = program(tmp_path)
    data = made.experiment.train_data
    loaded = dataclasses.replace(made.experiment.config, compiled=str(saved))
    other = Program(dataclasses.replace(made.experiment, config=loaded), jax.devices())
    ends = [
        step(made.init(), made.put(data.batch(0), data.spec)) for step in (made.compile_step(), other.compile_step())
    ]
    jax.tree.map(np.testing.assert_array_equal, *map(jax.device_get, ends))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ema_decay": 0.9}, "its program is another: the configuration, or the code, has changed"),
        ({"devices": 4}, "its devices: 8, of this run: 4"),
        ({"mesh": MeshConfig(data=8)}, r"its mesh: \{'data': 2, 'fsdp': 4\}, of this run: \{'data': 8\}"),
    ],
)
def test_the_step_of_another_run_is_refused(changes, reason, saved, tmp_path):
    made = program(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"{saved} is not the compiled step of this run; {reason}"):
        executables.load(saved, made.lower_step(), made.mesh)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: content[:-100], "is damaged, perhaps a copy that was cut short"),
        (lambda content: content[: len(executables.MAGIC) + 20], "is damaged"),
        (lambda content: content.replace(b"{", b"", 1), "is damaged"),
        (lambda content: content[:-9] + b"x" + content[-8:], "is damaged"),
        (lambda content: b"other", "is no compiled step: make one with --plan TOPOLOGY --save"),
        (lambda content: b"flashjax compiled step 1\n" + content, "is of another format than this version's: make one"),
    ],
)
def test_a_damaged_file_is_refused_by_name(damage, words, saved, tmp_path):
    file = tmp_path / "step.bin"
    file.write_bytes(damage(saved.read_bytes()))
    made = program(tmp_path)
    with pytest.raises(ValueError, match=f"{file} {words}"):
        executables.load(file, made.lower_step(), made.mesh)


def chips(*shape):
    return [SimpleNamespace(coords=place) for place in np.ndindex(*shape)]


def test_a_topology_is_told_by_how_far_it_reaches():
    assert executables.bounds(chips(2, 2, 4)) == "2x2x4" and executables.bounds(chips(4, 4, 1)) == "4x4x1"
    assert executables.bounds(jax.devices()) is None


def test_options_of_the_compiler_are_of_the_step(tmp_path):
    made = program(tmp_path)
    option = {"xla_embed_ir_in_executable": True}

    def described(**options):
        return executables.describe(jax.jit(jnp.sin, **options).lower(1.0), made.mesh)

    assert described(compiler_options=option) == described() | {"options": option}


def doubled(x, y):
    y[...] = 2.0 * x[...]


def doubled_elsewhere(x, y):
    y[...] = 2.0 * x[...]


def tripled(x, y):
    y[...] = 3.0 * x[...]


def for_tpu(turn):
    """A step with a kernel as a TPU's compiler gets it, for which none is needed."""
    x = jax.ShapeDtypeStruct((16, 128), jnp.float32)
    step = jax.jit(pl.pallas_call(turn, out_shape=x, name="kernel"))
    return step.trace(x).lower(lowering_platforms=("tpu",))


def test_a_kernel_is_the_same_wherever_its_lines_are():
    one, moved, other = map(for_tpu, (doubled, doubled_elsewhere, tripled))
    assert one.as_text() != moved.as_text()
    assert kernels.text(one) == kernels.text(moved) != kernels.text(other)
