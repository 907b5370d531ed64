# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Shapes and paint of the synthetic crowd's figures. Exact arithmetic only: see ``synthetic_crowd.py``.

A figure is a *part map*, (h, w) uint8: 0 outside, else the part that the pixel belongs to. Every part has one colour.
``looks`` are 32 uniform numbers in [0, 1) that fix a figure's pose, colours and texture. The shapes are written in
``x`` in [-1, 1] from left to right, (1, w), and ``y`` in [0, 1] from top to bottom, (h, 1).
"""

from __future__ import annotations

import numpy as np

CLASSES = ("person", "balloon", "crate", "cone")

# Height of each class in heights of a person who stands at the same depth, and the range of width / height.
_HEIGHT = (1.0, 0.5, 0.45, 0.5)
_ASPECT = ((0.34, 0.56), (0.65, 0.95), (0.8, 1.8), (0.6, 0.9))

_POSE, _ASPECT_AT, _COLORS, _TEXTURE = slice(0, 4), 4, slice(8, 26), slice(26, 29)


def class_size(category: int, person_height: float, looks: np.ndarray) -> tuple[int, int]:
    """(height, width) in pixels of a figure that stands where a person would be ``person_height`` pixels tall."""
    height = max(_HEIGHT[category] * person_height, 5.0)
    low, high = _ASPECT[category]
    return int(height), max(int(height * (low + (high - low) * float(looks[_ASPECT_AT]))), 4)


def part_map(category: int, height: int, width: int, looks: np.ndarray) -> np.ndarray:
    """(height, width) uint8 parts of a figure."""
    y = (np.arange(height)[:, None] + 0.5) / height
    x = (np.arange(width)[None, :] + 0.5) / width * 2 - 1
    parts = np.zeros((height, width), dtype=np.uint8)
    _SHAPES[category](parts, x, y, looks[_POSE].tolist())
    return parts


def _person(parts: np.ndarray, x: np.ndarray, y: np.ndarray, pose: list[float]) -> None:
    lean, stride, left_arm, right_arm = pose
    height, width = parts.shape
    x = x + (lean - 0.5) * 0.5 * (0.5 - y)
    side = np.abs(x)
    # Legs (2) with shoes (5), from the hip at y = 0.55 downwards.
    leg = np.abs(side - (0.22 + 0.7 * stride * (y - 0.55))) < 0.18
    parts[leg & (y >= 0.55)] = 2
    parts[leg & (y >= 0.94)] = 5
    # Arms (1, hands 3): from the shoulder outwards, each at its own angle.
    spread = np.where(x < 0, 0.3 * left_arm, 0.3 * right_arm)
    arm = np.abs(side - (0.55 + spread * (y - 0.2) * 3)) < 0.13
    parts[arm & (y >= 0.2) & (y < 0.5)] = 1
    parts[arm & (y >= 0.5) & (y < 0.56)] = 3
    parts[(side < 0.6 - 0.35 * (y - 0.19)) & (y >= 0.19) & (y < 0.57)] = 1  # torso
    # A round head (3) with hair (4): its radius in x is the one in y times the pixels' proportion.
    radius_x = 0.17 * height / width
    head_x, head_y = x / radius_x, (y - 0.1) / 0.1
    head = head_x * head_x + head_y * head_y < 1
    parts[head] = 3
    parts[head & (y < 0.07)] = 4


def _balloon(parts: np.ndarray, x: np.ndarray, y: np.ndarray, pose: list[float]) -> None:
    across, down = x, (y - 0.46) / 0.46
    across = across * (1 + 0.25 * np.maximum(down, 0))  # narrower below
    parts[across * across + down * down < 1] = 1
    glint_x, glint_y = x + 0.35, (y - 0.25) / 0.5
    parts[glint_x * glint_x + glint_y * glint_y < 0.03] = 2
    parts[(np.abs(x) < (y - 0.84)) & (y > 0.9)] = 3  # knot


def _crate(parts: np.ndarray, x: np.ndarray, y: np.ndarray, pose: list[float]) -> None:
    border = 0.08 + 0.08 * pose[0]
    parts[:] = 1
    down = 2 * y - 1
    direction = 1 if pose[1] < 0.5 else -1
    parts[np.abs(x - direction * down) < 0.22] = 2
    if pose[2] < 0.4:
        parts[np.abs(x + direction * down) < 0.22] = 2
    parts[np.broadcast_to((np.abs(x) > 1 - 2 * border) | (np.abs(down) > 1 - 2 * border), parts.shape)] = 3


def _cone(parts: np.ndarray, x: np.ndarray, y: np.ndarray, pose: list[float]) -> None:
    side = np.abs(x)
    body = side < 0.1 + 0.62 * y
    parts[body] = 1
    first, thickness = 0.2 + 0.15 * pose[0], 0.1 + 0.1 * pose[1]
    parts[body & (y > first) & (y < first + thickness)] = 2
    parts[body & (y > first + 2 * thickness) & (y < first + 3 * thickness)] = 2
    parts[np.broadcast_to(y > 0.88, parts.shape)] = 3  # base plate


_SHAPES = (_person, _balloon, _crate, _cone)


def paint(category: int, parts: np.ndarray, looks: np.ndarray) -> np.ndarray:
    """(3, h, w) float64 RGB in 0 .. 320 of a figure; outside its parts the values mean nothing."""
    height, width = parts.shape
    shade = np.where(parts == 1, _texture(height, width, looks[_TEXTURE].tolist()), 1.0)
    light = (np.arange(width) + 0.5) / width - 0.5
    shade *= 1.0 - 0.35 * light * (1 if looks[_POSE][0] < 0.5 else -1)
    shade[_outline(parts)] *= 0.45
    return _palette(category, looks)[:, parts] * shade


def _palette(category: int, looks: np.ndarray) -> np.ndarray:
    """(3, 6) float64 colours of the parts 0 .. 5."""
    colors = np.zeros((6, 3))
    colors[1:] = 25 + 215 * looks[_COLORS][:15].reshape(5, 3)
    tone = float(looks[_COLORS][15])
    if category == CLASSES.index("person"):
        colors[3] = np.array([235.0, 195.0, 165.0]) * (1 - 0.6 * tone)
        colors[4] *= 0.5
        colors[5] *= 0.4
    elif category == CLASSES.index("balloon"):
        colors[1, int(tone * 3)] = 250.0
        colors[2] = colors[1] + (255 - colors[1]) * 0.7
        colors[3] = colors[1] * 0.7
    elif category == CLASSES.index("crate"):
        colors[1] = np.array([190.0, 140.0, 85.0]) * (0.6 + 0.6 * tone) + colors[1] * 0.2
        colors[2], colors[3] = colors[1] * 0.75, colors[1] * 0.6
    else:
        colors[1] = np.array([225.0, 110.0, 35.0]) * (0.7 + 0.3 * tone) + (colors[1] - 130) * 0.35
        colors[2] = 225.0
        colors[3] *= 0.5
    return np.clip(colors, 0, 255).T


def _texture(height: int, width: int, texture: list[float]) -> np.ndarray:
    """(h, w) factors of a pattern: plain, horizontal stripes, vertical stripes or checks."""
    kind, strength, scale = int(texture[0] * 4), 0.35 + 0.3 * texture[1], texture[2]
    period = 2 + int(scale * max(height, width) * 0.08)
    rows = (np.arange(height) // period & 1)[:, None]
    columns = (np.arange(width) // period & 1)[None, :]
    none = np.zeros((height, width), dtype=np.int64)
    return 1.0 - strength * (none, rows | none, columns | none, rows ^ columns)[kind]


def _outline(parts: np.ndarray) -> np.ndarray:
    """(h, w) True for the figure's pixels beside a pixel outside it."""
    inside = np.zeros((parts.shape[0] + 2, parts.shape[1] + 2), dtype=bool)
    inside[1:-1, 1:-1] = parts > 0
    deep = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return (parts > 0) & ~deep
