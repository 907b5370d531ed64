# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What was found in one picture, in the forms that people want it in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from detectron2.structures import BitMasks, Instances
from PIL import Image

from ..checks import check_choice
from ..drawing import draw_detections
from .arrays import as_rgb


class Result:
    """The detections of one picture, best score first.

    ``result["instances"]`` is what Detectron2's predictor gives, so that whatever reads that reads this, such as
    ``supervision.Detections.from_detectron2(result)``.

    Attributes:
        instances: pred_boxes, scores, pred_classes, and pred_masks where the model has them; on the CPU.
        class_names: of the model, by class index.
        path: of the picture's file; empty for one of another origin.
    """

    def __init__(self, instances: Instances, class_names: Sequence[str], image: np.ndarray | None, path: str = ""):
        self.instances, self.class_names, self.path = instances, tuple(class_names), path
        self._image = image

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB, read again where it was not kept."""
        return as_rgb(self.path) if self._image is None else self._image

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the picture."""
        return self.instances.image_size

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) float32 x0, y0, x1, y1 in pixels."""
        return self.instances.pred_boxes.tensor.numpy()

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32 in [0, 1]."""
        return self.instances.scores.numpy()

    @property
    def classes(self) -> np.ndarray:
        """(N,) int64 indices into ``class_names``."""
        return self.instances.pred_classes.numpy()

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[c] for c in self.classes]

    @property
    def masks(self) -> np.ndarray | None:
        """(N, H, W) bool; None of a model that has none."""
        masks = self._masks()
        return None if masks is None else np.asarray(masks).astype(bool)

    def _masks(self) -> Any:
        """The masks in a form that gives one at a time: all of a large picture would not fit into the memory."""
        masks = self.instances.pred_masks if self.instances.has("pred_masks") else None
        return masks.tensor if isinstance(masks, BitMasks) else masks

    def __len__(self) -> int:
        return len(self.instances)

    def __getitem__(self, key: str) -> Instances:
        if key != "instances":
            raise KeyError(key)
        return self.instances

    def __repr__(self) -> str:
        counts = Counter(self.names).most_common()
        found = ", ".join(f"{count} {name}" for name, count in counts) or "nothing"
        return f"{self.path or 'image'} ({self.size[1]} x {self.size[0]}): {found}"

    def draw(self, labels: str = "auto", scores: bool = False) -> Image.Image:
        """The picture with its detections; ``draw().save("out.jpg")`` keeps it.

        Args:
            labels: "on", "off" or "auto", which writes them for up to 15 detections and counts the classes of more.
            scores: write them beside the class names.
        """
        check_choice("labels", labels, ("auto", "on", "off"))
        return draw_detections(
            self.image, self.boxes, self.classes, self.scores, self.class_names,
            masks=self._masks(), labels=labels, show_scores=scores,
        )  # fmt: skip

    def to_coco(self, image_id: Hashable = 1, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows of a COCO results list: boxes [x, y, width, height] to 1/1000 pixel, and RLE where there are masks.

        Args:
            category_ids: by class index; None: 1, 2, ...
        """
        ids = range(1, len(self.class_names) + 1) if category_ids is None else category_ids
        rows = [
            {
                "image_id": image_id,
                "category_id": ids[category],
                "bbox": [round(v, 3) for v in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(score, 6),
            }
            for (x0, y0, x1, y1), score, category in zip(self.boxes.tolist(), self.scores.tolist(), self.classes)
        ]
        masks = self._masks()
        for row, mask in zip(rows, () if masks is None else masks):
            row["segmentation"] = _rle(np.asarray(mask))
        return rows


def _rle(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(encoded["size"]), "counts": encoded["counts"].decode("ascii")}
