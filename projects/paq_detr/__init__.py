# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Query-based detectors for Detectron2. Importing the package registers its meta-architecture with Detectron2."""

__version__ = "0.1.0"

from .config import add_paq_detr_config
from .detector import QueryDetector

__all__ = ["QueryDetector", "__version__", "add_paq_detr_config"]
