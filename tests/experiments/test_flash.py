"""The launchers of FLASH as their users run them, small: train, evaluate, predict; and every preset by shapes."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import pytest

from configs import flash_c4 as c4_presets
from configs import flash_lm as lm_presets
from experiments import flash_c4, flash_lm
from flashjax.models.flash import Flash, FlashConfig
from flashjax.models.transformer import Transformer, TransformerConfig
from flashjax.recipes.language import RULES
from flashjax.training import MeshConfig
from flashjax.training.mesh import make_mesh
from flashjax.training.optimizers import decay_mask
from flashjax.training.sharding import lint, path_string

FLASH = ("--model.head_dim", "8", "--model.chunk", "8", "--model.max_length", "32")
SMALL = (
    *("--data.dataset", "text", "--data.length", "32", "--data.batch_size", "8", "--data.eval_batch_size", "8"),
    *("--data.eval_batches", "2", "--train.log_every", "1", "--train.eval_every", "2", "--train.no_progress"),
    *("--model.width", "16", "--model.depth", "2", "--max_new_tokens", "20"),
)


@pytest.fixture
def text(tmp_path):
    """A directory of four short texts."""
    (tmp_path / "text").mkdir()
    for i in range(4):
        (tmp_path / "text" / f"{i}.txt").write_text(f"and number {i} said unto them, " * 30)
    return tmp_path / "text"


def run(monkeypatch, launcher, *args) -> None:
    monkeypatch.setattr(sys, "argv", [launcher.PROGRAM, *map(str, args)])
    launcher.main()


@pytest.mark.slow
def test_train_evaluate_and_continue_a_text(tmp_path, text, monkeypatch, capsys):
    common = ("--preset", "demo", "--data_dir", text, "--workdir", tmp_path / "run")
    run(monkeypatch, flash_lm, *common, *SMALL, *FLASH, "--steps", 2)
    said = capsys.readouterr().out
    assert "held-out bits_per_byte" in said and "--preset wiki40b --data_dir" in said
    assert (tmp_path / "run" / "report.html").is_file()
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    run(monkeypatch, flash_lm, "--workdir", tmp_path / "run", "--mode", "eval")
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("loss"))
    assert float(shown["loss"]) == pytest.approx(logged[-1]["eval_loss"], abs=1e-5)
    run(monkeypatch, flash_lm, "--workdir", tmp_path / "run", "--mode", "predict", "--prompt", "and number")
    assert capsys.readouterr().out.startswith("and number")


@pytest.mark.slow
def test_a_baseline_and_hidden_tokens(tmp_path, text, monkeypatch, capsys):
    common = ("--data_dir", text, *SMALL, "--steps", 1)
    run(monkeypatch, flash_lm, "--preset", "demo_transformer_pp", "--workdir", tmp_path / "lm", *common)
    assert "held-out perplexity" in capsys.readouterr().out
    run(monkeypatch, flash_c4, "--preset", "demo", "--workdir", tmp_path / "mlm", *common, *FLASH)
    assert "▁" in capsys.readouterr().out  # the sample has blanks, and what was guessed
    prompt = "and n<mask>mber"
    run(monkeypatch, flash_c4, "--workdir", tmp_path / "mlm", "--mode", "predict", "--prompt", prompt)
    given, filled = capsys.readouterr().out.strip().splitlines()[-2:]
    assert given.endswith("and n▁mber") and "[" in filled


LM, C4 = lm_presets.PRESETS, c4_presets.PRESETS
QUICK = ("lm/demo", "lm/wiki40b_transformer_pp", "c4/base_512")
ALL = [*(f"lm/{name}" for name in LM), *(f"c4/{name}" for name in C4)]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in ALL])
def test_every_preset_fits_together(name):
    """Model, decay, shardings, tokens a step: all but data, by shapes alone."""
    launcher, preset = name.split("/")
    config = (LM if launcher == "lm" else C4)[preset]
    assert config.preset == preset
    model = dataclasses.replace(config.model, vocab_size=260) if "demo" in preset else config.model
    assert model.causal == (launcher == "lm") and model.scan_layers
    module = flash_lm.module(config)(model)
    assert type(module) is (Transformer if isinstance(model, TransformerConfig) else Flash)
    assert model.max_length == config.data.length
    if "demo" not in preset:
        assert config.data.batch_size * config.data.length == 2**18
    tokens = jax.ShapeDtypeStruct((1, 64), jnp.int32)
    params = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
    lint(params, RULES, make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    decays = jax.tree_util.tree_leaves_with_path(decay_mask(params, config.optimizer.no_decay))
    for path, value in decays:
        matrix = path_string(path).endswith(("kernel", "embedding"))
        assert value == matrix, path_string(path)


def test_recipes_differ_in_the_model_alone():
    flash, other = LM["wiki40b"], LM["wiki40b_transformer"]
    assert isinstance(flash.model, FlashConfig) and isinstance(other.model, TransformerConfig)
    same = dataclasses.replace(flash.optimizer, no_decay=())
    assert same == other.optimizer and flash.data == other.data and flash.steps == other.steps
    norms = {flash.model.norm, C4["base_8192"].model.norm}
    assert norms == {"layernorm", "scalenorm"}
