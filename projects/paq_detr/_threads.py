# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How the threads of torch's operators, and of ours, which share its pool, wait for each other."""

import os


def wait_asleep() -> None:
    """Threads at the end of a parallel region sleep. By default they spin for a while first, which on cores that other
    programs use takes the time from the thread that they wait for: measured in docs/training.md.

    OpenMP reads it when torch is loaded, so that this goes first; what the environment says already stays.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
