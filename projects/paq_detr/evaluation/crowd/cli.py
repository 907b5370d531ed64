# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""AP, MR-2, JI and recall of saved detections against a CrowdHuman annotation file.

python -m paq_detr.evaluation.crowdhuman --gt annotation_val.odgt --dt detections.json --json out.json

All numbers are fractions of 1, as the public programs print them; papers give percent.

Protocol "crowddet" is CrowdDet's program. "dh", behind DH-DETR's numbers, drops detections below a score of 0.05 first
and has another JI, with thresholds from 0.1 instead of 0.0, as many pairs as possible instead of the largest sum of
IoU, and the mean over all images. As published, only crowddet's JI goes by the ground truth that the detection file
may carry itself (``gtboxes``); a warning counts the images where it is another. The rest: ``protocols.Protocol``.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from ...data.json_file import write_json
from ...data.odgt import BOX_KINDS
from ...output_paths import check_output_file
from .doubts import Noted, note_truths, other_reading
from .files import Annotations, CocoResults, JsonLines, open_detections
from .images import ImageResults, evaluate_images, join
from .metrics import summarize
from .protocols import PROTOCOLS, Protocol
from .report import describe

logger = logging.getLogger(__name__)

PIECES_PER_WORKER = 8  # more share the work better, fewer are faster to match


def evaluate_files(
    gt: str,
    dt: str,
    box: str = "fbox",
    protocol: str = "crowddet",
    image_folder: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Evaluate a detection file against an odgt file; gives what ``metrics.summarize`` gives, as fractions.

    An annotated image without a record counts as an image without detections.

    Args:
        gt: annotation file (odgt).
        dt: json-lines dump or COCO results list.
        box: which ground truth boxes count, "full", "visible" or "head", or as in the file "fbox", "vbox" or "hbox".
        protocol: "crowddet" or "dh".
        image_folder: pictures to look up sizes in, where neither file has them.
        workers: processes; None: as many as there are CPUs.

    Raises:
        ValueError: a file is missing or broken, a detected image is unknown or comes twice, or boxes or scores hardly
            mean what they seem to, such as corners or percent.
    """
    rules = PROTOCOLS[protocol]
    annotations = Annotations(gt, box, image_folder)
    file = open_detections(dt, annotations)
    results, noted = _evaluate_pieces(file, rules, workers or _num_cpus())
    _refuse(noted, results, file)
    results = _with_missing(results, dt, annotations, rules)
    _warn(results, dt, annotations)
    return {"protocol": protocol, "box": annotations.box, **summarize(results, rules)}


def _evaluate_pieces(file: JsonLines | CocoResults, rules: Protocol, workers: int) -> tuple[ImageResults, Noted]:
    """The results of the file's pieces and what is odd in them, with a progress bar over its images."""
    pieces = file.pieces(PIECES_PER_WORKER * workers)
    parts, noted = [], Noted()
    with tqdm(total=len(file.annotations.ids), unit=" images", desc="evaluating") as progress:
        for results, noted_here in _map(file, rules, pieces, workers):
            progress.update(len(results.places))
            parts.append(results)
            noted.join(noted_here)
    return join(parts), noted


def _map(
    file: JsonLines | CocoResults, rules: Protocol, pieces: list, workers: int
) -> Iterator[tuple[ImageResults, Noted]]:
    if workers == 1 or sys.platform != "linux":  # elsewhere a new process costs more than it saves
        _set_job(file, rules)
        yield from map(_do_piece, pieces)
        return
    context = multiprocessing.get_context("fork")
    with context.Pool(workers, initializer=_set_job_of_worker, initargs=(file, rules)) as pool:
        yield from pool.imap(_do_piece, pieces)


def _set_job(*job: Any) -> None:
    _do_piece.job = job


def _set_job_of_worker(*job: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process tells of it and ends the others
    _set_job(*job)


def _do_piece(piece: Any) -> tuple[ImageResults, Noted]:
    (file, rules), noted = _do_piece.job, Noted()
    return evaluate_images(file.images(piece, noted), rules), noted


def _refuse(noted: Noted, results: ImageResults, file: JsonLines | CocoResults) -> None:
    """Raise one sentence if a file holds images twice, unknown images or values that hardly mean what they seem to."""
    dt, annotations = file.path, file.annotations
    if noted.unknown:
        where = noted.first_unknown
        raise ValueError(f"{noted.unknown} images of {dt} are not annotated in {annotations.path}; the first: {where}")
    found = np.bincount(results.places, minlength=len(annotations.ids))
    twice = np.flatnonzero(found > 1)
    if len(twice):
        raise ValueError(f"{dt} holds {len(twice)} images more than once, the first is {annotations.ids[twice[0]]!r}")
    truths = note_truths(annotations.truths, annotations.sizes)
    for path, of_file, key in ((dt, noted, file.key), (annotations.path, truths, annotations.box)):
        doubt = of_file.sentence(key, annotations.ids)
        if doubt:
            raise ValueError(f"{path}: {doubt}")
    if 2 * results.person_found.sum() < len(results.person_found):
        images = (image for piece in file.pieces(PIECES_PER_WORKER) for image in file.images(piece, Noted()))
        doubt = other_reading(images, dt, annotations.path)
        if doubt:
            raise ValueError(doubt)


def _with_missing(results: ImageResults, dt: str, annotations: Annotations, rules: Protocol) -> ImageResults:
    """The results with those of the annotated images that ``dt`` has no record of."""
    missing = np.setdiff1d(np.arange(len(annotations.ids)), results.places).tolist()
    if not missing:
        return results
    logger.warning("%s has no detections for %d of %d annotated images", dt, len(missing), len(annotations.ids))
    return join([results, evaluate_images(map(annotations.without_detections, missing), rules)])


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _warn(results: ImageResults, dt: str, annotations: Annotations) -> None:
    unclipped = int((~results.clipped).sum())
    if unclipped:
        logger.warning("the boxes of %d images are not clipped as the protocol demands, because neither file holds "
                       "their size; --images FOLDER looks it up", unclipped)  # fmt: skip
    differing = results.places[results.ji_truth_differs]
    if len(differing):
        logger.warning("the ground truth that %s carries itself (gtboxes, height, width) is not that of %s in %d "
                       "images, the first of which is %r; as published, JI goes by it, and AP, MR-2 and recall do not",
                       dt, annotations.path, len(differing), annotations.ids[differing[0]])  # fmt: skip
    if len(results.person_found) and len(results.scores) and not results.person_found.any():
        logger.warning("no detection of %s overlaps a person of %s by half: perhaps they are of other pictures, or of "
                       "the same in another size", dt, annotations.path)  # fmt: skip
    if not results.num_counted.any():
        logger.warning("%s holds no person whose %s counts: AP, MR-2 and recall are undefined",
                       annotations.path, annotations.box)  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m paq_detr.evaluation.crowdhuman", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--gt", required=True, help="annotation file (odgt)")
    parser.add_argument("--dt", required=True, help="detections: CrowdHuman's json lines or a COCO results list")
    boxes = (*BOX_KINDS, *BOX_KINDS.values())
    parser.add_argument("--box", choices=boxes, default="fbox", help="which ground truth boxes count (default: fbox)")
    protocols = "CrowdDet's program (default), or DH-DETR's: no scores below 0.05, another JI"
    parser.add_argument("--protocol", choices=PROTOCOLS, default="crowddet", help=protocols)
    parser.add_argument("--images", help="folder of ID.jpg, for image sizes that neither file holds")
    parser.add_argument("--workers", type=int, help="processes (default: as many as CPUs)")
    parser.add_argument("--json", help="write all numbers, at full precision, to this file")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    if options.workers is not None and options.workers < 1:
        parser.error(f"--workers is {options.workers}, must be at least 1")
    try:
        if options.json:
            check_output_file("--json", options.json)
        summary = evaluate_files(options.gt, options.dt, options.box, options.protocol, options.images, options.workers)
        logger.info("protocol %s, boxes %s\n%s", summary["protocol"], summary["box"], describe(summary))
        if options.json:
            write_json(summary, options.json)
    except KeyboardInterrupt:
        parser.exit(128 + signal.SIGINT, "stopped\n")
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
