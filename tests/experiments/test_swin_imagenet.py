"""The launcher as its users run it, small: train, resume, evaluate, predict, fine-tune, dry run; each by ``main``."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs.swin_imagenet import PRESETS
from experiments import swin_imagenet
from flashjax import interop, models, training
from flashjax.data.imagenet import class_names
from flashjax.training.optimizers import decay_mask

SMALL = (
    *("--data.batch_size", "32", "--data.eval_batch_size", "200", "--train.log_every", "1", "--train.no_progress"),
    *("--model.embed_dim", "16", "--model.depths", "1", "1", "--model.num_heads", "2", "2"),
)


def run(monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", ["swin_imagenet", *map(str, args)])
    swin_imagenet.main()


@pytest.fixture
def photographs(tmp_path):
    """Two classes that brightness tells apart, 12 images each, of several sizes."""
    rng = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.clip(rng.normal(level, 20, (40 + i, 50 - i, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{i}.jpg")
    return tmp_path / "pictures"


@pytest.mark.slow
def test_train_resume_evaluate_predict(tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "run"
    run(monkeypatch, "--workdir", workdir, "--steps", 3, *SMALL)
    said = capsys.readouterr().out
    assert "held-out top1" in said and "best checkpoint" in said and "--preset tiny_1k --data_dir" in said
    page = (workdir / "report.html").read_text()
    assert "<svg" in page and page.count("data:image/png;base64") == 60
    config = json.loads((workdir / "config.json").read_text())
    assert config["class_names"] == [str(i) for i in range(10)] and config["flops_per_step"] > 1e7

    run(monkeypatch, "--workdir", workdir, "--mode", "eval")
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("top1", "loss")))
    logged = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert float(shown["top1"]) == pytest.approx(logged[-1]["eval_top1"], abs=1e-6)

    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "black.png")
    run(monkeypatch, "--workdir", workdir, "--mode", "predict", "--images", tmp_path / "black.png")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("black.png") and len(lines) == 6 and all("%" in line for line in lines[1:])


@pytest.mark.slow
def test_a_folder_of_images_is_learnt_and_fine_tunes_another_resolution(tmp_path, photographs, monkeypatch):
    common = (
        *("--data_dir", photographs, "--data.dataset", "folder", "--data.batch_size", 8, "--data.eval_batch_size", 8),
        *("--train.log_every", 1, "--train.no_progress", "--data.workers", 0, "--preset", "tiny_1k"),
        *("--model.dtype", "float32", "--model.embed_dim", 16, "--model.depths", 1, 1, "--model.num_heads", 2, 2),
        *("--model.pretrained_window_sizes", 0, 0, "--model.patch_size", 2),
    )
    at_16 = ("--data.image_size", 16, "--model.img_size", 16, "--model.window_size", 4)
    run(monkeypatch, *common, *at_16, "--workdir", tmp_path / "first", "--steps", 2)
    at_32 = ("--data.image_size", 32, "--model.img_size", 32, "--model.window_size", 8)
    run(monkeypatch, *common, *at_32, "--workdir", tmp_path / "second", "--steps", 2, "--init", tmp_path / "first")
    tables = [
        training.rundir.finished_run(tmp_path / name).variables["params"]["stage_0"]["block_0"]["attn"]
        for name in ("first", "second")
    ]
    assert [t["relative_position_bias_table"].shape for t in tables] == [(49, 2), (225, 2)]
    assert json.loads((tmp_path / "second" / "config.json").read_text())["class_names"] == ["dark", "light"]


@pytest.mark.slow
def test_pretrained_file_names_images_without_any_run(tmp_path, monkeypatch, capsys):
    name = "swin_tiny_patch4_window7_224"
    config = PRESETS["tiny_1k"]
    small = dict(embed_dim=16, depths=(1, 1), num_heads=(1, 1), pretrained_window_sizes=(0, 0), img_size=32)
    model = models.create(name, **small)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    interop.save(tmp_path / "weights.safetensors", interop.to_torch(name, variables, layout="timm", **small))
    monkeypatch.setattr(models, "config", lambda _: model.config)
    load = interop.load
    monkeypatch.setattr(interop, "load", lambda path, name: load(path, name, **small))
    patched = dataclasses.replace(
        config,
        model=dataclasses.replace(model.config, strict_img_size=True),
        data=dataclasses.replace(config.data, image_size=32),
        init=str(tmp_path / "weights.safetensors"),
        init_model=name,
        workdir=str(tmp_path / "none"),
        images=(str(tmp_path / "grey.jpg"),),
    )
    Image.new("RGB", (64, 48), (128, 128, 128)).save(tmp_path / "grey.jpg")
    swin_imagenet.predict(patched)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and lines[0].endswith("grey.jpg")
    images = np.full((1, 32, 32, 3), 128 / 255, np.float32)
    images = (images - np.array(config.data.augment.mean)) / np.array(config.data.augment.std)
    logits = np.asarray(model.apply(variables, images.astype(np.float32)))[0]
    assert lines[1].split("  ")[-1] == class_names()[int(logits.argmax())]


@pytest.mark.slow
@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_fits_together(preset):
    """Model, optimizer masks, shardings: all but data, by shapes alone."""
    config = PRESETS[preset]
    assert config.preset == preset
    goal = swin_imagenet.objective(config, config.model.num_classes)
    image = jax.ShapeDtypeStruct((1, *config.model.image_shape, 3), np.uint8)
    params = jax.eval_shape(lambda x: goal.init({"params": jax.random.key(0)}, {"image": x}), image)["params"]
    mask = decay_mask(params, config.optimizer.no_decay)
    flat = {training.sharding.path_string(p): v for p, v in jax.tree_util.tree_leaves_with_path(mask)}
    assert all(value == path.endswith("kernel") for path, value in flat.items() if "cpb_mlp" not in path)
    assert not any(value for path, value in flat.items() if "cpb_mlp" in path)


def test_dry_run_and_errors(tmp_path, monkeypatch, capsys):
    run(monkeypatch, "--dry_run", "--mesh.fsdp", 2, "--workdir", tmp_path / "dry")
    said = capsys.readouterr().out
    assert "stage_0/block_0/attn/qkv/kernel" in said and "optimizer state" in said
    assert not (tmp_path / "dry" / "checkpoints").exists()
    for args, text in (
        (("--preset", "tiny_1k"), "needs --data_dir"),
        (("--preset", "tiny_1k", "--data_dir", tmp_path / "nowhere"), "nowhere"),
        (("--data.image_size", 32), "model.img_size is 28 but data.image_size is 32"),
        (("--mode", "predict", "--workdir", tmp_path / "empty"), "no finished run"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, *args)
        assert stop.value.code == 2 and text in capsys.readouterr().err
