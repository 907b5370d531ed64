# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import torch
from anchor_levels import Watch, table
from plot_anchors import look

from ..modeling.assemblies import PLUSPLUS, make_image, make_model
from ..papers.test_asag import source_of


@torch.no_grad()
def test_patches_and_anchors_are_counted_image_by_image():
    model, _ = source_of()
    seen = [look(model, make_image(*size)) for size in ((200, 310), (128, 96))]
    watch = Watch(model)
    for size in ((200, 310), (128, 96)):
        model([make_image(*size)])
    assert watch.queries == [len(s.anchors) for s in seen]
    assert watch.patches == {stride: sum(len(s.patches.get(stride, ())) for s in seen) for stride in (16, 8)}
    assert sum(watch.patches.values()) > 0 and len(watch.ms) == 2 and min(watch.ms) > 0


@torch.no_grad()
def test_other_detectors_have_queries_and_no_patches():
    model = make_model(PLUSPLUS).eval()
    watch = Watch(model)
    model([make_image(64, 96)])
    assert len(watch.queries) == 1 and not any(watch.patches.values())


def test_what_a_run_lacks_is_a_dash():
    row = {"AP": 10.0, "AP50": 20.0, "queries": 30.5, "ms": 4.0}
    assert table({"adamixer": {"all": row}}).splitlines()[2] == "| adamixer | all | 10.0 | 20.0 | 30.5 | - | - | 4.0 |"
