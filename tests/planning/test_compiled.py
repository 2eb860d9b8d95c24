"""What is kept of compiled programs, and when it is found again."""

import jax
import jax.numpy as jnp
import pytest

from flashjax.analysis import topology
from flashjax.planning import compiled

X = jax.ShapeDtypeStruct((8, 8), jnp.float32)
HERE = topology.open_topology("cpu:1")


def lowered(name="layer", factor=2.0):
    def step(x):
        with jax.named_scope(name):
            return factor * x @ x

    return jax.jit(step).lower(X)


def elsewhere():
    def step(x):
        with jax.named_scope("layer"):
            return 2.0 * x @ x

    return jax.jit(step).lower(X)


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHJAX_PLAN_CACHE", str(tmp_path))
    return tmp_path


def test_a_program_is_compiled_once_wherever_its_lines_are():
    first = compiled.compile_for(lowered(), HERE)
    again = compiled.compile_for(elsewhere(), HERE)
    assert not first.kept and again.kept and again.text == first.text
    assert again.memory == first.memory and first.memory is not None and first.memory.arguments == 4 * 64
    assert not compiled.compile_for(lowered(), HERE, cache=False).kept


@pytest.mark.parametrize("other", [{"name": "head"}, {"factor": 3.0}])
def test_another_program_or_another_name_is_another(other):
    compiled.compile_for(lowered(), HERE)
    assert not compiled.compile_for(lowered(**other), HERE).kept


def test_another_option_of_the_compiler_makes_another_program():
    def step(**options):
        return jax.jit(lambda x: x @ x, **options).lower(X)

    compiled.compile_for(step(), HERE)
    assert not compiled.compile_for(step(compiler_options={"xla_embed_ir_in_executable": True}), HERE).kept
    assert compiled.compile_for(step(), HERE).kept


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("jax_exec_time_optimization_effort", -1.0),
        ("jax_memory_fitting_effort", -1.0),
        ("jax_optimization_level", "O1"),
    ],
)
def test_another_effort_of_the_compiler_makes_another_program(setting, value):
    compiled.compile_for(lowered(), HERE)
    before = getattr(jax.config, setting)
    jax.config.update(setting, value)
    try:
        assert not compiled.compile_for(lowered(), HERE).kept
    finally:
        jax.config.update(setting, before)
    assert compiled.compile_for(lowered(), HERE).kept


class Refusing:
    """What a compiler without room says."""

    compiles = 0

    def as_text(self, debug_info=False):
        return "program"

    def compile(self, compiler_options=None):
        self.compiles += 1
        raise jax.errors.JaxRuntimeError(self.words)


def test_no_room_is_kept_too():
    program = Refusing()
    program.words = "RESOURCE_EXHAUSTED: Used 20.0G of 16.0G hbm"
    for _ in range(2):
        with pytest.raises(compiled.OutOfMemoryError) as error:
            compiled.compile_for(program, HERE)
        assert (error.value.wanted, error.value.there) == (20 * 2**30, 16 * 2**30)
    assert program.compiles == 1


def test_another_error_of_the_compiler_is_said_in_a_line():
    program = Refusing()
    program.words = "INTERNAL: no tiles\nand much more"
    with pytest.raises(ValueError, match=r"the compiler for cpu:1 ends with an error: INTERNAL: no tiles$"):
        compiled.compile_for(program, HERE)
