# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Mapping

from detectron2.utils.events import get_event_storage
from torch import Tensor

#: Diagnostics are written every so many iterations, because reading a number off a device waits for it.
PERIOD = 20


def log_scalars(compute: Callable[[], Mapping[str, float | Tensor]]) -> None:
    """Put what ``compute`` returns into Detectron2's event storage; ``compute`` runs only when it is wanted."""
    try:
        storage = get_event_storage()
    except AssertionError:  # outside a training loop there is none
        return
    if storage.iter % PERIOD == 0:
        storage.put_scalars(**{name: float(value) for name, value in compute().items()}, smoothing_hint=False)
