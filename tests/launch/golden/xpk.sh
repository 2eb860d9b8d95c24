#!/bin/bash
set -euo pipefail

# xpk pastes the command into one line of a manifest, where Kubernetes halves each $$ before a shell reads it:
# newlines are therefore spelled out, and each $ is doubled.
# shellcheck disable=SC2016,SC1003
arguments=(
    --cluster=pod
    --workload=flashjax
    --device-type=v5litepod-16
    --num-slices=2
    --zone=us-west4-b
    --script-dir=.
    --priority=medium
    --max-restarts=10
    --termination-grace-period-seconds=300
    --restart-on-user-code-failure
    '--command=env '"'"'NOTE=a b'"'"' python -m experiments.swin_imagenet --workdir '"'"'/runs/my run'"'"' --note $$'"'"'it\'"'"'s 5 $$\012second line'"'"''
)

xpk workload create "${arguments[@]}"
