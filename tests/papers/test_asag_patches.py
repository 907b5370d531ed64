# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paq_detr.modeling.neck import measure_grid
from paq_detr.papers.asag_anchors import Compress
from paq_detr.papers.asag_patches import (
    Patches,
    Window,
    anywhere,
    around,
    clipped,
    cut_out,
    for_training,
    quadrants,
    resized,
    to_image,
    to_window,
    upon_objects,
)
from paq_detr.structures import Memory

STRIDE, SIZE = 8, 5
WINDOW = Window(STRIDE, SIZE, (100, 150))  # 19 columns and 13 rows


def memory_of(sizes, channels=6, strides=(8, 16)):
    """Random maps of images of these sizes, with noise in the padding too."""
    height, width = (max(s[axis] for s in sizes) for axis in (0, 1))
    shapes = [(-(-height // s), -(-width // s)) for s in strides]
    grid = measure_grid(shapes, strides, sizes, (height, width), torch.device("cpu"), by_stride=True)
    tokens = torch.randn(len(sizes), sum(h * w for h, w in shapes), channels)
    return Memory(tokens, torch.zeros_like(tokens), grid)


def naive_corners(window, centers, scores, max_iou, most):
    side, kept = window.side, []
    for i in sorted(range(len(centers)), key=lambda i: -scores[i].item()):
        overlaps = []
        for j in kept:
            apart = (centers[i] - centers[j]).abs()
            shared = (side - apart).clamp(min=0).prod().item()
            overlaps.append(shared / (2 * side**2 - shared))
        if all(iou <= max_iou for iou in overlaps):
            kept.append(i)
    corners = []
    for i in kept[: most or None]:
        corner = []
        for axis, extent in ((0, window.image_size[1]), (1, window.image_size[0])):
            start = math.floor(centers[i][axis].item() / window.stride - window.size / 2)
            start = min(start, math.ceil(extent / window.stride) - window.size)
            corner.append(max(start, 0))
        corners.append(corner)
    return corners


@pytest.mark.parametrize("most", [0, 3])
@pytest.mark.parametrize("image_size", [(100, 150), (17, 150), (8, 8)], ids=str)
def test_patches_stand_around_the_best_centres_that_lie_apart(image_size, most):
    torch.manual_seed(0)
    window = Window(STRIDE, SIZE, image_size)
    centers = torch.rand(40, 2) * torch.tensor([image_size[1], image_size[0]])
    scores = torch.rand(40)
    found = around(window, centers, scores, 0.25, most)
    assert found.tolist() == naive_corners(window, centers, scores, 0.25, most)
    assert most == 0 or len(found) <= most


def test_no_centre_gives_no_patch():
    assert around(WINDOW, torch.zeros(0, 2), torch.zeros(0), 0.25).shape == (0, 2)


def test_a_patch_upon_an_object_holds_it_at_a_random_place():
    boxes = torch.tensor([[30.0, 40.0, 12.0, 9.0], [110.0, 70.0, 19.0, 5.0]])
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        corners = upon_objects(WINDOW, boxes, 0.25)
        seen.add(tuple(corners.flatten().tolist()))
        assert len(corners) == 2
        low, high = corners * STRIDE, (corners + SIZE) * STRIDE
        by_object = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        holds = (by_object[:, None, :2] >= low).all(-1) & (by_object[:, None, 2:] < high + STRIDE).all(-1)
        assert holds.any(1).all()
        assert (corners >= 0).all() and (corners[:, 0] <= 19 - SIZE).all() and (corners[:, 1] <= 13 - SIZE).all()
    assert len(seen) > 5


def test_objects_of_half_a_patch_have_none_and_of_a_heap_the_central_one_has():
    large = torch.tensor([[50.0, 50.0, 20.0, 4.0]])
    assert len(upon_objects(WINDOW, large, 0.25)) == 0
    heap = torch.tensor([[48.0, 50.0, 16.0, 16.0], [52.0, 50.0, 16.0, 16.0], [56.0, 50.0, 16.0, 16.0]])
    torch.manual_seed(0)
    (corner,) = upon_objects(WINDOW, heap, 0.25)
    assert corner[0] * STRIDE <= 44 and 60 <= (corner[0] + SIZE) * STRIDE


def test_random_patches_lie_in_the_image_wherever_it_is_large_enough():
    torch.manual_seed(0)
    corners = anywhere(WINDOW, 500)
    assert corners.amin(0).tolist() == [0, 0] and corners.amax(0).tolist() == [13, 7]
    assert anywhere(Window(STRIDE, SIZE, (9, 9)), 3).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("generated", "objects", "by_objects", "total", "leading"),
    [
        (0, 0, False, 4, 0),
        (1, 1, False, 4, 1),
        (1, 9, False, 4, 1),
        (6, 9, False, 6, 6),
        (6, 9, True, 9, 9),
        (6, 2, True, 4, 2),
        (6, 0, True, 4, 0),
    ],
)
def test_training_patches_are_filled_up_to_four(generated, objects, by_objects, total, leading):
    torch.manual_seed(0)
    corners = torch.arange(generated * 2).view(-1, 2)
    columns = torch.arange(objects) * 16.0 + 8
    boxes = torch.stack([columns, columns, torch.full_like(columns, 8), torch.full_like(columns, 8)], 1)
    window = Window(STRIDE, SIZE, (200, 200))
    made, count = for_training(window, corners, boxes, count=4, by_objects=by_objects, max_iou=0.25)
    assert (len(made), count) == (total, leading)
    if not by_objects:
        assert torch.equal(made[:generated], corners)


def test_windows_of_quadrants_and_back():
    image, windows = quadrants(2)
    assert image.tolist() == [0] * 4 + [1] * 4
    whole = torch.tensor([0.5, 0.5, 1.0, 1.0])
    assert to_image(whole, windows[1]).tolist() == [0.75, 0.25, 0.5, 0.5]
    boxes = torch.rand(8, 4)
    torch.testing.assert_close(to_window(to_image(boxes, windows), windows), boxes)
    sticking_out = torch.tensor([0.5, 0.3, 0.2, 0.2])
    torch.testing.assert_close(clipped(sticking_out, windows[0]), torch.tensor([0.45, 0.3, 0.1, 0.2]))


def test_who_leads_on_stands_in_its_images_row():
    corners = [torch.zeros(3, 2), torch.zeros(0, 2), torch.ones(4, 2)]
    patches = Patches.of_images(STRIDE, SIZE, corners, [2, 0, 3])
    assert patches.leading_rows(3).tolist() == [[0, 1, -1], [-1, -1, -1], [3, 4, 5]]
    moved = patches.to(torch.device("cpu"))
    assert torch.equal(moved.leads_on, patches.leads_on) and torch.equal(moved.corner, patches.corner)
    scale = torch.tensor([[[80.0, 40, 80, 40]], [[1.0, 1, 1, 1]], [[160.0, 80, 160, 80]]])
    torch.testing.assert_close(patches.windows(scale)[0], torch.tensor([0.0, 0.0, 0.5, 1.0]))
    torch.testing.assert_close(patches.windows(scale)[3], torch.tensor([0.05, 0.1, 0.3, 0.6]))
    assert Patches.of_images(STRIDE, SIZE, [torch.zeros(0, 2)] * 2).leading_rows(2).shape == (2, 0)


def test_resizing_leaves_padding_out():
    torch.manual_seed(0)
    memory = memory_of([(64, 96), (50, 33)])
    maps = memory.levels()[0]
    out = resized(maps, memory.grid, 0, 7)
    for image, (rows, columns) in enumerate([(8, 12), (7, 5)]):
        alone = maps[image : image + 1, :, :rows, :columns]
        expected = F.interpolate(alone, size=(7, 7), mode="bilinear", align_corners=False)
        torch.testing.assert_close(out[image : image + 1], expected)


def test_a_patch_compressed_is_the_compressed_maps_patch():
    """Also at the image's border, where convolutions see zeros, and beyond it, where the patch is zero."""
    torch.manual_seed(0)
    memory = memory_of([(64, 96), (50, 33)])
    compress = Compress(6, 3)
    for level in (0, 1):
        stride = memory.grid.strides[level]
        corners = [torch.tensor([[0, 0], [7, 3]]), torch.tensor([[0, 2], [3, 0]])]
        patches = Patches.of_images(stride, SIZE, corners)
        out = compress(*cut_out(memory, level, patches, margin=1))
        for number, (image, corner) in enumerate(zip(patches.image, patches.corner.tolist())):
            rows, columns = memory.grid.valid_shapes[image, level].tolist()
            alone = memory.levels()[level][image : image + 1, :, :rows, :columns]
            squeeze = nn.functional.conv2d(
                F.gelu(compress.reduce(alone)), compress.squeeze.weight, compress.squeeze.bias, padding=1
            )
            beyond = F.pad(squeeze, (0, SIZE + 20, 0, SIZE + 20))
            expected = beyond[0, :, corner[1] : corner[1] + SIZE, corner[0] : corner[0] + SIZE]
            torch.testing.assert_close(out[number], expected, atol=1e-5, rtol=1e-4)
