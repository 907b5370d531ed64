# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What each augmentation of INPUT.AUGMENT does to the first training pictures, with the objects that are left.

    python tools/plot_augmentations.py --output augmentations.jpg [--config-file CONFIG] [KEY VALUE ...]

Without --config-file the pictures are of the synthetic crowd. A row an augmentation, always applied, with its keys of
the config; last of all the config's own INPUT.AUGMENT, where it names several. Boxes are coloured by class, ignore
regions are white.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image, ImageDraw, ImageFont

from paq_detr.data import read_image
from paq_detr.data.augment import AUGMENTATIONS, Augmentations, build_augmentations
from paq_detr.data.sample import Sample, piece_of, sample_of
from paq_detr.drawing import draw_detections
from paq_detr.engine import UserError, run_cli, setup_config
from paq_detr.engine.rng import seeded_rng
from paq_detr.output_paths import check_output_file

TITLE = 18  # height of a row's title
GAP = 4


def steps_of(cfg: CfgNode) -> dict[str, Augmentations]:
    """The rows by title: nothing, each augmentation alone and always, and the config's own list."""
    rows = {"as it is": Augmentations([])}
    for name in AUGMENTATIONS.names():
        alone = cfg.clone()
        alone.defrost()
        alone.INPUT.AUGMENT, alone.INPUT.CROP.ENABLED = [name], False
        section = alone.INPUT.get(name.upper())
        if isinstance(section, CfgNode) and "PROB" in section:
            section.PROB = 1.0
        if name != "albumentations":
            alone.INPUT.ALBUMENTATIONS = []
        elif not alone.INPUT.ALBUMENTATIONS:
            continue
        rows[name] = build_augmentations(alone)
    if len(cfg.INPUT.AUGMENT) > 1:
        rows[f"INPUT.AUGMENT: {', '.join(cfg.INPUT.AUGMENT)}"] = build_augmentations(cfg)
    return rows


def reader(cfg: CfgNode, records: Sequence[dict]) -> Callable[[int], Sample]:
    """A function from a record's number to its picture, RGB, with its objects."""
    count, masks = len(cfg.MODEL.DETR.CLASS_NAMES), cfg.MODEL.DETR.MASK.ENABLED
    return lambda i: sample_of(records[i], read_image(records[i]["file_name"], "RGB"), count, masks)


def picture_of(sample: Sample, names: Sequence[str]) -> Image.Image:
    objects, regions = sample.take(~sample.ignore), sample.take(sample.ignore)
    masks = None
    if objects.masks is not None:
        masks = np.zeros((len(objects), *objects.size), dtype=bool)
        for mask, shape in zip(objects.masks, masks, strict=True):
            x, y, pixels = piece_of(mask, objects.size)
            shape[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
    picture = draw_detections(
        objects.image, objects.boxes, objects.classes, np.ones(len(objects)), names, masks=masks, labels="off"
    )
    for box in regions.boxes.tolist():
        ImageDraw.Draw(picture).rectangle([round(v) for v in box], outline="white")
    return picture


def drawn_row(title: str, pictures: Sequence[Image.Image], cell: tuple[int, int]) -> Image.Image:
    """Pictures beside each other, at one scale, each at the upper left of its cell of (width, height)."""
    scale = min(1, *(side / max(p.size[i] for p in pictures) for i, side in enumerate(cell)))
    row = Image.new("RGB", (len(pictures) * (cell[0] + GAP) - GAP, TITLE + cell[1]), "white")
    ImageDraw.Draw(row).text((2, 1), title, fill="black", font=ImageFont.load_default(13))
    for column, picture in enumerate(pictures):
        size = tuple(max(round(side * scale), 1) for side in picture.size)
        row.paste(picture.resize(size) if scale < 1 else picture, (column * (cell[0] + GAP), TITLE))
    return row


def draw(cfg: CfgNode, columns: int, seed: int, cell: int) -> Image.Image:
    """All rows; ``cell``: the longest side of a picture."""
    records = [record for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0]) if record["annotations"]]
    if not records:
        raise UserError(f"No picture of {cfg.DATASETS.TRAIN[0]} holds an object.")
    read = reader(cfg, records)
    shown = [read(column % len(records)) for column in range(columns)]
    sides = np.max([sample.size for sample in shown], 0)[::-1]
    width, height = (sides * min(cell / sides.max(), 1)).round().astype(int).tolist()
    rows = []
    for number, (title, step) in enumerate(steps_of(cfg).items()):
        pictures = []
        for column, sample in enumerate(shown):
            with seeded_rng(seed, number, column):
                found = step(sample, lambda: read(np.random.randint(len(records))))
            pictures.append(picture_of(found, cfg.MODEL.DETR.CLASS_NAMES))
        rows.append(drawn_row(title, pictures, (width, height)))
    whole = Image.new("RGB", (rows[0].width, sum(row.height + GAP for row in rows) - GAP), "white")
    for number, row in enumerate(rows):
        whole.paste(row, (0, number * (row.height + GAP)))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="the picture to write")
    parser.add_argument("--config-file", default="", help="its first training dataset is drawn, with its keys")
    parser.add_argument("--columns", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cell", type=int, default=320, help="longest side of a picture, in pixels")
    parser.add_argument("--quality", type=int, default=85, help="of a JPEG, from 1 to 95")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the config")
    args = parser.parse_args()
    if args.columns < 1 or args.cell < 16:
        parser.error("--columns must be at least 1, --cell at least 16")
    check_output_file("--output", args.output)
    if not args.config_file:
        args.opts = ["DATASETS.TRAIN", "[synthetic_crowd_train]", "DATASETS.TEST", "[]", *args.opts]
    cfg = setup_config(args)
    if not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name a dataset to draw.")
    draw(cfg, args.columns, args.seed, args.cell).save(args.output, quality=args.quality)


if __name__ == "__main__":
    sys.exit(run_cli(main, "plot_augmentations"))
