# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A picture with its objects, which augmentations take and give, and how they are moved, cut, put together and covered.

Boxes are xyxy in pixels, N is the number of objects and ignore regions. Nothing here changes a sample in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from pycocotools import mask as rle

from ..window_masks import polygon_crop
from .coco_file import Masks
from .json_values import Unfit
from .segmentation import Segmentation, as_segmentation, check_mask_size

#: x0, y0 and a bool (h, w) piece of a mask.
Piece = tuple[int, int, np.ndarray]
Window = tuple[int, int, int, int]  # x0, y0, x1, y1, the far corner exclusive


@dataclass
class Sample:
    """A picture and what is in it."""

    image: np.ndarray  # (H, W, C) uint8
    boxes: np.ndarray  # (N, 4) float64, the targets
    seen: np.ndarray  # (N, 4) float64, where the picture shows the object: its visible box where it is known
    classes: np.ndarray  # (N,) int64
    ignore: np.ndarray  # (N,) bool, ignore regions
    amodal: np.ndarray  # (N,) bool, whether the target stays whole where something covers the object
    masks: list[Segmentation | None] | None = None  # None: not asked for; ignore regions and some objects have none

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[:2]

    def take(self, index: np.ndarray | Sequence[int]) -> Sample:
        """The picture with the objects of an index or a (N,) bool alone."""
        masks = self.masks
        if masks is not None:
            masks = [masks[i] for i in np.arange(len(self))[index]]
        return replace(self, masks=masks, **{name: getattr(self, name)[index] for name in _COLUMNS})

    def with_objects_of(self, others: Sequence[Sample]) -> Sample:
        """The picture with its own objects, and after them those of others, which stand where they stood there."""
        parts = [self, *others]
        joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS}
        masks = None if self.masks is None else [mask for part in parts for mask in part.masks]
        return replace(self, masks=masks, **joined)


_COLUMNS = ("boxes", "seen", "classes", "ignore", "amodal")


def sample_of(dataset_dict: dict, image: np.ndarray, num_classes: int, masks: Masks = False) -> Sample:
    """The image of a dataset dict with its annotations; ``masks`` says which segmentations are taken.

    A record's ``amodal`` says whether its boxes are those of whole objects, also where they are hidden. Where it says
    nothing, objects with a mask are taken for what is seen of them, others for whole.

    Raises:
        ValueError: naming the file, for a label that is not in 0 .. num_classes - 1, or an object without a sound
            segmentation where masks are asked for.
    """
    annotations, file_name = dataset_dict.get("annotations", []), dataset_dict["file_name"]
    for annotation in annotations:
        if not 0 <= annotation["category_id"] < num_classes:
            raise ValueError(
                f"{file_name}: label {annotation['category_id']} of the box {annotation['bbox']} "
                f"is not in 0 .. {num_classes - 1}"
            )
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    taken = [None] * len(boxes)
    if masks:
        taken = [_mask(a, file_name, image.shape[:2], must=masks is True) for a in annotations]
    return Sample(
        image=image,
        boxes=boxes,
        seen=clipped(_seen(annotations, boxes), (0, 0, image.shape[1], image.shape[0])),
        classes=np.array([a["category_id"] for a in annotations], dtype=np.int64),
        ignore=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
        amodal=np.array([dataset_dict.get("amodal", mask is None) for mask in taken], dtype=bool),
        masks=taken if masks else None,
    )


def _seen(annotations: Sequence[dict], boxes: np.ndarray) -> np.ndarray:
    seen = boxes.copy()
    for i, annotation in enumerate(annotations):
        if "visible_bbox" in annotation:
            x, y, width, height = annotation["visible_bbox"]
            if width > 0 and height > 0:
                seen[i] = x, y, x + width, y + height
    return seen


def _mask(annotation: dict, file_name: str, size: tuple[int, int], must: bool) -> Segmentation | None:
    if annotation.get("iscrowd", 0) or not (must or "segmentation" in annotation):
        return None
    try:
        segmentation = as_segmentation(annotation.get("segmentation"))
        check_mask_size(segmentation, *size)
    except Unfit as error:
        raise ValueError(f"{file_name}: the segmentation of the box {annotation['bbox']} is {error}") from None
    return segmentation


# ---- masks ----


def piece_of(mask: Segmentation, size: tuple[int, int]) -> Piece:
    """The pixels of a mask inside its picture of (height, width)."""
    return _outline(polygon_crop(mask, size) if isinstance(mask, list) else (0, 0, rle.decode(mask).astype(bool)))


def _outline(piece: Piece) -> Piece:
    """The piece without margins; of no size where it has no pixel."""
    x0, y0, pixels = piece
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    if not len(rows):
        return 0, 0, np.zeros((0, 0), dtype=bool)
    inner = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return x0 + int(columns[0]), y0 + int(rows[0]), inner


def mask_of(piece: Piece, size: tuple[int, int]) -> Segmentation:
    """A piece that lies inside a picture of (height, width) as run lengths of it."""
    x0, y0, pixels = piece
    whole = np.zeros(size, dtype=np.uint8, order="F")
    whole[y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]] = pixels
    return rle.encode(whole)


def moved_mask(mask: Segmentation, transform: T.Transform) -> Segmentation | np.ndarray:
    """Polygons corner by corner; run lengths as a bool (H, W) map, resampled to the nearest pixel."""
    if isinstance(mask, dict):
        return transform.apply_segmentation(rle.decode(mask)).astype(bool)
    return [transform.apply_coords(polygon.reshape(-1, 2).copy()).ravel() for polygon in mask]


# ---- boxes ----


def clipped(boxes: np.ndarray, window: Window) -> np.ndarray:
    """Boxes as far as they lie in a window; of no size where they do not."""
    x0, y0, x1, y1 = window
    return np.stack([boxes[:, 0].clip(x0, x1), boxes[:, 1].clip(y0, y1),
                     boxes[:, 2].clip(x0, x1), boxes[:, 3].clip(y0, y1)], 1)  # fmt: skip


def areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)


def pixels_of(box: np.ndarray, size: tuple[int, int]) -> Window:
    """The pixels of a picture of (height, width) that a box touches."""
    x0, y0 = np.floor(box[:2]).astype(int).tolist()
    x1, y1 = np.ceil(box[2:]).astype(int).tolist()
    return max(x0, 0), max(y0, 0), min(x1, size[1]), min(y1, size[0])


# ---- samples ----


def moved(sample: Sample, transform: T.Transform, image: np.ndarray | None = None) -> Sample:
    """Picture and objects as ``transform`` moves them, also beyond the picture's edge; ``image``: already moved."""
    masks = sample.masks
    if masks is not None:
        masks = [mask and _as_mask(moved_mask(mask, transform)) for mask in masks]
    boxes, seen = (transform.apply_box(boxes).reshape(-1, 4) for boxes in (sample.boxes, sample.seen))
    image = transform.apply_image(sample.image) if image is None else image
    return replace(sample, image=image, boxes=boxes, seen=seen, masks=masks)


def inside(sample: Sample) -> Sample:
    """Boxes end at the picture's edge; objects whose box lies outside are dropped."""
    edge = 0, 0, sample.size[1], sample.size[0]
    boxes = clipped(sample.boxes, edge)
    return replace(sample, boxes=boxes, seen=clipped(sample.seen, edge)).take(areas(boxes) > 0)


def _as_mask(mask: Segmentation | np.ndarray) -> Segmentation:
    return rle.encode(np.asfortranarray(mask, dtype=np.uint8)) if isinstance(mask, np.ndarray) else mask


def resized(sample: Sample, height: int, width: int) -> Sample:
    return moved(sample, T.ResizeTransform(*sample.size, height, width))


def cut(sample: Sample, window: Window, least: float) -> Sample:
    """The part of a sample in a window of its picture.

    An object stays if at least the share ``least`` of what was seen of it, and any of it at all, lies in the window; an
    ignore region if any of it does. Boxes end at the window's edge.
    """
    x0, y0, x1, y1 = window
    picture = replace(sample, image=sample.image[y0:y1, x0:x1])
    height, width = picture.size
    seen = clipped(sample.seen, window)
    shares = areas(seen) / np.maximum(areas(sample.seen), 1e-9)
    boxes, masks = clipped(sample.boxes, window), sample.masks and list(sample.masks)
    for i in np.flatnonzero(shares > 0) if masks else ():
        if masks[i] is None:
            continue
        piece = piece_of(masks[i], sample.size)
        inside = _outline(_part(piece, window))
        shares[i] = inside[2].sum() / max(piece[2].sum(), 1)
        if shares[i] < 1:
            boxes[i] = boxes[i] if sample.amodal[i] else _box_within(boxes[i], inside)
            seen[i] = _box_within(seen[i], inside)
        if isinstance(masks[i], list) and _lies_within(masks[i], window):
            masks[i] = _shifted(masks[i], -x0, -y0)
        else:
            masks[i] = mask_of((inside[0] - x0, inside[1] - y0, inside[2]), (height, width))
    shift = np.array([x0, y0, x0, y0])
    result = replace(picture, boxes=boxes - shift, seen=seen - shift, masks=masks)
    return result.take((shares > 0) & (sample.ignore | (shares >= least)) & (areas(boxes) > 0))


def _part(piece: Piece, window: Window) -> Piece:
    """The part of a piece in a window, in the same coordinates."""
    x, y, pixels = piece
    x0, y0 = max(window[0], x), max(window[1], y)
    return x0, y0, pixels[y0 - y : max(window[3] - y, 0), x0 - x : max(window[2] - x, 0)]


def _box_within(box: np.ndarray, piece: Piece) -> np.ndarray:
    """The part of a box that holds the pixels of a piece."""
    x, y, pixels = piece
    outline = x, y, x + pixels.shape[1], y + pixels.shape[0]
    return clipped(box[None], outline)[0]


def _lies_within(polygons: list[np.ndarray], window: Window) -> bool:
    points = np.concatenate(polygons).reshape(-1, 2)
    return bool((points >= window[:2]).all() and (points <= window[2:]).all())


def _shifted(polygons: list[np.ndarray], x: int, y: int) -> list[np.ndarray]:
    return [polygon + np.tile([x, y], len(polygon) // 2) for polygon in polygons]


def overlaid(sample: Sample, parts: Sequence[tuple[Sample, np.ndarray | None, int, int]], least: float) -> Sample:
    """A sample with others laid onto it, each onto those before.

    What they cover of an object is lost to it: its mask, and its box unless that is amodal, become those of what is
    left; it is dropped if less than the share ``least`` of what was seen of it is left. An ignore region stays as it
    is, unless it is covered all over.

    Args:
        parts: sample, bool (h, w) of its pixels that are laid on (None: all), and x and y of its upper left corner.
            All of it lies inside.
    """
    image = sample.image.copy()
    top = np.zeros(sample.size, dtype=np.uint16)  # number of the part that a pixel shows
    layers, moved = [0] * len(sample), []
    for number, (part, shape, x, y) in enumerate(parts, start=1):
        window = slice(y, y + part.size[0]), slice(x, x + part.size[1])
        shape = np.ones(part.size, dtype=bool) if shape is None else shape
        np.copyto(image[window], part.image, where=shape[..., None])
        top[window][shape] = number
        moved.append(_placed(part, x, y, sample.size))
        layers += [number] * len(part)
    return _uncovered(replace(sample.with_objects_of(moved), image=image), np.array(layers, dtype=int), top, least)


def _placed(part: Sample, x: int, y: int, size: tuple[int, int]) -> Sample:
    """The objects of a part in the picture of (height, width) that it is laid onto."""
    shift, edge = np.array([x, y, x, y]), (0, 0, size[1], size[0])
    masks = list(part.masks) if part.masks is not None else None
    for i, mask in enumerate(masks or ()):
        if isinstance(mask, dict):
            left, upper, pixels = piece_of(mask, part.size)
            masks[i] = mask_of((left + x, upper + y, pixels), size)
        elif mask:
            masks[i] = _shifted(mask, x, y)
    boxes, seen = clipped(part.boxes + shift, edge), clipped(part.seen + shift, edge)
    return replace(part, boxes=boxes, seen=seen, masks=masks)


def _uncovered(sample: Sample, layers: np.ndarray, top: np.ndarray, least: float) -> Sample:
    """What is left of objects, each of its layer, where a pixel shows the layer ``top``."""
    boxes, seen, masks = sample.boxes.copy(), sample.seen.copy(), sample.masks and list(sample.masks)
    keep = np.ones(len(sample), dtype=bool)
    for i, layer in enumerate(layers):
        x0, y0, x1, y1 = pixels_of(seen[i], sample.size)
        if x1 <= x0 or y1 <= y0 or not (top[y0:y1, x0:x1] > layer).any():
            continue
        piece = x0, y0, np.ones((y1 - y0, x1 - x0), dtype=bool)
        if masks and masks[i] is not None:
            piece = piece_of(masks[i], sample.size)
        x0, y0, pixels = piece
        bare = top[y0 : y0 + pixels.shape[0], x0 : x0 + pixels.shape[1]] <= layer
        left = _outline((x0, y0, pixels & bare))
        share = left[2].sum() / max(pixels.sum(), 1)
        keep[i] = share > 0 and (sample.ignore[i] or share >= least)
        if not keep[i] or share == 1 or sample.ignore[i]:
            continue
        seen[i] = _box_within(seen[i], left)
        if not sample.amodal[i]:
            boxes[i] = _box_within(boxes[i], left)
        if masks and masks[i] is not None:
            masks[i] = mask_of(left, sample.size)
    return replace(sample, boxes=boxes, seen=seen, masks=masks).take(keep & (areas(boxes) > 0))


def filling(sample: Sample, height: int, width: int, zoom: float, least: float) -> Sample:
    """A random part of a sample that fills a picture of this size.

    Args:
        zoom: 1 shows as much as can be shown; 2 a half of its width and height, and so on.
        least: as in ``cut``.
    """
    high, wide = sample.size
    scale = max(height / high, width / wide) * zoom
    part_high, part_wide = (min(max(round(side / scale), 1), limit) for side, limit in ((height, high), (width, wide)))
    x0, y0 = np.random.randint(wide - part_wide + 1), np.random.randint(high - part_high + 1)
    return resized(cut(sample, (x0, y0, x0 + part_wide, y0 + part_high), least), height, width)
