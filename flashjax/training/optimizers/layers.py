"""Where in the depth of a model a parameter lies, found from its path."""

import re
from collections.abc import Mapping
from typing import Any

SCANNED = re.compile(r"(?<![^/])layers/")
"""Of the path of a stack of layers."""
LAYER = re.compile(r"(?<![^/])layer_(\d+)/")
"""Of the path of one of layers apart, and its number."""
_STAGED = re.compile(r"(?:^|/)stage_(\d+)/block_(\d+)/")
_BETWEEN = re.compile(r"(?:^|/)stage_(\d+)/downsample/")
_STEM = re.compile(r"(?:^|/)(?:patch_embed|embed|position|absolute_pos_embed|stem\w*)(?:/|$)")
_LAST_NORM = re.compile(r"(?:^|/)(?:final_norm|norm)/")


def stack_depth(path: str, leaf: Any) -> int:
    """Size of the leading dim of scanned layers (below `layers/`); 0 where there is none."""
    return leaf.shape[0] if SCANNED.search(path) else 0


def is_matrix(path: str, leaf: Any) -> bool:
    """Whether it is a kernel of a block that maps channels to channels, depthwise convolutions not among them."""
    in_block = any(pattern.search(path) for pattern in (SCANNED, LAYER, _STAGED, _BETWEEN))
    dims = leaf.ndim - bool(stack_depth(path, leaf))
    depthwise = dims == 2 and path.endswith("_conv/kernel")
    return in_block and path.endswith("/kernel") and dims >= 2 and not depthwise


def layer_numbers(leaves: Mapping[str, Any]) -> tuple[dict[str, int | tuple[int, ...]], int]:
    """(number of each parameter by path, number of the head), as BEiT and timm count.

    0 is what lies before the blocks (embeddings), 1 to n the blocks, n + 1 the head and whatever has no place. The norm
    after the blocks belongs to the last of them; what lies between two stages belongs to the first block of the later.
    A stack of scanned layers has a number for each.

    Raises ValueError where no path names a block.
    """
    staged = [(int(m[1]), int(m[2])) for path in leaves if (m := _STAGED.search(path))]
    sizes = {stage: 1 + max(block for s, block in staged if s == stage) for stage, _ in staged}
    before = {stage: sum(size for s, size in sizes.items() if s < stage) for stage in [*sizes, len(sizes)]}
    layered = [1 + int(m[1]) for path in leaves if (m := LAYER.search(path))]
    depth = max([before[len(sizes)], *layered, *(stack_depth(path, leaf) for path, leaf in leaves.items())])
    if not depth:
        raise ValueError(
            f"layer_decay finds no blocks: it looks for layer_0/, layers/ or stage_0/block_0/ in paths such as "
            f"{', '.join(list(leaves)[:3])}"
        )

    def number(path: str, leaf: Any) -> int | tuple[int, ...]:
        if stack := stack_depth(path, leaf):
            return tuple(range(1, stack + 1))
        if match := LAYER.search(path):
            return 1 + int(match[1])
        if match := _STAGED.search(path):
            return before[int(match[1])] + int(match[2]) + 1
        if match := _BETWEEN.search(path):
            return min(before[int(match[1]) + 1] + 1, depth)
        if _STEM.search(path):
            return 0
        return depth if _LAST_NORM.search(path) else depth + 1

    return {path: number(path, leaf) for path, leaf in leaves.items()}, depth + 1
