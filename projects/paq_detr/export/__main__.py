# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``python -m paq_detr.export``, which is ``paq-detr export``."""

import sys

from .._detectron2 import needed_by

if __name__ == "__main__":
    with needed_by("paq-detr export"):
        from .command import main

        sys.exit(main())
