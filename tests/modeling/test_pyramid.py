# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Feature pyramids and what boxes hold of them, against Detectron2's and against numbers worked out by hand."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.fpn import FPN as Detectron2FPN
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch.nn import functional as F
from torchvision.ops import roi_align

from paq_detr.errors import UserError
from paq_detr.layers import boxes_cxcywh_to_xyxy
from paq_detr.modeling.fpn import FPN
from paq_detr.modeling.roi import MultiLevelRoIAlign

from .assemblies import SPARSE_RCNN, make_model, memory_from_maps

STRIDES = (4, 8, 16, 32)
WIDTHS = (3, 4, 5, 6)


class Given(Backbone):
    """A backbone whose maps are given."""

    def forward(self, x):
        return x

    def output_shape(self):
        return {f"res{i + 2}": ShapeSpec(channels=c, stride=s) for i, (c, s) in enumerate(zip(WIDTHS, STRIDES))}


def random_maps(height, width, batch=1, widths=WIDTHS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = [(-(-height // s), -(-width // s)) for s in STRIDES]
    return [torch.randn(batch, c, *size, generator=generator) for c, size in zip(widths, sizes)]


def make_fpn():
    torch.manual_seed(0)
    names = [f"res{i + 2}" for i in range(4)]
    fpn = FPN(in_features=names, in_channels=WIDTHS, in_strides=STRIDES, embed_dim=8)
    for conv in (*fpn.laterals, *fpn.outputs):
        torch.nn.init.normal_(conv.bias)
    return fpn


def features(maps):
    return {f"res{i + 2}": x for i, x in enumerate(maps)}


def test_the_pyramid_is_detectron2s():
    ours = make_fpn()
    theirs = Detectron2FPN(Given(), [f"res{i + 2}" for i in range(4)], 8)
    for level in range(4):
        getattr(theirs, f"fpn_lateral{level + 2}").load_state_dict(ours.laterals[level].state_dict())
        getattr(theirs, f"fpn_output{level + 2}").load_state_dict(ours.outputs[level].state_dict())
    maps = features(random_maps(64, 96))
    memory, expected = ours(maps, [(64, 96)], (64, 96)), theirs(maps)
    for level, ours_of_level in enumerate(memory.levels()):
        torch.testing.assert_close(ours_of_level, expected[f"p{level + 2}"])


def test_padding_does_not_enter_the_pyramid():
    """An image whose sides are no multiples of any stride, alone and in a larger batch full of rubbish."""
    fpn, alone = make_fpn(), random_maps(50, 70)
    padded = [
        F.pad(x, (0, -(-96 // s) - x.shape[3], 0, -(-64 // s) - x.shape[2]), value=9.0) for x, s in zip(alone, STRIDES)
    ]
    small = fpn(features(alone), [(50, 70)], (50, 70)).levels()
    large = fpn(features(padded), [(50, 70)], (64, 96)).levels()
    for one, two in zip(small, large):
        height, width = one.shape[-2:]
        torch.testing.assert_close(two[..., :height, :width], one)
        assert not two[..., height:, :].any() and not two[..., width:].any()


def test_a_map_of_another_stride_and_an_encoder_do_not_fit_a_pyramid():
    for options, message in (
        ({"NECK.IN_FEATURES": ["res3", "res5"], "NECK.NUM_LEVELS": 2}, r"strides double, .* are \[8, 32\]"),
        ({"NECK.NUM_LEVELS": 4}, "NUM_LEVELS is 4, but MODEL.DETR.NECK.NAME fpn makes one level of each"),
        ({"ENCODER.NAME": "deformable"}, "ENCODER.NAME deformable reads position codes of the maps"),
    ):
        with pytest.raises(UserError, match=message):
            make_model(SPARSE_RCNN, **{f"MODEL.DETR.{key}": value for key, value in options.items()})


# ----------------------------------------------------------------------------------------------------------------------
# RoIAlign


@pytest.mark.parametrize(
    ("side", "level"),
    [(0.0, 0), (55.9, 0), (56, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (1032.7, 3)],
)
def test_the_level_of_a_box_is_that_of_its_size(side, level):
    assert MultiLevelRoIAlign().level_of(torch.tensor([[[0.0, 0.0, side, side]]]), STRIDES).item() == level


def test_coarser_pyramids_start_at_their_own_first_level():
    boxes = torch.tensor([[[0.0, 0.0, side, side] for side in (50, 120, 300, 900)]])
    assert MultiLevelRoIAlign().level_of(boxes, (8, 16)).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(("aligned", "first"), [(True, 2.5), (False, 3.0)])
def test_bins_of_a_map_that_counts_its_columns(aligned, first):
    """The box (8, 8, 64, 64) on stride 4: seven bins, two columns each."""
    columns = torch.arange(32.0).expand(1, 1, 32, 32)
    memory = memory_from_maps([columns], [4], [(128, 128)])
    box = torch.tensor([[[36 / 128, 36 / 128, 56 / 128, 56 / 128]]])
    pooled = MultiLevelRoIAlign(aligned=aligned)(memory, box)
    assert pooled.shape == (1, 1, 1, 7, 7)
    torch.testing.assert_close(pooled[0, 0, 0], (first + 2 * torch.arange(7.0)).expand(7, 7))


def boxes_of_all_sizes(batch, count=40):
    generator = torch.Generator().manual_seed(3)
    size = 10 ** (2.6 * torch.rand(batch, count, 2, generator=generator) - 2.3)
    return torch.cat([torch.rand(batch, count, 2, generator=generator), size], -1)


def test_pooling_is_detectron2s():
    """Boxes of all levels, also beyond the image's edges, in the order in which they came."""
    maps, boxes = random_maps(512, 640, widths=(2,) * 4), boxes_of_all_sizes(1)
    memory = memory_from_maps(maps, STRIDES, [(512, 640)])
    pixels = boxes_cxcywh_to_xyxy(boxes[0]) * torch.tensor([640.0, 512, 640, 512])
    expected = ROIPooler(7, [1 / s for s in STRIDES], 2, "ROIAlignV2")(maps, [Boxes(pixels)])
    torch.testing.assert_close(MultiLevelRoIAlign()(memory, boxes)[0], expected, atol=1e-4, rtol=1e-4)
    used = MultiLevelRoIAlign().level_of(boxes * memory.grid.image_scale, STRIDES)
    assert set(used.flatten().tolist()) == {0, 1, 2, 3}


def test_pooling_of_a_batch_is_that_of_each_image_alone():
    sizes, boxes = [(50, 70), (64, 96)], boxes_of_all_sizes(2)
    maps = random_maps(64, 96, batch=2, widths=(2,) * 4)
    together = MultiLevelRoIAlign()(memory_from_maps(maps, STRIDES, sizes), boxes)
    for image, (height, width) in enumerate(sizes):
        cut = [x[image : image + 1, :, : -(-height // s), : -(-width // s)] for x, s in zip(maps, STRIDES)]
        alone = MultiLevelRoIAlign()(memory_from_maps(cut, STRIDES, [(height, width)]), boxes[image : image + 1])
        torch.testing.assert_close(together[image : image + 1], alone)


@pytest.mark.parametrize("aligned", [True, False])
def test_pooling_and_its_gradient_are_torchvisions_on_each_images_own_maps(aligned):
    """Both images smaller than their batch on one axis, boxes beyond all edges."""
    pool, sizes = MultiLevelRoIAlign(aligned=aligned), [(101, 160), (128, 90)]
    memory = memory_from_maps(random_maps(128, 160, batch=2, widths=(3,) * 4), STRIDES, sizes)
    tokens = memory.tokens.requires_grad_()
    boxes = boxes_of_all_sizes(2)
    pixels = boxes * memory.grid.image_scale
    corners, level = boxes_cxcywh_to_xyxy(pixels), pool.level_of(pixels, STRIDES)
    expected = torch.zeros(2, 40, 3, 7, 7)
    for image, (height, width) in enumerate(sizes):
        for i, (stride, maps) in enumerate(zip(STRIDES, memory.levels())):
            own = maps[image : image + 1, :, : -(-height // stride), : -(-width // stride)]
            here = level[image] == i
            expected[image, here] = roi_align(own, [corners[image, here]], 7, 1 / stride, 2, aligned)
    pooled, weights = pool(memory, boxes), torch.randn(expected.shape)
    torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)
    gradients = [torch.autograd.grad((x * weights).sum(), tokens)[0] for x in (pooled, expected)]
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-4)


def test_boxes_that_are_not_finite_are_read_as_empty_ones_and_no_gradient_reaches_boxes():
    memory = memory_from_maps(random_maps(64, 96, widths=(2,) * 4), STRIDES, [(64, 96)])
    memory.tokens.requires_grad_()
    boxes = torch.tensor([[[torch.nan, 0.5, 0.1, 0.1], [0.5, 0.5, torch.inf, 0.1], [0.5, 0.5, 0.2, -0.1]]])
    pooled = MultiLevelRoIAlign()(memory, boxes.requires_grad_())
    pooled.sum().backward()
    assert pooled.isfinite().all() and memory.tokens.grad.isfinite().all() and boxes.grad is None
