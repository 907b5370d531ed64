# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest
import torch

from paq_detr.ops import _extension

sys.path.insert(0, str(Path(__file__).parent))  # ms_deform_attn_cases, for two test files and a subprocess

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
needs_native = pytest.mark.skipif(
    not _extension.library().loaded, reason=f"no native operators: {_extension.library().reason}"
)


@pytest.fixture(params=["torch", pytest.param("native", marks=needs_native)])
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(_extension, "use_native", lambda *_: False)
    return request.param


@pytest.fixture(params=DEVICES)
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    return request.param
