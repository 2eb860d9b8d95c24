#!/bin/bash
# 2 processes with 4 virtual CPU devices each.
port=8476
export JAX_PLATFORMS=cpu
export XLA_FLAGS=--xla_force_host_platform_device_count=4
export PYTHONUNBUFFERED=1
export FLASHJAX_COORDINATOR="127.0.0.1:$port"
export FLASHJAX_NUM_PROCESSES=2
export NOTE='two words'

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

processes=()
trap 'kill "${processes[@]}"' INT TERM
for ((i = 0; i < 2; i++)); do
    FLASHJAX_PROCESS_ID=$i "${command[@]}" > >(sed -u "s/^/[process $i] /") 2>&1 &
    processes+=($!)
done

# The exit status is that of the first process that fails; the others are then asked to end.
status=0
left=("${processes[@]}")
while ((${#left[@]})); do
    running=()
    for process in "${left[@]}"; do
        if kill -0 "$process" 2>/dev/null; then
            running+=("$process")
            continue
        fi
        wait "$process"
        ended=$?
        if ((ended != 0 && status == 0)); then
            status=$ended
            kill "${processes[@]}" 2>/dev/null
        fi
    done
    left=("${running[@]}")
    sleep 0.1
done
exit "$status"
