# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A batch in parts has the losses and the gradients of the batch in one piece."""

import math

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from paq_detr.engine import Trainer, UserError
from paq_detr.engine.learn import Learner
from tests.modeling.assemblies import ASSEMBLIES, make_image, make_model, wake_up

# The second is by far the fullest, the third is empty, and the largest comes last.
IMAGES = [
    make_image(64, 96, [[4, 6, 40, 50], [30, 8, 90, 60]], [0, 2], seed=1),
    make_image(50, 90, [[10 * i, 3 * i, 10 * i + 22, 3 * i + 20] for i in range(6)], [0, 1, 2, 0, 1, 2], seed=2),
    make_image(56, 80, seed=3),
    make_image(70, 120, [[10, 10, 100, 40]], [1], seed=4),
]
FLOAT32 = {"device_type": "cpu", "dtype": torch.bfloat16, "enabled": False}


def awake(name):
    return wake_up(make_model(ASSEMBLIES[name], **{"MODEL.DETR.DROPOUT": 0.0})).train()


def gradients(model, batch, parts, steps=1):
    """By name, and the losses, of the last of some steps."""
    learner = Learner(model, lambda loss: loss.backward(), FLOAT32, parts)
    for _ in range(steps):
        model.zero_grad(set_to_none=True)
        losses = learner(batch)
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, losses


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 2e-4 * value.norm() + 1e-6, name


@pytest.fixture
def nothing_random(monkeypatch):
    """Parts draw their random numbers in another order: denoising's noise and masks' points are the same for all."""
    monkeypatch.setattr(torch, "rand", lambda *size, device=None: torch.full(_shape(size), 0.37, device=device))
    monkeypatch.setattr(torch, "randint", lambda high, size, device=None: torch.zeros(size, dtype=torch.int64))


def _shape(size):
    return size if all(isinstance(n, int) for n in size) else size[0]


NAMES = [
    *("plusplus", "plusplus_paq", "dehomo_paq_hybrid_mask", "dn", "dn_deformable_patterned", "dino_paq_hybrid"),
    *("dino_mask", "two_stage_box_dn", "ddq_mask", "mr_paq", "mr_align", "sparse_rcnn_dehomo_dn", "adamixer_paq"),
]


@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_parts_are_those_of_the_whole(nothing_random, name):
    model = awake(name)
    expected, whole = gradients(model, IMAGES, 1)
    found, parts = gradients(model, IMAGES, 2, steps=2)  # in the first step counting may be of no use, and ends
    assert parts.keys() == whole.keys()
    assert all(math.isclose(parts[n], whole[n], rel_tol=1e-4, abs_tol=1e-6) for n in whole)
    assert_same(found, expected)


def one_of_two(rank, folder, name):
    """Gradients of two images of each process, in two parts."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    model = DistributedDataParallel(awake(name))
    found, losses = gradients(model, IMAGES[2 * rank : 2 * rank + 2], 2, steps=2)
    if rank == 0:
        torch.save({name.removeprefix("module."): grad for name, grad in found.items()}, f"{folder}/gradients.pth")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["plusplus_paq", "adamixer"])
def test_two_processes_with_two_parts_each_learn_as_one_process_with_all(forked, tmp_path, name):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path), name), nprocs=2)
    expected, _ = gradients(awake(name), IMAGES, 1)
    assert_same(torch.load(tmp_path / "gradients.pth", weights_only=True), expected)


def test_a_training_in_parts_is_that_in_one_piece(make_cfg, tmp_path):
    def train(parts):
        opts = ("SOLVER.ACCUMULATE", parts, "SOLVER.MAX_ITER", 2, "DATASETS.TEST", "[]", "MODEL.DETR.DROPOUT", 0.0)
        torch.manual_seed(0)
        trainer = Trainer(make_cfg(*opts, "SOLVER.OPTIMIZER", "SGD", "OUTPUT_DIR", tmp_path / f"{parts}"))
        trainer.train()
        return trainer

    whole, parts = train(1), train(2)
    assert parts.checkpointer.model.whole is None
    for name in ("total_loss", "grad_norm"):
        assert math.isclose(parts.storage.history(name).latest(), whole.storage.history(name).latest(), rel_tol=1e-3)


def test_parts_of_unequal_size_are_refused(make_cfg):
    with pytest.raises(UserError, match=r"SOLVER.ACCUMULATE is 3, but SOLVER.IMS_PER_BATCH 4 cannot be divided into 3"):
        make_cfg("SOLVER.ACCUMULATE", 3, "SOLVER.IMS_PER_BATCH", 4)
    with pytest.raises(UserError, match=r"MODEL.META_ARCHITECTURE Linear cannot divide"):
        Learner(torch.nn.Linear(1, 1), lambda loss: None, FLOAT32, parts=2)
