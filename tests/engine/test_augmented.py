# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Augmentations in a training: the same seed gives the same batches, and a resume goes on exactly."""

import itertools
import logging

import pytest
import torch
from detectron2.data import build_detection_train_loader

from paq_detr.data import DetrDatasetMapper
from paq_detr.engine import Trainer, UserError

from .test_trainer import assert_equal_states, train, weights

MIXED = ("INPUT.AUGMENT", "[color_jitter, mosaic, copy_paste, mixup]")
LISTS = {
    "mosaic": ("INPUT.AUGMENT", "[mosaic]", "INPUT.MOSAIC.PROB", 1.0),
    "mixup": ("INPUT.AUGMENT", "[mixup]", "INPUT.MIXUP.PROB", 1.0),
    "copy_paste": ("INPUT.AUGMENT", "[copy_paste]", "INPUT.COPY_PASTE.PROB", 1.0),
    "color_jitter": ("INPUT.AUGMENT", "[color_jitter]"),
    "large_scale_jitter": ("INPUT.AUGMENT", "[large_scale_jitter]", "INPUT.LARGE_SCALE_JITTER.SIZE", "[64, 80]"),
    "albumentations": ("INPUT.AUGMENT", "[albumentations]", "INPUT.ALBUMENTATIONS", "[{Affine: {p: 1.0}}]"),
    "all": (*MIXED[:1], "[large_scale_jitter, copy_paste, color_jitter, mosaic, mixup]"),
}


def batches(cfg, count, state=None):
    loader, _ = Trainer.build_train_loader(cfg)
    if state:
        loader.load_state_dict(state)
    taken = list(itertools.islice(iter(loader), count))
    return taken, loader.state_dict()


def assert_equal_batches(one, other):
    for a, b in zip(itertools.chain(*one), itertools.chain(*other), strict=True):
        assert a["file_name"] == b["file_name"] and torch.equal(a["image"], b["image"])
        assert torch.equal(a["instances"].gt_boxes.tensor, b["instances"].gt_boxes.tensor)
        assert torch.equal(a["instances"].gt_classes, b["instances"].gt_classes)


@pytest.mark.parametrize("name", LISTS)
def test_same_seed_same_batches_whatever_the_workers_and_a_resume_goes_on(make_cfg, name):
    if name == "albumentations":
        pytest.importorskip("albumentations", reason="needs the extra 'augment'")
    whole, _ = batches(make_cfg(*LISTS[name]), 4)
    first, state = batches(make_cfg(*LISTS[name], "DATALOADER.NUM_WORKERS", 2), 2)
    second, _ = batches(make_cfg(*LISTS[name]), 2, state)
    assert_equal_batches(whole, [*first, *second])
    other, _ = batches(make_cfg(*LISTS[name], "SEED", 7), 4)
    plain, _ = batches(make_cfg(), 4)
    for differ in (other, plain):
        with pytest.raises(AssertionError):
            assert_equal_batches(whole, differ)


def test_pictures_are_mixed_but_in_the_last_epochs(make_cfg):
    """12 images in batches of 2: an epoch has 6 batches."""
    mosaic = *LISTS["mosaic"], "SOLVER.EPOCHS", 2, "INPUT.MIX_OFF_EPOCHS", 1
    plain, _ = batches(make_cfg(), 12)
    mixed, _ = batches(make_cfg(*LISTS["mosaic"]), 12)
    found, state = batches(make_cfg(*mosaic), 12)
    assert_equal_batches(found, [*mixed[:6], *plain[6:]])
    assert state["batches"] == 12
    started, state = batches(make_cfg(*mosaic), 5)
    rest, _ = batches(make_cfg(*mosaic), 7, state)
    assert_equal_batches([*started, *rest], found)
    by_iterations = *LISTS["mosaic"], "SOLVER.MAX_ITER", 12, "INPUT.MIX_OFF_EPOCHS", 1
    assert_equal_batches(batches(make_cfg(*by_iterations), 12)[0], found)


def test_to_mix_never_is_said(make_cfg, caplog):
    caplog.set_level(logging.WARNING, "paq_detr")
    logging.getLogger("paq_detr").propagate = True
    batches(make_cfg(*MIXED, "SOLVER.EPOCHS", 2, "INPUT.MIX_OFF_EPOCHS", 3), 1)
    assert "INPUT.MIX_OFF_EPOCHS 3 is as long as the whole training: no pictures are mixed" in caplog.text


def test_a_resumed_training_equals_a_whole_one(make_cfg, tmp_path):
    common = (*MIXED, "INPUT.MIX_OFF_EPOCHS", 1, "DATASETS.TEST", "[]", "DATASETS.SYNTHETIC_CROWD.NUM_TRAIN", 6)
    common = (*common, "SOLVER.EPOCHS", 2, "SOLVER.EPOCH_STEPS", "[]", "SOLVER.CHECKPOINT_EPOCHS", 1)
    whole = train(make_cfg(*common, "OUTPUT_DIR", tmp_path / "whole"))
    parts = make_cfg(*common, "OUTPUT_DIR", tmp_path / "parts")
    train(parts)
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000002.pth")
    assert_equal_states(weights(train(parts, resume=True)), weights(whole))


def test_a_wrong_value_ends_the_command_line_before_anything_is_built(make_cfg):
    with pytest.raises(UserError, match=r"INPUT.MOSAIC.PROB is 2.0, must be in \[0, 1\]\.$"):
        make_cfg("INPUT.AUGMENT", "[mosaic]", "INPUT.MOSAIC.PROB", 2.0)
    with pytest.raises(UserError, match='INPUT.AUGMENT is "mosaik", must be one of'):
        make_cfg("INPUT.AUGMENT", "mosaik")


def test_a_loader_that_gives_no_access_to_others_is_told(make_cfg):
    cfg = make_cfg(*LISTS["mosaic"])
    loader = build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, True))
    with pytest.raises(UserError, match="puts several pictures together, which this loader gives no access to"):
        next(iter(loader))
