# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``python -m paq_detr``, which is ``paq-detr``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
