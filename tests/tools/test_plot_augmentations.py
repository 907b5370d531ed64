# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import sys

import numpy as np
import pytest
from PIL import Image
from plot_augmentations import GAP, TITLE, main, steps_of

from paq_detr.errors import UserError

SMALL = ["DATASETS.SYNTHETIC_CROWD.NUM_TRAIN", "6", "DATASETS.SYNTHETIC_CROWD.HEIGHT", "60",
         "DATASETS.SYNTHETIC_CROWD.WIDTH", "80", "INPUT.LARGE_SCALE_JITTER.SIZE", "[60, 80]"]  # fmt: skip


def drawn(monkeypatch, tmp_path, *opts):
    path = tmp_path / "a.png"
    monkeypatch.setattr(sys, "argv", ["plot_augmentations", "--output", str(path), "--columns", "2", *SMALL, *opts])
    main()
    return np.asarray(Image.open(path))


def test_each_augmentation_has_a_row_and_the_same_seed_the_same_picture(monkeypatch, tmp_path):
    names = ["color_jitter", "copy_paste", "large_scale_jitter", "mixup", "mosaic"]
    found = drawn(monkeypatch, tmp_path)
    height = TITLE + 60 + GAP
    assert found.shape == ((1 + len(names)) * height - GAP, 2 * 80 + GAP, 3)
    rows = [found[i * height + TITLE : (i + 1) * height - GAP] for i in range(1 + len(names))]
    assert all((row[:, 80 : 80 + GAP] == 255).all() for row in rows)
    assert not any(np.array_equal(rows[0], row) for row in rows[1:])
    assert np.array_equal(found, drawn(monkeypatch, tmp_path))
    assert len(drawn(monkeypatch, tmp_path, "INPUT.AUGMENT", "[mosaic, mixup]")) == len(found) + height


def test_rows_are_those_of_the_config(cfg):
    cfg.INPUT.AUGMENT, cfg.INPUT.MIXUP.PROB = ["mosaic", "mixup"], 0.25
    rows = steps_of(cfg)
    assert list(rows)[0] == "as it is" and list(rows)[-1] == "INPUT.AUGMENT: mosaic, mixup"
    assert rows["mixup"].steps[0].prob == 1.0 and rows["INPUT.AUGMENT: mosaic, mixup"].steps[1].prob == 0.25


def test_nothing_to_draw_is_said(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="No picture of synthetic_crowd_train holds an object"):
        drawn(
            monkeypatch, tmp_path, "DATASETS.SYNTHETIC_CROWD.DENSITY", "0.0", "DATASETS.SYNTHETIC_CROWD.IGNORE", "0.0"
        )
