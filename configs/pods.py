"""Presets on the pods that their plans are recorded for (`flashjax.planning.recorded`, `pytest -m plan`)."""

from flashjax.planning.recorded import Pod

LAUNCHER = "experiments.swin_imagenet"
WHOLE = frozenset({"all-reduce", "collective-permute"})
"""Of a step whose parameters are whole on each device: gradients, and images that are mixed with those at the other end
of the batch."""
LOOPED = ("--model.blocks", "looped")
"""Less to compile."""

PODS = {"tiny_1k v5e:4x4": Pod(LAUNCHER, ("--preset", "tiny_1k", *LOOPED), "v5e:4x4", WHOLE)}
