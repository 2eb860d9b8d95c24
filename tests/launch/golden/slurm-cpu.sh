#!/bin/bash
#SBATCH --job-name=cpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --cpus-per-task=16
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300

set -uo pipefail

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

# SLURM sends SIGTERM to the tasks 300 s before the time limit, and at preemption. They save their state and
# end with status 143; this shell only waits for them.
trap ':' TERM

# Each task may end in its own time, at most 120 s after the first one.
srun --label --kill-on-bad-exit=0 --wait=120 --cpus-per-task=16 "${command[@]}"
status=$?

# 143: saved on request. 76: another process was lost. 77: stalled. 78: another process failed. Otherwise: see the log.
case "$status" in
none)
    restarts=${SLURM_RESTART_COUNT:-0}
    if ((restarts < 20)); then
        echo "status $status: requeued (restart $((restarts + 1)) of 20); the run resumes" >&2
        scontrol requeue "$SLURM_JOB_ID"
    else
        echo "status $status: not requeued, 20 restarts are used up" >&2
    fi
    ;;
esac
exit "$status"
