# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From a dataset dict to what the detector reads, with DETR's augmentation."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image
from pycocotools import mask as rle

from ..checks import check_choice
from ..window_masks import WindowMasks, polygon_crop
from .image_file import MAX_PIXELS, allow_pixels, read_picture, size_fault
from .json_values import Unfit
from .segmentation import as_segmentation, check_mask_size
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

    In training: horizontal or vertical flip, then a resize to a random short side; with ``crop``, half of the images
    are first resized to another short side and cropped (Carion et al. 2020, section 4, "Technical details": the
    augmentation that gives about 1 AP). At test time: the resize alone.

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
        """
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.crop = T.AugmentationList([*crop, *augmentations]) if crop else None
        self.image_format = image_format
        self.num_classes, self.max_pixels, self.masks = num_classes, max_pixels, masks
        self.with_instances = is_train if with_instances is None else with_instances

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
        augmentations.append(ResizeShortSide(_train_sizes(cfg), cfg.INPUT.MAX_SIZE_TRAIN))
        crop = []
        if cfg.INPUT.CROP.ENABLED:
            crop = [ResizeShortSide(cfg.INPUT.CROP.RESIZE), T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE)]
        return {**config, "augmentations": augmentations, "crop": crop}

    def __call__(self, dataset_dict: dict) -> dict:
        result = {key: dataset_dict[key] for key in ("file_name", "image_id", "height", "width") if key in dataset_dict}
        allow_pixels(self.max_pixels)  # here, as a loader's process need not be a fork of this one
        image = read_image(dataset_dict["file_name"], self.image_format)
        _check_size(result, image)
        result.update(height=image.shape[0], width=image.shape[1])
        augmentations = self.augmentations
        if self.is_train and self.crop is not None and np.random.rand() < 0.5:
            augmentations = self.crop
        augmented = T.AugInput(image)
        transforms = augmentations(augmented)
        result["image"] = torch.from_numpy(augmented.image.transpose(2, 0, 1).copy())
        if self.with_instances and "annotations" in dataset_dict:
            size = augmented.image.shape[:2]
            instances = self._instances(dataset_dict, transforms, size)
            if self.masks:
                instances.gt_masks = transformed_masks(dataset_dict, image.shape[:2], transforms, size)
            result["instances"] = instances[instances.gt_boxes.nonempty()]
        return result

    def _instances(self, dataset_dict: dict, transforms: T.TransformList, size: tuple[int, int]) -> Instances:
        annotations = dataset_dict["annotations"]
        for annotation in annotations:
            if not 0 <= annotation["category_id"] < self.num_classes:
                raise ValueError(
                    f"{dataset_dict['file_name']}: label {annotation['category_id']} of the box {annotation['bbox']} "
                    f"is not in 0 .. {self.num_classes - 1}"
                )
        boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in annotations]
        boxes_xyxy = transforms.apply_box(np.array(boxes, dtype=np.float64).reshape(-1, 4))
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes_xyxy).to(torch.float32))
        instances.gt_boxes.clip(size)
        instances.gt_classes = torch.tensor([a["category_id"] for a in annotations], dtype=torch.int64)
        instances.gt_ignore = torch.tensor([bool(a.get("iscrowd", 0)) for a in annotations], dtype=torch.bool)
        return instances


def transformed_masks(
    dataset_dict: dict, old_size: tuple[int, int], transforms: T.TransformList, new_size: tuple[int, int]
) -> WindowMasks:
    """The masks of a dataset dict's annotations in the transformed image; those of ignore regions are empty.

    Polygons are drawn anew, run lengths are resampled to the nearest pixel. Sizes are (height, width).

    Raises:
        ValueError: naming the image's file and the box, for a segmentation that is missing or not sound.
    """

    def crop(annotation: dict) -> tuple[int, int, np.ndarray]:
        if annotation.get("iscrowd", 0):
            return 0, 0, np.zeros((0, 0), dtype=bool)
        segmentation = as_segmentation(annotation.get("segmentation"))
        check_mask_size(segmentation, *old_size)
        if isinstance(segmentation, dict):
            return 0, 0, transforms.apply_segmentation(rle.decode(segmentation)).astype(bool)
        moved = [transforms.apply_coords(polygon.reshape(-1, 2).copy()) for polygon in segmentation]
        return polygon_crop(moved, new_size)

    crops = []
    for annotation in dataset_dict["annotations"]:
        try:
            crops.append(crop(annotation))
        except Unfit as error:
            raise ValueError(
                f"{dataset_dict['file_name']}: the segmentation of the box {annotation['bbox']} is {error}"
            ) from None
    return WindowMasks.of_crops(crops, new_size)


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
