"""The numbers of a protocol, in its official order, from the curves."""

from collections.abc import Sequence

import numpy as np

from flashjax.evaluation.detection.curves import Curves
from flashjax.evaluation.detection.protocols import Protocol

Array = np.ndarray


def summarise(
    protocol: Protocol, iou_type: str, curves: Curves, frequency: Sequence[str]
) -> tuple[tuple[str, ...], Array]:
    """(names, numbers) of a protocol in its official order."""
    limits = protocol.max_detections
    last = len(limits) - 1
    if protocol.matching == "voc":
        average = curves.at(last).average
        names, values = ["mAP"], [mean_of(average[:, :, 0])]
        if len(protocol.iou_thresholds) > 1:
            names += [f"mAP@{t:g}" for t in protocol.iou_thresholds]
            values += [mean_of(one[:, 0]) for one in average]
        return tuple(names), np.array(values)
    labels = [label for label, _, _ in protocol.areas]

    def read(kind: str, iou: float | None = None, area: int | None = 0, m: int | None = last) -> float:
        """The mean over precisions [T, R, K, A] or recalls [T, K, A] at one limit."""
        if area is None or m is None:
            return -1.0
        values = curves.at(m).precision if kind == "AP" else curves.recall[..., m]
        assert values is not None
        if iou is not None:
            values = values[[t for t, threshold in enumerate(protocol.iou_thresholds) if threshold == iou]]
        return mean_of(values[..., area])

    if protocol.official:
        has = {label: labels.index(label) if label in labels else None for label in ("all", *_SIZES)}
        whole = has["all"]
    else:
        has = {label: n + 1 for n, label in enumerate(labels[1:])}
        whole = 0
    sizes = tuple(_SIZES) if protocol.official else tuple(labels[1:])
    if protocol.official and iou_type == "keypoints":
        sizes = sizes[1:]
    short = {label: _SIZES.get(label, f"_{label}") for label in sizes}
    fixed = [t for t in (0.5, 0.75) if protocol.official or t in protocol.iou_thresholds]
    rows: list[tuple[str, float]] = []

    if iou_type == "keypoints":
        m = last
        if protocol.official:  # reads at 20, whatever was asked for
            m = limits.index(20) if 20 in limits else None
        for kind in ("AP", "AR"):
            rows.append((kind, read(kind, area=whole, m=m)))
            rows += [(f"{kind}{100 * t:.0f}", read(kind, t, whole, m)) for t in fixed]
            rows += [(f"{kind}{short[label]}", read(kind, area=has[label], m=m)) for label in sizes]
    else:
        third = 2 if protocol.official and not protocol.federated else last
        hundred: int | None = third
        if protocol.official and not protocol.federated:
            hundred = limits.index(100) if 100 in limits else None
        rows.append(("AP", read("AP", area=whole, m=hundred)))
        rows += [(f"AP{100 * t:.0f}", read("AP", t, whole, third)) for t in fixed]
        rows += [(f"AP{short[label]}", read("AP", area=has[label], m=third)) for label in sizes]
        if protocol.groups:
            precision = curves.at(last).precision
            assert whole is not None and precision is not None
            for letter in "rcf":
                chosen = [k for k, f in enumerate(frequency) if f == letter]
                rows.append((f"AP{letter}", mean_of(precision[:, :, chosen, whole])))
        three = range(3) if protocol.official and not protocol.federated else range(len(limits))
        for n in three:
            name = protocol.per_image if limits[n] is None else limits[n]
            rows.append((f"AR{name or ''}", read("AR", area=whole, m=n)))
        rows += [(f"AR{short[label]}", read("AR", area=has[label], m=third)) for label in sizes]
    return tuple(name for name, _ in rows), np.array([value for _, value in rows])


_SIZES = {"small": "s", "medium": "m", "large": "l"}


def mean_of(values: Array) -> float:
    """Over what is defined; -1 if nothing is."""
    values = values[values > -1]
    return float(np.mean(values)) if len(values) else -1.0
