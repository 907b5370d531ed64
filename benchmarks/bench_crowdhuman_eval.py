# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""AP, MR-2, JI and recall of a data set of CrowdHuman's size, reading of the files included.

    python benchmarks/bench_crowdhuman_eval.py [--images 4370] [--workers 2] [--json result.json]

Generated crowds: 24 objects an image, half of them close to another one, a tenth to be ignored; 300 detections, half of
them near an object (so about six for each), with boxes to 0.1 pixel and scores to 5 digits as in CrowdDet's dumps.
"in process" times ``evaluate_files``; "command" the whole ``python -m`` with its imports; "cpu" adds up all processes.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine

from paq_detr.evaluation.crowdhuman import evaluate_files

HEIGHT, WIDTH, OBJECTS, DETECTIONS = 800, 1100, 24, 300


def write_files(folder, num_images):
    rng = np.random.default_rng(0)
    gt, dt = folder / "annotation.odgt", folder / "detections.json"
    with open(gt, "w") as gt_file, open(dt, "w") as dt_file:
        for index in range(num_images):
            truth, ignored = objects(rng)
            key = f"{index},{index:08x}"
            boxes = [
                {
                    "tag": "mask" if skip else "person",
                    **{kind: box for kind in ("fbox", "vbox", "hbox")},
                    "head_attr": {"ignore": 0, "occ": 0, "unsure": 0},
                    "extra": {"box_id": number, "occ": 1, "ignore": int(skip)},
                }
                for number, (box, skip) in enumerate(zip(truth.tolist(), ignored.tolist(), strict=True))
            ]
            gt_file.write(json.dumps({"ID": key, "gtboxes": boxes}) + "\n")
            found = [{"box": box, "score": score, "tag": 1} for box, score in detections(rng, truth)]
            own = [{"box": b["fbox"], "tag": -1 if b["extra"]["ignore"] else 1} for b in boxes]
            record = {"ID": key, "height": HEIGHT, "width": WIDTH, "dtboxes": found, "gtboxes": own}
            dt_file.write(json.dumps(record) + "\n")
    return gt, dt


def objects(rng):
    corner = rng.uniform((0, 0), (WIDTH - 100, HEIGHT - 200), (OBJECTS, 2))
    half = OBJECTS // 2
    corner[half:] = corner[:half] + rng.normal(0, 25, (half, 2))
    sizes = rng.uniform((40, 90), (120, 300), (OBJECTS, 2))
    return np.concatenate([corner, sizes], 1).round().astype(int), rng.random(OBJECTS) < 0.1


def detections(rng, truth):
    half = DETECTIONS // 2
    near = truth[rng.integers(0, OBJECTS, half)] * rng.normal(1, 0.05, (half, 4))
    anywhere = rng.uniform((0, 0, 40, 90), (WIDTH, HEIGHT, 120, 300), (half, 4))
    boxes, scores = np.concatenate([near, anywhere]).round(1), rng.random(DETECTIONS).round(5)
    return zip(boxes.tolist(), scores.tolist(), strict=True)


def timed(function):
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    start = time.perf_counter()
    function()
    wall = time.perf_counter() - start
    after = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(b.ru_utime + b.ru_stime - a.ru_utime - a.ru_stime for a, b in zip(usage, after, strict=True))
    return {"wall_s": round(wall, 2), "cpu_s": round(cpu, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=4370)
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count()))
    parser.add_argument("--rounds", type=int, default=3, help="the fastest counts")
    parser.add_argument("--json", type=Path, help="write machine and rows there as well")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        gt, dt = write_files(Path(folder), args.images)

        def in_process():
            with contextlib.redirect_stderr(io.StringIO()):
                evaluate_files(str(gt), str(dt), workers=args.workers)

        def command():
            options = ["--gt", gt, "--dt", dt, "--workers", str(args.workers), "--json", Path(folder, "out.json")]
            module = [sys.executable, "-m", "paq_detr.evaluation.crowdhuman"]
            subprocess.run([*module, *options], check=True, capture_output=True)

        rows = [
            {"what": name, "images": args.images, "workers": args.workers}
            | min((timed(function) for _ in range(args.rounds)), key=lambda row: row["wall_s"])
            for name, function in (("in process", in_process), ("command", command))
        ]
    about = machine("cpu")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    for row in rows:
        print(", ".join(f"{key} {value}" for key, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
