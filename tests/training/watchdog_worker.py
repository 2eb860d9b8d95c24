"""One process of the runs that test_distributed starts: steps of an all-gather, until it acts as told."""

import argparse
import os
import signal
import sys
import time
import types
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

import flashjax

# The trainer's room imports checkpoints and data readers, seconds that no test of two small modules should pay.
room = types.ModuleType("flashjax.training")
room.__path__ = [str(Path(flashjax.__file__).parent / "training")]
sys.modules[room.__name__] = room

from flashjax.training import distributed  # noqa: E402
from flashjax.training.watchdog import Watchdog  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--act", default="none")
    parser.add_argument("--who", type=int, default=1)
    parser.add_argument("--at", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--limit_s", type=float, default=1.5)
    parser.add_argument("--stall_limit_s", type=float, default=60)
    parser.add_argument("--first_step_s", type=float, default=0)
    parser.add_argument("--start_timeout_s", type=int, default=30)
    options = parser.parse_args()
    config = distributed.DistributedConfig(
        start_timeout_s=options.start_timeout_s, silence_limit_s=options.limit_s, shutdown_timeout_s=20
    )
    distributed.initialize(config)
    with Watchdog(options.limit_s, options.stall_limit_s) as watchdog:
        run(options, watchdog)
    print("finished", flush=True)


def run(options: argparse.Namespace, watchdog: Watchdog) -> None:
    me = jax.process_index()
    print(f"process {me} sees {jax.device_count()} devices", flush=True)
    if options.act == "signal":
        signal.signal(signal.SIGTERM, lambda signum, frame: distributed.request_stop())
    for step in range(options.steps):
        if step == options.at and me == options.who:
            print(f"acts at {time.time()}", flush=True)
            act(options.act)
        watchdog.beat(step)
        gathered = multihost_utils.process_allgather(np.full(3, step + me))
        assert gathered.sum() == 3 * (step * jax.process_count() + sum(range(jax.process_count())))
        if step == 0:
            time.sleep(options.first_step_s)
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            print(f"stops at step {step}", flush=True)
            raise SystemExit(143)
        time.sleep(0.02)


def act(what: str) -> None:
    match what:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise RuntimeError("the data are gone")
        case "hang":
            time.sleep(600)
        case "signal":
            os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
