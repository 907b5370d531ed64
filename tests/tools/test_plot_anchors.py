# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch
from plot_anchors import Seen, draw, look

from paq_detr.errors import UserError

from ..figures import rectangles
from ..modeling.assemblies import PLUSPLUS, decode, make_image, make_model
from ..papers.test_asag import source_of


def test_what_is_drawn_is_what_the_detector_sees():
    model, source = source_of()
    image = make_image(200, 310)
    seen = look(model, image)
    assert "chosen_patches" not in vars(source)  # nothing is left behind
    assert set(seen.patches) <= {16, 8} and sum(map(len, seen.patches.values())) > 0
    for stride, boxes in seen.patches.items():
        assert np.allclose(boxes[:, 2:] - boxes[:, :2], stride * source.patch_size, atol=1e-3)
    with torch.no_grad():
        final = decode(model, [image])[0].boxes[0] * torch.tensor([310, 200, 310, 200])
    middle = (seen.proposals[:, :2] + seen.proposals[:, 2:]) / 2
    torch.testing.assert_close(torch.from_numpy(middle), final[:, :2], atol=1e-3, rtol=1e-4)
    assert len(seen.anchors) == len(seen.proposals) and len(seen.detections) == len(seen.scores)


def test_a_model_without_such_anchors_is_refused():
    with pytest.raises(UserError, match="no anchors of ASAG"):
        look(make_model(PLUSPLUS), make_image(64, 96))


def test_four_panels_hold_the_boxes(tmp_path, figures):
    box = np.array([[1.0, 2.0, 11.0, 12.0], [4.0, 4.0, 8.0, 20.0]])
    seen = Seen({16: box, 8: box[:1]}, box, box[:1], box, np.array([0.9, 0.3]))
    draw(str(tmp_path / "a.png"), np.zeros((30, 40, 3), np.uint8), seen, 0.3)
    axes = figures["a.png"].axes
    assert [axis.get_title() for axis in axes] == [
        "3 probed patches",
        "2 anchors",
        "1 proposals",
        "1 detections above 0.3",
    ]
    assert [len(rectangles(axis)) for axis in axes] == [3, 2, 1, 1]
    assert rectangles(axes[3]) == [(1, 2, 11, 12)]
