"""Presets on the pods that their plans are recorded for (`flashjax.planning.recorded`, `pytest -m plan`)."""

from flashjax.planning.recorded import Pod

LAUNCHER = "experiments.swin_imagenet"
WHOLE = frozenset({"all-reduce", "collective-permute"})
"""Of a step whose parameters are whole on each device: gradients, and images that are mixed with those at the other end
of the batch."""


def _swin(topology: str, preset: str, batch: int) -> Pod:
    return Pod(LAUNCHER, ("--preset", preset, "--data.batch_size", str(batch)), topology, WHOLE)


PODS = {
    "tiny_1k v5e:4x4": _swin("v5e:4x4", "tiny_1k", 1024),
    "tiny_1k v5p:4x4x4": _swin("v5p:4x4x4", "tiny_1k", 4096),
    "tiny_1k v6e:2x2": _swin("v6e:2x2", "tiny_1k", 256),
    "base_1k v5e:4x4": _swin("v5e:4x4", "base_1k", 512),
    "base_1k v5p:4x4x4": _swin("v5p:4x4x4", "base_1k", 2048),
}
