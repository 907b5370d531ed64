# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from ..data.conftest import clean_catalogs  # noqa: F401  (fixtures)
from ..figures import figures  # noqa: F401
from ..predict.conftest import detector, run_folder  # noqa: F401
