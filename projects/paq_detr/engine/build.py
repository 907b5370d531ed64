# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The detector of a config, and its copies in several processes."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .. import detector  # noqa: F401  (registers itself, also in a process that is handed a finished config)
from ..errors import UserError


def build_detector(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``; a config whose parts do not fit together raises UserError."""
    try:
        return build_model(cfg)
    except (ValueError, AssertionError) as error:
        if not str(error):
            raise
        raise UserError(f"The model of this config cannot be built: {error}.") from error


def distributed(model: nn.Module, device: torch.device) -> nn.Module:
    """``model``, or what exchanges its gradients where there are several processes."""
    if comm.get_world_size() == 1:
        return model
    ids = None if device.type == "cpu" else [device.index]
    return DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)
