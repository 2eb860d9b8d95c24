"""Presets on the pods that their plans are recorded for (`flashjax.planning.recorded`, `pytest -m plan`)."""

from flashjax.planning.recorded import Pod

WHOLE = frozenset({"all-reduce", "collective-permute"})
"""Of a step whose parameters are whole on each device: gradients, and images that are mixed with those at the other end
of the batch."""
SPLIT = WHOLE | {"all-gather", "all-to-all"}
"""Of one whose parameters are split by fsdp: they are gathered, and what comes back through the head, to which each
device has some rows for all images, is exchanged. The compiler makes no reduce-scatter here, also where asked to."""


def _swin(topology: str, preset: str, batch: int, *mesh: str) -> Pod:
    arguments = ("--preset", preset, "--data.batch_size", str(batch), *mesh)
    return Pod("experiments.swin_imagenet", arguments, topology, SPLIT if mesh else WHOLE)


def _text(topology: str, preset: str, mixer: str = "softmax") -> Pod:
    """The paper's 2^18 tokens a step in rows of 8,192, whose parameters are split over all 16 devices."""
    mixed = () if mixer == "softmax" else ("--model.mixer", mixer)
    return Pod("experiments.flash_lm", ("--preset", preset, *mixed, "--mesh.fsdp", "16"), topology, SPLIT)


PODS = {
    "tiny_1k v5e:4x4": _swin("v5e:4x4", "tiny_1k", 1024),
    "tiny_1k v5p:4x4x4": _swin("v5p:4x4x4", "tiny_1k", 4096),
    "tiny_1k v6e:2x2": _swin("v6e:2x2", "tiny_1k", 256),
    "base_1k v5e:4x4": _swin("v5e:4x4", "base_1k", 512),
    "base_1k v5p:4x4x4": _swin("v5p:4x4x4", "base_1k", 2048),
    "base_1k v6e:2x2": _swin("v6e:2x2", "base_1k", 128),
    "large_22k v5e:4x4": _swin("v5e:4x4", "large_22k", 512, "--mesh.fsdp", "16"),
    "large_22k v5p:4x4x4": _swin("v5p:4x4x4", "large_22k", 2048, "--mesh.fsdp", "16"),
    "large_22k v6e:2x2": _swin("v6e:2x2", "large_22k", 128, "--mesh.fsdp", "4"),
    "wiki40b v5e:4x4": _text("v5e:4x4", "wiki40b"),
    "wiki40b_transformer v5e:4x4": _text("v5e:4x4", "wiki40b_transformer"),
    "katharopoulos v5e:4x4": _text("v5e:4x4", "wiki40b_transformer", "katharopoulos"),
    "performer v5e:4x4": _text("v5e:4x4", "wiki40b_transformer", "performer"),
    "gla v5e:4x4": _text("v5e:4x4", "wiki40b_transformer", "gla"),
}
