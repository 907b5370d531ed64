# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Detections drawn so that hundreds of them can be told apart.

Thin lines over a dark edge, the large ones below the small ones, nothing filled but masks. Several classes have a
colour each; of one class, neighbours have colours far from each other. Labels stand where no other one stands; where
there are too many to read, a legend counts the classes instead.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GOLDEN = 0.618034  # turns of hue from one colour to the next, which never come close again soon
MOST_LABELS = 15  # of "auto"
MANY = 150  # boxes, from which lines have no dark edge
MASK_ALPHA = 0.4

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]


def draw_detections(
    image: np.ndarray,
    boxes_xyxy: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    *,
    masks: Sequence | None = None,
    labels: str = "auto",
    show_scores: bool = False,
) -> Image.Image:
    """A picture with its detections.

    Args:
        image: (H, W, 3) uint8 RGB; stays as it is.
        boxes_xyxy, classes, scores: (N, 4) pixels, (N,) indices into ``class_names``, (N,) in [0, 1].
        masks: N masks, (H, W) bool each.
        labels: "on"; "off"; "auto": on for up to 15 detections. Those that find no free place are left out.
        show_scores: also in labels.
    """
    pixels = image.copy()
    unit = max(min(image.shape[:2]) / 1080, 0.5)
    colors = _colors(boxes_xyxy, classes, len(class_names))
    sizes, order = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(0), largest_first(boxes_xyxy)
    if masks is not None:
        blend_masks(pixels, masks, colors, order)
    for i in order:
        line = 1 if len(order) > MANY else max(round(float(np.clip(sizes[i].min() / 24, 1.5, 4)) * unit), 1)
        alpha = 0.7 + 0.3 * float(np.clip(scores[i], 0, 1))
        if len(order) <= MANY:
            edge = max(round(unit), 1)
            _frame(pixels, boxes_xyxy[i], line + 2 * edge, (0, 0, 0), 0.55 * alpha, grow=edge)
        _frame(pixels, boxes_xyxy[i], line, colors[i], alpha)
    picture = Image.fromarray(pixels)
    wanted = labels == "on" or (labels == "auto" and len(order) <= MOST_LABELS)
    texts = [class_names[c] + (f" {s:.2f}" if show_scores else "") for c, s in zip(classes, scores)]
    left_out = _write_labels(picture, boxes_xyxy, texts, colors, order, unit) if wanted else len(order)
    if left_out and labels != "off":
        _write_legend(picture, classes, colors, class_names, unit)
    return picture


def largest_first(boxes_xyxy: np.ndarray) -> list[int]:
    """The order in which objects are drawn, so that the smallest are on top."""
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(0)
    return np.argsort(-sizes.prod(1), kind="stable").tolist()


def blend_masks(pixels: np.ndarray, masks: Sequence, colors: Sequence[Color], order: Iterable[int]) -> None:
    """Blend masks, (H, W) bool each, into (H, W, 3) ``pixels`` in place, later ones of ``order`` on top; each pixel
    once, so that the picture shows through."""
    layer, inside = np.zeros_like(pixels), np.zeros(pixels.shape[:2], dtype=bool)
    for i in order:
        mask = np.asarray(masks[i])
        layer[mask] = colors[i]
        inside |= mask
    pixels[inside] = (pixels[inside] * (1 - MASK_ALPHA) + layer[inside] * MASK_ALPHA).astype(np.uint8)


def _colors(boxes: np.ndarray, classes: np.ndarray, num_classes: int) -> list[Color]:
    if num_classes > 1:
        turns = classes.astype(np.float64)
    else:  # from left to right, so that neighbours differ
        turns = np.argsort(np.argsort(boxes[:, 0] + boxes[:, 2], kind="stable"), kind="stable").astype(np.float64)
    return [tuple(int(255 * part) for part in colorsys.hls_to_rgb(turn * GOLDEN % 1, 0.62, 1)) for turn in turns]


def _frame(pixels: np.ndarray, box: np.ndarray, line: int, color: Color, alpha: float, grow: int = 0) -> None:
    """Blend the four sides of a box into the picture, ``line`` pixels wide inwards, from ``grow`` pixels outside."""
    height, width = pixels.shape[:2]
    x0, y0 = (int(np.floor(v)) - grow for v in box[:2])
    x1, y1 = (max(int(np.ceil(v)) + grow, low + 1) for v, low in zip(box[2:], (x0, y0)))
    across, down = min(line, x1 - x0), min(line, y1 - y0)
    inner = y0 + down, max(y1 - down, y0 + down)
    for left, top, right, bottom in (
        (x0, y0, x1, y0 + down),
        (x0, inner[1], x1, y1),
        (x0, inner[0], x0 + across, inner[1]),
        (max(x1 - across, x0 + across), inner[0], x1, inner[1]),
    ):
        window = slice(max(top, 0), min(max(bottom, 0), height)), slice(max(left, 0), min(max(right, 0), width))
        part = pixels[window]
        part[...] = part * (1 - alpha) + np.array(color) * alpha


def _font(unit: float, least: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(max(min(14 * unit, 28), least))


def _ink(ground: Color) -> Color:
    """Black or white, whichever is read better on ``ground``."""
    light = np.dot(ground, (0.299, 0.587, 0.114))  # ITU-R BT.601 luma
    return (0, 0, 0) if light > 115 else (255, 255, 255)


def _write_labels(
    picture: Image.Image, boxes: np.ndarray, texts: list[str], colors: list[Color], order: list[int], unit: float
) -> int:
    """Write the labels, those of small boxes first, each where no other stands; returns how many found no place."""
    draw, font = ImageDraw.Draw(picture), _font(unit, 12)
    pad = max(round(2 * unit), 1)
    taken: list[Box] = []
    for i in reversed(order):
        left, top, right, bottom = draw.textbbox((0, 0), texts[i], font=font)
        width, height = right - left + 2 * pad, bottom - top + 2 * pad
        place = next((p for p in _places(boxes[i], width, height, picture.size) if not _hits(p, taken)), None)
        if place is None:
            continue
        taken.append(place)
        draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=colors[i])
        draw.text((place[0] + pad - left, place[1] + pad - top), texts[i], fill=_ink(colors[i]), font=font)
    return len(order) - len(taken)


def _places(box: np.ndarray, width: int, height: int, size: tuple[int, int]) -> list[Box]:
    """Where a label may stand: above, below, then inside at the top, the bottom; at the left, then at the right end."""
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    starts = [(x, y) for y in (y0 - height, y1, y0, y1 - height) for x in (x0, x1 - width)]
    inside = [(min(max(x, 0), max(size[0] - width, 0)), y) for x, y in starts if 0 <= y <= size[1] - height]
    return [(x, y, x + width, y + height) for x, y in inside]


def _hits(place: Box, taken: list[Box]) -> bool:
    return any(place[0] < t[2] and t[0] < place[2] and place[1] < t[3] and t[1] < place[3] for t in taken)


def _write_legend(
    picture: Image.Image, classes: np.ndarray, colors: list[Color], class_names: Sequence[str], unit: float
) -> None:
    """How many there are of each class, at the upper left."""
    draw, font = ImageDraw.Draw(picture), _font(unit, 14)
    color_of = {int(c): colors[i] if len(class_names) > 1 else (255, 255, 255) for i, c in enumerate(classes)}
    lines = [(f"{class_names[c]}: {count}", color_of[c]) for c, count in Counter(classes.tolist()).most_common()]
    pad = max(round(4 * unit), 2)
    height = sum(font.getmetrics())
    most = max(int((picture.height - 2 * pad) // height), 1)
    if len(lines) > most:
        rest = len(lines) - most + 1
        lines = [*lines[: most - 1], (f"and {rest} classes more", (255, 255, 255))]
    width = max(round(draw.textlength(text, font=font)) for text, _ in lines)
    draw.rectangle((0, 0, width + 2 * pad, height * len(lines) + 2 * pad), fill=(0, 0, 0))
    for row, (text, color) in enumerate(lines):
        draw.text((pad, pad + row * height), text, fill=color, font=font)
