"""Names of machines that are not there, and what their compilers are told."""

import importlib.util
import json
import subprocess
import sys

import pytest

from flashjax.analysis import gpus, topology
from flashjax.analysis.chips import CHIPS


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("cpu:256", ("cpu", 256)), ("gpu:h100x8", ("gpu", 8)), ("v5e:4x4", ("tpu", 0)), ("tpu7x:2x2x1", ("tpu", 0))],
)
def test_names_are_read(name, wanted):
    assert topology.parse(name) == wanted


@pytest.mark.parametrize("name", ["", "cpu", "cpu:0", "gpu:h100", "gpu:h100x0", "v5e", "v5e:4", "pod:4x4"])
def test_what_is_no_name_is_refused_with_the_forms(name):
    with pytest.raises(ValueError, match="is no topology: want vTPU:AxB"):
        topology.parse(name)


@pytest.mark.parametrize(
    "name", ["v5e:16x16", "v5e:4x4x1", "v3:32x32", "v5p:16x16x24", "tpu7x:16x16x16", "v9:99x99x99"]
)
def test_machines_up_to_the_largest_are_names(name):
    assert topology.parse(name) == ("tpu", 0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("v5e:4x4x4", "there is no v5e:4x4x4: chips of v5e lie in a plane, 16x16 at most"),
        ("v6e:16x32", "there is no v6e:16x32: chips of v6e lie in a plane, 16x16 at most"),
        ("v5p:32x32x32", "there is no v5p:32x32x32: it would have 32768 chips, the largest v5p has 8960"),
    ],
)
def test_machines_that_cannot_be_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        topology.parse(name)


def test_an_unknown_gpu_is_refused_with_those_that_are_known():
    with pytest.raises(ValueError, match="unknown GPU 'k80' in 'gpu:k80x8'; known: a100, h100, h200, b200"):
        topology.parse("gpu:k80x8")


def test_virtual_devices():
    made = topology.open_topology("cpu:4")
    assert (len(made.devices), made.platform, made.chip, made.hbm_bytes) == (4, "cpu", None, None)
    with pytest.raises(topology.TopologyError, match="needs 4096 virtual devices"):
        topology.open_topology("cpu:4096")


def test_a_missing_compiler_is_said_with_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(topology.TopologyError, match=r"pip install 'flashjax\[plan\]'"):
        topology.open_topology("v5e:2x2")
    with pytest.raises(topology.TopologyError, match=r"pip install 'flashjax\[cuda\]'"):
        topology.open_topology("gpu:h100x8")


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("Ran out of memory: Used 20.5G of 15.75G hbm.", (round(20.5 * 2**30), round(15.75 * 2**30))),
        ("allocation (1.00T) exceeds available HBM (16.00G)", (2**40, 2**34)),
        ("no room", (None, None)),
    ],
)
def test_what_a_compiler_refuses_is_read(message, wanted):
    assert topology.out_of_memory(message) == wanted


@pytest.mark.parametrize("name", gpus.GPUS)
def test_each_gpu_is_described(name, monkeypatch):
    gpu, text = gpus.GPUS[name], gpus.target_config(gpus.GPUS[name])
    assert gpu.kind in CHIPS and f'"{gpu.kind}"' in text and f"core_count: {gpu.multiprocessors}\n" in text
    assert f"major: {gpu.capability[0]} " in text and text.count("{") == text.count("}")
    # What the tensor cores of a multiprocessor do in a cycle is a power of two times what was published, nearly.
    flops = CHIPS[gpu.kind].bf16_flops / (gpu.multiprocessors * gpu.clock * 1e9)
    assert any(0.85 < flops / 2**power < 1.1 for power in range(10, 16)), flops
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".5")
    made = topology.Topology("", gpu.kind, "gpu", (), CHIPS[gpu.kind])
    assert made.hbm_bytes == CHIPS[gpu.kind].hbm_bytes / 2


def test_gpus_come_in_whole_hosts():
    with pytest.raises(ValueError, match="12 GPUs are no whole hosts: want at most 8, or a multiple of 8"):
        gpus.devices(gpus.GPUS["h100"], 12)


COMPILE = """
import json, jax, jax.numpy as jnp
from flashjax.analysis import cycles, topology, collectives
from flashjax.planning import compiled
topology.prepare(["gpu:NAMEx8"])
machine = topology.open_topology("gpu:NAMEx8")
mesh = jax.make_mesh((8,), ("data",), devices=machine.devices)
rows, whole = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in (("data",), ()))
step = jax.jit(jax.grad(lambda w, x: (jnp.tanh(x @ w) ** 2).sum()), in_shardings=(whole, rows), out_shardings=whole)
shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((512, 2048), (1024, 512))]
made = compiled.compile_for(step.lower(*shapes), machine, cache=False)
found = collectives.collectives(made.module)
print(json.dumps([machine.kind, len(machine.devices), made.memory.arguments, made.memory.temporaries,
    [(c.kind, c.bytes, c.group_size) for c in found], sum(c.traffic for c in cycles.costs(made.module))]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not gpus.installed(), reason="the CUDA compiler is not installed: pip install 'flashjax[cuda]'")
@pytest.mark.parametrize("name", gpus.GPUS)
def test_the_cuda_compiler_needs_no_gpu(name):
    code = COMPILE.replace("NAME", name)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kind, count, arguments, temporaries, found, traffic = json.loads(done.stdout.splitlines()[-1])
    assert (kind, count) == (gpus.GPUS[name].kind, 8)
    assert arguments == 2 * (512 * 2048 + 128 * 512) and temporaries > 0
    assert found == [["all-reduce", 2 * 512 * 2048, 8]]
    assert traffic > arguments
