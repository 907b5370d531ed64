# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Any pipeline of the library Albumentations 2 (Buslaev et al. 2020) as a step of ``INPUT.AUGMENT``."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import yaml
from detectron2.config import CfgNode

from ..checks import expanded_path
from ..errors import UserError
from .augment import AUGMENTATIONS
from .sample import Sample, areas, clipped, inside, mask_of, piece_of

_KEY = "INPUT.ALBUMENTATIONS"
_LAYER = 255  # masks that a map of bytes tells apart


class Albumented:
    """A pipeline, applied to a sample; what it moves out of the picture is dropped."""

    def __init__(self, transforms: list, image_format: str) -> None:
        """
        Args:
            transforms: Albumentations' transforms.
            image_format: "RGB", "BGR" or "L".
        """
        import albumentations as A

        # The library's own limits would drop small and cut objects silently.
        boxes = A.BboxParams("pascal_voc", label_fields=["owners", "kinds"], min_area=0, min_visibility=0, clip=True)
        self.pipeline = A.Compose(transforms, bbox_params=boxes)
        self.step = -1 if image_format == "BGR" else 1

    def __call__(self, sample: Sample) -> Sample:
        sample = inside(sample)  # the library refuses boxes without an area
        seen = np.where((areas(sample.seen) > 0)[:, None], sample.seen, sample.boxes)
        layers, places = _layers(sample)
        self.pipeline.set_random_seed(int(np.random.randint(2**31)))
        result = self.pipeline(
            image=np.ascontiguousarray(sample.image[..., :: self.step]),
            bboxes=np.concatenate([sample.boxes, seen]).astype(np.float32),
            owners=np.tile(np.arange(len(sample)), 2).tolist(),
            kinds=np.repeat([0, 1], len(sample)).tolist(),
            **({"masks": layers} if layers else {}),
        )
        image = result["image"].reshape(*result["image"].shape[:2], -1)[..., :: self.step]
        return self._followed(replace(sample, image=image), result, places)

    def _followed(self, sample: Sample, result: dict[str, Any], places: list[tuple[int, int] | None]) -> Sample:
        """The objects where the pipeline has put their boxes and masks."""
        found = np.zeros((2, len(sample), 4))  # boxes, seen
        for owner, kind, box in zip(result["owners"], result["kinds"], result["bboxes"], strict=True):
            found[int(kind), int(owner)] = box[:4]
        boxes, seen = found
        masks = None
        if sample.masks is not None:
            masks = [place and mask_of((0, 0, result["masks"][place[0]] == place[1]), sample.size) for place in places]
            boxes = _tightened(boxes, masks, sample)
        return inside(replace(sample, boxes=boxes, seen=seen, masks=masks))


def _layers(sample: Sample) -> tuple[list[np.ndarray], list[tuple[int, int] | None]]:
    """Masks as few maps of bytes, one number an object, in each of which none overlaps another.

    Returns:
        (H, W) uint8 maps, and for each object its map and number there; None where it has no mask.
    """
    layers: list[np.ndarray] = []
    counts: list[int] = []
    places: list[tuple[int, int] | None] = []
    for mask in sample.masks or ():
        if mask is None:
            places.append(None)
            continue
        x, y, pixels = piece_of(mask, sample.size)
        window = slice(y, y + pixels.shape[0]), slice(x, x + pixels.shape[1])
        free = (n for n, layer in enumerate(layers) if counts[n] < _LAYER and not layer[window][pixels].any())
        number = next(free, len(layers))
        if number == len(layers):
            layers.append(np.zeros(sample.size, dtype=np.uint8))
            counts.append(0)
        counts[number] += 1
        layers[number][window][pixels] = counts[number]
        places.append((number, counts[number]))
    return layers, places


def _tightened(boxes: np.ndarray, masks: list, sample: Sample) -> np.ndarray:
    """Boxes of what is seen are cut to their masks: a turned box is larger than the object in it."""
    boxes = boxes.copy()
    for i, mask in enumerate(masks):
        if mask is not None and not sample.amodal[i]:
            x, y, pixels = piece_of(mask, sample.size)
            if pixels.size:
                boxes[i] = clipped(boxes[i : i + 1], (x, y, x + pixels.shape[1], y + pixels.shape[0]))[0]
    return boxes


@AUGMENTATIONS.register("albumentations")
def build_albumented(cfg: CfgNode) -> Albumented:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version
    try:
        import albumentations as A
    except ImportError as error:
        raise UserError(
            "INPUT.AUGMENT names albumentations, which is not installed: pip install 'paq_detr[augment]'"
        ) from error
    if int(A.__version__.split(".")[0]) < 2:
        raise UserError(f"INPUT.AUGMENT albumentations needs its version 2, found {A.__version__}")
    entries = list(cfg.INPUT.ALBUMENTATIONS)
    if not entries:
        raise UserError(f"INPUT.AUGMENT names albumentations, but {_KEY} is empty: list its transforms there")
    where = _KEY
    if len(entries) == 1 and isinstance(entries[0], str) and entries[0].endswith((".yaml", ".yml", ".json")):
        where = f"{_KEY} {entries[0]}"
        entries = _read(entries[0])
    return Albumented([_transform(entry, where) for entry in entries], cfg.INPUT.FORMAT)


def _read(name: str) -> list:
    """The list in a yaml file, or the transforms of what ``albumentations.save`` wrote."""
    path = expanded_path(_KEY, name)
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)  # json, too
    except OSError as error:
        raise UserError(f"{_KEY} {name} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{_KEY} {name} is no yaml: {' '.join(str(error).split())}") from error
    if isinstance(content, dict) and "transform" in content:
        saved = content["transform"]
        if "bbox_params" in saved:  # a Compose, which needs parameters of boxes of its own
            saved = {"__class_fullname__": "Sequential", "p": saved["p"], "transforms": saved["transforms"]}
        content = [saved]
    if not isinstance(content, list) or not content:
        raise UserError(f"{_KEY} {name} must hold a list of transforms, or what albumentations.save writes")
    return content


def _transform(entry: Any, where: str) -> Any:
    """A transform from its name, from {name: arguments}, or from the library's own serialised form."""
    import albumentations as A

    if isinstance(entry, dict) and "__class_fullname__" in entry:
        return _made(where, entry["__class_fullname__"], lambda: A.from_dict({"transform": entry}))
    name, arguments = (entry, {}) if isinstance(entry, str) else _only_item(entry, where)
    kind = getattr(A, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, (A.BasicTransform, A.BaseCompose))):
        raise UserError(f"{where}: Albumentations has no transform {name!r}")
    if arguments is not None and not isinstance(arguments, dict):
        raise UserError(f"{where}: the arguments of {name} are {arguments!r}, must be {{argument: value}}")
    arguments = dict(arguments or {})
    if isinstance(arguments.get("transforms"), list):  # of OneOf and its kin
        arguments["transforms"] = [_transform(inner, where) for inner in arguments["transforms"]]
    return _made(where, name, lambda: kind(**arguments))


def _only_item(entry: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(entry, dict) or len(entry) != 1:
        raise UserError(f"{where}: {entry!r} must be a transform's name or {{name: {{argument: value}}}}")
    return next(iter(entry.items()))


def _made(where: str, name: str, make: Callable[[], Any]) -> Any:
    """What ``make`` builds; whatever the library objects to is one sentence."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # an unknown argument is no more to it
        try:
            return make()
        except Exception as error:  # pydantic's, the library's own, a warning
            text = re.sub(r"\[type=.*?\]|For further information visit \S+", "", str(error))
            text = " ".join(text.split())
            raise UserError(f"{where}: {name} cannot be made of these arguments: {text}") from error
