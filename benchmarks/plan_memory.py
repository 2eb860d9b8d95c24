"""Memory that a plan predicts of a step, against what this machine hands out for it: 8 virtual CPU devices.

    python -m benchmarks.plan_memory [--json FILE] [--batch 16]                          (Linux; about five minutes)

Swin-T at 224 in float32, with weights and rows of zeros, a process for each mesh. Predicted is what `--plan cpu:8` says
of a device, times the devices. Found are the bytes of JAX's live arrays before the step, and how far the resident
memory of the process rises within one: the kernel's own high-water mark, set back before the step.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

DEVICES = 8
ROWS = {
    "data 8": (),
    "fsdp 8": ("--mesh.data", "1", "--mesh.fsdp", "8"),
    "data 2, fsdp 2, tensor 2": ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"),
    "data 8, remat": ("--model.remat",),
}
# Freed blocks go back to the system at once, so that what one step keeps is not there for the next.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "JAX_PLATFORMS": "cpu"}


def resident(field: str) -> int:
    """Bytes that the kernel says of this process: VmRSS now, VmHWM at most."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, f"no {field} in /proc/self/status"
    return int(found[1]) * 1024


def measure(flags: list[str]) -> dict[str, Any]:
    """Bytes of all devices together, predicted and found, of one configuration."""
    import jax
    import numpy as np

    from configs.swin_imagenet import PRESETS
    from experiments import swin_imagenet
    from flashjax import cli
    from flashjax.analysis import topology
    from flashjax.planning import tracing
    from flashjax.planning.compiled import compile_for
    from flashjax.training.program import Program

    topology.prepare([f"cpu:{DEVICES}"])
    config = cli.parse(PRESETS, "experiments.swin_imagenet", None, args=flags)
    experiment = tracing.build(swin_imagenet.build, config)
    machine = topology.open_topology(f"cpu:{DEVICES}")
    program = Program(experiment, machine.devices)
    compiled = compile_for(program.lower_step(), machine, cache=False)
    step, memory, spec = compiled.executable, compiled.memory, experiment.train_data.spec
    assert memory is not None
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in spec.items()}
    state, batch = program.init(), program.put(zeros, spec)
    state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    held = sum(shard.data.nbytes for x in jax.live_arrays() for shard in x.addressable_shards)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    jax.block_until_ready(step(state, batch))
    risen = resident("VmHWM") - before
    return {
        "predicted_arguments": DEVICES * memory.arguments,
        "found_arguments": held,
        "predicted_step": DEVICES * (memory.temporaries + memory.outputs - memory.aliased),
        "found_step": risen,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--batch", type=int, default=16, help="images in a batch, of all devices (default 16)")
    args = parser.parse_args()
    from flashjax.processes import in_process

    print(f"{'mesh':26}{'state and batch, MiB':>30}{'a step beside them, MiB':>34}")
    print(f"{'':26}{'predicted':>12}{'found':>9}{'ratio':>9}{'predicted':>16}{'found':>9}{'ratio':>9}")
    made = {}
    for name, flags in ROWS.items():
        own = ["--preset", "tiny_1k", "--model.dtype", "float32", "--data.batch_size", str(args.batch), *flags]
        own += ["--data.eval_batch_size", str(args.batch)]
        found = in_process("benchmarks.plan_memory", json.dumps(own), ENVIRONMENT)
        if "error" in found:
            raise SystemExit(f"{name}: {found['error']}")
        made[name] = found
        words = ""
        for part, width in (("arguments", 12), ("step", 16)):
            predicted, there = found[f"predicted_{part}"], found[f"found_{part}"]
            words += f"{predicted / 2**20:{width}.0f}{there / 2**20:9.0f}{there / predicted:9.2f}"
        print(f"{name:26}{words}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"batch": args.batch, "cores": os.cpu_count(), "rows": made}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("["):
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        main()
