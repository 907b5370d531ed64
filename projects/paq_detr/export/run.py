# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training left in its folder: the model, and images to try an exported one on."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from torch import nn

from ..data import SyntheticCrowd, register_datasets
from ..engine.evaluate import load_trained
from ..engine.run_folder import Run, trained_config
from ..errors import UserError


def load_run(run: Run) -> tuple[CfgNode, nn.Module]:
    """Config, and trained model on the CPU, of a run: what training wrote, or a weight file beside its config.

    Raises:
        UserError: config and weights do not fit each other.
    """
    cfg = trained_config(run, device="cpu")
    return cfg, load_trained(cfg).eval()


def trial_images(cfg: CfgNode, given: Sequence[str]) -> tuple[list[str], str]:
    """Image files for a comparison, and what they are.

    Args:
        given: files, or one number: so many of the run's test images, or synthetic ones where those are not at hand.
    """
    if len(given) != 1 or not given[0].isdecimal():
        return list(given), f"{len(given)} given images"
    count = int(given[0])
    try:
        register_datasets(cfg)
        records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
        files = [record["file_name"] for record in records[:count]]
        return files, f"{len(files)} images of {cfg.DATASETS.TEST[0]}"
    except (UserError, OSError, ValueError, KeyError, IndexError) as error:
        crowd = SyntheticCrowd(height=480, width=640, density=20)
        reason = " ".join(str(error).split())[:100]
        return [crowd.url("val", i) for i in range(count)], f"{count} synthetic images (test set not at hand: {reason})"


def default_size(cfg: CfgNode, stride: int) -> tuple[int, int]:
    """A square as large as the short side of the run's test images, in multiples of the stride."""
    side = max(round((cfg.INPUT.MIN_SIZE_TEST or 640) / stride), 1) * stride
    return side, side
