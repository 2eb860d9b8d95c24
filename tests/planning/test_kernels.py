"""Cycles of Pallas kernels from the compiler's reports of its schedule."""

import os

import pytest

from flashjax.planning import cycles, hlo, kernels

PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main (x: f32[64]) -> f32[64] {
  %x = f32[64]{0} parameter(0)
  %known = f32[64] custom-call(%x /*=*/), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"turns":"12"
}}, metadata={op_name="jit(step)/attn/window_attention/pallas_call"}, backend_config={"body":"QQ",USED}
  %again = f32[64]{0} custom-call(%known), custom_call_target="tpu_custom_call", backend_config={"body":"QQ"}
  %silent = f32[64]{0} custom-call(%known), custom_call_target="tpu_custom_call", backend_config={"body":"UU"}
  ROOT %sum = f32[64]{0} add(%known, %silent)
}
""".replace("USED", '"used_scoped_memory_configs":[{"memory_space":"1","offset":"0","size":"4096"}]')


def test_a_kernel_takes_its_bundles_times_the_turns_that_it_says():
    bundles = kernels.of(PROGRAM, {"known": 100, "silent": 7, "sum": 3})
    assert bundles == {"known": 100, "again": 100, "silent": 7}
    costs = {c.name: c for c in cycles.costs(hlo.parse(PROGRAM), bundles=bundles)}
    assert costs["known"].scheduled == 1200 and costs["known"].cycles is None
    assert costs["known"].place.module == "attn/window_attention"
    assert costs["known"].chip_memory == 4096 and costs["silent"].chip_memory is None
    assert costs["silent"].scheduled is None and costs["sum"].scheduled is None
    assert cycles.costs(hlo.parse(PROGRAM))[0].scheduled is None  # without reports


def test_reports_are_read_once_and_removed(tmp_path):
    reports = kernels.Reports()
    assert reports.take() == {}
    reports.directory = tmp_path
    report = "Schedule analysis:\n\ttotal scheduled bundles:    1377\n\tempty scheduled bundles:    10\n"
    (tmp_path / "179-window_attention.1-00-schedule-analysis_final_bundles.txt").write_text(report)
    (tmp_path / "180-copy.2-00-schedule-analysis_final_bundles.txt").write_text("cut off")
    (tmp_path / "181-TLP-hlo.txt").write_text("HloModule")
    assert reports.take() == {"window_attention.1": 1377}
    assert reports.take() == {} and not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [None, "--xla_tpu_a=b"])
def test_the_compiler_is_asked_beside_what_the_user_asks(flags, monkeypatch):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    if flags:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", flags)
    reports = kernels.Reports()
    with reports.asked():
        asked = os.environ["LIBTPU_INIT_ARGS"].split()
    assert asked[: len(asked) - 3] == ([flags] if flags else [])
    assert f"--xla_jf_dump_to={reports.directory}" in asked and reports.directory.is_dir()
    assert os.environ.get("LIBTPU_INIT_ARGS") == flags  # processes begun later are not asked


def test_a_user_who_dumps_already_is_left_alone(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_jf_dump_to=/elsewhere")
    reports = kernels.Reports()
    with reports.asked():
        assert os.environ["LIBTPU_INIT_ARGS"] == "--xla_jf_dump_to=/elsewhere"
    assert reports.directory is None
