"""Cycles of Pallas kernels from the compiler's reports of its schedule."""

import dataclasses
import importlib.util
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from flashjax.analysis import cycles, hlo, kernels, topology
from flashjax.planning import compiled

PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %known = f32[64] custom-call(%x /*=*/), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"parallel":"8",
"turns":"12"
}}, metadata={op_name="jit(step)/attn/window_attention/pallas_call"}, backend_config={"body":"QQ",USED}
  %again = f32[64]{0} custom-call(%known), custom_call_target="tpu_custom_call", backend_config={"body":"QQ"}
  %silent = f32[64]{0} custom-call(%known), custom_call_target="tpu_custom_call", backend_config={"body":"UU"}
  ROOT %sum = f32[64]{0} add(%known, %silent)
}
""".replace("USED", '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"4096"}]')
REPORT = "Schedule analysis:\n\ttotal scheduled bundles:    1377\n\tempty scheduled bundles:    10\n"


def test_a_kernel_takes_its_bundles_times_the_turns_that_it_says():
    found = kernels.by_code(PROGRAM, {"known": 100, "silent": 7, "sum": 3})  # the compiler reports equal ones once
    assert found == {"QQ": 100, "UU": 7}
    bundles = kernels.by_instruction(PROGRAM, found)
    assert bundles == {"known": 100, "again": 100, "silent": 7}
    costs = {c.name: c for c in cycles.costs(hlo.parse(PROGRAM), bundles=bundles)}
    assert costs["known"].scheduled == 1200 and costs["known"].cycles is None
    assert costs["known"].place.module == "attn/window_attention"
    assert costs["known"].chip_memory == 4096 and costs["silent"].chip_memory is None
    assert costs["silent"].scheduled is None and costs["sum"].scheduled is None
    assert cycles.costs(hlo.parse(PROGRAM))[0].scheduled is None  # without reports
    assert cycles.costs(hlo.parse(PROGRAM), bundles=bundles, cores=2)[0].scheduled == 600


@pytest.mark.parametrize("flags", [None, "--xla_tpu_a=b", "--xla_jf_dump_to=/elsewhere --xla_tpu_a=b"])
def test_the_compiler_is_asked_in_another_process_beside_what_the_user_asks(flags, monkeypatch):
    asked = {}

    def process(module, request, environment):
        words = environment["LIBTPU_INIT_ARGS"].split()
        asked["words"] = words
        directory = Path(next(word for word in words if "dump_to" in word).split("=")[1])
        (directory / "179-known-00-schedule-analysis_final_bundles.txt").write_text(REPORT)
        (directory / "180-copy.2-00-schedule-analysis_final_bundles.txt").write_text("cut off")
        (directory / "181-TLP-hlo.txt").write_text("HloModule")
        return {"text": PROGRAM}

    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    if flags:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
    monkeypatch.setattr(kernels, "in_process", process)
    assert kernels.bundles([], "v5e:2x2") == {"QQ": 1377}
    assert len([word for word in asked["words"] if "dump_to" in word]) == 1
    assert ("--xla_tpu_a=b" in asked["words"]) == bool(flags)
    assert os.environ.get("LIBTPU_INIT_ARGS") == flags


BUNDLES = """LB: loop body
     0   :  { %s0 = inlined_call_operand.hbm [shape: f32[64]] }
   0x1 LB: > { %v1 = vld [vmem:[%s0] sm:$0xff]  ;;  %s2 = sadd.s32 1, %s1 }
   0x2   : > { %v2 = vadd.f32 %v1, %v1 }
   0x3 LB: >> { %v3 = vmul.f32 %v2, %v2  ;;  %s3 = smov 0 /* > { */ }
   0x4   : >> { %v4 = vadd.f32 %v3, %v3 }
   0x5   : > > { %v4 = vadd.f32 %v3, %v3 }
   0x6   : > { vst [vmem:[%s0]] %v4 }
   0x7   :  { exit }
"""


def test_bundles_of_a_loop_in_a_turn_count_as_often_as_it_runs(monkeypatch):
    def process(module, request, environment):
        words = environment["LIBTPU_INIT_ARGS"].split()
        directory = Path(next(word for word in words if "dump_to" in word).split("=")[1])
        for name in ("known", "silent"):
            (directory / f"1-{name}-00-schedule-analysis_final_bundles.txt").write_text(REPORT)
            (directory / f"1-{name}-01-final_bundles.txt").write_text(BUNDLES)
        return {"text": PROGRAM}

    monkeypatch.setattr(kernels, "in_process", process)
    config = '{"custom_call_config": {"body": "%s"}}'
    kernel = kernels.Kernel(config % "QQ", (), (), turns=12, loops=5)
    without = kernels.Kernel(config % "UU", (), (), turns=12, loops=1)
    assert kernels.bundles([kernel, without], "v5e:2x2") == {"QQ": 1377 + 4 * 3, "UU": 1377}
    alone = dataclasses.replace(kernel, turns=1)  # whose outermost loop is its own
    assert kernels.bundles([alone], "v5e:2x2") == {"QQ": 1377 + 4 * 6, "UU": 1377}
    monkeypatch.setattr(kernels, "_IN_LOOPS", re.compile("a listing that says otherwise what is in a loop: (>)"))
    assert kernels.bundles([kernel, without], "v5e:2x2") == {"UU": 1377}  # not known, rather than too few


def test_what_ends_in_an_error_says_so(monkeypatch):
    monkeypatch.setattr(kernels, "in_process", lambda *_: {"error": "killed"})
    with pytest.raises(ValueError, match="v5e:2x2 does not say how it schedules kernels: killed"):
        kernels.bundles([], "v5e:2x2")


def doubled(x, y):
    y[...] = 2.0 * x[...]


def doubled_on_another_line(x, y):
    y[...] = 2.0 * x[...]


def tripled(x, y):
    y[...] = 3.0 * x[...]


def doubled_often(x, y):
    def again(i, before):
        return jnp.sin(before) * 2.0

    y[...] = jax.lax.fori_loop(0, 100, again, x[...].astype(jnp.float32)).astype(y.dtype)


def lowered(turn, place, **facts):
    def step(x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(turn, out_shape=shape, metadata={"turns": "1"} | facts, name="kernel")(x) + 1.0

    return jax.jit(step).lower(jax.ShapeDtypeStruct((16, 128), jnp.bfloat16, sharding=place))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="needs libtpu (the extra plan)")
def test_kernels_are_compiled_apart_and_found_again_from_other_lines(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHJAX_PLAN_CACHE", str(tmp_path))
    machine = topology.open_topology("v5e:2x2")
    place = jax.sharding.SingleDeviceSharding(machine.devices[0])
    program = lowered(doubled, place)
    (kernel,) = kernels.in_program(program)
    assert kernel.operands == kernel.results == (((16, 128), "bfloat16"),)
    first = compiled.compile_for(program, machine)
    (instruction,) = (i for c in first.module.computations.values() for i in c if i.name in first.bundles)
    assert 0 < (kernels.cycles(instruction, first.bundles) or 0) < 1000
    elsewhere = lowered(doubled_on_another_line, place)
    (moved,) = kernels.in_program(elsewhere)
    assert moved.code != kernel.code  # its lines
    assert compiled.compile_for(elsewhere, machine).kept
    assert not compiled.compile_for(lowered(tripled, place), machine).kept
    once, often = (
        sum(compiled.compile_for(lowered(doubled_often, place, **facts), machine, cache=False).bundles.values())
        for facts in ({}, {"loops": "100"})
    )
    assert often > 50 * once > 0
