"""Presets on the pods that their plans are recorded for (`flashjax.planning.recorded`, `pytest -m plan`)."""

from flashjax.planning.recorded import Pod

LAUNCHER = "experiments.swin_imagenet"
WHOLE = frozenset({"all-reduce", "collective-permute"})
"""Of a step whose parameters are whole on each device: gradients, and images that are mixed with those at the other end
of the batch."""


def _swin(topology: str, preset: str, *flags: str) -> Pod:
    return Pod(LAUNCHER, ("--preset", preset, *flags), topology, WHOLE)


PODS = {
    "tiny_1k v5e:4x4": _swin("v5e:4x4", "tiny_1k"),
    "tiny_1k v5p:2x2x1": _swin("v5p:2x2x1", "tiny_1k", "--data.batch_size", "256"),
    "tiny_1k v6e:2x2": _swin("v6e:2x2", "tiny_1k", "--data.batch_size", "256"),
    "base_1k v5e:4x4": _swin("v5e:4x4", "base_1k", "--data.batch_size", "512"),
}
