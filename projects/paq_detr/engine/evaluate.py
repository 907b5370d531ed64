# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A trained model to evaluate, or one sentence why the weights are not one."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from ..errors import UserError
from .build import build_detector
from .checkpoint import DetrCheckpointer
from .resume import classes_fault, tell_other_settings, tensors_fault

logger = logging.getLogger(__name__)


def load_trained(cfg: CfgNode, resume: bool = False, allow_partial: bool = False) -> nn.Module:
    """The model of ``cfg`` with the weights of ``MODEL.WEIGHTS``, or of the last checkpoint of ``OUTPUT_DIR``.

    Args:
        allow_partial: warn where weights that prediction needs are missing, or do not know a class, in place of
            refusing them.

    Raises:
        UserError: there are no weights, or not all that prediction needs.
    """
    model = build_detector(cfg)
    checkpointer = DetrCheckpointer(model, cfg.OUTPUT_DIR)
    path = checkpointer.last_checkpoint() if resume else cfg.MODEL.WEIGHTS
    if not path:
        raise UserError("An evaluation needs MODEL.WEIGHTS, or --resume for the last checkpoint of OUTPUT_DIR.")
    seen: dict[str, Any] = {}

    def check(content: dict[str, Any]) -> None:
        seen.update({key: content.get(key) for key in ("file", "run_config", "class_names")})
        tell_other_settings(content, cfg)

    checkpointer.load(path, check=check, checkpointables=[])
    if hasattr(model, "drop_training_parts"):
        model.drop_training_parts()
    needed = model.state_dict().keys()
    lacking = [name for name in checkpointer.report.untrained if name in needed]
    for fault in (tensors_fault(seen, cfg, lacking), classes_fault(seen, list(cfg.MODEL.DETR.CLASS_NAMES))):
        if fault and not allow_partial:
            raise UserError(f"{fault}; paq-detr eval --allow-partial evaluates such weights all the same.")
        if fault:
            logger.warning("%s: its predictions there are those of fresh weights", fault)
    return model
