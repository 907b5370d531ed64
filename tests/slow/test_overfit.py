# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Run by hand: pytest -m slow tests/slow -s. Its output is recorded in docs/results.md."""

import json
import time
from argparse import Namespace
from pathlib import Path

import pytest

from paq_detr.engine import Trainer, setup_config, start_run

from ..conftest import data_folder

ROOT = Path(__file__).parents[2]


# The detectors of boxes are slower: smaller pictures, as in their configs, and a few more steps.
OF_BOXES = {"INPUT.MIN_SIZE_TRAIN": (160,), "INPUT.MIN_SIZE_TEST": 160, "SOLVER.MAX_ITER": 800, "SOLVER.STEPS": (650,)}
# The data, the config, and what differs from it.
SYSTEMS = {
    "paq": ("bccd", "bccd/paq.yaml", {}),
    "sparse_rcnn": ("bccd", "bccd/sparse_rcnn.yaml", OF_BOXES),
    "adamixer": ("bccd", "bccd/adamixer.yaml", OF_BOXES),
    "asag_a": ("bccd", "bccd/asag_a.yaml", OF_BOXES),
    "asag_s": ("bccd", "bccd/asag_s.yaml", OF_BOXES),
    "asag_d": ("bccd", "bccd/asag_d.yaml", OF_BOXES),
    "masks": ("dsb2018_nuclei", "nuclei/baseline.yaml", {"INPUT.CROP.ENABLED": False, "SOLVER.MAX_ITER": 900}),
    "dino": ("coco_mini", "bccd/dino.yaml", {"SOLVER.MAX_ITER": 900, "SOLVER.STEPS": (750,)}),
}


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_eight_real_images_are_learnt_by_heart(system, tmp_path):
    """AP50 of 95 or more on the training images themselves, of masks if there are."""
    name, config, more = SYSTEMS[system]
    folder = data_folder(name)
    content = json.loads((folder / "train.json").read_text())
    content["images"] = content["images"][:8]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (tmp_path / "eight.json").write_text(json.dumps(content))
    options = {
        "DATASETS.COCO_JSON": [["eight", str(tmp_path / "eight.json"), str(folder / "images")]],
        "DATASETS.TRAIN": ("eight",),
        "DATASETS.TEST": ("eight",),
        "INPUT.MIN_SIZE_TRAIN": (240,),
        "INPUT.MIN_SIZE_TEST": 240,
        "INPUT.RANDOM_FLIP": "none",
        "SOLVER.EPOCHS": 0,
        "SOLVER.MAX_ITER": 600,
        "SOLVER.STEPS": (500,),
        "OUTPUT_DIR": str(tmp_path / "output"),
        **more,
    }
    opts = [str(x) for pair in options.items() for x in pair]
    args = Namespace(config_file=str(ROOT / "configs" / config), opts=opts)
    cfg = setup_config(args)
    start_run(cfg, args)
    start = time.monotonic()
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    results = trainer.train()
    results = results.get("segm", results["bbox"])
    seconds = time.monotonic() - start
    print(f"AP {results['AP']:.1f}, AP50 {results['AP50']:.1f} after {cfg.SOLVER.MAX_ITER} steps, {seconds:.0f} s")
    assert results["AP50"] >= 95
