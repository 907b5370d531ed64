# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Scenes of an evaluation that has just run, and of files."""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence

import numpy as np

from ...data.coco_file import CocoFile, check_coco, read_coco
from ...data.formats.find import find_source
from ...data.json_columns import boxes_xyxy_of, numbers_of
from ...data.json_file import open_file, parse_json, value_of
from ...data.json_values import Unfit, as_id, shown
from ...data.pictures import local_name
from ..coco_truth import GroundTruth
from ..crowd.doubts import Noted
from ..crowd.files import Annotations, open_detections
from ..records import Detections
from .scene import Found, Objects, Scene


def scene_of_evaluation(truth: GroundTruth, records: dict[Hashable, Detections]) -> Scene:
    """Of a dataset and its detections by image id, boxes alone."""
    label = {category: k for k, category in enumerate(truth.category_ids)}
    rows = truth.coco.dataset["annotations"]
    objects = _objects([(r["image_id"], label[r["category_id"]], r["bbox"], r["area"], r["iscrowd"]) for r in rows])
    parts = [(truth.image_index[image], record) for image, record in records.items() if len(record)]
    found = Found(
        _stacked([record.boxes_xyxy for _, record in parts], (0, 4)),
        _stacked([record.scores for _, record in parts], (0,)),
        _stacked([record.classes for _, record in parts], (0,), np.int64),
        np.repeat([place for place, _ in parts], [len(record) for _, record in parts]).astype(np.int64),
    )
    names = [_name(file, image) for file, image in zip(truth.files, truth.image_ids)]
    return Scene(objects, found, truth.class_names, names, truth.files, truth.sizes)


def scene_of_files(gt: str, dt: str, images: str | None = None, box: str = "full", split: str = "") -> Scene:
    """Of saved detections.

    Args:
        gt: CrowdHuman's odgt, COCO json, or data of any other format.
        dt: COCO results, as an evaluation writes them; of an odgt also CrowdHuman's json lines.
        images: folder of the pictures; None: the page is drawn without them.
        box: of an odgt, "full", "visible" or "head".
        split: which of the splits of ``gt``, where it has several.

    Raises:
        ValueError: a file is missing or broken, a detected image or class is unknown, or boxes or scores hardly mean
            what they seem to.
    """
    if gt.endswith(".odgt"):
        return _of_odgt(gt, dt, images, box)
    # An evaluation numbers images and classes of other formats as they are read.
    content = read_coco(gt) if gt.endswith(".json") else check_coco(find_source(gt, split).content().coco, gt)
    return _of_coco(content, gt, dt, images)


def _of_coco(content: CocoFile, gt: str, dt: str, images: str | None) -> Scene:
    if not content.annotated:
        raise ValueError(f"{gt}: the list 'annotations' is missing")
    places = {as_id(image.id): place for place, image in enumerate(content.images)}
    label = {category: k for k, category in enumerate(content.categories)}
    rows = [
        (
            places[as_id(a.image_id)],
            label[a.category_id],
            a.bbox,
            a.area if a.area else a.bbox[2] * a.bbox[3],
            a.iscrowd,
        )
        for a in content.annotations
        if min(a.bbox[2:]) > 0
    ]
    sizes = [(image.height, image.width) for image in content.images]
    with open_file(dt) as file:
        results = parse_json(file.read(), dt)
    if not isinstance(results, list):
        raise ValueError(f"{dt} holds no COCO results list, [{{'image_id', 'category_id', 'bbox', 'score'}}, ...]")
    image = _looked_up(results, "image_id", places, dt, gt)
    classes = _looked_up(results, "category_id", label, dt, gt)
    found = Found(boxes_xyxy_of(results, "bbox", dt), numbers_of(results, "score", dt), classes, image)
    scene = Scene(
        _objects(rows),
        found,
        list(content.categories.values()),
        [_name(image.file_name, image.id) for image in content.images],
        [local_name(images, image.file_name) for image in content.images] if images else (),
        sizes,
    )
    _refuse_odd_detections(scene, dt, "bbox")
    return scene


def _of_odgt(gt: str, dt: str, images: str | None, box: str) -> Scene:
    annotations, noted = Annotations(gt, box, images), Noted()
    detections = open_detections(dt, annotations)
    parts = [image for piece in detections.pieces(1) for image in detections.images(piece, noted)]
    if noted.unknown:
        raise ValueError(f"{noted.unknown} images of {dt} are not annotated in {gt}; the first: {noted.first_unknown}")
    rows = []
    for place, truth in enumerate(annotations.truths):
        xywh = np.concatenate([truth.boxes_xyxy[:, :2], truth.boxes_xyxy[:, 2:] - truth.boxes_xyxy[:, :2]], 1)
        rows += [(place, 0, b, b[2] * b[3], tag != 1) for b, tag in zip(xywh.tolist(), truth.tags.tolist())]
    found = Found(
        _stacked([part.boxes_xyxy for part in parts], (0, 4)),
        _stacked([part.scores for part in parts], (0,)),
        np.zeros(sum(len(part.scores) for part in parts), dtype=np.int64),
        np.repeat([part.place for part in parts], [len(part.scores) for part in parts]).astype(np.int64),
    )
    sizes = [size or (None, None) for size in annotations.sizes]
    files = [os.path.join(images, f"{key}.jpg") for key in annotations.ids] if images else ()
    scene = Scene(_objects(rows), found, ["person"], [str(key) for key in annotations.ids], files, sizes)
    _refuse_odd_detections(scene, dt, detections.key)
    return scene


def _refuse_odd_detections(scene: Scene, dt: str, key: str) -> None:
    noted, found = Noted(), scene.found
    edges = np.searchsorted(found.image, np.arange(len(scene.image_names) + 1))
    for place, (start, stop) in enumerate(zip(edges[:-1], edges[1:])):
        size = scene.sizes[place]
        noted.note(place, found.boxes_xyxy[start:stop], found.scores[start:stop], None if None in size else size)
    doubt = noted.sentence(key, scene.image_names)
    if doubt:
        raise ValueError(f"{dt}: {doubt}")


def _looked_up(results: list[dict], key: str, known: dict[Hashable, int], dt: str, gt: str) -> np.ndarray:
    """(D,) the places of the values under ``key``."""
    places = np.zeros(len(results), dtype=np.int64)
    for number, row in enumerate(results, start=1):
        where = f"{dt}, result {number}"
        value = value_of(row, key, where)
        try:
            places[number - 1] = known[as_id(value)]
        except (KeyError, Unfit):
            raise ValueError(f"{where}: the {key} {shown(value)} is not in {gt}") from None
    return places


def _objects(rows: Sequence[tuple[int, int, Sequence[float], float, int]]) -> Objects:
    """Of (image, class, xywh box, area, ignored)."""
    image, classes, boxes, areas, ignored = zip(*rows) if rows else ((), (), (), (), ())
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    numbers = (np.array(column, dtype=np.int64) for column in (classes, image))
    return Objects(boxes, *numbers, np.array(areas, dtype=np.float64), np.array(ignored, dtype=bool))


def _stacked(parts: Sequence[np.ndarray], empty: tuple[int, ...], dtype: type = np.float64) -> np.ndarray:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(empty, dtype=dtype)


def _name(file: str, image_id: Hashable) -> str:
    """What an image is called: its file without the folder, which is nobody else's business."""
    return os.path.basename(file) if file and "://" not in file else f"image {image_id}"
