# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The worst images of an evaluation, drawn as SVG over a JPEG that is part of the page."""

from __future__ import annotations

import base64
import io
import logging
from html import escape

import numpy as np
from PIL import Image

from ...data.mapper import read_image
from .results import Analysis, marks

logger = logging.getLogger(__name__)

SIDE, QUALITY = 640, 72  # of the JPEG
FAULTS = {"missed": "missed", "false": "false", "duplicate": "duplicate"}


def draw(analysis: Analysis, image: int) -> str:
    """A figure with the image, its faults and what is right; a sentence where the picture cannot be read."""
    scene, found = analysis.scene, marks(analysis, image)
    counts = ", ".join(f"{len(found[kind])} {name}" for kind, name in FAULTS.items())
    caption = (
        f"<figcaption><b>{escape(scene.image_names[image])}</b>: {counts}, {len(found['right'])} right</figcaption>"
    )
    try:
        pixels = read_image(scene.files[image], "RGB") if scene.files else None
    except (OSError, ValueError) as error:
        logger.warning("the report is without the picture of %s: %s", scene.image_names[image], error)
        pixels = None
    if pixels is None:
        size = scene.sizes[image] if len(scene.sizes) else (None, None)
        height, width = size if None not in size else (_extent(analysis, image))
        ground = f'<rect width="{width}" height="{height}" class="blank"/>'
    else:
        height, width = pixels.shape[:2]
        ground = f'<image width="{width}" height="{height}" href="{_data_uri(pixels)}"/>'
    boxes = "".join(_box(analysis, kind, index) for kind, own in found.items() for index in own)
    return f'<figure><svg viewBox="0 0 {width} {height}" class="picture">{ground}{boxes}</svg>{caption}</figure>'


def _box(analysis: Analysis, kind: str, index: int) -> str:
    scene = analysis.scene
    of_truth = kind in ("missed", "region")
    source = scene.objects if of_truth else scene.found
    x0, y0, x1, y1 = source.boxes_xyxy[index].tolist()
    tip = scene.class_names[source.classes[index]] + ("" if of_truth else f" {scene.found.scores[index]:.2f}")
    return (
        f'<rect class="{kind}" x="{x0:.1f}" y="{y0:.1f}" width="{max(x1 - x0, 0):.1f}" height="{max(y1 - y0, 0):.1f}">'
        f"<title>{kind}: {escape(tip)}</title></rect>"
    )


def _extent(analysis: Analysis, image: int) -> tuple[float, float]:
    """Height and width that hold all boxes, where nothing tells the image's own."""
    scene = analysis.scene
    ends = [s.boxes_xyxy[s.image == image, 2:] for s in (scene.objects, scene.found)]
    width, height = np.concatenate([*ends, np.ones((1, 2))]).max(0)
    return float(np.ceil(height)), float(np.ceil(width))


def _data_uri(pixels: np.ndarray) -> str:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
