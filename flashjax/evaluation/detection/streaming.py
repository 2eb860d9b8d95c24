"""Evaluation batch by batch, on one process or many: `Evaluator`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flashjax.evaluation.detection import formats, protocols
from flashjax.evaluation.detection import masks as m
from flashjax.evaluation.detection.evaluator import measure, options_of
from flashjax.evaluation.detection.fields import BoxFormat
from flashjax.evaluation.detection.protocols import Protocol
from flashjax.evaluation.detection.result import Result

Array = np.ndarray

_FOUND = ("category_id", "bbox", "score", "segmentation", "keypoints", "area", "id")
_TRUE = ("category_id", "bbox", "segmentation", "keypoints", "area", "id", "iscrowd", "ignore", "num_keypoints")
_PLAIN = ("image_id", "mask", "valid", "gt_valid")


class Evaluator:
    """Collects detections batch by batch; `result` is that of one pass over all of them.

    ```
    evaluator = Evaluator("coco", categories=80)
    for batch in batches:
        evaluator.update(predict(batch))
    print(evaluator.gather().result().table())
    ```

    Each image must come once. What pads a batch is left out by ``mask`` and ``valid``, so that every process may run
    the same number of batches of the same shape. The order of updates and the split over processes change nothing.

    Args:
        protocol, iou_type: As for `evaluate`.
        ground_truth: Any form that `evaluate` takes; None: it comes with the batches.
        categories: Without ``ground_truth``: how many (ids 0, 1, ...), their names (ids 0, 1, ...), their ids, or
            {id: name}.
        only_seen: With ``ground_truth``: only the images that came in a batch; else all, what did not come is missed.
        box_format: "xywh" or "xyxy", of the batches.
        options: The other arguments of `evaluate`: iou_thresholds, max_detections, areas, ...

    Raises:
        ValueError: for an unknown protocol or option, or if neither ``ground_truth`` nor ``categories`` is given.
    """

    def __init__(
        self,
        protocol: str | Protocol = "coco",
        iou_type: str = "bbox",
        *,
        ground_truth: Any = None,
        categories: int | Sequence[int] | Sequence[str] | Mapping[int, str] | None = None,
        only_seen: bool = False,
        box_format: BoxFormat = "xywh",
        **options: Any,
    ):
        self.protocol = protocols.get(protocol, iou_type, **options_of(**options))
        self.iou_type, self.only_seen = iou_type, only_seen
        self.box_format: BoxFormat = box_format
        if (ground_truth is None) == (categories is None):
            raise ValueError("give either ground_truth, or the categories of one that comes with the batches")
        self.truth = None
        if ground_truth is not None:
            self.truth = formats.load_ground_truth(ground_truth, iou_type, lvis=self.protocol.federated)
        elif self.protocol.federated:
            raise ValueError("protocol lvis needs its ground truth from the start: give ground_truth")
        self.categories = list(range(categories)) if isinstance(categories, int) else categories
        self._parts: list[dict[str, Any]] = []
        self._seen: set[Any] = set()

    def update(self, batch: Mapping[str, Any]) -> None:
        """Adds the images of a batch.

        Args:
            batch: Arrays, of NumPy or JAX; of arrays that are spread over processes, each process adds its share.
                ``image_id`` [B];
                detections: ``bbox`` [B, D, 4], ``score`` [B, D], ``category_id`` [B, D], where they are needed
                ``segmentation`` bool [B, D, H, W] or ``keypoints`` [B, D, J, 3], and, if some only pad, ``valid``
                bool [B, D];
                the ground truth, unless it is known: ``gt_bbox`` [B, G, 4], ``gt_category_id`` [B, G], and where there
                are any ``gt_valid``, ``gt_segmentation``, ``gt_keypoints``, ``gt_area``, ``gt_iscrowd``, ``gt_ignore``;
                ``id`` and ``gt_id``, which errors and matches then show;
                ``mask`` [B], 0 for the rows that only pad the batch.

        Raises:
            ValueError: an unknown key, shapes that do not fit, an image that was there before; it names them.
        """
        known = {*_PLAIN, *_FOUND, *(() if self.truth is not None else (f"gt_{key}" for key in _TRUE))}
        unknown = [key for key in batch if key not in known]
        if unknown:
            hint = "; the ground truth was given already" if unknown[0].startswith("gt_") and self.truth else ""
            raise ValueError(f"batch: unknown key '{unknown[0]}'{hint}; keys are {', '.join(sorted(known))}")
        arrays = {key: _local(value) for key, value in batch.items() if value is not None}
        if "image_id" not in arrays:
            raise ValueError(f"batch: there is no image_id; it has {', '.join(batch) or 'nothing'}")
        count = len(arrays["image_id"])
        for key, value in arrays.items():
            if len(value) != count:
                raise ValueError(f"batch: {key} has {len(value)} rows, image_id has {count}")
        real = np.flatnonzero(arrays.pop("mask", np.ones(count)) != 0)
        images = arrays.pop("image_id")[real]
        part: dict[str, Any] = {"images": images}
        part |= _rows(arrays, real, _FOUND, "", ("category_id", "score"))
        if self.truth is None:
            part |= _rows(arrays, real, _TRUE, "gt_", ("category_id",))
        self._remember(images)
        self._parts.append(part)

    def merge(self, other: "Evaluator") -> "Evaluator":
        """Adds what another evaluator of the same kind collected, and returns this one.

        Raises:
            ValueError: if it measures something else, or has an image that is here already.
        """
        for name in ("protocol", "iou_type", "box_format", "categories", "only_seen"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise ValueError(f"merge: the evaluators differ in {name}: {mine} and {theirs}")
        for part in other._parts:
            self._remember(part["images"])
            self._parts.append(part)
        return self

    def gather(self) -> "Evaluator":
        """Merges the evaluators of all processes of a JAX job; all of them call it, and each gets the whole."""
        import jax
        from jax.experimental import multihost_utils

        if jax.process_count() == 1:
            return self
        data = np.frombuffer(self.to_bytes(), np.uint8)
        lengths = np.asarray(multihost_utils.process_allgather(np.array(len(data))))
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: len(data)] = data
        everything = np.asarray(multihost_utils.process_allgather(padded))
        for process in range(jax.process_count()):
            if process != jax.process_index():
                self._add_bytes(everything[process, : lengths[process]].tobytes())
        return self

    def to_bytes(self) -> bytes:
        """What was collected, to be sent or stored; `add_bytes` of another evaluator of the same kind takes it in."""
        file = io.BytesIO()
        flat = {}
        for key, value in self._columns().items():
            if isinstance(value, m.Masks):
                bounds, starts = value.of_rows(slice(None))
                flat |= {f"{key}/sizes": value.sizes, f"{key}/lengths": np.diff(starts), f"{key}/bounds": bounds}
            else:
                flat[key] = value
        np.savez(file, allow_pickle=False, **flat)
        return file.getvalue()

    def add_bytes(self, data: bytes) -> "Evaluator":
        """Adds what `to_bytes` of another evaluator of the same kind gave, and returns this one."""
        self._add_bytes(data)
        return self

    def result(self) -> Result:
        """The result of all that was collected.

        Raises:
            ValueError: what `evaluate` would say of it; or that nothing came.
        """
        columns = self._columns()
        images = columns["images"]
        if self.truth is None and not len(images):
            raise ValueError("nothing to evaluate: no batch came")
        order = np.argsort(images, kind="stable")
        found = _by_image(columns, "", order, _FOUND)
        seen: Sequence[Any] | None = None
        if self.truth is not None:
            truth = self.truth
            seen = images.tolist() if self.only_seen else None
        else:
            given = _by_image(columns, "gt_", order, _TRUE)
            given |= {"images": images[order], "categories": self.categories}
            if "segmentation" in given:
                given["sizes"] = _sizes(columns, order)
            truth = formats.load_ground_truth(given, self.iou_type, box_format=self.box_format)
        detections = formats.load_detections(found, truth.catalogue, self.iou_type, box_format=self.box_format)
        return measure(truth, detections, self.protocol, self.iou_type, seen)

    def _remember(self, images: Array) -> None:
        for image in images.tolist():
            if image in self._seen:
                raise ValueError(f"image {image!r} came twice; where images pad a batch, give mask with 0 for them")
            self._seen.add(image)

    def _columns(self) -> dict[str, Any]:
        """All parts one behind the other; ``image`` and ``gt_image`` count images."""
        keys = list(dict.fromkeys(key for part in self._parts for key in part))
        columns: dict[str, Any] = {"images": np.zeros(0, np.int64)}
        before = np.cumsum([0, *(len(part["images"]) for part in self._parts)])
        for key in keys:
            lacking = [part for part in self._parts if key not in part]
            if lacking:
                raise ValueError(f"some batches have '{key.split('/')[0]}' and others have not")
            values = [part[key] for part in self._parts]
            if key in ("image", "gt_image"):
                values = [value + start for value, start in zip(values, before, strict=False)]
            join = m.Masks.join if isinstance(values[0], m.Masks) else np.concatenate
            columns[key] = join(values)
        return columns

    def _add_bytes(self, data: bytes) -> None:
        part: dict[str, Any] = {}
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            for key in file.files:
                name, _, field = key.partition("/")
                if field == "sizes":
                    part[name] = m.Masks.of(*(file[f"{name}/{f}"] for f in ("sizes", "lengths", "bounds")))
                elif not field:
                    part[key] = file[key]
        if len(part["images"]):
            self._remember(part["images"])
            self._parts.append(part)


def _local(value: Any) -> Array:
    """A NumPy array; of a JAX array that is spread over processes, this process's share: each row once, by index."""
    if getattr(value, "is_fully_addressable", True):
        return np.asarray(value)
    shards = sorted(
        (shard for shard in value.addressable_shards if shard.replica_id == 0),
        key=lambda shard: [s.start or 0 for s in shard.index],
    )
    inner = [s for shard in shards for s in shard.index[1:]]
    if any(s != slice(None) for s in inner):
        raise ValueError(f"batch: arrays may be split along their first dim only; this is split as {value.sharding}")
    if not shards:
        return np.zeros((0, *value.shape[1:]), value.dtype)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _rows(
    arrays: Mapping[str, Array], real: Array, keys: Sequence[str], prefix: str, needed: Sequence[str]
) -> dict[str, Any]:
    """Of padded arrays [B, D, ...] the rows that are real, one behind the other, and which image each belongs to."""
    for key in needed:
        if prefix + key not in arrays:
            raise ValueError(f"batch: there is no {prefix}{key}")
    shape = arrays[prefix + needed[0]].shape
    if len(shape) != 2:
        raise ValueError(f"batch: {prefix}{needed[0]} must be [images, objects]; it is {shape}")
    valid = arrays.get(f"{prefix}valid")
    valid = np.ones(shape, bool) if valid is None else np.asarray(valid).astype(bool)
    if valid.shape != shape:
        raise ValueError(f"batch: {prefix}valid is {valid.shape}, {prefix}{needed[0]} is {shape}")
    image, slot = np.nonzero(valid[real])
    part: dict[str, Any] = {f"{prefix}image": image}
    for key in keys:
        value = arrays.get(prefix + key)
        if value is None:
            continue
        if value.shape[:2] != shape:
            raise ValueError(f"batch: {prefix}{key} is {value.shape}, {prefix}{needed[0]} is {shape}")
        rows = value[real[image], slot]
        if key == "segmentation":
            if rows.ndim != 3:
                raise ValueError(f"batch: {prefix}{key} must be [images, objects, height, width]; it is {value.shape}")
            height, width = rows.shape[1:]
            part[f"{prefix}size"] = np.tile(np.array([height, width]), (len(arrays[prefix + needed[0]][real]), 1))
            rows = m.encode(rows.astype(bool)) if len(rows) else m.Masks.empty()
        part[prefix + key] = rows
    return part


def _by_image(columns: Mapping[str, Any], prefix: str, order: Array, keys: Sequence[str]) -> dict[str, Any]:
    """Columns of one side in the order of image ids, within an image as they came."""
    images = columns["images"]
    image = columns.get(f"{prefix}image", np.zeros(0, np.int64))
    place = np.empty(len(images), np.int64)
    place[order] = np.arange(len(order))
    rows = np.argsort(place[image], kind="stable")
    made: dict[str, Any] = {"image_id": images[image[rows]]}
    for key in keys:
        value = columns.get(prefix + key)
        if value is not None:
            made[key] = value.take(rows) if isinstance(value, m.Masks) else value[rows]
    if "category_id" not in made:  # nothing came at all
        made |= {"category_id": np.zeros(0, np.int64), "score": np.zeros(0), "bbox": np.zeros((0, 4))}
    return made


def _sizes(columns: Mapping[str, Any], order: Array) -> Array:
    return columns["gt_size"][order]
