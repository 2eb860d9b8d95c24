"""Bytes to and from memory, read from the text of a program."""

import pytest

from flashjax.analysis import hlo
from flashjax.analysis.traffic import traffic

TEXT = """HloModule m, is_scheduled=true

%add (a: f32[1024]) -> f32[1024] {
  %a = f32[1024] parameter(0)
  ROOT %r = f32[1024] add(%a, %a)
}

%cut (a: f32[64,1024], i: s32[]) -> f32[1024] {
  %a = f32[64,1024] parameter(0)
  %i = s32[] parameter(1)
  %part = f32[1,1024] dynamic-slice(%a, %i), dynamic_slice_sizes={1,1024}
  ROOT %flat = f32[1024] bitcast(%part)
}

%deep (a: f32[64,1024], i: s32[]) -> f32[1024] {
  %a = f32[64,1024] parameter(0)
  %i = s32[] parameter(1)
  %row = f32[1024] fusion(%a, %i), kind=kLoop, calls=%cut
  ROOT %r = f32[1024] negate(%row)
}

%put (a: f32[64,1024], row: f32[1,1024], i: s32[]) -> f32[64,1024] {
  %a = f32[64,1024] parameter(0)
  %row = f32[1,1024] parameter(1)
  %i = s32[] parameter(2)
  ROOT %r = f32[64,1024] dynamic-update-slice(%a, %row, %i)
}

ENTRY %main (x: f32[1024], all: f32[64,1024], i: s32[]) -> f32[64,1024] {
  %x = f32[1024] parameter(0)
  %all = f32[64,1024] parameter(1)
  %i = s32[] parameter(2)
  %near = f32[1024]{0:T(1024)S(1)} copy(%x)
  %sum = f32[1024] fusion(%x), kind=kLoop, calls=%add
  %row = f32[1024] fusion(%all, %i), kind=kLoop, calls=%cut
  %nested = f32[1024] fusion(%all, %i), kind=kOutput, calls=%deep
  %some = f32[2,1024] slice(%all), slice={[0:2], [0:1024]}
  %kernel = f32[1024] custom-call(%all, %sum, %all), custom_call_target="tpu_custom_call"
  %wide = f32[1,1024] bitcast(%sum)
  ROOT %new = f32[64,1024] fusion(%all, %wide, %i), kind=kLoop, calls=%put
}
"""
ROW = 4 * 1024


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("near", ROW),  # only what is read: the copy lies elsewhere
        ("sum", 2 * ROW),
        ("row", 2 * ROW + 4),  # a row of 64 is read, and its number
        ("nested", 2 * ROW + 4),  # the same by a fusion inside it
        ("kernel", 66 * ROW),  # an array that it is given twice, once
        ("some", 4 * ROW),
        ("new", 2 * ROW + 4),  # in place: the other rows are neither read nor written
    ],
)
def test_only_what_moves_counts(name, wanted):
    module = hlo.parse(TEXT)
    here = {i.name: i for i in module.computations["main"]}
    assert traffic(module, here[name], here) == wanted
    assert traffic(module, here[name], here, cache=2**20) == 0
    if name == "sum":
        assert traffic(module, here[name], here, cache=ROW - 100) == 200
