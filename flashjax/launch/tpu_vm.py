"""TPU VMs by gcloud: create or reuse, copy the tree, install, run on every worker, follow, delete."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from flashjax.launch.common import Target, here_document, one_word, shell_array, shell_exports

_IMAGES = {
    "v2": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v4": "tpu-ubuntu2204-base",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
}
"""Software of the VM by TPU generation."""

_SETUP = (
    "python3 -m pip install --quiet --user uv && "
    "python3 -m uv venv --quiet --allow-existing --python 3.12 .venv && "
    "python3 -m uv pip install --quiet --python .venv -e . 'jax[tpu]'"
)


@dataclass(frozen=True, kw_only=True)
class TpuVm(Target):
    """A Cloud TPU VM or pod slice (gcloud compute tpus tpu-vm).

    The command runs on every worker, detached from the connection: losing it ends nothing, and the same launch,
    repeated, refuses to start a second run beside the first. Ctrl-C stops following, not the run.
    """

    zone: str
    """Zone, such as us-central2-b."""
    accelerator: str = "v4-8"
    """Accelerator type, such as v4-32 or v5litepod-16."""
    project: str | None = None
    """Project; default: gcloud's own."""
    version: str | None = None
    """Software version of the VM; default: by the accelerator."""
    spot: bool = False
    """Spot capacity: cheaper, and may be taken away."""
    create: tuple[str, ...] = ()
    """Further options of gcloud's create, without their dashes, such as network=mine reserved."""
    setup: str = _SETUP
    """Shell command that each worker runs in the copied tree; programs of .venv, if it makes one, come first."""
    detach: bool = False
    """Return as soon as the run has begun."""
    delete: Literal["never", "after", "only"] = "never"
    """Delete the TPU: not at all, after the run has ended, or do nothing else."""

    target: ClassVar[str] = "tpu-vm"
    client: ClassVar[str | None] = "gcloud"

    @property
    def needs_command(self) -> bool:
        return self.delete != "only"

    def image(self) -> str:
        """Software version of the VM."""
        if self.version:
            return self.version
        generation = self.accelerator.split("-")[0]
        if generation not in _IMAGES:
            raise ValueError(
                f"accelerator {self.accelerator!r}: no known software for {generation!r}; "
                f"name it with --version (known: {', '.join(_IMAGES)})"
            )
        return _IMAGES[generation]

    def check(self) -> None:
        super().check()
        for name in ("zone", "accelerator"):
            one_word(name, getattr(self, name))
        self.image()
        if self.detach and self.delete == "after":
            raise ValueError("--detach returns while the run goes on, so that --delete after cannot wait for its end")

    def script(self, command: Sequence[str]) -> str:
        place = [f"--zone={self.zone}"] + ([f"--project={self.project}"] if self.project else [])
        head = f"""#!/bin/bash
set -euo pipefail

tpu={self.name}
{shell_array("place", place)}
tpu_vm() {{
    local verb=$1
    shift
    gcloud compute tpus tpu-vm "$verb" "$@" "${{place[@]}}"
}}
"""
        if self.delete == "only":
            return head + '\ntpu_vm delete "$tpu" --quiet\n'
        return head + self._obtain() + self._copy(command) + self._start() + self._follow()

    def _obtain(self) -> str:
        create = [f"--accelerator-type={self.accelerator}", f"--version={self.image()}"]
        create += ["--spot"] if self.spot else []
        create += [f"--{option}" for option in self.create]
        return f"""
# 1. Create the TPU, or reuse it.
{shell_array("create", create)}
state=$(tpu_vm describe "$tpu" --format='value(state)' 2>/dev/null || true)
case "$state" in
READY) echo "reusing $tpu" >&2 ;;
'') tpu_vm create "$tpu" "${{create[@]}}" ;;
PREEMPTED | TERMINATED)
    tpu_vm delete "$tpu" --quiet
    tpu_vm create "$tpu" "${{create[@]}}"
    ;;
*)
    echo "$tpu is $state: wait until it is READY, or delete it" >&2
    exit 1
    ;;
esac
"""

    def _copy(self, command: Sequence[str]) -> str:
        run = f"""#!/bin/bash
cd "$HOME/{self.name}/tree" || exit 1
export PATH="$PWD/.venv/bin:$PATH"
{shell_exports(self.env)}{shell_array("command", command)}
"${{command[@]}}"
echo $? >"$HOME/{self.name}/status"
"""
        delimiter, run = here_document(run)
        return f"""
# 2. Copy the tree (what git knows, and new files that it does not ignore) and the command to every worker.
local_dir=$(mktemp -d)
trap 'rm -rf "$local_dir"' EXIT
git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
        if [[ -e $file ]]; then printf './%s\\0' "$file"; fi
    done |
    tar --null --files-from=- -czf "$local_dir/{self.name}.tar.gz"
cat >"$local_dir/{self.name}.sh" <<'{delimiter}'
{run}{delimiter}
tpu_vm scp "$local_dir/{self.name}.tar.gz" "$local_dir/{self.name}.sh" "$tpu:" --worker=all
"""

    def _start(self) -> str:
        install = f"""set -eu
run="$HOME/{self.name}"
if [ -s "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null; then
    echo "a run is under way on $(hostname); to stop it: kill $(cat "$run/pid")" >&2
    exit 1
fi
mkdir -p "$run/tree"
tar -xzf "$HOME/{self.name}.tar.gz" -C "$run/tree"
cd "$run/tree"
{self.setup}
"""
        start = f"""set -eu
run="$HOME/{self.name}"
rm -f "$run/status"
if [ -e "$run/log" ]; then mv "$run/log" "$run/log.before"; fi
setsid nohup bash "$HOME/{self.name}.sh" >"$run/log" 2>&1 </dev/null &
echo $! >"$run/pid"
"""
        (d1, install), (d2, start) = here_document(install), here_document(start)
        return f"""
# 3. Install on every worker; start only when all of them are ready.
install=$(
    cat <<'{d1}'
{install}{d1}
)
start=$(
    cat <<'{d2}'
{start}{d2}
)
tpu_vm ssh "$tpu" --worker=all --command="$install"
tpu_vm ssh "$tpu" --worker=all --command="$start"
"""

    def _follow(self) -> str:
        if self.detach:
            return f'\necho "started; each worker writes to ~/{self.name}/log" >&2\n'
        follow = f"""run="$HOME/{self.name}"
tail -n +1 -F --pid="$(cat "$run/pid")" "$run/log" 2>/dev/null | sed -u "s/^/[$(hostname)] /"
exit "$(cat "$run/status" 2>/dev/null || echo 137)"
"""
        ended = f"""! kill -0 "$(cat "$HOME/{self.name}/pid")" 2>/dev/null
"""
        (d1, follow), (d2, ended) = here_document(follow), here_document(ended)
        text = f"""
# 4. Follow the logs until the run has ended. A failure may be the run's or the connection's: ask once more.
follow=$(
    cat <<'{d1}'
{follow}{d1}
)
ended=$(
    cat <<'{d2}'
{ended}{d2}
)
status=0
tpu_vm ssh "$tpu" --worker=all --command="$follow" || status=$?
if ((status != 0)) && ! tpu_vm ssh "$tpu" --worker=all --command="$ended"; then
    echo "the connection is lost, the run may go on; to follow it again:" >&2
    printf '%q ' gcloud compute tpus tpu-vm ssh "$tpu" "${{place[@]}}" --worker=all --command="$follow" >&2
    echo >&2
    exit "$status"
fi
"""
        if self.delete == "after":
            text += '\n# 5. The run has ended: delete the TPU.\ntpu_vm delete "$tpu" --quiet\n'
        return text + '\nexit "$status"\n'
