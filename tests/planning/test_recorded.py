"""Steps on the pods of their papers, against the plans on record (`pytest -m plan`, minutes of compiling)."""

import importlib.util
import json
from pathlib import Path

import pytest

from configs.pods import PODS
from flashjax.planning.recorded import Pod, complaints, in_own_process

FILE = Path(__file__).parent / "pods.json"
RENEW = "if that is meant: python -m flashjax.planning.recorded configs.pods tests/planning/pods.json"

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="the TPU compiler is not installed: pip install 'flashjax[plan]'"
)


@pytest.mark.plan
@needs_compiler
@pytest.mark.parametrize("name", PODS)
def test_a_pod_takes_what_is_on_record(name):
    found = in_own_process("configs.pods", name)
    wrong = complaints(PODS[name], found, json.loads(FILE.read_text()).get(name))
    assert not wrong, "\n".join([f"{name}:", *wrong, RENEW])


def test_every_pod_is_on_record():
    assert list(json.loads(FILE.read_text())) == list(PODS)


POD = Pod("experiments.swin_imagenet", (), "v5e:4x4", frozenset({"all-reduce"}))
HELD = {
    "fits": True,
    "peak": 1000,
    "cycles": 2000,
    "step_seconds": 0.5,
    "by_kind": {"matmul": 1500, "copy": 500},
    "collectives": {"all-reduce": 3},
    "whole": [],
}


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, []),
        ({"cycles": 2150, "peak": 950}, []),
        (
            {"cycles": 2300, "by_kind": {"matmul": 1500, "copy": 800}},
            ["cycles: 2,300 now, 2,000 on record (+15.0%); most of it in copy"],
        ),
        (
            {"cycles": 2300, "by_kind": {"matmul": 1500, "copy": 800, "custom call": 9000}},
            ["cycles: 2,300 now, 2,000 on record (+15.0%); most of it in copy"],
        ),
        (
            {"cycles": None, "step_seconds": None, "by_kind": None},
            ["cycles: none now, 2,000 on record", "step_seconds: none now, 0.5 on record"],
        ),
        ({"peak": 800}, ["peak: 800 now, 1,000 on record (-20.0%)"]),
        ({"step_seconds": 0.6}, ["step_seconds: 0.6 now, 0.5 on record (+20.0%)"]),
        ({"fits": False}, ["it does not fit: 1000 bytes are wanted of a device"]),
        ({"whole": ["params/head/kernel"]}, ["params/head/kernel is large and whole on each device"]),
        ({"collectives": {"all-reduce": 3, "all-to-all": 1}}, ["an unexpected all-to-all"]),
    ],
)
def test_what_is_other_than_on_record_is_said(changes, wanted):
    assert complaints(POD, HELD | changes, HELD) == wanted


def test_a_plan_that_failed_or_was_never_made_is_said():
    assert complaints(POD, {"error": "no compiler"}, HELD) == ["no plan: no compiler"]
    assert complaints(POD, HELD, None) == ["nothing is on record for it"]
