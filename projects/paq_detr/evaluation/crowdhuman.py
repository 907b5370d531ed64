# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The command ``python -m paq_detr.evaluation.crowdhuman``; its code is ``crowd.cli``."""

from .crowd.cli import evaluate_files, main

__all__ = ["evaluate_files", "main"]

if __name__ == "__main__":
    main()
