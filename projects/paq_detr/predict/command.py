# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``paq-detr predict``."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator

from detectron2.utils.logger import setup_logger
from tqdm import tqdm

from ..data.image_file import allow_pixels
from ..errors import UserError
from .output import KINDS, Output, new_folder
from .predictor import Detector
from .sources import Frame, Source, count_frames, find_sources, frames
from .thresholds import DEFAULT

_SHOWN = 5  # faults that are printed one by one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_OR_WEIGHTS", help="folder that training wrote, or a weight file")
    parser.add_argument("sources", metavar="SOURCE", nargs="+",
                        help="pictures, folders, patterns in quotes, videos, numbers of cameras")  # fmt: skip
    parser.add_argument("--config", metavar="FILE", help="in place of the config.yaml beside the weights")
    parser.add_argument("--threshold", metavar="T",
                        help=f"lowest score (default: {DEFAULT}), or auto: what evaluation found best")  # fmt: skip
    parser.add_argument("--output", metavar="DIR", help="default: output/predict, or the next that is free")
    parser.add_argument("--overwrite", action="store_true", help="write into DIR though it holds something")
    parser.add_argument("--save", default="pictures,json", metavar="KINDS",
                        help=f"some of {','.join(KINDS)} (default: pictures,json)")  # fmt: skip
    parser.add_argument("--classes", metavar="NAMES", help="keep only these, with commas between them")
    parser.add_argument("--tile", type=int, default=0, metavar="PIXELS", help="look at large pictures in such tiles")
    parser.add_argument("--overlap", type=float, default=0.2, help="of tiles, as a share (default: 0.2)")
    parser.add_argument("--batch", type=int, default=1, help="pictures, or tiles, at once (default: 1)")
    parser.add_argument("--device", help="such as cuda:1 or cpu; default: the config's")
    parser.add_argument("--labels", choices=("auto", "on", "off"), default="auto",
                        help="class names in pictures; auto: for up to 15 detections")  # fmt: skip
    parser.add_argument("--scores", action="store_true", help="scores beside the class names")


def predict(options: argparse.Namespace) -> int:
    """Predict and save; returns the exit code: 1 if some picture could not be read.

    Raises:
        UserError: one sentence; before a result is written.
    """
    for handler in setup_logger(name="paq_detr").handlers:
        handler.setLevel(logging.WARNING)
    kinds = [kind.strip() for kind in options.save.split(",") if kind.strip()]
    if not kinds:
        raise UserError(f"--save is empty, must name some of {', '.join(KINDS)}.")
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--save names {kind}, must name some of {', '.join(KINDS)}.")
    sources = find_sources(options.sources)
    detector = Detector(options.run, options.config, options.device)
    allow_pixels(detector.cfg.INPUT.MAX_PIXELS)
    threshold, origin = detector.threshold(options.threshold)
    classes = None if options.classes is None else _class_list(options.classes, detector.class_names)
    reader = _Reader(sources)
    settings = {"classes": classes, "tile": options.tile, "overlap": options.overlap, "batch": options.batch}
    results = detector.stream((frame.pixels for frame in reader), threshold, **settings)
    folder = new_folder(options.output, options.overwrite)
    output = Output(folder, kinds, detector.class_names, options.labels, options.scores)
    counts, start, stopped = Counter(), time.perf_counter(), False
    try:
        for result in tqdm(results, total=count_frames(sources), unit="picture", disable=None):
            frame = reader.handed_over.pop(0)
            result.path = frame.source.path
            output.add(frame, result)
            counts.update(result.names)
    except KeyboardInterrupt:  # the usual end of a camera
        stopped = True
    finally:
        output.close()
    seconds = time.perf_counter() - start
    done = reader.read - len(reader.handed_over)
    return _report(reader.faults, done, counts, f"{threshold:.3g} ({origin})", seconds, folder, stopped)


class _Reader:
    """Hands the frames of the sources over, and keeps those in ``handed_over`` until their results are there."""

    def __init__(self, sources: list[Source]):
        self.sources, self.faults, self.read = sources, [], 0
        self.handed_over: list[Frame] = []

    def __iter__(self) -> Iterator[Frame]:
        for frame in frames(self.sources):
            if frame.fault:
                self.faults.append(frame.fault)
                continue
            self.read += 1
            self.handed_over.append(frame)
            yield frame


def _class_list(text: str, known: tuple[str, ...]) -> list[str]:
    """The names between commas; a name that has commas itself is taken as one."""
    return [text] if text in known else [name.strip() for name in text.split(",") if name.strip()]


def _report(
    faults: list[str], done: int, counts: Counter, threshold: str, seconds: float, folder: str, stopped: bool
) -> int:
    for fault in faults[:_SHOWN]:
        print(f"not read: {fault}", file=sys.stderr)
    if len(faults) > _SHOWN:
        print(f"not read: {len(faults) - _SHOWN} more", file=sys.stderr)
    found = ", ".join(f"{count} {name}" for name, count in counts.most_common(10)) or "nothing found"
    more = f" and {len(counts) - 10} classes more" if len(counts) > 10 else ""
    each = f", {seconds / done:.2f} s each" if done else ""
    print(f"{done} pictures{each}: {found}{more}, at scores from {threshold}")
    print(f"Results are in {folder}" + (", as far as it came before it was stopped" if stopped else ""))
    if faults:
        print(f"paq-detr: {len(faults)} of {done + len(faults)} pictures could not be read.", file=sys.stderr)
    return 1 if faults else 0
