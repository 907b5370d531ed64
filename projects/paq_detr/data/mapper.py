# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From a dataset dict to what the detector reads, with DETR's augmentation."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from PIL import Image

from ..checks import check_choice
from ..errors import UserError
from ..window_masks import WindowMasks, polygon_crop
from .augment import Augmentations, build_augmentations
from .coco_file import SOME
from .image_file import MAX_PIXELS, allow_pixels, read_picture, size_fault
from .sample import Piece, Sample, moved_mask, sample_of
from .segmentation import Segmentation
from .synthetic_crowd import is_synthetic, read_url


def read_image(file_name: str, image_format: str) -> np.ndarray:
    """An image file, EXIF rotation applied, or an image of the synthetic crowd, as (H, W, C) uint8.

    Deeper pictures become 8-bit by the rule of ``image_file.to_8_bit``.

    Args:
        file_name: a path, or an address that ``SyntheticCrowd.url`` made.
        image_format: "RGB", "BGR" or "L".

    Raises:
        ValueError: naming the file, if it is missing, truncated, too large or no image.
    """
    if is_synthetic(file_name):
        return detection_utils.convert_PIL_to_numpy(Image.fromarray(read_url(file_name)), image_format)
    return read_picture(file_name, image_format)


class ResizeShortSide(T.Augmentation):
    """Resize to a random short side, keeping the aspect ratio; no side becomes longer than ``max_size`` or less than 1.

    Args:
        sizes: the short sides to choose from; 0 leaves the image as it is.
        max_size: limit of the long side.
    """

    def __init__(self, sizes: Sequence[int], max_size: int = sys.maxsize) -> None:
        super().__init__()
        self.sizes, self.max_size = tuple(sizes), max_size

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        size = self.sizes[np.random.randint(len(self.sizes))]
        if size == 0:
            return T.NoOpTransform()
        scale = min(size / min(height, width), self.max_size / max(height, width))
        new_height, new_width = (max(int(side * scale + 0.5), 1) for side in (height, width))
        return T.ResizeTransform(height, width, new_height, new_width)


class DetrDatasetMapper:
    """Reads the image of a dataset dict and augments it with its boxes as DETR does.

    In training, after the steps of ``INPUT.AUGMENT``: horizontal or vertical flip, then a resize to a random short
    side; with ``crop``, half of the images are first resized to another short side and cropped (Carion et al. 2020,
    section 4, "Technical details": the augmentation that gives about 1 AP). At test time: the resize alone.

    The result has ``image`` ((C, H, W) uint8 in ``image_format``), the dict's ``file_name``, ``image_id``, ``height``
    and ``width`` (of the image before the resize) and, in training, ``instances`` with ``gt_boxes`` (pixels, clipped
    to the image), ``gt_classes`` (int64), ``gt_ignore`` (bool: ``iscrowd`` regions) and, with ``masks``, ``gt_masks``
    (``WindowMasks``; ignore regions have empty ones). Objects whose box lies outside the crop are dropped, with masks
    and without.

    Raises (on call):
        ValueError: naming the file, for an unreadable image, a size other than the dict's, a label that is not in
            0 .. num_classes - 1, or an object without a sound segmentation where masks are asked for.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        augmentations: Sequence[T.Augmentation],
        crop: Sequence[T.Augmentation] = (),
        image_format: str,
        num_classes: int,
        max_pixels: int = MAX_PIXELS,
        masks: bool = False,
        with_instances: bool | None = None,
        before: Augmentations | None = None,
    ) -> None:
        """
        Args:
            augmentations: applied to every image.
            crop: applied before them to half of the training images; empty for none.
            image_format: "RGB", "BGR" or "L".
            num_classes: K.
            max_pixels: larger pictures are refused; 0: none is.
            masks: make ``gt_masks`` of the annotations' ``segmentation``.
            with_instances: make ``instances``; None: in training.
            before: steps of training before ``crop`` and ``augmentations`` (``INPUT.AUGMENT``).
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.crop = T.AugmentationList([*crop, *augmentations]) if crop else None
        self.image_format = image_format
        self.num_classes, self.max_pixels, self.masks = num_classes, max_pixels, masks
        self.with_instances = is_train if with_instances is None else with_instances
        self.before = before if is_train and before is not None else Augmentations([])
        self.others: Sequence[dict] | None = None  # dataset dicts that mixing steps draw from; the loader sets it

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        config = {
            "is_train": is_train,
            "image_format": cfg.INPUT.FORMAT,
            "num_classes": len(cfg.MODEL.DETR.CLASS_NAMES),
            "max_pixels": cfg.INPUT.MAX_PIXELS,
            "masks": cfg.MODEL.DETR.MASK.ENABLED,
        }
        if not is_train:
            return {**config, "augmentations": [ResizeShortSide([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST)]}
        augmentations = _flips(cfg.INPUT.RANDOM_FLIP)
        if "large_scale_jitter" not in cfg.INPUT.AUGMENT:
            augmentations.append(ResizeShortSide(_train_sizes(cfg), cfg.INPUT.MAX_SIZE_TRAIN))
        crop = []
        if cfg.INPUT.CROP.ENABLED:
            crop = [ResizeShortSide(cfg.INPUT.CROP.RESIZE), T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)]
        return {**config, "augmentations": augmentations, "crop": crop, "before": build_augmentations(cfg)}

    def without_mixing(self) -> DetrDatasetMapper:
        """This mapper without the steps that put several pictures together."""
        other = copy.copy(self)
        other.before = self.before.without_mixing()
        return other

    def __call__(self, dataset_dict: dict) -> dict:
        result = {key: dataset_dict[key] for key in ("file_name", "image_id", "height", "width") if key in dataset_dict}
        annotated = self.with_instances and "annotations" in dataset_dict
        sample = self._read(dataset_dict if annotated else {**dataset_dict, "annotations": []})
        result["height"], result["width"] = sample.size
        sample = self.before(sample, self._another)
        augmentations = self.augmentations
        if self.is_train and self.crop is not None and np.random.rand() < 0.5:
            augmentations = self.crop
        augmented = T.AugInput(sample.image)
        transforms = augmentations(augmented)
        result["image"] = torch.from_numpy(augmented.image.transpose(2, 0, 1).copy())
        if annotated:
            sample = sample if self.masks else replace(sample, masks=None)
            result["instances"] = transformed_instances(sample, transforms, augmented.image.shape[:2])
        return result

    def _read(self, dataset_dict: dict) -> Sample:
        allow_pixels(self.max_pixels)  # here, as a loader's process need not be a fork of this one
        image = read_image(dataset_dict["file_name"], self.image_format)
        _check_size(dataset_dict, image)
        return sample_of(dataset_dict, image, self.num_classes, self.masks or (self.before.mixes and SOME))

    def _another(self) -> Sample:
        """A random sample of the dataset, as it was read."""
        if self.others is None:
            raise UserError("INPUT.AUGMENT puts several pictures together, which this loader gives no access to")
        return self._read(self.others[np.random.randint(len(self.others))])


def transformed_instances(sample: Sample, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
    """The objects of a sample in the transformed image of (height, width), those with an area in it.

    Polygons are drawn anew, run lengths are resampled to the nearest pixel; masks of ignore regions are empty.
    """

    def crop(mask: Segmentation | None) -> Piece:
        if mask is None:
            return 0, 0, np.zeros((0, 0), dtype=bool)
        mask = moved_mask(mask, transforms)
        return polygon_crop(mask, size) if isinstance(mask, list) else (0, 0, mask)

    instances = Instances(size)
    instances.gt_boxes = Boxes(torch.from_numpy(transforms.apply_box(sample.boxes)).to(torch.float32))
    instances.gt_boxes.clip(size)
    instances.gt_classes = torch.from_numpy(sample.classes)
    instances.gt_ignore = torch.from_numpy(sample.ignore)
    if sample.masks is not None:
        instances.gt_masks = WindowMasks.of_crops([crop(mask) for mask in sample.masks], size)
    return instances[instances.gt_boxes.nonempty()]


def _train_sizes(cfg: CfgNode) -> Sequence[int]:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    sizes = (sizes,) if isinstance(sizes, int) else sizes
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        return range(sizes[0], sizes[-1] + 1)
    return sizes


def _flips(mode: str) -> list[T.Augmentation]:
    check_choice("INPUT.RANDOM_FLIP", mode, ("horizontal", "vertical", "none"))
    return [] if mode == "none" else [T.RandomFlip(horizontal=mode == "horizontal", vertical=mode == "vertical")]


def _check_size(expected: dict, image: np.ndarray) -> None:
    height, width = image.shape[:2]
    wanted = expected.get("width", width), expected.get("height", height)
    fault = size_fault(expected["file_name"], (width, height), wanted)
    if fault:
        raise ValueError(fault)
