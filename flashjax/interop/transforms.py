"""How the numbers of one Flax leaf lie in torch tensors: invertible rearrangements."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


class Transform(Protocol):
    """An invertible rearrangement between one Flax leaf and the torch tensors that hold the same numbers."""

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray: ...

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]: ...


@dataclass(frozen=True)
class Permute:
    """One tensor with its dims in another order: dim k of the torch tensor is dim `axes[k]` of the leaf."""

    axes: tuple[int, ...]

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        (tensor,) = tensors
        return np.transpose(tensor, np.argsort(self.axes))

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]:
        return [np.transpose(leaf, self.axes)]


@dataclass(frozen=True)
class Keep:
    """One tensor, the same in both."""

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        (tensor,) = tensors
        return tensor

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]:
        return [leaf]


@dataclass(frozen=True)
class Fuse:
    """Several tensors of equal shape, each turned by `part`, side by side along the last dim of the leaf."""

    count: int
    part: Transform

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([self.part.to_flax([tensor]) for tensor in tensors], axis=-1)

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]:
        return [self.part.to_torch(piece)[0] for piece in np.split(leaf, self.count, axis=-1)]


@dataclass(frozen=True)
class Grid:
    """Position embeddings: [1, height * width, C] in Flax, a map [1, C, height, width] in torch."""

    height: int
    width: int

    def to_flax(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        (tensor,) = tensors
        return np.transpose(tensor, (0, 2, 3, 1)).reshape(1, self.height * self.width, -1)

    def to_torch(self, leaf: np.ndarray) -> list[np.ndarray]:
        return [np.transpose(leaf.reshape(1, self.height, self.width, -1), (0, 3, 1, 2))]


KEEP = Keep()
LINEAR = Permute((1, 0))  # [in, out] -> [out, in]
CONV = Permute((3, 2, 0, 1))  # HWIO -> OIHW
