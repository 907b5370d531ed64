# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The first look: train in minutes and draw, or a page to try a run on one's own pictures."""
