# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained detector in one object: pictures in, detections out."""

from __future__ import annotations

import difflib
import os
import warnings
import weakref
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..data.image_file import allow_pixels
from ..data.mapper import ResizeShortSide
from ..engine.evaluate import load_trained
from ..engine.main import run as run_training
from ..engine.run_folder import find_run, flat_opts, trained_config
from ..errors import UserError
from .arrays import as_rgb
from .results import Result
from .thresholds import DEFAULT, settle_threshold
from .tiling import merge_tiles, tiles_of


class Detector:
    """A trained run, ready to predict.

        detector = paq_detr.Detector("output/demo")
        result = detector.predict("image.jpg", threshold=0.4)
        result.draw().save("drawn.jpg")

    Threads may share one. It may be used in a process forked from the one that made it; there it uses one thread, as
    OpenMP's others do not live on. (On a GPU, CUDA itself forbids that: one sentence.)
    """

    def __init__(
        self,
        run: str | os.PathLike,
        config: str | os.PathLike | None = None,
        device: str | None = None,
        opts: Sequence[Any] | Mapping[str, Any] = (),
    ):
        """
        Args:
            run: a folder that training wrote (model_best.pth, else model_final.pth), or a weight file.
            config: a yaml file in place of the config.yaml beside the weights.
            device: such as "cuda:1"; None: the config's, or the CPU where that is not here.
            opts: changes of the config, as a dict or KEY, VALUE, ...

        Raises:
            UserError: one sentence on what is wrong with them.
        """
        self.run = find_run(run, config)
        self.cfg = trained_config(self.run, device, flat_opts(opts))
        allow_pixels(self.cfg.INPUT.MAX_PIXELS)
        self.model = load_trained(self.cfg).eval()
        self.class_names = tuple(self.cfg.MODEL.DETR.CLASS_NAMES)
        self._resize = ResizeShortSide([self.cfg.INPUT.MIN_SIZE_TEST], self.cfg.INPUT.MAX_SIZE_TEST)
        _ALIVE.add(self)

    @classmethod
    def train(
        cls,
        config: str | os.PathLike,
        opts: Sequence[Any] | Mapping[str, Any] = (),
        *,
        resume: bool = False,
        num_gpus: int = 1,
    ) -> Detector:
        """Train a config, as ``paq-detr train`` does; returns the trained detector.

            detector = Detector.train("configs/my_dataset.yaml", {"OUTPUT_DIR": "output/mine", "SOLVER.EPOCHS": 12})

        Raises:
            UserError, NonFiniteLossError: one sentence.
        """
        args = Namespace(config_file=os.fspath(config), opts=flat_opts(opts), resume=resume, num_gpus=num_gpus)
        vars(args).update(eval_only=False, num_machines=1, machine_rank=0, dist_url="auto")
        return cls(run_training(args).OUTPUT_DIR)

    def threshold(self, threshold: float | str | None) -> tuple[float, str]:
        """What a number or "auto" stands for, and where it comes from."""
        return settle_threshold(threshold, self.run, self.cfg.DATASETS.TEST)

    def predict(self, images: Any, threshold: float | str = DEFAULT, **options: Any) -> Result | list[Result]:
        """What is in a picture, or in each of a list of pictures.

        Args:
            images: a path, a PIL image, an array or a tensor (``arrays.as_rgb``); or a list or tuple of such.
            threshold: the lowest score; "auto": the one that the run's evaluation stored (best F1, or best JI).
            options: of ``stream``.

        Raises:
            UserError: one sentence on what is wrong.
        """
        if not isinstance(images, (list, tuple)):
            return next(self.stream([images], threshold, **options))
        results = list(self.stream(images, threshold, **options))
        for result in results:
            if result.path:
                result._image = None  # read again when it is drawn: thousands would not fit into the memory
        return results

    def stream(
        self,
        images: Iterable[Any],
        threshold: float | str = DEFAULT,
        *,
        classes: Sequence[str] | None = None,
        tile: int = 0,
        overlap: float = 0.2,
        batch: int = 1,
        channels: str = "RGB",
    ) -> Iterator[Result]:
        """As ``predict``, one result after the other, of as many pictures as there come.

        Args:
            classes: names of those to keep; None: all.
            tile: look at tiles of so many pixels, for pictures whose objects are small; 0: at the whole picture.
            overlap: of neighbouring tiles, as a share of their side.
            batch: how many pictures or tiles go through the model at once.
            channels: order in arrays and tensors: "RGB", or "BGR" as OpenCV has it.
        """
        lowest, _ = self.threshold(threshold)
        wanted = None if classes is None else self.class_indices(classes)
        if batch < 1:
            raise UserError(f"batch is {batch}, must be at least 1.")
        if tile:
            try:
                tiles_of(1, 1, tile, overlap)
            except UserError as error:
                raise UserError(f"{error}.") from error
        return self._stream(images, lowest, wanted, tile, overlap, batch, channels)

    def class_indices(self, names: Sequence[str]) -> list[int]:
        """Raises a UserError for a name that is no class of the model's."""
        names = [names] if isinstance(names, str) else names
        for name in names:
            if name not in self.class_names:
                close = difflib.get_close_matches(str(name), self.class_names)
                hint = f" (did you mean {close[0]}?)" if close else ""
                known = ", ".join(self.class_names[:20]) + (", ..." if len(self.class_names) > 20 else "")
                raise UserError(f"There is no class {name}{hint}; the model's are {known}.")
        return [self.class_names.index(name) for name in names]

    def _stream(
        self,
        images: Iterable[Any],
        lowest: float,
        wanted: list[int] | None,
        tile: int,
        overlap: float,
        batch: int,
        channels: str,
    ) -> Iterator[Result]:
        images = enumerate(images)
        while some := list(islice(images, 1 if tile else batch)):
            pictures = [as_rgb(image, channels, "image" if i == 0 else f"image {i}") for i, image in some]
            if tile:
                found = [self._tiled(pictures[0], lowest, wanted, tile, overlap, batch)]
            else:
                found = [_chosen(instances, lowest, wanted) for instances in self._forward(pictures, lowest)]
            for (_, image), picture, instances in zip(some, pictures, found, strict=True):
                path = os.fspath(image) if isinstance(image, (str, os.PathLike)) else ""
                yield Result(instances, self.class_names, picture, path)

    def _tiled(
        self, picture: np.ndarray, lowest: float, wanted: list[int] | None, size: int, overlap: float, batch: int
    ) -> Instances:
        height, width = picture.shape[:2]
        tiles = tiles_of(height, width, size, overlap)
        found: list[Instances] = []
        for start in range(0, len(tiles), batch):
            views = [picture[y0:y1, x0:x1] for x0, y0, x1, y1 in tiles[start : start + batch]]
            found += [_chosen(instances, lowest, wanted) for instances in self._forward(views, lowest)]
        if len(tiles) == 1:
            return found[0]
        if found[0].has("pred_masks"):
            warnings.warn("tiles have no masks yet: the detections of this picture are boxes alone", stacklevel=2)
        boxes = [part.pred_boxes.tensor.numpy() + np.tile(tile[:2], 2) for part, tile in zip(found, tiles)]
        tile_of = np.repeat(np.arange(len(tiles)), [len(part) for part in found])
        scores, classes = (np.concatenate([part.get(n).numpy() for part in found]) for n in ("scores", "pred_classes"))
        boxes, scores, classes, _ = merge_tiles(tiles, tile_of, np.concatenate(boxes), scores, classes)
        merged = Instances((height, width))
        merged.pred_boxes = Boxes(torch.from_numpy(boxes).float())
        merged.scores, merged.pred_classes = torch.from_numpy(scores), torch.from_numpy(classes)
        return merged

    def _forward(self, pictures: Sequence[np.ndarray], lowest: float) -> list[Instances]:
        """What the model finds from a score on, on the CPU, in pixels of the pictures."""
        if self.cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda._is_in_bad_fork():
            raise UserError(
                "This process was forked from one that uses the GPU, which CUDA does not allow: start it by "
                "multiprocessing.get_context('spawn'), or make the Detector in it."
            )
        sizes = [{"height": picture.shape[0], "width": picture.shape[1]} for picture in pictures]
        inputs = [{"image": self._input(p), **size, "lowest_score": lowest} for p, size in zip(pictures, sizes)]
        with torch.inference_mode():
            outputs = self.model(inputs)
        return [output["instances"].to("cpu") for output in outputs]

    def _input(self, picture: np.ndarray) -> torch.Tensor:
        if self.cfg.INPUT.FORMAT == "BGR":
            picture = picture[..., ::-1]
        elif self.cfg.INPUT.FORMAT == "L":
            picture = (picture @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(np.uint8)[..., None]
        picture = np.ascontiguousarray(picture)
        resized = self._resize.get_transform(picture).apply_image(picture)
        return torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))


def _chosen(instances: Instances, lowest: float, wanted: list[int] | None) -> Instances:
    keep = instances.scores >= lowest
    if wanted is not None:
        keep &= torch.isin(instances.pred_classes, torch.tensor(wanted, dtype=instances.pred_classes.dtype))
    return instances[keep]


_ALIVE: weakref.WeakSet[Detector] = weakref.WeakSet()


def _use_one_thread() -> None:
    if len(_ALIVE):
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_use_one_thread)
