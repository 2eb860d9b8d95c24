#!/bin/bash
set -euo pipefail

tpu=flashjax
place=(
    --zone=us-central2-b
)

tpu_vm() {
    local verb=$1
    shift
    gcloud compute tpus tpu-vm "$verb" "$@" "${place[@]}"
}

tpu_vm delete "$tpu" --quiet
