"""The command that rewrites a checkpoint in another layout."""

from pathlib import Path

import pytest
import tyro

from flashjax import interop
from flashjax.interop.__main__ import convert
from tests.interop.test_swin import TINY, V1, assert_same, variables

OVERRIDES = ["--override", *(f"{field}={value}".replace(" ", "") for field, value in TINY.items())]


def test_rewrites_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "official.safetensors", tmp_path / "timm.safetensors"
    original = variables(V1, **TINY)
    interop.save(source, interop.to_torch(V1, original, **TINY))
    tyro.cli(convert, args=[str(source), str(target), "--name", V1, "--layout", "timm", *OVERRIDES])
    assert "head.fc.weight" in interop.read_state(target)
    assert_same(interop.load(target, V1, **TINY), original)
    assert capsys.readouterr().out.startswith(f"{target}: 50 tensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--name", "swin_tny"], "unknown model 'swin_tny'; nearest"),
        (["--layout", "tim"], "unknown layout 'tim'"),
        (["--override", "num_classes"], "'num_classes' is not of the form FIELD=VALUE"),
        (["--override", "num_classes=a b"], "'a b' is not a Python literal"),
        (["--override", "num_classes=7"], "the head has 5 classes: pass num_classes=5"),
    ],
)
def test_errors_end_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    source = tmp_path / "official.safetensors"
    interop.save(source, interop.to_torch(V1, variables(V1, **TINY), **TINY))
    arguments = [str(source), str(tmp_path / "out.safetensors"), "--name", V1, *OVERRIDES]
    with pytest.raises(SystemExit) as error:
        tyro.cli(convert, args=[*arguments, *change])
    assert error.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert message in printed
    assert not (tmp_path / "out.safetensors").exists()
