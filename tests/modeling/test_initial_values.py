# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How matrices of a transformer start: Xavier-uniform in all published systems, but for those that start at zero."""

import math
import re

import pytest
import torch
from torch import nn

from .assemblies import (
    ADAMIXER,
    ASAG_A,
    ASAG_S,
    DAB,
    DAB_DEFORMABLE,
    DDQ,
    DEHOMO,
    DINO,
    MR,
    PLUSPLUS,
    REFINE,
    SPARSE_RCNN,
    TWO_STAGE,
    make_model,
)

#: Outside the published transformers: heads, tables, and DDQ-DETR's map start as torch's layers do, or N(0, 1).
OUTSIDE = re.compile(r"^backbone|level_code|labels|(class|box)_heads?\.|^sources\.main\.(content\.|anchors$|position$)")
#: Of systems of boxes the heads start as the decoder does; only tables, pyramids and the patches' code do not.
TABLES = re.compile(r"^backbone|^neck|\.table$|^sources\.main\.(boxes$|code\.)")
#: What starts at zero.
ZERO = re.compile(r"sampling_offsets|attention_weights|mixing\.kernels|box_heads\.\d\.last")


DETRS = {
    "refine": REFINE,
    "two_stage": TWO_STAGE,
    "plusplus": PLUSPLUS,
    "dab_deformable": DAB_DEFORMABLE,
    "dab": DAB,
    "dino": DINO,
    "ddq": DDQ,
    "dehomo": DEHOMO,
    "mr": MR,
}
BOX_SYSTEMS = {"adamixer": ADAMIXER, "asag_a": ASAG_A, "asag_s": ASAG_S}


@pytest.mark.parametrize(
    "assembly, outside, zero",
    [
        *(pytest.param(assembly, OUTSIDE, ZERO, id=name) for name, assembly in DETRS.items()),
        *(pytest.param(assembly, TABLES, ZERO, id=name) for name, assembly in BOX_SYSTEMS.items()),
        pytest.param(SPARSE_RCNN, TABLES, re.compile("$^"), id="sparse_rcnn"),
    ],
)
def test_matrices_start_xavier_uniform(assembly, outside, zero):
    seen = 0
    for name, matrix in make_model(assembly).named_parameters():
        if matrix.dim() < 2 or outside.search(name):
            continue
        seen += 1
        if zero.search(name):
            assert not matrix.any(), name
            continue
        bound = math.sqrt(6 / sum(nn.init._calculate_fan_in_and_fan_out(matrix)))
        # The largest of so many numbers comes that near; torch's own start reaches half or two thirds of the bound.
        assert 0.85 * bound < matrix.abs().max() <= bound, name
    assert seen > 20


def test_heads_start_at_a_score_of_one_hundredth_and_at_their_references():
    model = make_model(DINO)
    decoder, source = model.routes["main"].decoder, model.sources["main"]
    for head in (decoder.class_heads[0], source.class_head):
        torch.testing.assert_close(head.bias.sigmoid(), torch.full((3,), 0.01))
    for head in (decoder.box_heads[0], source.box_head):
        assert not head.last.weight.any() and not head.last.bias.any()
