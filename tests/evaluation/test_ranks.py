# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Two processes give the result of one, also where the sampler gives an image to both."""

import pickle

import numpy as np
import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, MetadataCatalog

from paq_detr.evaluation import CocoBoxEvaluator, CrowdHumanEvaluator, QueryUseEvaluator

from .scenes import dataset_dicts, instances

NUM_IMAGES = 7


def scene():
    rng = np.random.default_rng(3)
    images, predictions = [], {}
    for image_id in range(NUM_IMAGES):
        corner = rng.uniform(0, 150, (4, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(10, 50, (4, 2))], 1)
        images.append((image_id, [(i % 2, box.tolist(), 0) for i, box in enumerate(boxes)]))
        found = boxes + rng.normal(0, 3, boxes.shape)
        predictions[image_id] = instances(found.tolist(), rng.uniform(0, 1, 4).tolist(), [0, 1, 0, 1], [0, 1, 2, 3])
    return images, predictions


def evaluate(image_ids):
    images, predictions = scene()
    DatasetCatalog.register("ranks", lambda: dataset_dicts(images))
    MetadataCatalog.get("ranks").set(thing_classes=["a", "b"])
    try:
        results = {}
        for evaluator in (CocoBoxEvaluator("ranks", 100), QueryUseEvaluator(4), CrowdHumanEvaluator("ranks")):
            evaluator.reset()
            for i in image_ids:
                evaluator.process([{"image_id": i}], [{"instances": predictions[i]}])
            results.update(evaluator.evaluate())
        return results
    finally:
        DatasetCatalog.remove("ranks")
        MetadataCatalog.remove("ranks")


def worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    image_ids = [0, 2, 4, 6] if rank == 0 else [1, 3, 5, 0]  # padded: image 0 comes twice
    with open(f"{folder}/rank{rank}.pkl", "wb") as file:
        pickle.dump(evaluate(image_ids), file)
    dist.destroy_process_group()


def test_two_processes_give_the_result_of_one(tmp_path):
    mp.start_processes(worker, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (pickle.loads((tmp_path / f"rank{rank}.pkl").read_bytes()) for rank in (0, 1))
    assert second == {}
    alone = evaluate(range(NUM_IMAGES))
    for task, metrics in alone.items():
        assert first[task] == pytest.approx(metrics, nan_ok=True)
