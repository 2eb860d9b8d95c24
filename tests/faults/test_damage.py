"""A full disk, a workdir that cannot be written, and damaged checkpoints: each is named, with what still loads."""

import os
import re
import shlex
import shutil
import subprocess

import jax.numpy as jnp
import numpy as np
import pytest

from flashjax.training import CheckpointConfig, Program, fit
from flashjax.training.checkpoints import CheckpointError, Checkpoints
from flashjax.training.rundir import RunDirectoryError
from tests.faults.driver import assert_bitwise
from tests.training.toy import CLASSES, FEATURES, Linear, experiment

pytestmark = pytest.mark.faults

# Orbax notes the commit in these itself; they hold no data, and a run does not depend on them.
WITHOUT_DATA = ("_CHECKPOINT_METADATA", "commit_success.txt")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with checkpoints at steps 4 and 8."""
    workdir = tmp_path_factory.mktemp("finished")
    result = fit(experiment(workdir, steps=8, ema_decay=0.9))
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["4", "8"]
    return workdir, result.program


@pytest.fixture
def copy(finished, tmp_path):
    workdir, program = finished
    shutil.copytree(workdir, tmp_path / "run")
    return tmp_path / "run", program


def files(step_directory):
    """Files of a checkpoint that hold data, the largest first."""
    found = [p for p in step_directory.rglob("*") if p.is_file()]
    return sorted((p for p in found if p.parent != step_directory or p.name not in WITHOUT_DATA), key=_size)[::-1]


def _size(path):
    return path.stat().st_size


def refusal(workdir, program, step=8):
    with pytest.raises(CheckpointError) as caught:
        restored(workdir, program, step)
    return str(caught.value)


def test_a_flipped_byte_is_noticed_in_every_file(copy):
    workdir, program = copy
    newest = workdir / "checkpoints" / "8"
    draw = np.random.default_rng(0)
    tried = files(newest)
    assert any("ocdbt.process_0/d/" in str(path) for path in tried), "the values of the arrays are among them"
    for path in tried:
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[draw.integers(len(whole))] ^= 1 << int(draw.integers(8))
        path.write_bytes(broken)
        text = refusal(workdir, program)
        assert f"{newest} is damaged" in text and "step 4 is whole" in text, (path, text)
        path.write_bytes(whole)
    for name in WITHOUT_DATA:
        (newest / name).write_bytes(b"\0")
    checkpoints = Checkpoints(workdir / "checkpoints", CheckpointConfig(keep=2))
    assert int(checkpoints.restore(8, program.abstract_state).step) == 8
    checkpoints.close()


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing", "unlisted"])
def test_the_message_says_how_to_resume_from_the_older_step(how, copy):
    workdir, program = copy
    newest = workdir / "checkpoints" / "8"
    victim = files(newest)[0]
    match how:
        case "flipped":
            broken = bytearray(victim.read_bytes())
            broken[len(broken) // 2] ^= 1
            victim.write_bytes(broken)
            what = f"{victim.relative_to(newest)} has changed since it was written (SHA-256)"
        case "truncated":
            whole = _size(victim)
            os.truncate(victim, whole // 2)
            what = f"{victim.relative_to(newest)} has {whole // 2} bytes, {whole} were written"
        case "missing":
            victim.unlink()
            what = f"{victim.relative_to(newest)} is missing"
        case "unlisted":
            (newest / "digests.json").unlink()
            what = "digests.json is missing"
    with pytest.raises(CheckpointError) as caught:
        fit(experiment(workdir, steps=8, ema_decay=0.9))
    text = str(caught.value)
    assert f"checkpoint {newest} is damaged: {what}; step 4 is whole" in text
    subprocess.run(shlex.split(text.splitlines()[-1]), check=True)
    if how == "flipped":  # the others would take the same way
        assert_bitwise(fit(experiment(workdir, steps=8, ema_decay=0.9)).state, restored(workdir, program, 8))


def restored(workdir, program, step):
    checkpoints = Checkpoints(workdir / "checkpoints", CheckpointConfig(keep=2), read_only=True)
    try:
        return checkpoints.restore(step, program.abstract_state)
    finally:
        checkpoints.close()


def test_no_older_step_is_offered_when_none_is_whole(copy):
    workdir, program = copy
    for step in ("4", "8"):
        os.truncate(files(workdir / "checkpoints" / step)[0], 10)
    assert "there is no older one that is whole: start afresh" in refusal(workdir, program)


class Deeper(Linear):
    """Another model: a further matrix, and a bias of another size."""

    def init(self, rngs, batch):
        variables = super().init(rngs, batch)
        variables["params"]["dense"] |= {"bias": jnp.zeros(1), "scale": jnp.ones((FEATURES, CLASSES))}
        return variables


def test_a_checkpoint_of_another_model(copy):
    workdir, _ = copy
    with pytest.raises(CheckpointError) as caught:
        fit(experiment(workdir, steps=8, ema_decay=0.9, objective=Deeper()))
    text = str(caught.value)
    assert f"{workdir / 'checkpoints' / '8'} is of another model or optimizer" in text
    assert "missing (ema/dense/scale" in text and "ema/dense/bias: (256,) stored, (1,) wanted" in text


def _mount(*words):
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")


def test_a_full_disk(tmp_path):
    """The third checkpoint does not fit; the older ones stay, and with room again the run goes on."""
    disk = tmp_path / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", disk)
    try:
        workdir = disk / "run"
        made = dict(steps=8, eval_every=2, checkpoint=CheckpointConfig(keep=8))
        with pytest.raises(CheckpointError) as caught:
            fit(experiment(workdir, **made))
        text = str(caught.value)
        assert re.search(r"checkpoint \d could not be written in .*/run/checkpoints: No space left on device", text)
        whole = [int(step) for step in re.search(r"Steps that are whole: ([\d, ]+)\.", text).group(1).split(", ")]
        assert whole and "give the same command again" in text
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = fit(experiment(workdir, **made))
        assert again.step == 8
        on_disk = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
        assert on_disk == [2, 4, 6, 8], "nothing half-written is left"
        assert_bitwise(again.state, fit(experiment(tmp_path / "straight", **made)).state)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_workdir_that_cannot_be_written(tmp_path):
    """Root may write wherever the file system lets it: only a file system mounted read-only binds it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", disk)
    try:
        (disk / "run").mkdir()
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for workdir in (disk / "run", disk / "new"):
            with pytest.raises(RunDirectoryError) as caught:
                fit(experiment(workdir))
            assert f"cannot write in the workdir {workdir}: Read-only file system" in str(caught.value)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_becomes_read_only_in_the_run(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    _mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", disk)
    try:
        workdir = disk / "run"
        fit(experiment(workdir, steps=4))
        program = Program(experiment(workdir, steps=4))
        checkpoints = Checkpoints(workdir / "checkpoints", CheckpointConfig(keep=2))
        state = checkpoints.restore(4, program.abstract_state)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(CheckpointError, match=r"checkpoint 5 could not be written .*: Read-only file system"):
            checkpoints.save(5, state)
            checkpoints.wait()
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
