"""What a grid says: best cells, valleys, verdicts, heat maps; made-up figures whose answer is known."""

import re

import pytest

from flashjax.recipes import optimizer_grid, optimizer_page
from flashjax.studies import study

RATES, DECAYS, SEEDS = range(-8, -3), range(-6, 1), (0, 1, 2)
TILT = {"adam_l2": -1, "adamw": 0}


def lines(least=None):
    """Errors that rise by 1 % a doubling from the valley, which lies at decay 2^(tilt (rate + 6) - 3)."""
    least = least or {"adam_l2": 0.10, "adamw": 0.08}
    return [
        {
            "algorithm": name,
            "learning_rate": 2.0**rate,
            "weight_decay": 2.0**decay,
            "seed": seed,
            "eval_error": least[name]
            + 0.01 * abs(decay - (tilt * (rate + 6) - 3))
            + 0.004 * abs(rate + 6)
            + 0.001 * seed,
            "train_loss": 0.01,
        }
        for name, tilt in TILT.items()
        for rate in RATES
        for decay in DECAYS
        for seed in SEEDS
    ]


def test_the_best_cell_and_the_valley():
    coupled, apart = optimizer_grid.surfaces(lines())
    assert coupled.best == apart.best == (2.0**-6, 2.0**-3)
    assert apart.best_error().value == pytest.approx(0.081) and apart.best_error().n == 3
    assert coupled.valley()[:5] == [(-8, -1), (-7, -2), (-6, -3), (-5, -4), (-4, -5)] and len(coupled.valley()) == 15
    assert coupled.trend().slope == pytest.approx((-1, -1, -1)) and coupled.trend().correlation == (-1, -1, -1)
    assert apart.trend().correlation is None and apart.trend().slope[0] == 0
    gap = optimizer_grid.difference(apart, coupled)
    assert gap.value == pytest.approx(-0.02) and gap.half == pytest.approx(0, abs=1e-12)


def test_decays_that_tie_count_by_their_middle_and_edges_are_told():
    flat = [line | {"eval_error": 0.1} for line in lines() if line["algorithm"] == "adamw"]
    (surface,) = optimizer_grid.surfaces(flat)
    assert {decay for _, decay in surface.valley()} == {-3}
    sloped = [line | {"eval_error": line["weight_decay"]} for line in flat]
    assert optimizer_grid.surfaces(sloped)[0].at_the_edge() == len(RATES)
    assert optimizer_grid.surfaces(lines())[1].at_the_edge() == 0


def test_verdicts_say_what_is_seen_and_what_is_not():
    said = " ".join(optimizer_grid.verdicts(optimizer_grid.surfaces(lines())))
    assert "Adam with L2: the best decay falls by a factor of 2.00 where the rate doubles" in said
    assert "AdamW, decay x rate: the best decay does not move" in said
    assert "is seen here for AdamW" in said and "2.00 ± 0.00 points (20% of it) below" in said
    turned = [line | {"algorithm": {"adamw": "adam_l2", "adam_l2": "adamw"}[line["algorithm"]]} for line in lines()]
    said = " ".join(optimizer_grid.verdicts(optimizer_grid.surfaces(turned)))
    assert "is not seen here" in said and "above that of Adam with L2" in said
    one = [line for line in lines() if line["seed"] == 0]
    assert "which these seeds do not tell from 0" in " ".join(optimizer_grid.verdicts(optimizer_grid.surfaces(one)))


def test_a_cell_that_diverged_is_empty_and_a_grid_that_is_not_done_is_drawn(tmp_path):
    found = lines()
    found[0]["train_loss"] = None
    part = [line for line in found if line["learning_rate"] != 2.0**-4 or line["algorithm"] == "adamw"][:-20]
    surface = optimizer_grid.surfaces(part)[0]
    assert surface.means("train_loss")[0][0] is None and surface.means("train_loss")[0][1] == pytest.approx(0.01)
    page = optimizer_page.write(tmp_path / "page.html", optimizer_page.grid_parts(part, "so many <cells>"))
    html = page.read_text()
    assert "so many &lt;cells&gt;" in html and not re.search(r"https?://|<script", html)
    assert html.count('class="heat"') == 4 and html.count("cell marked") == 9  # a rim for each rate of each algorithm
    rows = study.write_csv(tmp_path / "cells.csv", part).read_text().splitlines()
    assert rows[0] == "algorithm,learning_rate,weight_decay,seed,eval_error,train_loss" and len(rows) == len(part) + 1


def test_powers_of_two_are_written_so():
    assert [optimizer_grid.power(x) for x in (2.0**-10, 1.0, 8.0, 0.3)] == ["2⁻¹⁰", "2⁰", "2³", "0.3"]
