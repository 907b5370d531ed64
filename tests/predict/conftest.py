# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from PIL import Image

from paq_detr import Detector, add_paq_detr_config
from paq_detr.engine import DetrCheckpointer, build_detector
from paq_detr.engine.merge import merge_file

from ..data.conftest import clean_catalogs  # noqa: F401  (a fixture)
from ..engine.conftest import TINY, loggers  # noqa: F401  (a fixture)

NAMES = ["cat", "dog", "guide dog"]


def write_run(folder, **opts):
    """A run of an untrained model whose scores lie around one half."""
    (folder / "config.yaml").write_text(TINY)
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    merge_file(cfg, str(folder / "config.yaml"))
    cfg.MODEL.DETR.CLASS_NAMES = NAMES
    cfg.merge_from_list([part for pair in opts.items() for part in pair])
    torch.manual_seed(0)
    model = build_detector(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "class_heads" in name:
                parameter.mul_(20) if name.endswith("weight") else parameter.zero_()
    checkpointer = DetrCheckpointer(model, str(folder))
    checkpointer.run_config = cfg.dump()
    checkpointer.save_weights("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def detector(run_folder):
    return Detector(run_folder)


def picture(seed=0, height=64, width=80):
    """(H, W, 3) uint8 noise in coarse cells, whose largest value is 255."""
    cells = np.random.RandomState(seed).randint(0, 256, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    cells[0, 0] = 255
    return cells.repeat(8, 0).repeat(8, 1)[:height, :width].copy()


@pytest.fixture
def pictures(tmp_path):
    """A folder with a.png, b.jpg, and what is no picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(picture(1)).save(folder / "a.png")
    Image.fromarray(picture(2, 48, 100)).save(folder / "b.jpg")
    (folder / "notes.txt").write_text("nothing to see")
    return folder
