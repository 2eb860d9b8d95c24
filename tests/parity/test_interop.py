"""Weights to and from the installed PyTorch implementations: strict loads, and the same bits on the way back."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flashjax import interop
from flashjax.data import imagenet
from tests.interop.test_swin import V1, V2, assert_same, variables

torch = pytest.importorskip("torch", reason="the extra `parity` is not installed: torch is missing")
timm = pytest.importorskip("timm", reason="the extra `parity` is not installed: timm is missing")
os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip(
    "transformers", reason="the extra `parity` is not installed: transformers is missing"
)

TINY: dict[str, Any] = {
    "img_size": 64,
    "embed_dim": 8,
    "depths": (2, 2),
    "num_heads": (2, 4),
    "window_size": 4,
    "num_classes": 5,
}


def options(name: str) -> dict[str, Any]:
    return TINY | ({"pretrained_window_sizes": (0, 0)} if name == V2 else {})


def hf_config(name: str, **more: Any) -> Any:
    config = transformers.SwinConfig if name == V1 else transformers.Swinv2Config
    return config(
        image_size=TINY["img_size"],
        embed_dim=TINY["embed_dim"],
        depths=list(TINY["depths"]),
        num_heads=list(TINY["num_heads"]),
        window_size=TINY["window_size"],
        num_labels=TINY["num_classes"],
        **more,
    )


def peer(name: str, layout: str) -> Any:
    """The implementation of `layout` with random weights."""
    torch.manual_seed(0)
    if layout == "timm":
        model = timm.create_model(name, **options(name))
    elif name == V1:
        model = transformers.SwinForImageClassification(hf_config(V1))
    else:
        model = transformers.Swinv2ForImageClassification(hf_config(V2))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def as_tensors(state: dict[str, np.ndarray]) -> dict[str, Any]:
    return {name: torch.tensor(array) for name, array in state.items()}


@pytest.mark.parametrize("layout", ["timm", "hf"])
@pytest.mark.parametrize("name", [V1, V2])
def test_their_weights_come_and_go_bit_for_bit(name: str, layout: str) -> None:
    theirs = peer(name, layout).state_dict()
    tree = interop.from_torch(name, {key: value.numpy() for key, value in theirs.items()}, **options(name))
    back = interop.to_torch(name, tree, layout, **options(name))
    assert back.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(torch.tensor(back[key]), value), key
    # The tensors themselves will do as well as arrays.
    assert_same(interop.from_torch(name, theirs, **options(name)), tree)


@pytest.mark.parametrize("layout", ["timm", "hf"])
@pytest.mark.parametrize("name", [V1, V2])
def test_our_weights_load_strictly(name: str, layout: str) -> None:
    original = variables(name, **options(name))
    model = peer(name, layout)
    model.load_state_dict(as_tensors(interop.to_torch(name, original, layout, **options(name))), strict=True)
    assert_same(interop.from_torch(name, model.state_dict(), **options(name)), original)


def test_our_backbone_loads_strictly_into_transformers() -> None:
    backbone = options(V1) | {"feature_norms": True, "ape": True}
    config = hf_config(V1, out_features=["stage1", "stage2"], use_absolute_embeddings=True)
    model = transformers.SwinBackbone(config)
    original = variables(V1, **backbone)
    model.load_state_dict(as_tensors(interop.to_torch(V1, original, "hf", **backbone)), strict=True)
    assert_same(interop.from_torch(V1, model.state_dict(), **backbone), original)


@pytest.mark.parametrize("name", [V1, V2])
def test_masked_image_model_of_transformers(name: str) -> None:
    kind = transformers.SwinForMaskedImageModeling if name == V1 else transformers.Swinv2ForMaskedImageModeling
    theirs = kind(hf_config(name, encoder_stride=8)).state_dict()
    headless = options(name) | {"num_classes": 0}
    tree = interop.from_torch(name, theirs, **headless)
    back = interop.to_torch(name, tree, "hf", **headless)
    added = theirs.keys() - back.keys()
    assert {key.split(".")[-1] for key in added} == {"mask_token", "weight", "bias"}
    assert all("decoder" in key or "mask_token" in key for key in added)


@pytest.mark.parametrize("name", [V1, V2])
def test_a_directory_that_transformers_saved(name: str, tmp_path: Path) -> None:
    model = peer(name, "hf")
    model.save_pretrained(tmp_path)
    expected = interop.from_torch(name, model.state_dict(), **options(name))
    assert_same(interop.load(tmp_path, name, **options(name)), expected)


@pytest.mark.parametrize("layout", ["hf", "hf4"])
@pytest.mark.parametrize("name", [V1, V2])
def test_a_directory_for_transformers(name: str, layout: str, tmp_path: Path) -> None:
    """`from_pretrained` takes both the names of transformers 4, as hub files have them, and those of 5."""
    original = variables(name, **options(name))
    interop.save(tmp_path / "model.safetensors", interop.to_torch(name, original, layout, **options(name)))
    hf_config(name).save_pretrained(tmp_path)
    kind = transformers.SwinForImageClassification if name == V1 else transformers.Swinv2ForImageClassification
    model, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same(interop.from_torch(name, model.state_dict(), **options(name)), original)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".pt"])
def test_pickled_checkpoints(tmp_path: Path, suffix: str, wrapper: str | None) -> None:
    original = variables(V1, **options(V1))
    state: Any = as_tensors(interop.to_torch(V1, original, **options(V1)))
    path = tmp_path / f"checkpoint{suffix}"
    torch.save({wrapper: state, "epoch": 3, "optimizer": {"lr": 0.1}} if wrapper else state, path)
    assert_same(interop.load(path, V1, **options(V1)), original)


def test_bfloat16_checkpoint(tmp_path: Path) -> None:
    state = peer(V1, "timm").bfloat16().state_dict()
    torch.save(state, tmp_path / "checkpoint.pth")
    interop.save(tmp_path / "float.safetensors", {name: value.float().numpy() for name, value in state.items()})
    expected = interop.load(tmp_path / "float.safetensors", V1, **options(V1))
    assert_same(interop.load(tmp_path / "checkpoint.pth", V1, **options(V1)), expected)


class NotATensor:
    """What a training script may have pickled beside the weights."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": torch.zeros(2)}, "config": NotATensor()}, "holds more than tensors"),
        ({"epoch": 3, "lr": 0.1}, "no state dict, neither bare nor under model or state_dict; it holds epoch, lr"),
        ([torch.zeros(2)], "it holds list"),
    ],
    ids=["object", "no weights", "list"],
)
def test_pickles_that_are_no_weights(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=message) as error:
        interop.load(tmp_path / "checkpoint.pth", V1)
    assert "checkpoint.pth" in str(error.value)


@pytest.mark.parametrize("kept", [0, 20, 500])
def test_truncated_pickles(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({"a": torch.zeros(2)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="damaged"):
        interop.load(path, V1)


def test_safetensors_files_are_those_of_the_reference(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    state = {
        "a": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
        "b": torch.tensor(True),
        "c": torch.randn(5),
        "d": torch.zeros(0, 3, dtype=torch.int64),
        "e": torch.randn(3).to(torch.float8_e4m3fn),
    }
    reference.save_file(state, tmp_path / "theirs.safetensors", metadata={"note": "x"})
    read = interop.read_state(tmp_path / "theirs.safetensors")
    assert read.keys() == state.keys()
    interop.save(tmp_path / "ours.safetensors", read)
    back = reference.load_file(tmp_path / "ours.safetensors")
    for name, tensor in state.items():
        assert back[name].dtype == tensor.dtype
        assert (
            torch.equal(back[name].view(torch.uint8), tensor.view(torch.uint8)) if tensor.ndim else back[name] == tensor
        )


def test_imagenet_lists_are_those_of_timm() -> None:
    info = pytest.importorskip("timm.data", reason="timm is missing").ImageNetInfo
    one, all_of_them = info("imagenet-1k"), info("imagenet-21k-goog").label_names()
    assert imagenet.wnids() == tuple(one.label_names())
    for wnid, name in zip(imagenet.wnids(), imagenet.class_names(), strict=True):
        described = one.label_name_to_description(wnid).split(", ")
        assert name.split(" (")[0] in described
    # The official 22k list is the sorted one of 21843 ids; of those that moved in it, none is in the 1k list.
    rows = imagenet.head_22k_to_1k()
    differ = [k for k in range(1000) if all_of_them[rows[k]] != imagenet.wnids()[k]]
    assert differ == [850]
    assert "teddy" in info("imagenet-21k-goog").label_name_to_description(all_of_them[rows[850]])
