# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""State of the random number generators: captured for checkpoints, kept apart for data and evaluation."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def rng_state(device: torch.device | None = None) -> dict[str, Any]:
    """State of Python's, numpy's and torch's generators, and of ``device``'s own where it is no CPU.

    Only containers, numbers and tensors, which ``torch.load(weights_only=True)`` admits.
    """
    version, words, next_gauss = random.getstate()
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": [version, list(words), next_gauss],
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
    }
    if device is not None and device.type != "cpu":
        state["device"] = torch.get_device_module(device).get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Restore what :func:`rng_state` returned; the device's generator only where both have one."""
    version, words, next_gauss = state["python"]
    random.setstate((version, tuple(words), next_gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if device is not None and device.type != "cpu" and "device" in state:
        torch.get_device_module(device).set_rng_state(state["device"], device)


@contextmanager
def preserved_rng(device: torch.device | None = None) -> Iterator[None]:
    """The generators are after the block as they were before it."""
    state = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(state, device)


@contextmanager
def seeded_rng(*key: int) -> Iterator[None]:
    """Within the block the host's generators are seeded by ``key``; afterwards they are as before."""
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(3)]
    with preserved_rng():
        random.seed(words[0])
        np.random.seed(words[1])
        torch.default_generator.manual_seed(words[2])  # torch.manual_seed would also seed every accelerator
        yield
