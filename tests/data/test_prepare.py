"""Preparing ImageNet: what it says when something is missing; with TensorFlow installed, a tiny set of tar files."""

import importlib.util
import io
import tarfile

import pytest

from flashjax.data import DataConfig, classification, imagenet, prepare
from tests.data.helpers import encoded, picture


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def write_tars(root, images_of_each_class=3):
    """The layout of image-net.org: a tar of tars to train on, a flat tar to evaluate."""
    with tarfile.open(root / prepare.TARS[0], "w") as outer:
        for seed, wnid in enumerate(imagenet.wnids()[:2]):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for index in range(images_of_each_class):
                    add(inner, f"{wnid}_{index}.JPEG", encoded(picture(10 * seed + index)))
            add(outer, f"{wnid}.tar", buffer.getvalue())
    with tarfile.open(root / prepare.TARS[1], "w") as tar:
        for index in range(4):
            add(tar, f"ILSVRC2012_val_0000000{index + 1}.JPEG", encoded(picture(50 + index)))


def test_everything_that_is_missing_is_named_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorflow" else object())
    (tmp_path / prepare.TARS[1]).touch()
    assert prepare.main(["--imagenet_dir", str(tmp_path), "--data_dir", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "not installed: tensorflow. Run: pip install 'flashjax[prepare]'" in message
    assert f"not in {tmp_path}: ILSVRC2012_img_train.tar." in message and "img_val" not in message
    assert not (tmp_path / "out").exists()


def test_a_wrong_directory_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert prepare.main(["--imagenet_dir", str(tmp_path / "nowhere"), "--data_dir", str(tmp_path)]) == 2
    assert f"no directory {tmp_path}/nowhere" in capsys.readouterr().err


def test_tars_become_a_set_that_trains(tmp_path, capsys):
    pytest.importorskip("tensorflow", reason="the extra `prepare` is not installed")
    write_tars(tmp_path)
    command = ["--imagenet_dir", str(tmp_path), "--data_dir", str(tmp_path / "out")]
    assert prepare.main(command) == 0
    assert "imagenet2012/5.1.0 is ready" in capsys.readouterr().out
    config = DataConfig(dataset="imagenet2012", image_size=16, batch_size=4, eval_batch_size=4, workers=0)
    train, evaluation, info = classification(config, str(tmp_path / "out"), seed=0)
    assert (info.train_examples, info.eval_examples, info.num_classes) == (6, 4, 1000)
    assert info.class_names[:2] == ("tench", "goldfish")
    assert train.batch(0)["image"].shape == (4, 16, 16, 3) and set(train.batch(0)["label"]) <= {0, 1}
    assert evaluation.batch(0)["mask"].sum() == 4
    assert prepare.main(command) == 0, "a second time there is nothing to do"
