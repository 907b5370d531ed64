# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What prediction writes: drawn pictures and videos, COCO results, a table, crops."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

from PIL import Image

from ..errors import UserError
from ..output_paths import make_output_folder
from ..whole_file import whole_file
from .results import Result
from .sources import Frame, _cv2

KINDS = ("pictures", "json", "csv", "crops")
QUALITY = 92  # of JPEG


def new_folder(wanted: str | None, overwrite: bool, default: str = os.path.join("output", "predict")) -> str:
    """The folder to write into, made: the wanted one, or the first free one of "output/predict", "..._2", ...

    Raises:
        UserError: it holds something already, or as of ``make_output_folder``.
    """
    folder = os.path.expanduser(wanted or default)
    if wanted is None and not overwrite:
        candidates = itertools.chain([default], (f"{default}_{n}" for n in itertools.count(2)))
        folder = next(path for path in candidates if not os.path.exists(path))
    make_output_folder("The output", folder)
    if os.listdir(folder) and not overwrite:
        raise UserError(f"The output {folder} is not empty: name another folder, or add --overwrite.")
    return folder


class Output:
    """Takes results one by one; ``close`` writes what holds all of them.

    Args:
        folder: exists.
        kinds: of ``KINDS``: pictures/NAME, predictions.json (a COCO results list) with images.json (the images and
            categories it speaks of), predictions.csv, crops/CLASS/NAME_0001.jpg.
        class_names: of the model; category ids count from 1.
        labels, scores: of ``Result.draw``.
    """

    def __init__(
        self,
        folder: str,
        kinds: Collection[str],
        class_names: Sequence[str],
        labels: str = "auto",
        scores: bool = False,
    ):
        self.folder, self.kinds, self.class_names = folder, kinds, class_names
        self.labels, self.scores = labels, scores
        self._images: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []
        self._video: tuple[Any, Any] = None, None  # source and writer of the one that is being written

    def add(self, frame: Frame, result: Result) -> None:
        image_id, (height, width) = len(self._images) + 1, result.size
        image = {"id": image_id, "file_name": frame.source.name, "width": width, "height": height}
        still = frame.source.kind == "picture"
        self._images.append(image if still else {**image, "frame": frame.number})
        if {"json", "csv"} & set(self.kinds):
            self._rows += result.to_coco(image_id)
        if "pictures" in self.kinds:
            drawn = result.draw(self.labels, self.scores)
            if still:
                save_picture(drawn, os.path.join(self.folder, "pictures", frame.source.name))
            else:
                self._write_frame(frame, drawn)
        if "crops" in self.kinds:
            self._save_crops(frame, result)

    def close(self) -> None:
        self._end_video()
        if "json" in self.kinds:
            categories = [{"id": i, "name": name} for i, name in enumerate(self.class_names, start=1)]
            self._write_json("predictions.json", self._rows)
            self._write_json("images.json", {"images": self._images, "annotations": [], "categories": categories})
        if "csv" in self.kinds:
            self._write_csv()

    def _write_json(self, name: str, content: Any) -> None:
        with whole_file(os.path.join(self.folder, name)) as part, open(part, "w", encoding="utf-8") as file:
            json.dump(content, file, separators=(",", ":"), ensure_ascii=False)

    def _write_csv(self) -> None:
        with whole_file(os.path.join(self.folder, "predictions.csv")) as part:
            with open(part, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(("file", "frame", "class", "score", "x0", "y0", "x1", "y1"))
                for row in self._rows:
                    image, (x, y, w, h) = self._images[row["image_id"] - 1], row["bbox"]
                    name = self.class_names[row["category_id"] - 1]
                    corners = (x, y, round(x + w, 3), round(y + h, 3))
                    writer.writerow((image["file_name"], image.get("frame", ""), name, row["score"], *corners))

    def _save_crops(self, frame: Frame, result: Result) -> None:
        stem = os.path.splitext(frame.source.name)[0]
        stem = stem if frame.source.kind == "picture" else f"{stem}_{frame.number:06d}"
        height, width = result.size
        for number, (box, name) in enumerate(zip(result.boxes, result.names), start=1):
            x0, y0 = (min(max(int(v), 0), side - 1) for v, side in zip(box[:2], (width, height)))
            x1, y1 = (
                min(max(int(-(-v // 1)), low + 1), side) for v, low, side in zip(box[2:], (x0, y0), (width, height))
            )
            folder = re.sub(r"[^\w.-]+", "_", name).strip(".") or "_"
            path = os.path.join(self.folder, "crops", folder, f"{stem}_{number:04d}.jpg")
            save_picture(Image.fromarray(result.image[y0:y1, x0:x1]), path)

    def _write_frame(self, frame: Frame, drawn: Image.Image) -> None:
        import numpy as np

        source, writer = self._video
        if source is not frame.source:
            self._end_video()
            path = os.path.join(self.folder, "pictures", os.path.splitext(frame.source.name)[0] + ".mp4")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            cv2 = _cv2()
            writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"mp4v"), frame.per_second, drawn.size)
            if not writer.isOpened():
                raise UserError(f"OpenCV cannot write the video {path}: leave pictures out of --save.")
            self._video = frame.source, writer
        writer.write(np.ascontiguousarray(np.asarray(drawn)[..., ::-1]))

    def _end_video(self) -> None:
        if self._video[1] is not None:
            self._video[1].release()
        self._video = None, None


def save_picture(picture: Image.Image, path: str) -> None:
    """Save under its own name: PNG where the original was, else JPEG."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    ending = os.path.splitext(path)[1].lower()
    if ending == ".png":
        picture.save(path)
    else:
        picture.save(path if ending in (".jpg", ".jpeg") else f"{path}.jpg", format="JPEG", quality=QUALITY)
