"""Signals by depth against their formulae, optima between grid points, the cells of a study, and its command line."""

import dataclasses
import json
import math
import sys

import numpy as np
import pytest

from configs.initialization_study import FULL, PRESETS, QUICK
from experiments import initialization_study
from flashjax.recipes import initialization, initialization_page, named_look, short_runs
from flashjax.recipes.initialization import predicted
from flashjax.recipes.optimum import optimum
from flashjax.recipes.short_runs import Budget

DEPTH = 12
SMALL = dataclasses.replace(
    FULL,
    model=dataclasses.replace(FULL.model, width=64, heads=2),
    budget=Budget(steps=4, batch_size=16, length=24),
    depths=(DEPTH,),
    look_steps=0,
)


@pytest.fixture(scope="module")
def text():
    return short_runs.bible()


@pytest.mark.parametrize(
    "name", ["pre", *(pytest.param(name, marks=pytest.mark.slow) for name in FULL.arrangements if name != "pre")]
)
def test_signals_by_depth_follow_their_formulae(name, text):
    (cell,) = initialization.cells(dataclasses.replace(SMALL, arrangements=(name,)), "depth")
    (figures,) = initialization.measure(SMALL, "depth", [cell])
    seen, foreseen = initialization_page.signals({**cell, **figures})
    np.testing.assert_allclose(seen["moment"], foreseen["moment"], rtol=0.15)
    np.testing.assert_allclose(np.abs(seen["kept"]), foreseen["kept"], atol=0.08)
    moment, backward = np.array(seen["moment"]), np.array(seen["backward"])
    match name:
        case "pre":  # grows by the same amount a block
            assert np.corrcoef(np.arange(DEPTH), moment)[0, 1] > 0.99
        case "pre_scaled":  # all blocks together add what one adds without the scale
            assert moment[-1] < 2.2
        case "sandwich":
            np.testing.assert_allclose(moment, 1 + 2 * np.arange(1, DEPTH + 1), rtol=0.15)
        case "post" | "deepnorm":
            np.testing.assert_allclose(moment, 1, rtol=1e-3)
        case "rezero":
            np.testing.assert_allclose(moment, moment[0], rtol=1e-6)
            np.testing.assert_allclose(backward, backward[0], rtol=1e-5)


def test_what_is_left_behind_l_norms_is_two_to_the_minus_l_half():
    kept = predicted("post", 1.0, [1.0] * 3, [1.0] * 3)["kept"]
    np.testing.assert_allclose(kept, [2.0**-1, 2.0**-2, 2.0**-3])
    assert predicted("deepnorm", 1.0, [1.0] * 48, [1.0] * 48)["kept"][-1] > 1e3 * 2.0**-48
    scaled = predicted("pre", 1.0, [1.0] * 3, [1.0] * 3)
    assert scaled["moment"] == [3.0, 5.0, 7.0]
    np.testing.assert_allclose(scaled["kept"][-1], math.sqrt(1 / 7))


def test_optimum_of_a_parabola():
    points = [(x, 0.3 * (x - 1.4) ** 2 + 2) for x in (-1, 0, 1, 2, 3)]
    found = optimum(points)
    assert not found.edge
    np.testing.assert_allclose((found.rate, found.loss), (1.4, 2.0))
    assert optimum(points[:3]).edge
    with pytest.raises(ValueError, match="every one diverged"):
        optimum([])


def test_cells():
    transfer = initialization.cells(FULL, "transfer")
    assert not [c for c in transfer if c["preset"] == "mup" and c["width"] == 64], "the base is standard"
    assert {c["seed"] for c in transfer if c["width"] == 512} == {0}
    other = dataclasses.replace(FULL, budget=Budget(steps=7))
    assert initialization.cells(other, "map")[0]["settings"] != initialization.cells(FULL, "map")[0]["settings"]
    more = dataclasses.replace(FULL, rates=(-3,))
    assert initialization.cells(more, "transfer")[0]["settings"] == transfer[0]["settings"]


@pytest.mark.slow
def test_mup_changes_what_standard_does_not_keep(text):
    """At four times the base width, at which both are the same, steps move stream and logits less under muP."""
    config = dataclasses.replace(SMALL, coordinate_widths=(32, 128), model=SMALL.model.at_width(32), seeds=(0,))
    cells = [cell for cell in initialization.cells(config, "coordinates") if cell["width"] == 128]
    standard, mup = initialization.measure(config, "coordinates", cells)
    assert [cell["preset"] for cell in cells] == ["standard", "mup"]
    assert standard["stream"][0][-1] > 1.5 * mup["stream"][0][-1]
    assert standard["logits"][-1] > 1.5 * mup["logits"][-1]


def launch(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["initialization_study", *map(str, args)])
    initialization_study.main()


@pytest.mark.slow
def test_launcher(monkeypatch, capsys, tmp_path):
    small = "--preset quick --budget.steps 2 --budget.length 8 --model.width 32 --model.heads 1 --widths 32 64"
    small += " --rates -9 -8 -7 --parts transfer attention --attention none --attention_rates -9 --attention_width 32"
    args = (*small.split(), "--workdir", tmp_path)
    launch(monkeypatch, *args)
    assert "Best rate by width, mup" in capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "transfer.jsonl").read_text().splitlines()]
    assert len(lines) == 9 and all(len(line["curve"]) == 2 for line in lines)
    page = (tmp_path / "figure.html").read_text()
    monkeypatch.setattr(initialization, "measure", lambda *_: pytest.fail("the logs are enough"))
    launch(monkeypatch, *args, "--mode", "redraw")
    assert (tmp_path / "figure.html").read_text() == page


def test_unknown_model():
    with pytest.raises(ValueError, match="unknown model 'gtp2'; nearest: gpt2"):
        named_look.looks("gtp2", 0, 0.1, 1)


@pytest.mark.slow
def test_any_model_by_name():
    lines = named_look.looks("resnet8_cifar", 1, 1e-3, 2)
    assert list(lines) == [0, 1]
    assert lines[0]["activation_moment/stage_2/block_0"] > 0
    assert lines[1]["parameter_rms/head"] != lines[0]["parameter_rms/head"]
    assert "activation moment" in initialization_page.look_text(lines).replace("_", " ")


def test_presets():
    assert set(PRESETS) == {"full", "short", "quick"} and QUICK.preset == "quick"
