#!/bin/bash
set -euo pipefail

tpu=flashjax
place=(
    --zone=us-central2-b
    --project=lab
)

tpu_vm() {
    local verb=$1
    shift
    gcloud compute tpus tpu-vm "$verb" "$@" "${place[@]}"
}

# 1. Create the TPU, or reuse it.
create=(
    --accelerator-type=v4-32
    --version=tpu-ubuntu2204-base
    --spot
)

state=$(tpu_vm describe "$tpu" --format='value(state)' 2>/dev/null || true)
case "$state" in
READY) echo "reusing $tpu" >&2 ;;
'') tpu_vm create "$tpu" "${create[@]}" ;;
PREEMPTED | TERMINATED)
    tpu_vm delete "$tpu" --quiet
    tpu_vm create "$tpu" "${create[@]}"
    ;;
*)
    echo "$tpu is $state: wait until it is READY, or delete it" >&2
    exit 1
    ;;
esac

# 2. Copy the tree (what git knows, and new files that it does not ignore) and the command to every worker.
local_dir=$(mktemp -d)
trap 'rm -rf "$local_dir"' EXIT
git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do
        if [[ -e $file ]]; then printf './%s\0' "$file"; fi
    done |
    tar --null --files-from=- -czf "$local_dir/flashjax.tar.gz"
cat >"$local_dir/flashjax.sh" <<'END'
#!/bin/bash
cd "$HOME/flashjax/tree" || exit 1
export PATH="$PWD/.venv/bin:$PATH"
export NOTE='a b'
# shellcheck disable=SC2016,SC1003
command=(
    python
    -m
    experiments.swin_imagenet
    --workdir
    '/runs/my run'
    --note
    'it'"'"'s 5 $
second line'
)

"${command[@]}"
echo $? >"$HOME/flashjax/status"
END
tpu_vm scp "$local_dir/flashjax.tar.gz" "$local_dir/flashjax.sh" "$tpu:" --worker=all

# 3. Install on every worker; start only when all of them are ready.
install=$(
    cat <<'END'
set -eu
run="$HOME/flashjax"
if [ -s "$run/pid" ] && kill -0 "$(cat "$run/pid")" 2>/dev/null; then
    echo "a run is under way on $(hostname); to stop it: kill $(cat "$run/pid")" >&2
    exit 1
fi
mkdir -p "$run/tree"
tar -xzf "$HOME/flashjax.tar.gz" -C "$run/tree"
cd "$run/tree"
python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --allow-existing --python 3.12 .venv && python3 -m uv pip install --quiet --python .venv -e . 'jax[tpu]'
END
)
start=$(
    cat <<'END'
set -eu
run="$HOME/flashjax"
rm -f "$run/status"
if [ -e "$run/log" ]; then mv "$run/log" "$run/log.before"; fi
setsid nohup bash "$HOME/flashjax.sh" >"$run/log" 2>&1 </dev/null &
echo $! >"$run/pid"
END
)
tpu_vm ssh "$tpu" --worker=all --command="$install"
tpu_vm ssh "$tpu" --worker=all --command="$start"

# 4. Follow the logs until the run has ended. A failure may be the run's or the connection's: ask once more.
follow=$(
    cat <<'END'
run="$HOME/flashjax"
tail -n +1 -F --pid="$(cat "$run/pid")" "$run/log" 2>/dev/null | sed -u "s/^/[$(hostname)] /"
exit "$(cat "$run/status" 2>/dev/null || echo 137)"
END
)
ended=$(
    cat <<'END'
! kill -0 "$(cat "$HOME/flashjax/pid")" 2>/dev/null
END
)
status=0
tpu_vm ssh "$tpu" --worker=all --command="$follow" || status=$?
if ((status != 0)) && ! tpu_vm ssh "$tpu" --worker=all --command="$ended"; then
    echo "the connection is lost, the run may go on; to follow it again:" >&2
    printf '%q ' gcloud compute tpus tpu-vm ssh "$tpu" "${place[@]}" --worker=all --command="$follow" >&2
    echo >&2
    exit "$status"
fi

exit "$status"
