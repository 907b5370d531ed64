# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The report: one HTML file that needs nothing else, with what to do on top."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from html import escape

import numpy as np

from ...whole_file import whole_file
from . import charts
from .advice import RULES, what_to_do
from .charts import number
from .errors import KINDS
from .page_style import SCRIPT, STYLE
from .pictures import draw
from .results import Analysis, analyse, worst_images
from .scene import Scene
from .strata import REASONS

logger = logging.getLogger(__name__)

PICTURES = 12
MATRIX_CLASSES, LISTED_CLASSES = 25, 200
_MEANINGS = {
    "classification": "on an object, but of another class",
    "localisation": "of the right class, but overlapping the object by less than half",
    "both": "wrong class and badly placed",
    "duplicate": "on an object that a higher score has found",
    "background": "where no object is",
    "missed": "objects that none of the above could find",
}
_ASPECTS = {
    "size": "By size",
    "crowdedness": "By overlap with the nearest neighbour",
    "border": "By place",
}


def write_report(scene: Scene, path: str, title: str, summary: Mapping[str, float] | None = None) -> str:
    """Analyse a scene and write the page.

    Args:
        path: of the HTML file, written whole or not at all.
        title: what was evaluated.
        summary: numbers to show on top, in percent, such as AP; None: AP50 alone.

    Returns:
        The sentence that says what to do.
    """
    analysis = analyse(scene)
    with whole_file(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write(render(analysis, title, summary))
    sentence, _ = what_to_do(analysis)
    logger.info("Report written to %s. %s", path, sentence)
    return sentence


def render(analysis: Analysis, title: str, summary: Mapping[str, float] | None = None) -> str:
    """The page as text."""
    if not analysis.scene.counts.any():
        sections = [_what_to_do(analysis, summary)]
    else:
        sections = [
            _what_to_do(analysis, summary),
            _errors(analysis),
            _recall(analysis),
            _pictures(analysis),
            _curves(analysis),
            _classes(analysis),
            _confusion(analysis),
            _rules(analysis),
        ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        f"<h1>{escape(title)}</h1>{''.join(sections)}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _section(heading: str, lead: str, body: str) -> str:
    return f"<section><h2>{heading}</h2><p>{lead}</p>{body}</section>"


def _what_to_do(analysis: Analysis, summary: Mapping[str, float] | None) -> str:
    scene = analysis.scene
    sentence, _ = what_to_do(analysis)
    numbers = summary or {"AP50": analysis.ap50}
    cells = ((number(value, 1), escape(name)) for name, value in numbers.items())
    shown = "".join(f"<div><b>{value}</b><span>{name}</span></div>" for value, name in cells)
    images, objects = len(scene.image_names), int(scene.counts.sum())
    about = (
        f"{images:,} images, {objects:,} objects of {len(scene.class_names)} classes, {len(scene.found):,} detections."
    )
    if np.isfinite(analysis.overall.threshold):
        precision, recall = analysis.overall.at(analysis.score)
        about += (
            f" Show detections from a score of <b>{analysis.score:.2f}</b>: there F1 is best, "
            f"{analysis.overall.best:.2f}, {precision:.0%} of them are right, and {recall:.0%} of the objects are "
            "found."
        )
    do = f'<section class="do"><h2>What to do</h2><p>{escape(sentence)}</p></section>'
    return f'{do}<div class="numbers">{shown}</div><p>{about}</p>'


def _errors(analysis: Analysis) -> str:
    most = max(*analysis.costs.values(), 1e-9)
    rows = []
    for kind in sorted(KINDS, key=lambda kind: -analysis.costs[kind]):
        cost, count = analysis.costs[kind], analysis.errors.count(kind)
        rows.append((kind, f"{cost:.1f}", cost / most, None, f"{kind}: {count:,}, {_MEANINGS[kind]}"))
    meanings = [(kind, _MEANINGS[kind], f"{analysis.errors.count(kind):,}") for kind in KINDS]
    lead = (
        "By how many points AP50 would rise if one kind of error were mended and nothing else (TIDE's dAP). The points "
        "do not add up to what is lost."
    )
    return _section(
        "What AP50 is lost to", lead, charts.bars(rows) + charts.table(("kind", "what", "count"), meanings, texts=2)
    )


def _recall(analysis: Analysis) -> str:
    parts = []
    for aspect, heading in _ASPECTS.items():
        rows = []
        for group, cost in zip(analysis.groups, analysis.missed_costs):
            if group.aspect == aspect:
                recall, at_any = analysis.recall(group), analysis.recall(group, score=False)
                tip = f"{at_any:.0%} at any score; missing them costs {cost:.1f} points of AP50"
                rows.append((f"{group.name}: {group.count:,}", f"{recall:.0%}", recall, at_any, tip))
        if rows:
            parts.append(f"<h3>{heading}</h3>{charts.bars(rows)}")
    lead = (
        f"Share of the objects that are found from a score of {analysis.score:.2f} on; the pale bar: at any score. "
        "Where the pale bar is much longer, the model sees the object and does not trust itself."
    )
    why = [(REASONS[reason], f"{count:,}") for reason, count in analysis.reasons.items()]
    parts.append("<h3>Why the others are not found</h3>" + charts.table(("reason", "objects"), why))
    return _section("Which objects are found", lead, "".join(parts))


def _pictures(analysis: Analysis) -> str:
    images = worst_images(analysis, PICTURES)
    if not images:
        return _section("The worst images", f"No image has a fault from a score of {analysis.score:.2f} on.", "")
    kinds = "".join(
        f'<label class="{kind}"><input type="checkbox" data-kind="{kind}" checked><i></i>{kind}</label>'
        for kind in ("missed", "false", "duplicate", "right")
    )
    lead = (
        f"The {len(images)} images with the most faults from a score of {analysis.score:.2f} on. A false detection is "
        "one of any kind but duplicate; dotted grey are regions to ignore. A box tells its class and score under the "
        "pointer."
    )
    body = f'<p class="kinds">{kinds}</p><div class="pictures">{"".join(draw(analysis, i) for i in images)}</div>'
    return _section("The worst images", lead, body)


def _listed(analysis: Analysis) -> list[int]:
    """Classes that have objects or detections, those with the most objects first; on a page, not thousands."""
    counts = analysis.scene.counts
    detections = np.bincount(analysis.scene.found.classes, minlength=len(counts))
    order = np.argsort(-counts, kind="stable")
    return [int(k) for k in order if counts[k] or detections[k]][:LISTED_CLASSES]


def _curves(analysis: Analysis) -> str:
    listed = [k for k in _listed(analysis) if analysis.scene.counts[k]]
    classes = [(k, analysis.classes[k]) for k in listed] if len(listed) > 1 else []
    names = [(k, analysis.scene.class_names[k]) for k, _ in classes]
    precision = charts.line_chart(analysis.overall, classes, "recall", "precision", ("recall", "precision"))
    f1 = charts.line_chart(analysis.overall, classes, "score", "f1", ("score", "F1"), mark=True)
    lead = (
        "At an IoU of 0.5. Left of the best score (the dot) there are more false detections, right of it more missed "
        "objects."
    )
    return _section("Precision, recall and F1", lead, f"{charts.legend(names)}{precision}{f1}")


def _classes(analysis: Analysis) -> str:
    rows = []
    for k in _listed(analysis):
        found = analysis.classes[k]
        precision, recall = found.at(found.threshold)
        values = (analysis.class_ap50[k] / 100, found.best if analysis.scene.counts[k] else np.nan, found.threshold)
        cells = [number(100 * values[0], 1), number(values[1]), number(values[2]), number(precision), number(recall)]
        rows.append((analysis.scene.class_names[k], f"{analysis.scene.counts[k]:,}", *cells))
    lead = "Each class at the score of its own best F1."
    left_out = len(analysis.scene.class_names) - len(rows)
    lead += f" {left_out} classes without objects and detections, or with the fewest, are left out." if left_out else ""
    header = ("class", "objects", "AP50", "best F1", "at score", "precision", "recall")
    return _section("Best threshold of each class", lead, charts.table(header, rows))


def _confusion(analysis: Analysis) -> str:
    counts, names = analysis.confusion, list(analysis.scene.class_names)
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    most = np.argsort(-(wrong[:-1, :-1].sum(1) + wrong[:-1, :-1].sum(0)), kind="stable")[:MATRIX_CLASSES]
    kept = sorted(most.tolist())
    lead = (
        f"Rows are objects, columns detections from a score of {analysis.score:.2f} on; the first column holds missed "
        "objects, the last row detections where no object is."
    )
    if len(kept) < len(names):
        lead += f" Only the {len(kept)} classes that are confused most are shown."
    nothing = len(names)
    labels = [names[k] for k in kept]
    shown = counts[np.ix_([*kept, nothing], [nothing, *kept])]
    body = charts.matrix(shown, [*labels, "nothing"], ["missed", *labels])
    return _section("What is taken for what", lead, body)


def _rules(analysis: Analysis) -> str:
    _, chosen = what_to_do(analysis)
    items = []
    for place, rule in enumerate(RULES):
        mark = ' class="chosen"' if place == chosen else ""
        items.append(f"<li{mark}>{escape(rule.condition)}{' (this one)' if mark else ''}</li>")
    lead = (
        "The sentence on top follows from the first of these rules that is true. Missed, wrong and other errors are "
        "compared by their cost above."
    )
    return _section("The rules behind the sentence", lead, f"<ol>{''.join(items)}</ol>")


def title_of(dataset: str, run: str = "") -> str:
    return (
        f"Evaluation of {os.path.basename(os.path.normpath(run))} on {dataset}" if run else f"Evaluation on {dataset}"
    )
