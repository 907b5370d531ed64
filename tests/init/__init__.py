# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
