# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Masks of queries against the same written out: head, losses at points, full size."""

import math

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, PolygonMasks
from pycocotools import mask as rle
from torch import nn
from torch.nn import functional as F

from paq_detr.modeling.losses import Matches
from paq_detr.modeling.mask_losses import PointMaskLosses
from paq_detr.modeling.masks import MaskHead, StateMasks, repeated
from paq_detr.modeling.objective import supervise
from paq_detr.modeling.predicted_masks import _PIXELS_AT_ONCE, PredictedMasks
from paq_detr.structures import Assignment, LayerOutput, stack_instances
from paq_detr.window_masks import WindowMasks

from .assemblies import (
    DINO,
    MASKS,
    MR,
    PLUSPLUS,
    decode,
    ellipses,
    make_image,
    make_model,
    memory_of,
    predictions_of,
    wake_up,
)

# ---- the head ----


def r50_head():
    return MaskHead(
        embed_dim=256,
        num_heads=8,
        names=["res3", "res4", "res5"],
        channels=[512, 1024, 2048],
        strides=[8, 16, 32],
    )


def test_the_published_head_has_the_published_layout():
    """Two linear maps; five 3x3 blocks 264-264-128-64-32-16 and a last convolution; a halving 3x3 convolution and a 1x1
    one for each of three maps. Weights and biases, norms with two numbers a channel."""
    widths = [264, 264, 128, 64, 32, 16]
    blocks = sum(9 * a * b + 3 * b for a, b in zip(widths, widths[1:]))
    halved = sum(9 * c * c // 2 + c // 2 for c in (2048, 1024, 512))
    adapted = sum(c * w + w for c, w in ((1024, 128), (512, 64), (256, 32)))
    with torch.device("meta"):
        head = r50_head()
    assert sum(p.numel() for p in head.parameters()) == 2 * (256 * 256 + 256) + blocks + 9 * 16 + 1 + halved + adapted
    assert head.stride == 16 and [block.norm.num_groups for block in head.blocks] == [8] * 5


def test_convolutions_start_kaiming_uniform_and_linear_maps_xavier():
    head = MaskHead(embed_dim=32, num_heads=4, names=["a"], channels=[16], strides=[8])
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            bound = math.sqrt(3 / (module.in_channels * module.kernel_size[0] ** 2))
        elif isinstance(module, nn.Linear):
            bound = math.sqrt(6 / 64)
        else:
            continue
        assert 0.7 * bound < module.weight.abs().max() <= bound and not module.bias.any()


def test_a_new_head_gives_every_cell_the_prior():
    head = MaskHead(embed_dim=32, num_heads=4, names=["a"], channels=[16], strides=[8], prior=0.1)
    assert head.out.bias.sigmoid().item() == pytest.approx(0.1)


def test_attention_is_one_softmax_over_heads_and_cells_that_are_no_padding():
    head = MaskHead(embed_dim=8, num_heads=2, names=["a"], channels=[16], strides=[8])
    states, keys = torch.randn(3, 8), torch.randn(3, 6, 8)
    padding = torch.zeros(3, 2, 3, dtype=torch.bool)
    padding[1, :, 2] = True
    with torch.no_grad():
        got = head.attend(states, keys, padding)
    for p in range(3):
        query = head.query(states[p])
        exponentials = {
            (h, s): math.exp((query[4 * h : 4 * h + 4] @ keys[p, s, 4 * h : 4 * h + 4]).item() / 2)
            for h in range(2)
            for s in range(6)
            if not padding[p].flatten()[s]
        }
        for h in range(2):
            for s in range(6):
                wanted = exponentials.get((h, s), 0.0) / sum(exponentials.values())
                assert got[p, h, s].item() == pytest.approx(wanted, abs=1e-6)


def located(x, where, box):
    """With the cells' places in the box of an image of 128 x 192 pixels, cell by cell."""
    rows, columns = x.shape[-2:]
    if where is not None:
        cx, cy, w, h = (box * torch.tensor([192, 128, 192, 128])).tolist()
        for row in range(rows):
            for column in range(columns):
                right = (column + 0.5) * 192 / columns - cx
                down = (row + 0.5) * 128 / rows - cy
                right, down = right / (w / 2), down / (h / 2)
                place = torch.tensor([right, down, 0]).clamp(-2, 2)
                place[2] = max(abs(right), abs(down)) <= 1
                x[0, :, row, column] += where.weight[:, :, 0, 0] @ place
    return x


@torch.no_grad()
def written_out(head, state, box, memory):
    """The head on one query of an image without padding, convolution by convolution."""
    (level,) = memory.levels()[head.level]
    attention = head.attend(state[None], head.key(level.flatten(1).T)[None], None)[0]
    x = torch.cat([level, attention.view(-1, *level.shape[1:])])[None]
    x = head.blocks[0].norm(head.blocks[0].conv(x)).relu()
    where = head.where or [None] * 3
    for block, halve, adapt, name, place in zip(head.blocks[1:], head.halve, head.adapt, head.names, where):
        x = block.norm(block.conv(x)).relu()
        added = adapt(halve(memory.maps[name]))
        x = located(F.interpolate(x, added.shape[-2:], mode="nearest") + added, place, box)
    last = head.blocks[-1]
    return head.out(last.norm(last.conv(x)).relu())[0, 0]


@pytest.mark.parametrize(("level", "coordinates"), [(0, False), (3, False), (3, True)])
def test_the_head_is_the_published_one_written_out(level, coordinates):
    """Over the last level, of stride 64, or another one; going up from 32 to 64 leaves cells out."""
    options = {"MODEL.DETR.MASK.LEVEL": level, "MODEL.DETR.MASK.BOX_COORDINATES": coordinates}
    model = wake_up(make_model({**PLUSPLUS, **MASKS}, **options)).eval()
    memory = memory_of(model, [make_image(128, 192)])
    output = model.routes["main"](model.sources["main"](memory), memory)[-1]
    head = model.routes["main"].mask_head
    got = output.masks(torch.zeros(3, dtype=torch.int64), torch.tensor([5, 0, 7]))
    assert got.shape == (3, 8, 12)  # stride 16
    for logits, query in zip(got, (5, 0, 7)):
        wanted = written_out(head, output.content[0, query], output.boxes[0, query], memory)
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"MODEL.DETR.MASK.HALVE_MAPS": False, "MODEL.DETR.MASK.IN_FEATURES": ["res3"]}]
)
def test_so_many_at_once_changes_neither_masks_nor_gradients(options, two_images):
    gradients = []
    for at_once in (100, 1):
        model = make_model({**PLUSPLUS, **MASKS, **options}, **{"MODEL.DETR.MASK.AT_ONCE": at_once})
        torch.manual_seed(3)
        sum(model(two_images).values()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("stride", "wanted", "rows"), [(32, 8, [0, 0, 0, 0, 1]), (8, 32, [0, 4]), (8, 8, [0, 1, 2])])
def test_cells_are_repeated_or_left_out_by_the_ratio_of_strides(stride, wanted, rows):
    x = torch.arange(8.0).view(1, 1, 8, 1)
    assert repeated(x, stride, wanted, (len(rows), 1)).flatten().tolist() == rows


def test_attention_of_mean_one_counts_heads_and_cells_that_are_no_padding():
    parts = {"embed_dim": 8, "num_heads": 2, "names": ["a"], "channels": [16], "strides": [8]}
    head = MaskHead(**parts, mean_one=True)
    padding = torch.zeros(2, 2, 3, dtype=torch.bool)
    padding[1, :, 2] = True
    with torch.no_grad():
        attention = head.attend(torch.randn(2, 8), torch.randn(2, 6, 8), padding)
    torch.testing.assert_close(attention.sum((1, 2)), torch.tensor([12.0, 8.0]))


# ---- points ----


def test_three_quarters_of_the_points_are_the_uncertain_ones_of_three_times_as_many():
    losses = PointMaskLosses(num_points=400)
    seen = []

    def logits_at(points):
        seen.append(points)
        return points[..., 0] - 0.5  # uncertain along the middle column

    points = losses.choose(torch.zeros(2), logits_at)
    assert points.shape == (2, 400, 2) and seen[0].shape == (2, 1200, 2)
    distance = (points[..., 0] - 0.5).abs()
    assert (distance[:, :300].amax(1) < 0.15).all()  # a quarter of what was drawn lies within an eighth
    assert (distance[:, 300:] > 0.15).float().mean() > 0.5  # the others are spread evenly
    nearest = (seen[0][..., 0] - 0.5).abs().sort(1).values[:, :300]
    torch.testing.assert_close(distance[:, :300].sort(1).values, nearest)


class FixedMasks:
    """Given logits of an output's queries."""

    stride = 1

    def __init__(self, logits):
        self.logits = logits

    def __call__(self, image, query):
        return self.logits[image, query]

    def sample(self, logits, image, points):
        return F.grid_sample(logits[:, None], 2 * points[:, None] - 1, align_corners=False)[:, 0, 0]


def matches_of(truth, logits):
    """Query i of the image has object i."""
    number, (height, width) = torch.arange(len(truth)), truth.shape[1:]
    image = make_image(height, width, [[0, 0, width, height]] * len(truth), [0] * len(truth))
    image["instances"].gt_masks = BitMasks(truth)
    targets = stack_instances([image["instances"]], [(height, width)], torch.device("cpu"), with_masks=True)
    output = LayerOutput(torch.zeros(1, len(truth), 1), torch.zeros(1, len(truth), 4), masks=FixedMasks(logits[None]))
    return Matches(output, Assignment(torch.zeros_like(number), number, number), targets)


def test_cross_entropy_and_dice_are_the_published_formulas_at_the_same_points():
    truth = ellipses(torch.tensor([[2.0, 3, 20, 15], [0, 0, 9, 9], [0, 0, 0, 0]]), 16, 24)
    matches = matches_of(truth, torch.randn(3, 16, 24))
    losses = PointMaskLosses(num_points=50)
    logits, wanted, _ = losses.at_points(matches)
    assert ((wanted == 0) | (wanted == 1)).all() and wanted[:2].any(1).all()
    bce, dice = losses.bce(matches).tolist(), losses.dice(matches).tolist()
    for pair in range(2):
        s, t = logits[pair].sigmoid().tolist(), wanted[pair].tolist()
        cross = -sum(math.log(a) if b else math.log(1 - a) for a, b in zip(s, t)) / 50
        overlap = 1 - (2 * sum(a * b for a, b in zip(s, t)) + 1) / (sum(s) + sum(t) + 1)
        assert (bce[pair], dice[pair]) == pytest.approx((cross, overlap), rel=1e-4)
    assert bce[2] == dice[2] == 0  # nothing is left of the object


def test_perfect_masks_have_small_losses_and_wrong_ones_large():
    truth = ellipses(torch.tensor([[2.0, 3, 20, 15]]), 16, 24)
    sharp = 20 * (truth.float() - 0.5)
    losses = PointMaskLosses(num_points=500, uncertain=0.0)
    right, wrong = (matches_of(truth, sign * sharp) for sign in (1, -1))
    assert losses.bce(right) < 0.4 and losses.dice(right) < 0.1
    assert losses.bce(wrong) > 8 and losses.dice(wrong) > 0.9


def test_points_near_an_edge_read_no_padding(two_images):
    """The logits of an image at points are those of the image alone."""
    model = wake_up(make_model({**PLUSPLUS, **MASKS})).eval()
    points = torch.rand(1, 300, 2)
    values = []
    for images, place in ((two_images, 1), (two_images[1:], 0)):
        masks = decode(model, images)[-1].masks
        image = torch.tensor([place])
        values.append(masks.sample(masks(image, torch.tensor([4])), image, points))
    torch.testing.assert_close(*values, atol=1e-4, rtol=1e-4)


# ---- who learns masks ----


def test_the_last_layer_of_every_route_learns_masks_with_one_head_and_denoising_queries_do_not(two_images):
    options = {**DINO, **MASKS, "MODEL.DETR.ROUTES": ["mr_ffn", "mr_tokens"]}
    model = make_model(options)
    with_masks = {name.split("/")[1] for name in model(two_images) if name.startswith("loss_dice")}
    assert with_masks == {"final", "mr_ffn_final", "mr_tokens_final"}
    heads = [name for name in model.state_dict() if name.endswith("mask_head.out.weight")]
    assert heads == ["routes.main.mask_head.out.weight"]


def test_a_route_s_masks_are_those_of_its_own_pairs(two_images):
    model = make_model({**MR, **MASKS})
    asked = []
    head = model.routes["main"].mask_head
    head.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    targets = stack_instances([x["instances"] for x in two_images], [(64, 96), (50, 120)], torch.device("cpu"), True)
    predictions, _ = model.predictions(memory_of(model, two_images), targets)
    _, assignments = supervise(predictions, targets)
    finals = ("final", "mr_ffn_final", "mr_tokens_final")
    assert sorted(asked) == sorted(len(assignments[name]) for name in finals)


@pytest.mark.parametrize(
    ("options", "layer"),
    [({}, 3), ({"MODEL.DETR.READ_OUT.LAYER": 2}, 2), ({"MODEL.DETR.DECODER.TEST_LAYERS": 2}, 2)],
    ids=["last", "read_out", "test_layers"],
)
def test_the_main_route_learns_the_masks_that_inference_reads(options, layer):
    model = make_model({**PLUSPLUS, **MASKS, **options})
    assert [bool(o.mask_losses) for o in model.routes["main"].objectives] == [n == layer for n in (1, 2, 3)]


def test_without_masks_there_is_no_parameter_and_no_field():
    model = make_model(PLUSPLUS)
    assert model.routes["main"].mask_head is None and not any("mask" in name for name in model.state_dict())
    image = make_image(64, 96, [[4, 6, 40, 50]], [0])
    assert not any("dice" in name for name in model([image]))
    assert predictions_of(model, [image])["final"].output.masks is None
    assert not model.eval()([image])[0]["instances"].has("pred_masks")


def test_instances_without_masks_are_refused_in_training():
    image = make_image(64, 96, [[4, 6, 40, 50]], [0])
    image["instances"].remove("gt_masks")
    with pytest.raises(ValueError, match="no gt_masks, which MODEL.DETR.MASK.ENABLED trains on"):
        make_model({**PLUSPLUS, **MASKS})([image])


# ---- ground truth in windows ----


def test_windows_hold_the_masks_bit_by_bit():
    dense = torch.rand(6, 21, 34) > 0.6
    dense[2], dense[3, :, :30], dense[4] = False, False, True
    windows = WindowMasks.of(BitMasks(dense), (21, 34))
    assert torch.equal(windows.dense(), dense)
    keep = torch.tensor([True, False, True, True, False, True])
    assert torch.equal(windows[keep].dense(), dense[keep])
    assert torch.equal(WindowMasks.cat([windows[keep], windows]).dense(), torch.cat([dense[keep], dense]))
    assert windows.present.tolist() == [True, True, False, True, True, True]
    points = torch.rand(3, 200, 2)
    index = torch.tensor([4, 0, 3])
    column, row = (points[..., 0] * 34).long(), (points[..., 1] * 21).long()
    assert torch.equal(windows.sample(index, points), dense[index[:, None], row, column].float())


def drawn(polygon, height, width, margin=20):
    """A polygon in a larger picture, cut."""
    moved = (polygon.reshape(-1, 2) + margin).ravel().tolist()
    whole = rle.decode(rle.frPyObjects([moved], height + 2 * margin, width + 2 * margin))[..., 0]
    return torch.from_numpy(whole[margin:-margin, margin:-margin]).bool()


def test_windows_of_polygons_are_the_polygons_drawn_whole():
    corners = np.array([3.0, 2, 25, 4, 28, 17, 6, 12])
    outside = np.array([-5.0, -3, 8, -3, 8, 6, -5, 6])  # its corner alone is in the image
    masks = WindowMasks.of(PolygonMasks([[corners], [outside], [corners, outside]]), (20, 30))
    first, second = (drawn(polygon, 20, 30) for polygon in (corners, outside))
    assert (masks.dense() != torch.stack([first, second, first | second])).sum() <= 4  # corners beyond an edge
    assert masks.window[0].tolist() == [3, 2, 25, 15]


def test_300_large_images_masks_take_a_bit_a_pixel_of_their_windows():
    truth = ellipses(torch.tensor([[10.0, 10, 110, 210]]), 800, 1333)
    many = WindowMasks.cat([WindowMasks.of(truth, (800, 1333))] * 300)
    assert len(many) == 300 and many.bits.numel() <= 300 * 100 * 200 / 8 + 300


@pytest.mark.parametrize(
    ("masks", "message"),
    [(torch.zeros(1, 5, 6, dtype=torch.bool), r"are \(5, 6\) pixels, their image is"), ([[1]], "gt_masks is a list")],
)
def test_masks_of_another_size_or_kind_are_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        WindowMasks.of(masks, (6, 6))


# ---- full size ----


def test_full_masks_are_the_bilinear_ones_of_the_whole_grid():
    """A grid that its image fills is resized as torch does it."""
    logits = torch.randn(3, 4, 6)
    masks = PredictedMasks(logits, (4.0, 6.0), (37, 50))
    whole = F.interpolate(logits[None], (37, 50), mode="bilinear", align_corners=False)[0]
    got = torch.stack(list(masks))
    assert ((whole > 0) == got).float().mean() > 0.999
    assert torch.equal(masks.tensor, got) and torch.equal(torch.from_numpy(np.asarray(masks)), got)


def test_a_part_of_a_cell_counts_as_such():
    """An image of 24 pixels has one and a half cells of 16: the second's centre is its edge."""
    masks = PredictedMasks(torch.tensor([[[-1.0], [1.0]]]), (1.5, 1.0), (24, 4))
    assert masks.tensor[0, :, 0].tolist() == [row >= 16 for row in range(24)]


def test_masks_in_parts_are_those_in_one_piece(monkeypatch):
    masks = PredictedMasks(torch.randn(7, 4, 6), (3.3, 5.1), (40, 30))
    whole = masks.tensor
    monkeypatch.setattr("paq_detr.modeling.predicted_masks._PIXELS_AT_ONCE", 2500)
    assert [len(part) for part in masks.parts()] == [2, 2, 2, 1] and torch.equal(masks.tensor, whole)


def test_300_masks_of_a_large_image_are_never_whole_at_once():
    """300 x 4000 x 3000 would be 3.4 GiB; what is held is the grids and one part."""
    masks = PredictedMasks(torch.ones(300, 250, 188), (250.0, 187.5), (4000, 3000))
    first = next(masks.parts())
    assert first.numel() <= _PIXELS_AT_ONCE and masks.logits.nbytes < 2**26
    assert masks.shape == (300, 4000, 3000) and masks[299].shape == (4000, 3000)


def test_full_masks_are_read_like_a_tensor():
    masks = PredictedMasks(torch.randn(5, 3, 3), (3.0, 3.0), (12, 9))
    scores = torch.tensor([0.1, 0.9, 0.5, 0.8, 0.2])
    assert torch.equal(masks[scores > 0.4].tensor, masks.tensor[scores > 0.4])
    assert torch.equal(masks[2], masks.tensor[2]) and torch.equal(masks[1:3].tensor, masks.tensor[1:3])
    assert torch.equal(PredictedMasks.cat([masks[:2], masks[2:]]).tensor, masks.tensor)
    assert masks.to("cpu").shape == (5, 12, 9) and not len(masks[:0].tensor)


def test_detections_have_masks_of_their_image_s_size_and_a_query_s_is_computed_once(two_images):
    model = wake_up(make_model({**PLUSPLUS, **MASKS})).eval()
    asked = []
    model.routes["main"].mask_head.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    with torch.no_grad():
        (result,) = model([{**two_images[0], "height": 128, "width": 100}])
    found = result["instances"]
    assert found.pred_masks.shape == (len(found), 128, 100) and not found.has("mask_logits")
    assert asked == [12] and len(found) > 12  # three classes, twelve queries
    same = found.query_indices == found.query_indices[0]
    assert (found[same].pred_masks.tensor == found.pred_masks[0]).all()
    lowest = found.scores[2].item()
    with torch.no_grad():
        (fewer,) = model([{**two_images[0], "height": 128, "width": 100, "lowest_score": lowest}])
    fewer = fewer["instances"]
    assert asked[1] == len(fewer.query_indices.unique()) <= 3 and torch.equal(fewer.scores, found.scores[:3])
    assert torch.equal(fewer.pred_masks.tensor, found.pred_masks[:3].tensor)


def test_masks_of_states_are_cut_with_their_queries():
    content = torch.randn(1, 6, 8)
    boxes = torch.rand(1, 6, 4)
    masks = StateMasks(lambda states, boxes, image, memory: torch.cat([states, boxes], 1), content, boxes, None)
    zero = torch.zeros(2, dtype=torch.int64)
    cut = LayerOutput(torch.zeros(1, 6, 2), boxes, content, masks=masks).slice(2, 5).masks
    assert torch.equal(cut(zero, torch.tensor([0, 2])), masks(zero, torch.tensor([2, 4])))
