# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The command ``paq-detr report``: the page of an evaluation, from saved detections."""

from __future__ import annotations

import argparse
import os
import sys

from ...data.odgt import BOX_KINDS
from ...errors import UserError
from ...output_paths import check_output_file
from .page import write_report
from .sources import scene_of_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gt", required=True, metavar="FILE", help="ground truth: COCO json, CrowdHuman's odgt, YOLO, Pascal VOC, CSV"
    )
    parser.add_argument("--split", default="", help="which of the splits of --gt, where it has several")
    parser.add_argument(
        "--dt", required=True, metavar="FILE", help="detections: COCO results, or CrowdHuman's json lines"
    )
    parser.add_argument("--images", metavar="FOLDER", help="of the pictures, to draw the worst ones")
    parser.add_argument("--box", choices=tuple(BOX_KINDS), default="full", help="of an odgt (default: full)")
    parser.add_argument("--output", metavar="FILE", default="report.html", help="default: report.html")


def report(options: argparse.Namespace) -> None:
    """Write the page.

    Raises:
        UserError: one sentence on what is wrong with a file.
    """
    if options.images is not None and not os.path.isdir(options.images):
        raise UserError(f"--images {options.images} is no folder.")
    check_output_file("--output", options.output)
    try:
        scene = scene_of_files(options.gt, options.dt, options.images, options.box, options.split)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    names = [os.path.basename(path) for path in (options.dt, options.gt)]
    sentence = write_report(scene, options.output, f"{names[0]} against {names[1]}")
    sys.stdout.write(f"{sentence}\nThe report is {options.output}.\n")
