"""The scaling study without its measurements: requests, logs, tables, figures, fits; one cell is really measured."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from flashjax.studies import measure, scaling, scaling_page
from flashjax.studies.scaling import Cell, fit_power_law

SWIN = "experiments.swin_imagenet --preset demo"


def line(mesh="data=1", size="", devices=1, step=0.1, **more):
    """A cell of the log."""
    return {
        "experiment": SWIN,
        "size": size,
        "mesh": mesh,
        "weak": False,
        "devices": devices,
        "virtual": True,
        "axes": {k: int(v) for k, v in scaling.assignments(mesh).items() if v != "1"},
        "parameters": 1000,
        "batch_size": 64,
        "step_time": step,
        "step_time_range": [0.9 * step, 1.2 * step],
        "examples_per_second": 64 / step,
        "compile_time": 2.5,
        "bytes_per_device": {"parameters": 4000, "gradients": 4000, "optimizer state": 8000, "temporaries": 100},
        "collectives": {"all-reduce": {"count": 3, "bytes": 4096, "wire_bytes": 7168.0}} if devices > 1 else {},
    } | more


def test_a_cell_becomes_a_command_line():
    request = Cell(SWIN, "model.embed_dim=64 model.depths=2,2", "data=2 fsdp=4", weak=True).request(5, 3)
    assert request.launcher == "experiments.swin_imagenet" and request.devices == request.batch_factor == 8
    arguments = " ".join(request.arguments)
    assert arguments.startswith("--preset demo --model.embed_dim 64 --model.depths 2 2 ")
    assert "--mesh.data 2 " in arguments and "--mesh.fsdp 4 " in arguments and "--mesh.tensor 1" in arguments


@pytest.mark.parametrize(
    ("size", "mesh", "text"),
    [
        ("", "date=2", "unknown mesh axis date in 'date=2'; axes: replica"),
        ("embed 2", "data=1", "'embed' in 'embed 2'"),
    ],
)
def test_words_that_are_no_cell(size, mesh, text):
    with pytest.raises(ValueError, match=text):
        Cell(SWIN, size, mesh).request(1, 1)


def test_the_request_reaches_the_launcher():
    request = Cell(SWIN, "model.embed_dim=16", "data=2", weak=True).request(1, 1)
    experiment = measure.build(request)
    assert experiment.train_data.batch_size == 128
    assert experiment.config.model.embed_dim == 16 and experiment.config.mesh.data == 2
    with pytest.raises(ValueError, match=r"flashjax\.cli is no launcher"):
        measure.build(Cell("flashjax.cli", "", "data=1").request(1, 1))


def test_a_study_around_a_run_is_measured_too():
    small = "model.depth=1 data.length=64 model.max_length=64"
    for launcher, rows in (("performer_lm", 8), ("length_extrapolation", 32)):
        experiment = measure.build(Cell(f"experiments.{launcher}", small, "data=2", weak=True).request(1, 1))
        assert experiment.config.mesh.data == 2 and experiment.config.model.depth == 1
        assert experiment.train_data.batch_size == 2 * rows


def test_a_sweep_measures_what_the_log_lacks(tmp_path, monkeypatch):
    log, asked = tmp_path / "new" / "cells.jsonl", []

    def answer(request, virtual):
        asked.append(request.devices)
        if request.devices == 4 and asked.count(4) == 1:
            return {"error": "error: out of luck"}
        return {k: v for k, v in line(devices=request.devices).items() if k not in ("mesh", "size", "weak")}

    monkeypatch.setattr(scaling, "measure_in_process", answer)
    cells = [Cell(SWIN, "", mesh) for mesh in ("data=1", "data=2", "data=4")]
    first = scaling.sweep(cells, log, 1, 1, True)
    assert [found.get("devices") for found in first] == [1, 2, None]
    with log.open("a") as file:
        file.write('{"experiment": "cut sh')  # the process was killed here
    assert len(scaling.read_cells(log)) == 3
    log.write_text(log.read_text().rpartition("\n")[0] + "\n")
    assert [found["devices"] for found in scaling.sweep(cells, log, 1, 1, True)] == [1, 2, 4]
    assert asked == [1, 2, 4, 4]  # what was known is not measured again; what failed is
    assert [cell["mesh"] for cell in scaling.read_cells(log)] == ["data=1", "data=2", "data=4"]
    log.write_text("nonsense\n" + log.read_text())
    with pytest.raises(ValueError, match="line 1 is no cell"):
        scaling.read_cells(log)


def test_table_and_figure(tmp_path):
    lines = [
        line(),
        line("data=2 fsdp=4", devices=8, step=0.15),
        {"experiment": SWIN, "size": "", "mesh": "data=3", "weak": False, "error": "error: batch | 3"},
    ]
    text = scaling.table(lines)
    header, rule, one, eight, bad, _, note, *_ = text.splitlines()
    assert len({len(header), len(rule), len(one), len(eight), len(bad)}) == 1
    cells = [cell.strip() for cell in eight.strip("|").split("|")]
    assert cells[:5] == ["as preset", "data=2 fsdp=4", "8", "1,000", "64"]
    assert "1.50x" in cells and "15.6 KiB" in cells and "7.0 KiB" in cells and "all-reduce 3 (4.0 KiB)" in cells
    assert "batch / 3" in bad and "not a speed-up" in note
    assert "speed-up" not in scaling.table([line(virtual=False)])
    mixed = scaling.table([line(), line(size="a=1"), line("data=2", devices=2)]).splitlines()[2:5]
    assert [row.split("|")[1].strip() for row in mixed] == ["as preset", "as preset", "a=1"]

    page = scaling_page.write_figure(tmp_path / "figure.html", "a <study>", lines).read_text()
    assert "a &lt;study&gt;" in page and "not a speed-up" in page and "data 2 × fsdp 4" in page and "one device" in page
    assert "data=3: error: batch | 3" in page and not re.search(r"https?://|<script", page)
    widths = [float(w) for w in re.findall(r'width="([\d.]+)" height="14"><title>step', page)]
    assert len(widths) == 2 and widths[1] == pytest.approx(1.5 * widths[0], rel=2e-3)


def test_a_power_law_is_found_again():
    compute = np.geomspace(1e12, 1e16, 6)
    law = fit_power_law(compute, 40 * compute**-0.07)
    assert law.exponent == pytest.approx(0.07) and law.scale == pytest.approx(40)
    assert law.low == pytest.approx(0.07) and law.high == pytest.approx(0.07)
    assert law(1e13) == pytest.approx(40 * 1e13**-0.07)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    compute, held, trials = np.geomspace(1e12, 1e16, 12), 0, 60
    for seed in range(trials):
        noise = np.random.default_rng(seed).normal(0, 0.05, len(compute))
        law = fit_power_law(compute, 40 * compute**-0.07 * np.exp(noise), draws=200)
        assert law.low < law.exponent < law.high
        low, high = law.band(1e14)
        assert low < law(1e14) < high
        held += law.low < 0.07 < law.high
    assert 0.8 * trials <= held < trials  # nominally 95%; a percentile bootstrap of few points is a little short


@pytest.mark.parametrize(
    ("compute", "loss", "text"),
    [
        ([1, 2], [1, 1], "at least 3 runs"),
        ([1, 1, 1], [1, 2, 3], "at least 3 runs of different compute"),
        ([1, 2, 4], [1, 0, 1], "must be positive"),
        ([1, 2, 4], [1, float("nan"), 1], "must be positive and finite"),
    ],
)
def test_what_no_line_goes_through(compute, loss, text):
    with pytest.raises(ValueError, match=text):
        fit_power_law(compute, loss)


def a_run(directory, flops, loss):
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"flops_per_step": flops, "parameters": flops // 6}))
    steps = [{"step": 50, "eval_loss": 2 * loss}, {"step": 75, "loss": 1.0}, {"step": 100, "eval_loss": loss}]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(values) + "\n" for values in steps))
    return directory


def test_runs_are_read_from_their_directories(tmp_path):
    run = scaling.read_run(a_run(tmp_path / "small", 600, 0.5))
    assert (run.name, run.parameters, run.compute, run.loss) == ("small", 100, 60000.0, 0.5)
    with pytest.raises(ValueError, match="is no run directory"):
        scaling.read_run(tmp_path)
    (tmp_path / "small" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    with pytest.raises(ValueError, match="no eval_loss"):
        scaling.read_run(tmp_path / "small")


def test_redraw_needs_the_logs_alone(tmp_path):
    workdir = tmp_path / "study"
    workdir.mkdir()
    (workdir / "cells.jsonl").write_text("".join(json.dumps(c) + "\n" for c in (line(), line("data=2", devices=2))))
    runs = [a_run(tmp_path / f"run{i}", 10**i, 2.0 * 10 ** (-0.1 * i)) for i in (6, 7, 8)]
    command = [
        "-m",
        "experiments.scaling_study",
        "--mode",
        "redraw",
        "--workdir",
        str(workdir),
        "--runs",
        *map(str, runs),
    ]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    assert "exponent 0.1000 to 0.1000 (95%, bootstrap over 3 runs)" in done.stdout
    assert (workdir / "table.md").read_text() in done.stdout
    page = (workdir / "figure.html").read_text()
    assert page.count("<circle") == 3 and "<polygon" in page and "run8: " in page


def test_numbers_along_a_logarithmic_axis_are_round():
    assert scaling_page._round_numbers(11.9, 14.2) == pytest.approx([1e12, 1e13, 1e14])
    assert scaling_page._round_numbers(np.log10(2.8), np.log10(6.2)) == [3, 4, 5, 6]


def test_a_cell_that_fails_says_why():
    request = Cell(SWIN, "", "data=3").request(1, 1)
    found = scaling.measure_in_process(request, virtual=True)
    assert found["error"].startswith("error: batch size 64 does not divide into 3 batch shards")


@pytest.mark.slow
def test_a_real_cell():
    size = "model.depths=1,1 model.embed_dim=16 data.batch_size=8"
    found = scaling.measure_in_process(Cell(SWIN, size, "data=2").request(2, 2), virtual=True)
    assert found["devices"] == 2 and found["axes"] == {"data": 2} and found["virtual"]
    parameters = 4 * found["parameters"]
    assert found["bytes_per_device"]["parameters"] == parameters
    assert found["bytes_per_device"]["optimizer state"] >= 2 * parameters
    assert found["collectives"]["all-reduce"]["bytes"] >= parameters
    assert found["step_time"] > 0 and found["compile_time"] > 0 and np.isfinite(found["loss"])
