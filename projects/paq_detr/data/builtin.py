# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Datasets by configuration alone: registers what ``cfg.DATASETS`` names and checks it against the model."""

from __future__ import annotations

import copy
import difflib
import logging
import os
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from ..checks import check_choice, expanded_path
from ..errors import UserError
from .coco_file import SOME
from .coco_json import CocoDataset, register_coco_json, reorder_classes
from .crowdhuman import register_crowdhuman
from .figures import CLASSES
from .formats.find import find_source
from .formats.open import register_source
from .formats.source import Source
from .image_file import allow_pixels
from .synthetic_crowd import SyntheticCrowd

logger = logging.getLogger(__name__)


def register_datasets(cfg: CfgNode, test_only: bool = False) -> None:
    """Register the datasets of ``cfg.DATASETS`` and check them against the model. Call it before any loader is built.

    Registers every entry of ``DATASETS.FILES``, ``DATASETS.COCO_JSON`` and ``DATASETS.CROWDHUMAN``, and the two splits
    of the synthetic crowd, the latter anew with the present parameters. Fills an empty ``cfg.MODEL.DETR.CLASS_NAMES``,
    also in a frozen ``cfg``, from the training datasets (from the test datasets where there are no training datasets).
    Warns of images that hold more objects than the model has queries or detections; datasets that other code
    registered are not counted.

    Args:
        test_only: for an evaluation, which needs no training data: nothing but ``DATASETS.TEST`` is read.

    Raises:
        FileNotFoundError, ValueError: a dataset is missing, unknown or broken, or the class lists differ.
    """
    allow_pixels(cfg.INPUT.MAX_PIXELS)
    keys = ("TEST",) if test_only else ("TRAIN", "TEST")

    def read(name: Any) -> bool:
        return not test_only or name in cfg.DATASETS.TEST

    masks = cfg.MODEL.DETR.MASK.ENABLED or ("copy_paste" in cfg.INPUT.AUGMENT and SOME)
    for entry in cfg.DATASETS.FILES:
        if not isinstance(entry, dict) or read(entry.get("name")):
            name, source = source_of(entry)
            register_source(source, name, masks)
    for entry in cfg.DATASETS.COCO_JSON:
        parts = _checked_entry("COCO_JSON", entry, ("name", "annotation json", "image folder"))
        if read(parts[0]):
            register_coco_json(*parts, masks)
    for entry in cfg.DATASETS.CROWDHUMAN:
        parts = _checked_entry("CROWDHUMAN", entry, ("name", "annotation odgt", "image folder", "box"))
        if read(parts[0]):
            register_crowdhuman(*parts)
    register_synthetic_crowd(cfg.DATASETS.SYNTHETIC_CROWD)
    for key in keys:
        for name in cfg.DATASETS[key]:
            _check_known(cfg, name, f"DATASETS.{key}")
            if cfg.MODEL.DETR.MASK.ENABLED and not getattr(DatasetCatalog[name], "masks", True):
                raise ValueError(f"the dataset {name!r} has no segmentations, which MODEL.DETR.MASK.ENABLED needs")
    for name in () if test_only else cfg.DATASETS.TRAIN:
        if not MetadataCatalog.get(name).get("annotated", True):
            file = MetadataCatalog.get(name).json_file
            raise ValueError(f"{file}: the list 'annotations' is missing, which the training dataset {name!r} needs")
    names = list(dict.fromkeys(name for key in keys for name in cfg.DATASETS[key]))
    _settle_class_names(cfg, names)
    for name in names:
        if not getattr(DatasetCatalog[name], "objects_per_image", np.ones(1)).any():
            logger.warning("no image of %s holds an object: there are only negatives and ignore regions", name)
        for key, limit in _limits(cfg, name).items():
            _warn_of_full_images(name, key, limit)


def source_of(entry: Any) -> tuple[str, Source]:
    """The name and the source that an entry of ``DATASETS.FILES`` means.

    Raises:
        UserError: a key is missing, unknown or no text, or the path leads to no such dataset.
    """
    known = ("name", "path", "split", "images", "classes", "box", "format")
    if not isinstance(entry, dict) or not {"name", "path"} <= entry.keys() <= set(known):
        keys = f"{{name: ..., path: ...}}, perhaps with {', '.join(known[2:])}"
        raise UserError(f"DATASETS.FILES wants entries {keys}, got {entry!r}")
    texts = {}
    for key, value in entry.items():
        if not isinstance(value, str) or (key in ("name", "path") and not value):
            shown = "null" if value is None else repr(value)
            raise UserError(f"DATASETS.FILES: {key} of {dict(entry)} is {shown}, must be a text (put it in quotes)")
        is_path = value and key in ("path", "images", "classes")
        texts[key] = expanded_path(f"DATASETS.FILES: {key}", value) if is_path else value
    name = texts.pop("name")
    try:
        source = find_source(**texts)
        logger.info("dataset %r: %s", name, source)
    except ValueError as error:
        raise UserError(f"dataset {name!r}: {error}") from error
    return name, source


def _checked_entry(key: str, entry: Any, parts: Sequence[str]) -> list[str]:
    """An entry of ``DATASETS.COCO_JSON`` or ``CROWDHUMAN`` as texts, "~" and "$NAME" in its paths replaced."""
    if not isinstance(entry, (list, tuple)) or len(entry) != len(parts):
        raise ValueError(f"DATASETS.{key} wants [{', '.join(parts)}] entries, got {entry!r}")
    texts = []
    for part, value in zip(parts, entry):
        if type(value) is int and part not in ("name", "box") and os.path.exists(str(value)):
            value = str(value)  # 20240101, which yaml reads as a number
        if not isinstance(value, str):
            shown = "null" if value is None else repr(value)
            raise ValueError(
                f"DATASETS.{key}: the {part} of {list(entry)} is {shown}, must be a text (put it in quotes)"
            )
        if part.startswith("annotation") and not value:
            raise ValueError(f"DATASETS.{key}: the {part} of {list(entry)} is empty")
        texts.append(value if part in ("name", "box") else expanded_path(f"DATASETS.{key}: the {part}", value))
    return texts


def register_synthetic_crowd(crowd_cfg: CfgNode) -> None:
    """Register "synthetic_crowd_train" and "synthetic_crowd_val" with the parameters of ``DATASETS.SYNTHETIC_CROWD``.

    Parameters of an earlier call are replaced.
    """
    check_choice("DATASETS.SYNTHETIC_CROWD.BOX", crowd_cfg.BOX, ("full", "visible"))
    crowd = SyntheticCrowd(
        seed=crowd_cfg.SEED,
        height=crowd_cfg.HEIGHT,
        width=crowd_cfg.WIDTH,
        density=float(crowd_cfg.DENSITY),
        occlusion=float(crowd_cfg.OCCLUSION),
        ignore=float(crowd_cfg.IGNORE),
    )
    for split, size in (("train", crowd_cfg.NUM_TRAIN), ("val", crowd_cfg.NUM_VAL)):
        name = f"synthetic_crowd_{split}"
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        DatasetCatalog.register(name, SyntheticDataset(crowd, split, size, crowd_cfg.BOX))
        MetadataCatalog.get(name).set(thing_classes=list(CLASSES), evaluator_type="coco")


class SyntheticDataset:
    """One split of the synthetic crowd; calling it gives Detectron2's dataset dicts.

    Besides Detectron2's keys, an annotation has ``full_bbox`` (which may reach outside the image) and ``visible_bbox``
    (XYWH), and ``visibility``. Ignore regions are persons with ``iscrowd`` 1. ``file_name`` is an address from which
    ``read_image`` draws the image.
    """

    masks = False  # it has none

    def __init__(self, crowd: SyntheticCrowd, split: str, size: int, box: str) -> None:
        self.crowd, self.split, self.size, self.box = crowd, split, size, box

    def __call__(self) -> list[dict]:
        return copy.deepcopy(self._records)

    @property
    def objects_per_image(self) -> np.ndarray:
        """(images,) int64 number of objects, ignore regions not counted."""
        return np.array([sum(not a["iscrowd"] for a in record["annotations"]) for record in self._records])

    @cached_property
    def _records(self) -> list[dict]:
        return [self._record(index) for index in range(self.size)]

    def _record(self, index: int) -> dict:
        objects, regions = self.crowd.label(self.split, index)
        annotations = []
        for item in objects:
            full, visible = _xywh(item.full_box), _xywh(item.visible_box)
            annotations.append(
                {
                    # COCO's boxes end at the image's edge, and so do predictions.
                    "bbox": self._in_image(item.full_box if self.box == "full" else item.visible_box),
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": item.category,
                    "iscrowd": 0,
                    "full_bbox": full,
                    "visible_bbox": visible,
                    "visibility": item.visibility,
                }
            )
        person = CLASSES.index("person")
        annotations += [
            {"bbox": self._in_image(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": person, "iscrowd": 1}
            for box in regions
        ]
        return {
            "file_name": self.crowd.url(self.split, index),
            "image_id": index,
            "height": self.crowd.height,
            "width": self.crowd.width,
            "amodal": self.box == "full",
            "annotations": annotations,
        }

    def _in_image(self, box: tuple[int, int, int, int]) -> list[float]:
        x0, y0, x1, y1 = box
        width, height = self.crowd.width, self.crowd.height
        return _xywh((max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)))


def _xywh(box: tuple[int, int, int, int]) -> list[float]:
    x0, y0, x1, y1 = box
    return [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]


def _check_known(cfg: CfgNode, name: str, key: str) -> None:
    if name in DatasetCatalog:
        return
    entries = [entry[0] for entry in (*cfg.DATASETS.COCO_JSON, *cfg.DATASETS.CROWDHUMAN)]
    entries += [str(entry.get("name")) for entry in cfg.DATASETS.FILES]
    # Those of the config first, whether they were read or not; Detectron2 registers dozens of its own.
    close = difflib.get_close_matches(name, entries) or difflib.get_close_matches(name, DatasetCatalog.list())
    hint = "DATASETS.FILES registers more"
    if close:
        hint = f"did you mean {' or '.join(map(repr, close))}?"
    raise ValueError(f"{key} names the dataset {name!r}, which is not registered ({hint})")


def _settle_class_names(cfg: CfgNode, names: Sequence[str]) -> None:
    """Fill ``MODEL.DETR.CLASS_NAMES`` if it is empty, and see that the datasets ``names`` have just these classes.

    A dataset that numbers the same classes otherwise is renumbered, also one of a format that lists no classes and
    happens to hold only some of them.
    """
    if not names:
        return
    source, classes = "MODEL.DETR.CLASS_NAMES", list(cfg.MODEL.DETR.CLASS_NAMES)
    if not classes:
        source, classes = f"dataset {names[0]!r}", _classes(names[0])
    for name in names:
        if _classes(name) == classes:
            continue
        if isinstance(DatasetCatalog[name], CocoDataset) and DatasetCatalog[name].can_have(classes):
            reorder_classes(name, classes)
            continue
        hint = ""
        if getattr(getattr(DatasetCatalog[name], "source", None), "open_classes", False):
            hint = "; where files list no classes, the key classes of the entry names a file that does"
        raise ValueError(
            f"the classes of dataset {name!r}, {_short(_classes(name))}, are not those of {source}, "
            f"{_short(classes)}{hint}"
        )
    frozen = cfg.is_frozen()
    cfg.defrost()
    cfg.MODEL.DETR.CLASS_NAMES = classes
    if frozen:
        cfg.freeze()


def _classes(name: str) -> list[str]:
    classes = MetadataCatalog.get(name).get("thing_classes")
    if not classes:
        raise ValueError(f"the metadata of dataset {name!r} has no thing_classes")
    return list(classes)


def _short(classes: list[str]) -> str:
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    return f"{len(classes)} ({shown})"


def _limits(cfg: CfgNode, name: str) -> dict[str, int]:
    """By key, how many objects of an image of a dataset can be found, in training and in evaluation."""
    Q, limits = cfg.MODEL.DETR.QUERIES, {}
    if name in cfg.DATASETS.TRAIN or not Q.NUM_TEST:
        limits["MODEL.DETR.QUERIES.NUM"] = Q.NUM
    if name in cfg.DATASETS.TEST and Q.NUM_TEST:
        limits["MODEL.DETR.QUERIES.NUM_TEST"] = Q.NUM_TEST
    return {**limits, "TEST.DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE}


def _warn_of_full_images(name: str, key: str, limit: int) -> None:
    counts = getattr(DatasetCatalog[name], "objects_per_image", None)
    if counts is None or len(counts) == 0 or counts.max() <= limit:
        return
    logger.warning(
        "%d of %d images of %s hold more objects than %s = %d; the largest count is %d, the 99th percentile %d",
        (counts > limit).sum(), len(counts), name, key, limit, counts.max(), np.percentile(counts, 99),
    )  # fmt: skip
