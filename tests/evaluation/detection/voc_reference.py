"""VOC's rule written out plainly, one detection at a time, from the description: what the fast code must equal."""

import numpy as np


def overlap(a, b, pixel):
    """Intersection over union of corners x0, y0, x1, y1 whose sides are x1 - x0 + pixel."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + pixel
    height = min(a[3], b[3]) - max(a[1], b[1]) + pixel
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    area_a = (a[2] - a[0] + pixel) * (a[3] - a[1] + pixel)
    area_b = (b[2] - b[0] + pixel) * (b[3] - b[1] + pixel)
    return shared / (area_a + area_b - shared)


def average_precision(truth, found, category, threshold, strict, pixel, recalls):
    """AP of one class, None without ground truth.

    truth: rows (image, category, corners, difficult); found: rows (image, category, score, corners);
    recalls: "area", or the recalls at which the best precision is read.
    """
    objects = {}
    for image, label, corners, difficult in truth:
        if label == category:
            objects.setdefault(image, []).append({"corners": corners, "difficult": difficult, "taken": False})
    positives = sum(not one["difficult"] for rows in objects.values() for one in rows)
    if not positives:
        return None
    mine = [row for row in found if row[1] == category]
    right, wrong = [], []
    for image, _, _, corners in sorted(mine, key=lambda row: -row[2]):
        best, chosen = -1.0, None
        for one in objects.get(image, []):
            value = overlap(corners, one["corners"], pixel)
            if value > best:
                best, chosen = value, one
        enough = chosen is not None and (best > threshold if strict else best >= threshold)
        if enough and chosen["difficult"]:
            continue
        good = enough and not chosen["taken"]
        if good:
            chosen["taken"] = True
        right.append(good)
        wrong.append(not good)
    hits, errors = np.cumsum(right), np.cumsum(wrong)
    recall = [h / positives for h in hits]
    precision = [h / (h + e) for h, e in zip(hits, errors, strict=True)]
    if not isinstance(recalls, str):
        best = [max((p for r, p in zip(recall, precision, strict=True) if r >= t), default=0.0) for t in recalls]
        return sum(best) / len(recalls)
    recall, precision = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    return sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall)) if recall[i] != recall[i - 1])
