"""Launches on clusters, whose programs are stand-ins: what they are told, and what runs where they would run it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flashjax.launch.slurm import Slurm
from tests.launch.helpers import AWKWARD, dump_arguments, launch
from tests.launch.shims import GCLOUD, RECORD, SBATCH, Shims, srun


def test_slurm_passes_arguments_and_requeues(tmp_path: Path):
    shims = Shims(tmp_path, sbatch=SBATCH, srun=srun(143), scontrol=RECORD)
    done = launch(["slurm", "--name", "j", "--grace_s", "9", "--", "python", *AWKWARD], tmp_path, shims.environment())
    assert done.returncode == 143, done.stderr
    assert "wrote launches/j-slurm.sh" in done.stderr
    submitted, ran, requeued = shims.calls()
    assert submitted == ["sbatch", "launches/j-slurm.sh"]
    assert ran == ["srun", "--label", "--kill-on-bad-exit=0", "--wait=9", "python", *AWKWARD]
    assert requeued == ["scontrol", "requeue", "17"]


@pytest.mark.parametrize(("status", "restarts", "requeued"), [(76, "19", True), (76, "20", False), (78, "0", False)])
def test_slurm_requeues_only_what_can_resume(tmp_path: Path, status: int, restarts: str, requeued: bool):
    shims = Shims(tmp_path, srun=srun(status), scontrol=RECORD)
    script = tmp_path / "s.sh"
    script.write_text(Slurm().script(["true"]))
    environment = shims.environment(SLURM_JOB_ID="17", SLURM_RESTART_COUNT=restarts)
    done = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
    assert done.returncode == status
    assert (["scontrol", "requeue", "17"] in shims.calls()) == requeued


def test_slurm_waits_for_the_tasks_when_it_is_told_to_stop(tmp_path: Path):
    shims = Shims(tmp_path, srun="import time; time.sleep(1); sys.exit(143)", scontrol=RECORD)
    script = tmp_path / "s.sh"
    script.write_text(Slurm().script(["true"]))
    process = subprocess.Popen(
        ["bash", str(script)], env=shims.environment(SLURM_JOB_ID="17"), stderr=subprocess.DEVNULL
    )
    while not shims.calls():
        time.sleep(0.02)
    process.terminate()
    assert process.wait(timeout=20) == 143
    assert ["scontrol", "requeue", "17"] in shims.calls()


@pytest.fixture
def source_tree(tmp_path: Path) -> Path:
    """A git tree with a tracked, a deleted, a new and an ignored file."""
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run(["git", "init", "-q"], cwd=tree, check=True)
    for name in ("tracked file", "deleted", "new", "ignored"):
        (tree / name).write_text(name)
    (tree / ".gitignore").write_text("ignored\nlaunches/\n")
    subprocess.run(["git", "add", "tracked file", "deleted", ".gitignore"], cwd=tree, check=True)
    (tree / "deleted").unlink()
    return tree


def test_tpu_vm_creates_copies_installs_runs_and_deletes(tmp_path: Path, source_tree: Path):
    shims = Shims(tmp_path, gcloud=GCLOUD)
    home = tmp_path / "home"
    home.mkdir()
    options = ["--zone", "z", "--accelerator", "v4-32", "--spot", "--create", "network=mine", "--delete", "after"]
    code = "import sys, json; print(json.dumps(sys.argv[1:])); sys.exit(76)"
    command = [sys.executable, "-c", code, *AWKWARD]
    done = launch(
        ["tpu-vm", *options, "--setup", "echo 'ready' >set-up", "--", *command],
        source_tree,
        shims.environment(WORKER_HOME=str(home)),
    )
    assert done.returncode == 76, done.stderr
    calls = shims.calls()
    assert [call[4] for call in calls] == ["describe", "create", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert all(call[:4] == ["gcloud", "compute", "tpus", "tpu-vm"] and "--zone=z" in call for call in calls)
    image = "--version=tpu-ubuntu2204-base"
    assert calls[1][5:] == ["flashjax", "--accelerator-type=v4-32", image, "--spot", "--network=mine", "--zone=z"]
    assert all("--worker=all" in call for call in calls if call[4] in ("scp", "ssh"))
    tree = home / "flashjax" / "tree"
    assert sorted(path.name for path in tree.iterdir()) == [".gitignore", "new", "set-up", "tracked file"]
    prefix, _, output = done.stdout.strip().partition("] ")
    assert prefix.startswith("[") and json.loads(output) == AWKWARD


@pytest.mark.parametrize(
    ("state", "verbs"),
    [("READY", ["scp", "ssh", "ssh"]), ("PREEMPTED", ["delete", "create", "scp", "ssh", "ssh"]), ("CREATING", [])],
)
def test_tpu_vm_reuses_what_is_ready(tmp_path: Path, source_tree: Path, state: str, verbs: list[str]):
    shims = Shims(tmp_path, gcloud=GCLOUD)
    (tmp_path / "home").mkdir()
    environment = shims.environment(WORKER_HOME=str(tmp_path / "home"), TPU_STATE=state)
    done = launch(["tpu-vm", "--zone", "z", "--detach", "--setup", "true", "--", "true"], source_tree, environment)
    assert [call[4] for call in shims.calls()] == ["describe", *verbs]
    assert done.returncode == (0 if verbs else 1), done.stderr
    assert verbs or "flashjax is CREATING" in done.stderr


def test_tpu_vm_deletes_nothing_while_the_run_goes_on(tmp_path: Path, source_tree: Path):
    shims = Shims(tmp_path, gcloud=GCLOUD)
    (tmp_path / "home").mkdir()
    lost = shims.environment(WORKER_HOME=str(tmp_path / "home"), TPU_STATE="READY", CONNECTION_LOST="1")
    options = ["--zone", "z", "--setup", "true", "--delete", "after"]
    done = launch(["tpu-vm", *options, "--", "sleep", "60"], source_tree, lost)
    os.killpg(int((tmp_path / "home/flashjax/pid").read_text()), signal.SIGKILL)
    assert done.returncode == 1
    assert "the run may go on; to follow it again:\ngcloud compute" in done.stderr
    assert "delete" not in [call[4] for call in shims.calls()]


def test_tpu_vm_refuses_a_second_run(tmp_path: Path, source_tree: Path):
    shims = Shims(tmp_path, gcloud=GCLOUD)
    run = tmp_path / "home" / "flashjax"
    run.mkdir(parents=True)
    (run / "pid").write_text(str(os.getpid()))
    environment = shims.environment(WORKER_HOME=str(tmp_path / "home"), TPU_STATE="READY")
    done = launch(["tpu-vm", "--zone", "z", "--setup", "true", "--", "true"], source_tree, environment)
    assert done.returncode == 1
    assert "a run is under way" in done.stderr


def kubernetes_expands(text: str, variables: dict[str, str]) -> str:
    """What the kubelet makes of a command word: $$ is $, $(NAME) is its value where NAME is known."""
    result, i = "", 0
    while i < len(text):
        if text[i] == "$" and text[i + 1 : i + 2] == "$":
            result, i = result + "$", i + 2
        elif text[i : i + 2] == "$(" and ")" in text[i:]:
            name = text[i + 2 : text.index(")", i)]
            result, i = result + variables.get(name, f"$({name})"), i + len(name) + 3
        else:
            result, i = result + text[i], i + 1
    return result


def test_xpk_command_survives_manifest_and_shell(tmp_path: Path):
    shims = Shims(tmp_path, xpk=RECORD)
    seen = tmp_path / "seen"
    command = [*dump_arguments(seen), *AWKWARD]
    options = ["--cluster", "c", "--device_type", "v5litepod-16", "--env", "NOTE=a $b"]
    done = launch(["xpk", *options, "--", *command], tmp_path, shims.environment())
    assert done.returncode == 0, done.stderr
    (call,) = shims.calls()
    assert call[:3] == ["xpk", "workload", "create"] and "--device-type=v5litepod-16" in call
    (pasted,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
    assert pasted.isprintable(), "it becomes one line of YAML"
    in_pod = kubernetes_expands(f"echo start; ({pasted}) & wait $!", {"HOSTNAME": "wrong", "HOME": "wrong"})
    subprocess.run(["bash", "-c", in_pod], check=True, stdout=subprocess.DEVNULL)
    assert json.loads(seen.read_text()) == AWKWARD


def test_kubernetes_manifest_carries_the_command(tmp_path: Path):
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the manifest")
    shims = Shims(tmp_path, kubectl=RECORD)
    done = launch(
        [
            "kubernetes",
            "--name",
            "swin",
            "--image",
            "i",
            "--processes",
            "3",
            "--env",
            "NOTE=$(HOSTNAME) $$ é",
            "--",
            *AWKWARD,
        ],
        tmp_path,
        shims.environment(),
    )
    assert done.returncode == 0, done.stderr
    assert shims.calls() == [["kubectl", "apply", "--filename=launches/swin-kubernetes.yaml"]]
    jobset = yaml.safe_load((tmp_path / "launches/swin-kubernetes.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    assert (job["template"]["spec"]["completions"], job["template"]["spec"]["completionMode"]) == (3, "Indexed")
    (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    # The name that JobSet gives pod 0: <set>-<job>-<replica>-<index>.<set>
    assert values["FLASHJAX_COORDINATOR"] == f"swin-{job['name']}-0-0.swin:8476"
    assert values["FLASHJAX_NUM_PROCESSES"] == "3"
    known = {"HOSTNAME": "wrong", "HOME": "wrong"}
    assert kubernetes_expands(values["NOTE"], known) == "$(HOSTNAME) $$ é"
    assert [kubernetes_expands(word, known) for word in container["command"]] == AWKWARD
