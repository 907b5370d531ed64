# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``paq-detr init``: from a look at the data to a config, each of whose choices is explained."""
