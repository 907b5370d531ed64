# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # ms_deform_attn_cases, for two test files and a subprocess
