# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``paq-detr check-data``: what a dataset is like, what is wrong with it, and a sheet of its pictures with boxes."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from . import add_paq_detr_config
from .data.builtin import register_datasets
from .data.check import Report, check_records, shared_pictures
from .data.convert_data import add_source_arguments
from .data.formats.find import find_dataset, find_source
from .data.formats.open import open_source
from .data.image_file import MAX_PIXELS, allow_pixels
from .data.json_file import write_json
from .data.mapper import read_image
from .data.statistics import Spread, Statistics, arrays_of
from .drawing import draw_detections
from .engine.merge import merge_file
from .errors import UserError
from .predict.output import QUALITY, new_folder

_CELL, _GAP, _CAPTION = (480, 360), 8, 22  # pixels: of a picture on the sheet, around it, and below it
_COLUMNS, _PICTURES = 4, 16
_FAULTS = 20  # told one by one
_CLASSES, _BAR = 25, 30  # lines of the histogram, and characters of its longest bar


class _Data:
    """A dataset to look at, read once."""

    def __init__(
        self, title: str, name: str, dataset: Callable[[], list[dict]], metadata: Any, faults: Sequence[str] = ()
    ):
        """
        Args:
            name: of its sheet; empty where there is one dataset alone.
            metadata: has ``thing_classes`` and perhaps ``image_root``.
            faults: of lines, files and pictures that the dataset leaves out.
        """
        self.title, self.name = title, name
        self.records, self.class_names = dataset(), list(metadata.thing_classes)
        self.root = getattr(metadata, "image_root", "")
        more = len(faults) - _FAULTS
        left_out = [*faults[:_FAULTS], *([f"{more} more lines, files or pictures are faulty"] if more > 0 else [])]
        self.notes, self.doubts = getattr(dataset, "notes", []), [*left_out, *getattr(dataset, "doubts", [])]
        if not self.records:
            raise UserError(f"{title} holds no image")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_source_arguments(parser, nargs="?")
    parser.add_argument("--box", default="", choices=("full", "visible", "head"), help="of an odgt (default: full)")
    parser.add_argument("--config", metavar="FILE",
                        help="check the datasets of a yaml file; SOURCE may name one of them")  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="default: output/check_data, or the next that is free")
    parser.add_argument("--overwrite", action="store_true", help="write into DIR though it holds something")
    parser.add_argument("--json", action="store_true", help="print the report as json")


def check_data(options: argparse.Namespace) -> int:
    """Check, print and save; returns the exit code: 1 if there are problems.

    Raises:
        UserError: there is no such dataset, or it cannot be read; one sentence.
    """
    allow_pixels(MAX_PIXELS)
    if not options.source and not options.config:
        raise UserError("Name the data to check, or a config by --config.")
    with _quiet():
        try:
            found = _of_config(options) if options.config else _of_path(options)
            reports = [_checked(data) for data in found]
        except OSError as error:
            raise UserError(f"{error.filename or error}: {error.strerror or 'cannot be read'}.") from error
        except ValueError as error:
            raise UserError(f"{str(error).removesuffix('.')}.") from error
        folder = new_folder(options.output, options.overwrite, os.path.join("output", "check_data"))
        between = _between(found)
        sheets = [_save_sheet(data, folder) for data in found]
    count = sum(len(report.problems) for report in reports) + len(between)
    content = [{"data": data.title, "sheet": sheet, **asdict(r)} for data, r, sheet in zip(found, reports, sheets)]
    path = os.path.join(folder, "report.json")
    write_json({"problems": count, "datasets": content, "between": between}, path)
    if options.json:
        with open(path, encoding="utf-8") as file:
            print(file.read())
        return int(count > 0)
    for data, report in zip(found, reports):
        print("\n".join([data.title, *_lines(report)]))
    print("\n".join(f"problem: {problem}" for problem in between), end="\n" if between else "")
    print(
        f"{count or 'No'} problem{'' if count == 1 else 's'} found. The report and pictures with boxes are in {folder}"
    )
    return int(count > 0)


@contextmanager
def _quiet() -> Iterator[None]:
    """What reading warns of is part of the report."""
    package = logging.getLogger(__package__)
    before = package.level
    package.setLevel(logging.ERROR)
    try:
        yield
    finally:
        package.setLevel(before)


# ----------------------------------------------------------------------------------------------------------------------
# Which data


def _of_path(options: argparse.Namespace) -> list[_Data]:
    """The split that is asked for, or all of them."""
    given = {"images": options.images, "classes": options.classes, "box": options.box}
    splits = [options.split] if options.split else find_dataset(options.source, options.format).splits
    found = []
    for split in splits:
        source = replace(find_source(options.source, split, options.format, **given), faults=[])
        try:
            dataset = open_source(source)
        except ValueError as error:
            if not source.faults:
                raise
            raise UserError(f"{error}, after {len(source.faults)} faults, the first: {source.faults[0]}") from error
        metadata = SimpleNamespace(thing_classes=dataset.class_names, image_root=source.image_root)
        found.append(_Data(str(source), split if len(splits) > 1 else "", dataset, metadata, source.faults))
    return found


def _of_config(options: argparse.Namespace) -> list[_Data]:
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    merge_file(cfg, options.config)
    register_datasets(cfg)
    names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)))
    if options.source and options.source not in names:
        raise UserError(f"{options.config} has the datasets {', '.join(names)}, not {options.source}")
    names = [options.source] if options.source else names
    return [
        _Data(f"dataset {name} of {options.config}", name, DatasetCatalog[name], MetadataCatalog.get(name))
        for name in names
    ]


def _checked(data: _Data) -> Report:
    bar = partial(tqdm, total=len(data.records), unit="picture", desc=data.name or None, disable=None, leave=False)
    report = check_records(data.records, data.class_names, data.root, bar)
    return replace(report, notes=[*data.notes, *report.notes], problems=[*data.doubts, *report.problems])


def _between(found: Sequence[_Data]) -> list[str]:
    """Pictures that two splits share: what is trained on says nothing in evaluation."""
    problems = []
    for one, other in combinations(found, 2):
        shared = shared_pictures(one.records, other.records)
        if shared:
            problems.append(f"{len(shared)} pictures are in both {one.name} and {other.name}; the first is {shared[0]}")
    return problems


# ----------------------------------------------------------------------------------------------------------------------
# In words


def _lines(report: Report) -> list[str]:
    s = report.statistics
    sizes = f"median {s.image_widths.median:.0f} x {s.image_heights.median:.0f}"
    if s.image_widths.smallest < s.image_widths.largest or s.image_heights.smallest < s.image_heights.largest:
        sizes += f", widths {_range(s.image_widths)}, heights {_range(s.image_heights)}"
    shares = ", ".join(f"{share:.0%} {name}" for name, share in s.size_shares.items())
    rows = {
        "images": f"{s.images}, {s.images_without_objects} without objects",
        "objects": f"{s.objects}, and {s.ignore_regions} ignore regions",
        "per image": f"median {s.objects_per_image.median:g}, 99th percentile {s.objects_per_image.percentile_99:.0f}, "
        f"most {s.objects_per_image.largest:.0f}",
        "image sizes": sizes,
        "object sizes": f"median {s.object_sizes.median:.0f} pixels, {_range(s.object_sizes)}; {shares}",
        "overlap": f"{s.overlap:.1%} of the objects have an IoU above 0.5 to another one",
    }  # fmt: skip
    said = [f"note: {note}" for note in report.notes] + [f"problem: {problem}" for problem in report.problems]
    return [f"  {line}" for line in [*(f"{key:13}{value}" for key, value in rows.items()), *_histogram(s), *said]]


def _range(spread: Spread) -> str:
    return f"{spread.smallest:.0f} to {spread.largest:.0f}"


def _histogram(statistics: Statistics) -> list[str]:
    """The most frequent classes, with bars."""
    counts = sorted(statistics.classes.items(), key=lambda item: -item[1])
    most, width = max(counts[0][1], 1), max(len(name) for name, _ in counts[:_CLASSES])
    digits = len(str(most))
    bars = [(name, count, "#" * round(_BAR * count / most)) for name, count in counts[:_CLASSES]]
    lines, rest = [f"{name:{width}}  {count:{digits}}  {bar}".rstrip() for name, count, bar in bars], counts[_CLASSES:]
    return [*lines, *([f"and {len(rest)} classes more with {sum(n for _, n in rest)} objects"] if rest else [])]


# ----------------------------------------------------------------------------------------------------------------------
# In pictures


def _save_sheet(data: _Data, folder: str) -> str:
    """Write the contact sheet; returns its file's name."""
    name = f"sheet_{data.name}.jpg" if data.name else "sheet.jpg"
    contact_sheet(data.records, data.class_names).save(os.path.join(folder, name), quality=QUALITY)
    return name


def contact_sheet(records: Sequence[dict], class_names: Sequence[str]) -> Image.Image:
    """Pictures spread over a dataset with their boxes; the first is the one with most objects. Those that cannot be
    read are left out."""
    counts = [len(record["annotations"]) for record in records]
    spread = np.linspace(0, len(records) - 1, _PICTURES - 1).astype(int).tolist()
    cells = []
    for place in dict.fromkeys([int(np.argmax(counts)), *spread]):
        try:
            cells.append(_cell(records[place], class_names))
        except ValueError:
            continue
    columns = min(_COLUMNS, max(len(cells), 1))
    rows = max(-(-len(cells) // columns), 1)
    width, height = _CELL[0] + _GAP, _CELL[1] + _CAPTION + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), (255, 255, 255))
    for number, cell in enumerate(cells):
        sheet.paste(cell, (_GAP + number % columns * width, _GAP + number // columns * height))
    return sheet


def _cell(record: dict, class_names: Sequence[str]) -> Image.Image:
    """A picture with its boxes and its name below."""
    image = Image.fromarray(read_image(record["file_name"], "RGB"))
    boxes, labels, ignored = arrays_of(record)
    scale = min(_CELL[0] / image.width, _CELL[1] / image.height)
    image = image.resize((max(round(image.width * scale), 1), max(round(image.height * scale), 1)))
    boxes[:, 2:] += boxes[:, :2]
    if ignored.any():
        class_names, labels = [*class_names, "ignored"], np.where(ignored, len(class_names), labels)
    drawn = draw_detections(np.asarray(image), boxes * scale, labels, np.ones(len(boxes)), class_names)
    cell = Image.new("RGB", (_CELL[0], _CELL[1] + _CAPTION), (255, 255, 255))
    cell.paste(drawn, ((_CELL[0] - drawn.width) // 2, (_CELL[1] - drawn.height) // 2))
    name = os.path.basename(record["file_name"].partition("?")[0])  # without what tells a synthetic picture
    text = f"{name[-50:]}: {int((~ignored).sum())} objects"
    ImageDraw.Draw(cell).text((0, _CELL[1] + 2), text, fill=(0, 0, 0), font=ImageFont.load_default(14))
    return cell
