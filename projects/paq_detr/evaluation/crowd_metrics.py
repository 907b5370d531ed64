# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The former name of ``crowd.protocols``."""

from .crowd.protocols import PROTOCOLS

__all__ = ["PROTOCOLS"]
