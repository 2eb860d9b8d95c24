"""What is measured how: one frozen value for each protocol and each published variant of it.

The official programs disagree with their own papers in places, and published numbers contain those places. So the
default of each protocol reproduces its official program, and a preset beside it does what the text says.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from flashjax.words import nearest

IouType = Literal["bbox", "segm", "keypoints"]
IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm", "keypoints")
Area = tuple[str, float, float]

AREAS: tuple[Area, ...] = (("all", 0, 1e10), ("small", 0, 1024), ("medium", 1024, 9216), ("large", 9216, 1e10))


def _sigmas(*hundredths: int) -> tuple[float, ...]:
    return tuple((np.array(hundredths) / 100 / 10.0).tolist())


# Nose, eyes, ears, shoulders, elbows, wrists, hips, knees, ankles; CrowdPose: shoulders to ankles, head, neck.
COCO_SIGMAS = _sigmas(26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89)
CROWDPOSE_SIGMAS = _sigmas(79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89, 79, 79)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """A way to measure average precision."""

    name: str
    """Its name among PROTOCOLS."""
    about: str
    """One line about it."""
    matching: Literal["coco", "voc"] = "coco"
    """coco: of the ground truths that are still free, the best; voc: the best of all, and if it is taken, an error."""
    iou_thresholds: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    """Overlaps from which on a detection can be right."""
    strict: bool = False
    """The overlap must exceed the threshold (>), not only reach it (>=)."""
    pixel: float = 0.0
    """Added to each side of a box: 1 where corners name the first and the last pixel."""
    recall_thresholds: tuple[float, ...] | None = tuple(np.linspace(0, 1, 101).tolist())
    """Recalls at which precision is read and averaged, rising; None: the area below the envelope."""
    max_detections: tuple[int | None, ...] = (1, 10, 100)
    """Detections of each image and class that count, the highest scores first, rising; None: all."""
    per_image: int | None = None
    """Detections of each image, all classes together, that are kept at all (LVIS); None: all."""
    areas: tuple[Area, ...] = AREAS
    """(label, least, most) of the ranges of ground-truth area, both ends included."""
    use_categories: bool = True
    """Match within a class; else all classes are one."""
    federated: bool = False
    """LVIS: a class counts in an image only if the image was searched for it."""
    groups: bool = False
    """LVIS: AP of rare, common and frequent classes beside AP of all."""
    official: bool = True
    """As the official program: a ground truth with id 0 cannot be found, COCO's ``ignore`` is overwritten by
    ``iscrowd``, COCO's AP is read at 100 detections even if other limits were asked for, LVIS leaves out what has no
    area. False: none of that."""
    sigmas: tuple[float, ...] | None = None
    """Of each keypoint, how widely people mark it; None: COCO's 17."""

    def __post_init__(self) -> None:
        rising = self.recall_thresholds
        if rising is not None and (len(rising) == 0 or any(b < a for a, b in pairwise(rising))):
            raise ValueError(f"recall_thresholds must rise and be at least one; they are {rising}")
        if len(self.iou_thresholds) == 0 or not all(0 <= t <= 1 for t in self.iou_thresholds):
            raise ValueError(f"iou_thresholds must be one or more of 0 .. 1; they are {self.iou_thresholds}")
        if len(self.max_detections) == 0 or any(m is not None and m < 1 for m in self.max_detections):
            raise ValueError(f"max_detections must be one or more positive numbers; they are {self.max_detections}")
        if len({label for label, _, _ in self.areas}) < len(self.areas) or not self.areas:
            raise ValueError(f"areas must be one or more ranges under different labels; they are {self.areas}")


_COCO = Protocol(name="coco", about="COCO's twelve numbers, as pycocotools computes them")
_LVIS = Protocol(
    name="lvis",
    about="LVIS's thirteen numbers, as its program computes them",
    max_detections=(None,),
    per_image=300,
    federated=True,
    groups=True,
)
_VOC = Protocol(
    name="voc2010",
    about="PASCAL VOC from 2010 on: area below the envelope, as the development kit computes it",
    matching="voc",
    iou_thresholds=(0.5,),
    pixel=1.0,
    recall_thresholds=None,
    max_detections=(None,),
    areas=AREAS[:1],
)
_TENTHS = tuple((np.arange(11) / 10).tolist())
_ARANGE = tuple(np.arange(0, 1.1, 0.1).tolist())  # .30000000000000004, .6000000000000001, .7000000000000001
_LINSPACE = tuple(np.linspace(0, 1, 11).tolist())  # the same three

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        _COCO,
        replace(_COCO, name="coco_fixed", official=False, about="COCO without the slips of its program"),
        _LVIS,
        replace(_LVIS, name="lvis_fixed", official=False, about="LVIS without the slips of its program"),
        replace(
            _COCO,
            name="crowdpose",
            sigmas=CROWDPOSE_SIGMAS,
            about="COCO's keypoint numbers with CrowdPose's 14 keypoints (no easy, medium, hard)",
        ),
        replace(
            _VOC,
            name="voc2007",
            recall_thresholds=_TENTHS,
            about="PASCAL VOC 2007: 11 recalls, as the development kit's text says",
        ),
        _VOC,
        replace(
            _VOC,
            name="voc2007_pyfrcnn",
            recall_thresholds=_ARANGE,
            strict=True,
            about="VOC 2007 in py-faster-rcnn and what came of it: > instead of >=, and recalls .3, .6, .7 a hair high",
        ),
        replace(_VOC, name="voc2010_pyfrcnn", strict=True, about="VOC 2010 in py-faster-rcnn: > instead of >="),
        replace(
            _VOC,
            name="rafaelpadilla_11",
            recall_thresholds=_LINSPACE,
            about="11 points in Object-Detection-Metrics: recalls .3, .6, .7 a hair high",
        ),
        replace(_VOC, name="rafaelpadilla_every", about="every point in Object-Detection-Metrics"),
    )
}
"""By name; the first is the default."""


def get(protocol: str | Protocol, iou_type: str, **changes: object) -> Protocol:
    """The protocol of this name, made ready for ``iou_type``, with single values changed.

    Raises:
        ValueError: an unknown name or overlap, or a change that the protocol cannot take.
    """
    if isinstance(protocol, str):
        if protocol not in PROTOCOLS:
            near = nearest(protocol, PROTOCOLS)
            raise ValueError(f"unknown protocol '{protocol}'; nearest: {near}. All: {', '.join(PROTOCOLS)}")
        protocol = PROTOCOLS[protocol]
    if iou_type not in IOU_TYPES:
        raise ValueError(f"unknown iou_type '{iou_type}'; it is one of {', '.join(IOU_TYPES)}")
    if iou_type != "bbox" and protocol.matching == "voc":
        raise ValueError(f"protocol '{protocol.name}' compares boxes; iou_type '{iou_type}' needs coco or lvis")
    if iou_type == "keypoints":
        if protocol.federated:
            raise ValueError(f"protocol '{protocol.name}' has no keypoints; use coco")
        if protocol.areas is AREAS:
            protocol = replace(protocol, areas=(AREAS[0], *AREAS[2:]))
        if protocol.max_detections == (1, 10, 100):
            protocol = replace(protocol, max_detections=(20,))
        if protocol.sigmas is None:
            protocol = replace(protocol, sigmas=COCO_SIGMAS)
    protocol = replace(protocol, **{name: value for name, value in changes.items() if value is not None})
    limits = sorted(protocol.max_detections, key=lambda m: np.inf if m is None else m)
    protocol = replace(protocol, max_detections=tuple(limits))
    three = protocol.official and iou_type != "keypoints" and protocol.matching == "coco" and not protocol.federated
    if three and len(limits) < 3:
        raise ValueError(
            f"protocol '{protocol.name}' reads AR at three limits; max_detections is {tuple(limits)}: give three, or "
            "use coco_fixed"
        )
    if not protocol.use_categories and protocol.official and (iou_type == "keypoints" or protocol.federated):
        raise ValueError(
            f"use_categories=False: the official program of '{protocol.name}' compares nothing at all then, for "
            f"{iou_type}; use {'lvis_fixed' if protocol.federated else 'coco_fixed'}"
        )
    return protocol
