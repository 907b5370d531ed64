# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from ..data.conftest import cfg, clean_catalogs, content, save, write  # noqa: F401  (fixtures)
from ..figures import figures  # noqa: F401
