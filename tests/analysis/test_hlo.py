# ruff: noqa: E501 (a compiler's lines are as long as they are)
"""HLO texts: instructions, lengths of loops, lines; and what the TPU compiler's estimates add up to."""

import jax
import jax.numpy as jnp
import pytest

from flashjax.analysis import cycles, hlo
from flashjax.analysis.modules import Place

# As the TPU's compiler writes: no trip counts, memory spaces in the layouts, estimates in the configuration.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

FileNames
1 "/house/model.py"
2 "/elsewhere/linear.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=2 end_column=2}
2 {file_name_id=2 function_name_id=1 line=294 end_line=294 column=2 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=1}

%fused_matmul (p: bf16[64,64]) -> bf16[64,64] {
  %p = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %t = bf16[64,64]{1,0} transpose(%p), dimensions={1,0}
  ROOT %c = bf16[64,64]{1,0} convolution(%p, %t), dim_labels=bf_io->bf
}

%fused_copy (p.1: bf16[64,64]) -> bf16[64,64] {
  %p.1 = bf16[64,64]{1,0} parameter(0)
  %s = bf16[32,64]{1,0} slice(%p.1), slice={[0:32], [0:64]}
  ROOT %pad = bf16[64,64]{1,0} pad(%s, %p.1), padding=0_32x0_0
}

%body (state: (s32[], bf16[64,64], s32[])) -> (s32[], bf16[64,64], s32[]) {
  %state = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %x = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=1
  %n = s32[]{:T(128)} get-tuple-element(%state), index=2
  %y = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} fusion(%x), kind=kOutput, calls=%fused_matmul, metadata={op_name="jit(step)/jvp(Net)/layers/while/body/closed_call/dense/dot_general" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %out = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) tuple(%next, %y, %n)
}

%condition (state.1: (s32[], bf16[64,64], s32[])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[64,64]{1,0}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %n.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=2
  ROOT %less = pred[]{:T(512)} compare(%i.1, %n.1), direction=LT
}

%cheap (q: bf16[64,64]) -> bf16[64,64] {
  %q = bf16[64,64]{1,0} parameter(0)
  ROOT %n1 = bf16[64,64]{1,0} negate(%q), backend_config={"window_config":{"estimated_cycles":"5"}}
}

%dear (q.1: bf16[64,64]) -> bf16[64,64] {
  %q.1 = bf16[64,64]{1,0} parameter(0)
  ROOT %n2 = bf16[64,64]{1,0} negate(%q.1), backend_config={"window_config":{"estimated_cycles":"9"}}
}

ENTRY %main (a: bf16[64,64], b: s32[]) -> bf16[64,64] {
  %a = bf16[64,64]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %count = s32[]{:T(128)} constant(12)
  %begin = s32[]{:T(128)} copy(%zero)
  %cs = (bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, bf16[64,64]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%a), backend_config={"estimated_cycles":"1000"}
  %cd = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} copy-done(%cs)
  %first = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) tuple(%begin, %cd, %count)
  %loop = (s32[]{:T(128)}, bf16[64,64]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) while(%first), condition=%condition, body=%body
  %z = bf16[64,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%loop), index=1
  %b = s32[]{:T(128)} parameter(1)
  %chosen = bf16[64,64]{1,0} conditional(%b, %z, %z), branch_computations={%cheap, %dear}
  %moved = bf16[64,64]{1,0} fusion(%chosen), kind=kLoop, calls=%fused_copy, metadata={op_name="jit(step)/transpose(jvp(Net))/layers/mul;other" stack_frame_id=1}, backend_config={"window_config":{"estimated_cycles":"40"}}
  %kernel = bf16[64,64]{1,0} custom-call(%moved), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/optimizer/pallas_call"}
  ROOT %sum = bf16[64,64]{1,0} all-reduce(%kernel), replica_groups={}, to_apply=%cheap
}
"""


def test_the_length_of_a_loop_is_read_from_its_condition():
    module = hlo.parse(TPU)
    (loop,) = (i for i in module.computations["main"] if i.opcode == "while")
    assert module.trips("main", loop) == 12
    assert module.executions()["body"] == 12
    assert hlo.parse(TPU.replace("constant(0)", "constant(3)")).executions()["body"] == 9
    assert hlo.parse(TPU.replace("constant(1)", "constant(5)")).executions()["body"] == 3
    unknown = hlo.parse(TPU.replace("direction=LT", "direction=NE"))
    assert unknown.executions()["body"] == 1 and unknown.executions(while_iterations=7)["body"] == 7
    unknown.turns[loop.name] = 4.4
    assert unknown.executions()["body"] == 4 and unknown.trips("main", loop) == 4.4


def test_estimates_are_summed_along_the_schedule():
    costs = {c.name: c for c in cycles.costs(hlo.parse(TPU), "/house")}
    assert costs["y"].total == 12 * 100 and costs["y"].kind == "matmul"
    assert costs["y"].place == Place("layers/dense", "forward") and costs["y"].source == "model.py:7"
    assert costs["moved"].kind == "copy" and costs["moved"].place == Place("layers", "backward")
    assert "n2" in costs and "n1" not in costs  # the dearest branch
    assert costs["cs"].overlapped and costs["kernel"].cycles is None and costs["kernel"].kind == "custom call"
    assert costs["kernel"].target == "tpu_custom_call" and costs["sum"].kind == "collective"
    by_kind = cycles.by(costs.values(), lambda c: c.kind)
    assert sum(by_kind.values()) == 1200 + 40 + 9  # the copy beside the others is not among them
    assert cycles.worst(costs.values(), 2) == [costs["y"], costs["moved"]]
    assert costs["sum"].collectives == ("sum",) and costs["y"].collectives == ()


def test_a_kernel_takes_its_schedule_or_its_bytes():
    size = 2 * 64 * 64
    target = 'custom_call_target="tpu_custom_call"'
    module = hlo.parse(TPU.replace(target, target + ', kernel_metadata={"turns":"2"}'))

    def kernel(bundles):
        costs = cycles.costs(module, bundles={"kernel": bundles} if bundles else {}, bytes_a_cycle=size / 1000)
        (dearest,) = cycles.worst(costs, 1)
        assert cycles.by(costs, lambda c: c.kind)["custom call"] == dearest.taken
        assert all(c.taken == c.total for c in costs if c.cycles is not None)
        return dearest.name, dearest.scheduled, dearest.taken

    assert kernel(3000) == ("kernel", 6000, 6000)
    assert kernel(900) == ("kernel", 1800, 2000)
    assert kernel(None) == ("kernel", None, 2000)


def test_what_has_no_estimate_takes_its_bytes_but_collectives():
    unknown = hlo.parse(TPU.replace(', backend_config={"window_config":{"estimated_cycles":"40"}}', ""))
    costs = {c.name: c for c in cycles.costs(unknown, bytes_a_cycle=2 * 64 * 64 / 1000)}
    assert (costs["moved"].cycles, costs["moved"].total, costs["moved"].taken) == (None, 0, 2000)
    assert costs["sum"].cycles is None and costs["sum"].floor > 0 == costs["sum"].taken


def test_traffic_leaves_out_what_stays_on_the_chip():
    costs = {c.name: c for c in cycles.costs(hlo.parse(TPU))}
    size = 2 * 64 * 64
    assert costs["y"].traffic == 0  # from and to the vector memory
    assert costs["cs"].traffic == size  # read from the main memory alone
    assert costs["kernel"].traffic == 2 * size


@pytest.mark.parametrize("length", [1, 7])
def test_loops_of_this_backend(length):
    def f(x):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=length)[0]

    module = hlo.parse(jax.jit(f).lower(jnp.ones((4, 4))).compile().as_text())
    dots = [name for name, lines in module.computations.items() if any(i.opcode == "dot" for i in lines)]
    runs = module.executions()
    assert [runs[name] for name in dots] == [length]


def test_a_shape_is_its_bytes():
    assert hlo.shape_bytes("(f32[2,3]{1,0:T(8,128)}, pred[5], s4[3], u32[])") == 24 + 5 + 2 + 4
