# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Everything that can be found wrong with a dataset by reading all of it: every picture, every box."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .image_file import TRAITS, in_threads, look_at_picture, size_fault
from .pictures import hint_at, missing_files
from .plausible import leaves_or_vanishes
from .statistics import Statistics, arrays_of, describe
from .synthetic_crowd import is_synthetic

_EXAMPLES = 3

Progress = Callable[[Iterable], Iterable]  # such as tqdm


@dataclass(frozen=True)
class Report:
    """What a dataset is like, and what is wrong with it."""

    statistics: Statistics
    notes: list[str]  # worth to know, one sentence without a full stop each
    problems: list[str]


def check_records(
    records: Sequence[dict], class_names: Sequence[str], image_root: str = "", progress: Progress = iter
) -> Report:
    """Open every picture and look at every box of Detectron2's dataset dicts.

    Args:
        class_names: in the order of ``category_id``.
        image_root: where missing pictures may be found after all.
        progress: goes round the pictures.
    """
    statistics = describe(records, class_names)
    notes, problems = _of_pictures(records, image_root, progress)
    return Report(statistics, [*_of_classes(statistics), *notes], [*_of_boxes(records), *problems])


def shared_pictures(one: Sequence[dict], other: Sequence[dict]) -> list[str]:
    """Files that are in both of two splits' records."""
    return sorted(_files(one) & _files(other))


def _files(records: Sequence[dict]) -> set[str]:
    return {os.path.realpath(record["file_name"]) for record in records}


def counted(count: int, total: int, what: str, examples: Sequence[str]) -> str:
    """ "3 of 20 WHAT, such as A; B; C ..."."""
    shown = "; ".join(examples[:_EXAMPLES]) + (" ..." if count > _EXAMPLES else "")
    return f"{count} of {total} {what}: {shown}"


def _of_classes(statistics: Statistics) -> list[str]:
    without = [name for name, count in statistics.classes.items() if not count]
    notes = [counted(len(without), len(statistics.classes), "classes have no object", without)] if without else []
    if statistics.images_without_objects:
        notes.append(f"{statistics.images_without_objects} of {statistics.images} images hold no object")
    return notes


def _of_boxes(records: Sequence[dict]) -> list[str]:
    """Boxes that leave their image or are tiny, and boxes that stand twice."""
    odd, twice, total = [], [], 0
    for record in records:
        boxes, labels, _ = arrays_of(record)
        total += len(boxes)
        name = os.path.basename(record["file_name"])
        sizes = np.tile([record["width"], record["height"]], (len(boxes), 1))
        # Boxes without any area are told by those who read them.
        found = leaves_or_vanishes(boxes, sizes) & (boxes[:, 2:] > 0).all(1)
        odd += [f"{name} {_shown(box)}" for box in boxes[found]]
        seen = Counter(map(tuple, np.column_stack([labels, boxes]).tolist()))
        twice += [f"{name} {_shown(box)}" for (_, *box), count in seen.items() for _ in range(count - 1)]
    problems = []
    if odd:
        problems.append(counted(len(odd), total, "boxes leave their image or are under a pixel (are they [x, y, width, "
                                "height]? in pixels? of pictures of this size?)", odd))  # fmt: skip
    if twice:
        problems.append(counted(len(twice), total, "boxes stand there twice, with the same class", twice))
    return problems


def _shown(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in box)}]"


def _of_pictures(records: Sequence[dict], root: str, progress: Progress) -> tuple[list[str], list[str]]:
    """Notes and problems of opening every picture."""
    known = [record for record in records if not is_synthetic(record["file_name"])]
    missing = set(missing_files([record["file_name"] for record in known]))
    there = [record for record in known if record["file_name"] not in missing]
    unreadable, other_size, traits = [], [], Counter()
    for record, look in zip(there, progress(in_threads(_look, [record["file_name"] for record in there]))):
        if isinstance(look, str):
            unreadable.append(look)
            continue
        size, found = look
        traits.update(found)
        fault = size_fault(record["file_name"], size, (record["width"], record["height"]))
        other_size += [fault] if fault else []
    notes = [f"{traits[name]} of {len(there)} pictures {what}" for name, what in TRAITS.items() if traits[name]]
    problems = []
    if missing:
        first = min(missing)
        problems.append(
            f"{len(missing)} of {len(known)} pictures are missing; the first is {first}{hint_at(first, root)}"
        )
    if unreadable:
        problems.append(counted(len(unreadable), len(there), "pictures cannot be read", unreadable))
    if other_size:
        problems.append(counted(len(other_size), len(there), "pictures have another size", other_size))
    return notes, problems


def _look(file_name: str) -> tuple[tuple[int, int], list[str]] | str:
    try:
        return look_at_picture(file_name)
    except ValueError as error:
        return str(error)
