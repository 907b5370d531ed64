# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""One paper, one file: each supplies parts to the template and names the equation it implements."""
