"""The table of chips: what is known, per JAX device, and what is not."""

from pathlib import Path

import jax
import pytest

from flashjax.analysis.chips import CHIPS, chip, peak_flops
from flashjax.planning.plan_text import chip_row, chips_table

DOCS = Path(__file__).parents[2] / "docs" / "plan.md"


@pytest.mark.parametrize(
    ("kind", "tera"),
    [
        ("TPU v3", 61.5),  # one of the chip's two TensorCores
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),  # one of two
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA B200", 2250),
    ],
)
def test_peaks_are_dense_and_per_device(kind, tera):
    assert peak_flops(kind) == pytest.approx(tera * 1e12)


def test_an_unknown_kind_is_none_and_not_a_guess():
    assert peak_flops(jax.devices("cpu")[0].device_kind) is None
    assert chip("NVIDIA H100") is None
    assert peak_flops("TPU v99") is None


def test_the_table_in_the_docs_is_this_one():
    made = chips_table(CHIPS)
    assert made in DOCS.read_text(), f"docs/plan.md should have\n{made}"
    assert all(kind in made for kind in CHIPS) and set(chip_row("cpu", None)[1:]) == {"n/a"}


def test_figures_are_in_the_units_that_they_claim():
    for kind, figures in CHIPS.items():
        assert 20e12 < figures.bf16_flops < 5e15, kind
        assert 8e9 <= figures.hbm_bytes < 400e9, kind
        assert 2e11 < figures.hbm_bandwidth < 1e13, kind


def test_tpu_strings_are_those_that_jax_knows():
    tpu_info = pytest.importorskip("jax._src.pallas.mosaic.tpu_info", reason="this JAX keeps its TPU table elsewhere")
    known = [kind for kind in CHIPS if kind.startswith("TPU")]
    assert all(tpu_info.chip_version_from_device_kind(kind) is not None for kind in known)
