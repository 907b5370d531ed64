# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Charts and tables as HTML, drawn at a size at which they can be read on a screen of any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from .curves import Curve

POINTS = 120  # of a line
WIDTH, HEIGHT = 420, 270
LEFT, TOP, RIGHT, BOTTOM = 40, 10, 10, 38  # margins
# Distinct for most colour-blind people (Okabe and Ito); more classes than these are grey until one is chosen.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7f7f7f")


def number(value: float, digits: int = 2) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def color_of(place: int, count: int) -> str:
    return COLORS[place] if count <= len(COLORS) else "#9aa3ad"


def line_chart(
    overall: Curve, classes: Sequence[tuple[int, Curve]], x: str, y: str, labels: tuple[str, str], mark: bool = False
) -> str:
    """Lines of all classes together and of each class, both axes from 0 to 1.

    Args:
        classes: numbers of classes with their curves.
        x, y: names of the curves' arrays.
        labels: of the axes.
        mark: a dot where F1 is best.
    """
    parts = [_axes(*labels)]
    for place, (k, found) in enumerate(classes):
        path = _path(getattr(found, x), getattr(found, y))
        parts.append(f'<path class="c" data-c="{k}" style="stroke:{color_of(place, len(classes))}" d="{path}"/>')
    parts.append(f'<path class="all" d="{_path(getattr(overall, x), getattr(overall, y))}"/>')
    if mark and math.isfinite(overall.threshold):
        parts.append(f'<circle class="best" cx="{_x(overall.threshold):.1f}" cy="{_y(overall.best):.1f}" r="4"/>')
    title = escape(f"{labels[1]} against {labels[0]}")
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(parts)}</svg>'


def _x(value: float) -> float:
    return LEFT + value * (WIDTH - LEFT - RIGHT)


def _y(value: float) -> float:
    return HEIGHT - BOTTOM - value * (HEIGHT - TOP - BOTTOM)


def _axes(below: str, beside: str) -> str:
    parts = []
    for tick in np.linspace(0, 1, 6):
        x, y = _x(tick), _y(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {_y(0):.1f}V{_y(1):.1f}M{_x(0):.1f} {y:.1f}H{_x(1):.1f}"/>')
        parts.append(f'<text x="{x:.1f}" y="{_y(0) + 15:.1f}" text-anchor="middle">{tick:.1f}</text>')
        parts.append(f'<text x="{_x(0) - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:.1f}</text>')
    middle = _y(0.5)
    parts.append(f'<text x="{_x(0.5):.1f}" y="{HEIGHT - 5}" text-anchor="middle">{escape(below)}</text>')
    parts.append(f'<text x="10" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 10 {middle:.1f})">'
                 f"{escape(beside)}</text>")  # fmt: skip
    return "".join(parts)


def _path(x: np.ndarray, y: np.ndarray) -> str:
    if not len(x):
        return ""
    length = np.cumsum(np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0])))
    place = np.unique(np.searchsorted(length, np.linspace(0, length[-1], POINTS)))  # evenly along the line
    return "M" + "L".join(f"{_x(float(x[i])):.1f} {_y(float(y[i])):.1f}" for i in place)


def legend(names: Sequence[tuple[int, str]]) -> str:
    """The colours, and where there are several classes a choice of one."""
    items = ['<span><i class="line" style="background:var(--ink)"></i>all together</span>']
    if 1 < len(names) <= len(COLORS):
        items += [
            f'<span><i class="line" style="background:{COLORS[place]}"></i>{escape(name)}</span>'
            for place, (_, name) in enumerate(names)
        ]
    choice = ""
    if len(names) > 1:
        options = "".join(f'<option value="{k}">{escape(name)}</option>' for k, name in names)
        choice = f'<label>Show <select id="one"><option value="">every class</option>{options}</select></label>'
    return f'<p class="legend">{"".join(items)}{choice}</p>'


def bars(rows: Sequence[tuple[str, str, float, float | None, str]], unit: str = "") -> str:
    """Horizontal bars: (name, text beside the bar, share 0 to 1, lighter share behind it or None, tooltip)."""
    lines = []
    for name, text, share, behind, tip in rows:
        back = "" if behind is None else f'<b class="behind" style="width:{100 * behind:.1f}%"></b>'
        lines.append(
            f'<div class="bar" title="{escape(tip)}"><span>{escape(name)}</span><span class="track">{back}'
            f'<b style="width:{100 * share:.1f}%"></b></span><span class="value">{escape(text)}{unit}</span></div>'
        )
    return f'<div class="bars">{"".join(lines)}</div>'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> str:
    """Cells as text; so many columns of words on the left, then numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        kinds = ('class="text"' if place < texts else "" for place in range(len(cells)))
        return "<tr>" + "".join(f"<{tag} {kind}>{escape(cell)}</{tag}>" for cell, kind in zip(cells, kinds)) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(header, "th")}</thead><tbody>{body}</tbody></table></div>'


def matrix(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> str:
    """Counts on a ground as dark as their share of the row; right ones blue, wrong ones red."""
    sums = np.maximum(counts.sum(1), 1)
    head = "".join(f'<th class="up"><span>{escape(name)}</span></th>' for name in columns)
    lines = []
    for i, name in enumerate(rows):
        cells = []
        for j, other in enumerate(columns):
            share, color = counts[i, j] / sums[i], "var(--right)" if name == other else "var(--wrong)"
            tip = f"{name} → {other}: {counts[i, j]} ({share:.0%} of the row)"
            text = f"{counts[i, j]}" if counts[i, j] else ""
            cells.append(
                f'<td title="{escape(tip)}"><i style="background:{color};opacity:{0.85 * share:.2f}"></i><span>{text}'
                "</span></td>"
            )
        lines.append(f"<tr><th>{escape(name)}</th>{''.join(cells)}</tr>")
    return f'<div class="wide"><table class="matrix"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'
