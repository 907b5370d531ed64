# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What a trained model loses and saves where an image keeps fewer queries (MODEL.DETR.QUERIES.KEEP).

    python tools/query_count.py --run output/bccd/dino --keep 0:1:1 0.02:1:10 0.05:1:10 0.05:2:10 \
        --output output/query_count [KEY VALUE ...]

RUN holds what training wrote (config.yaml, model_final.pth); its first test dataset is of any format but odgt. KEEP is
MIN_SCORE:FACTOR:MIN, at inference; 0:1:1 keeps all. Images are evaluated one by one in two halves, those with fewer
and those with more objects. Writes query_count.md and query_count.json: per half AP, recall (AR), and means of an
image's queries and of the decoder's milliseconds, of these the smallest of all rounds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog

from paq_detr.data.formats import Source
from paq_detr.data.json_file import write_json
from paq_detr.engine import Trainer, run_cli, setup_config
from paq_detr.engine.evaluate import load_trained
from paq_detr.errors import UserError
from paq_detr.output_paths import make_output_folder

HALVES = ("sparse", "dense")
COLUMNS = ("AP", "AR", "queries", "decoder ms")


def halves(content: dict, folder: Path) -> dict[str, int]:
    """Write sparse.json and dense.json, the images of a COCO json's content with fewer and with more objects; the most
    objects of an image of each."""
    counts = Counter(a["image_id"] for a in content["annotations"] if not a.get("iscrowd"))
    images = sorted(content["images"], key=lambda image: counts[image["id"]])
    most = {}
    for name, part in zip(HALVES, (images[: len(images) // 2], images[len(images) // 2 :])):
        ids = {image["id"] for image in part}
        annotations = [a for a in content["annotations"] if a["image_id"] in ids]
        (folder / f"{name}.json").write_text(json.dumps({**content, "images": part, "annotations": annotations}))
        most[name] = max(counts[i] for i in ids)
    return most


def source_of_test(cfg) -> Source:
    """Of the first test dataset, as COCO json."""
    name = cfg.DATASETS.TEST[0]
    source = getattr(DatasetCatalog[name], "source", None)
    if not isinstance(source, Source):
        raise UserError(f"DATASETS.TEST {name} is none of DATASETS.COCO_JSON, nor of DATASETS.FILES other than odgt.")
    return source


def clock(device: torch.device) -> Callable[[], float]:
    """Seconds: of a CPU's processor for this program, whatever else runs there; of a GPU when all is done."""
    if device.type != "cuda":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


class Watch:
    """Seconds of a decoder and slots of its queries, batch by batch."""

    def __init__(self, decoder: torch.nn.Module):
        self.seconds: list[float] = []
        self.slots: list[int] = []
        self.now = clock(next(decoder.parameters()).device)
        decoder.register_forward_pre_hook(lambda *_: self.seconds.append(-self.now()))
        decoder.register_forward_hook(self.stop)

    def stop(self, decoder: torch.nn.Module, inputs: tuple, outputs: list) -> None:
        self.seconds[-1] += self.now()
        self.slots.append(inputs[0].reference.shape[1])


def configured(run: Path, opts: list):
    """The config of a run for an evaluation, with KEY VALUE pairs."""
    opts = [str(part) for part in opts]
    return setup_config(argparse.Namespace(config_file=str(run / "config.yaml"), opts=opts, eval_only=True))


def evaluate(
    run: Path, keep: str, folder: Path, images: str, rounds: int, options: list[str]
) -> dict[str, dict[str, float]]:
    """By half, what ``COLUMNS`` say."""
    score, factor, least = keep.split(":")
    opts = ["MODEL.WEIGHTS", run / "model_final.pth", "OUTPUT_DIR", folder / keep, "DATASETS.TEST", HALVES]
    opts += ["DATASETS.COCO_JSON", [[name, str(folder / f"{name}.json"), images] for name in HALVES]]
    for name, value in (("WHEN", "inference"), ("MIN_SCORE", score), ("FACTOR", factor), ("MIN", least)):
        opts += [f"MODEL.DETR.QUERIES.KEEP.{name}", value]
    cfg = configured(run, [*opts, *options])
    model = load_trained(cfg)
    watch = Watch(model.eval().routes["main"].decoder)
    rows = {}
    for name in HALVES:
        half = cfg.clone()
        half.defrost()
        half.DATASETS.TEST = (name,)
        means = []
        for _ in range(rounds):
            watch.seconds, watch.slots = [], []
            found = Trainer.test(half, model)["bbox"]
            means.append(1e3 * sum(watch.seconds) / len(watch.seconds))
        queries = sum(watch.slots) / len(watch.slots)
        rows[name] = {"AP": found["AP"], "AR": found["AR"], "queries": queries, "decoder ms": min(means)}
    return rows


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    lines = ["| keep | images | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for keep, rows in results.items():
        for half, row in rows.items():
            lines.append(f"| {keep} | {half} | " + " | ".join(f"{row[name]:.1f}" for name in COLUMNS) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--keep", nargs="+", default=["0:1:1", "0.02:1:10", "0.05:1:10", "0.1:1:10", "0.1:2:10"])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every evaluation")
    args = parser.parse_args()
    make_output_folder("--output", args.output)
    source = source_of_test(configured(args.run, args.options))
    most, images = halves(source.content().coco, args.output), source.image_root
    results = {k: evaluate(args.run, k, args.output, images, args.rounds, args.options) for k in args.keep}
    text = table(results) + "\n\n" + ", ".join(f"{name}: up to {count} objects" for name, count in most.items()) + "\n"
    write_json(results, args.output / "query_count.json")
    (args.output / "query_count.md").write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    sys.exit(run_cli(main, "query_count"))
