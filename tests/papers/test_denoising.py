# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Denoising against loops over slots, with the noise given: who stands where, who sees whom, what is asked of whom.

The numbers of the tapes, group counts and statistics were computed by hand from the published algorithms.
"""

import pytest
import torch
from torch.nn import functional as F

from paq_detr.layers import inverse_sigmoid
from paq_detr.modeling.interactions import separate_sets
from paq_detr.papers.denoising import BoxDenoising, ContrastiveDenoising, Denoising, NoiseTape, Slots, group_mask
from paq_detr.structures import QuerySet, Targets

from ..modeling.assemblies import (
    DEHOMO,
    DINO,
    DN_DEFORMABLE,
    KEPT,
    PLUSPLUS,
    decode,
    make_image,
    make_model,
    memory_of,
    predictions_of,
    wake_up,
)


def make_targets(*per_image):
    """Objects (cx, cy, w, h, label) of each image."""
    rows = torch.tensor([row for image in per_image for row in image], dtype=torch.float32).view(-1, 5)
    counts = tuple(len(image) for image in per_image)
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    nothing = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    return Targets(rows[:, :4], rows[:, 4].long(), image, counts, *nothing)


def make_queries(batch, num=3, dim=8):
    return QuerySet(torch.randn(batch, num, dim), torch.rand(batch, num, 4))


def make_tape(rows, num_classes=80, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return NoiseTape(
        label=torch.rand(rows, generator=generator),
        new_label=torch.randint(num_classes, (rows,), generator=generator),
        sign=torch.randint(2, (rows, 4), generator=generator) * 2.0 - 1,
        part=torch.rand(rows, 4, generator=generator),
    )


A, B, C = (0.5, 0.5, 0.4, 0.2, 2), (0.3, 0.6, 0.1, 0.3, 1), (0.8, 0.2, 0.2, 0.2, 0)


def test_a_group_of_dn_is_one_slot_per_object_and_the_pairs_are_known():
    dn = Denoising(num_classes=80, embed_dim=8, groups=2, indicator=True)
    targets, tape = make_targets([A, B], [C]), make_tape(6)
    out = dn(make_queries(2), targets, tape=tape)
    content, boxes = torch.zeros(2, 4, 8), torch.full((2, 4, 4), 0.5)
    wanted_pairs, row = [], 0
    for group in range(2):
        for index, (image, place, obj) in enumerate([(0, 0, A), (0, 1, B), (1, 0, C)]):
            slot = group * 2 + place
            label = tape.new_label[row] if tape.label[row] < 0.2 else torch.tensor(obj[4])
            content[image, slot] = torch.cat([dn.labels.weight[label], torch.ones(1)])
            for axis in range(4):
                reach = obj[2 + axis] / 2 if axis < 2 else obj[axis]
                value = obj[axis] + tape.sign[row, axis] * tape.part[row, axis] * 0.4 * reach
                boxes[image, slot, axis] = value.clamp(0, 1)
            wanted_pairs.append((image, slot, index))
            row += 1
    torch.testing.assert_close(out.content[:, :4], content)
    torch.testing.assert_close(out.reference[:, :4], inverse_sigmoid(boxes, 1e-3).sigmoid())
    (group,) = out.groups
    assert list(zip(*(x.tolist() for x in (group.pairs.image, group.pairs.query, group.pairs.target)))) == wanted_pairs
    assert (group.start, group.stop, group.scale) == (0, 4, 0.5)


def test_a_group_of_cdn_is_positives_then_negatives_and_only_positives_have_pairs():
    cdn = ContrastiveDenoising(num_classes=80, embed_dim=8, pairs=4)
    targets, tape = make_targets([A, B], [C]), make_tape(12)
    out = cdn(make_queries(2), targets, tape=tape)
    content, boxes = torch.zeros(2, 8, 8), torch.full((2, 8, 4), 0.5)
    wanted_pairs, row = [], 0
    for group in range(2):
        for kind in range(2):
            for index, (image, place, obj) in enumerate([(0, 0, A), (0, 1, B), (1, 0, C)]):
                slot = group * 4 + kind * 2 + place
                label = tape.new_label[row] if tape.label[row] < 0.25 else obj[4]
                content[image, slot] = cdn.labels.weight[label]
                corners = []
                for corner in range(4):
                    half = obj[2 + corner % 2] / 2
                    start = obj[corner % 2] + (-half if corner < 2 else half)
                    value = start + tape.sign[row, corner] * (tape.part[row, corner] + kind) * half
                    corners.append(float(value.clamp(0, 1)))
                x1, y1, x2, y2 = corners
                boxes[image, slot] = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
                if kind == 0:
                    wanted_pairs.append((image, slot, index))
                row += 1
    torch.testing.assert_close(out.content[:, :8], content)
    torch.testing.assert_close(out.reference[:, :8], inverse_sigmoid(boxes, 1e-3).sigmoid(), atol=1e-6, rtol=1e-5)
    pairs = out.groups[0].pairs
    assert list(zip(*(x.tolist() for x in (pairs.image, pairs.query, pairs.target)))) == wanted_pairs


def tape_of(sign, part, label=1.0, new_label=42):
    rows = len(sign)
    labels = torch.tensor(label).expand(rows), torch.tensor(new_label).expand(rows)
    return NoiseTape(*labels, torch.tensor(sign), torch.tensor(part))


SIGNS, PARTS = [[1.0, -1, -1, 1], [1.0, 1, -1, -1]], [[0.5, 0.5, 0.25, 0.75], [0.5, 0.1, 0.6, 0.2]]


@pytest.mark.parametrize(
    "scale, positive, negative",
    [
        (1.0, (0.525, 0.5125, 0.25, 0.325), (0.49, 0.495, -0.22, -0.03)),
        (0.4, (0.51, 0.505, 0.34, 0.25), (0.496, 0.498, 0.152, 0.108)),
    ],
)
def test_corners_of_a_given_tape(scale, positive, negative):
    cdn = ContrastiveDenoising(num_classes=80, embed_dim=8, box_noise=scale)
    boxes = torch.tensor([A[:4], A[:4]])
    noised = cdn.noised_boxes(boxes, torch.tensor([True, False]), tape_of(SIGNS, PARTS))
    torch.testing.assert_close(noised, torch.tensor([positive, negative]))


def test_an_inverted_negative_becomes_the_smallest_box():
    cdn = ContrastiveDenoising(num_classes=80, embed_dim=8, pairs=1)
    out = cdn(make_queries(1), make_targets([A]), tape=tape_of(SIGNS, PARTS, label=0.3))
    logits = inverse_sigmoid(out.reference[0, 1], 1e-3)
    torch.testing.assert_close(logits, torch.tensor([-0.04, -0.02, -6.9078, -6.9078]), atol=2e-3, rtol=0)


def test_a_given_tape_of_dn():
    dn = Denoising(num_classes=80, embed_dim=8, groups=1)
    tape = tape_of([[1.0, -1, 1, 1]], [[0.5, 0.5, 0.0, 1.0]])
    noised = dn.noised_boxes(torch.tensor([A[:4]]), torch.tensor([True]), tape)
    torch.testing.assert_close(noised, torch.tensor([[0.54, 0.48, 0.40, 0.28]]))


def test_labels_change_strictly_below_the_probability():
    dn = Denoising(num_classes=80, embed_dim=8, groups=5, indicator=True)
    tape = make_tape(5)
    tape.label = torch.tensor([0.3, 0.1, 0.9, 0.19, 0.2])
    tape.new_label = torch.tensor([7, 8, 9, 10, 11])
    content = dn(make_queries(1), make_targets([A]), tape=tape).content[0, :5]
    torch.testing.assert_close(content[:, :-1], dn.labels.weight[torch.tensor([2, 8, 2, 10, 2])])
    assert content[:, -1].tolist() == [1.0] * 5


@pytest.mark.parametrize(
    "most, groups, slots",
    [
        (1, 100, 200),
        (2, 50, 200),
        (7, 14, 196),
        (33, 3, 198),
        (51, 1, 102),
        (100, 1, 200),
        (101, 1, 202),
        (300, 1, 600),
    ],
)
def test_as_many_contrastive_groups_as_fit_the_budget_and_at_least_one(most, groups, slots):
    cdn = ContrastiveDenoising(num_classes=3, embed_dim=8, pairs=100)
    out = cdn(make_queries(1), make_targets([A] * most))
    assert out.groups[0].stop == slots and out.groups[0].scale == 1 / groups


def unblocked(num):
    return torch.zeros(num, num, dtype=torch.bool)


def test_the_mask_of_two_contrastive_groups_is_the_published_one():
    """g0+ g0- g1+ g1- q0 q1: a row looks at a column where 0."""
    wanted = [[0, 0, 1, 1, 0, 0]] * 2 + [[1, 1, 0, 0, 0, 0]] * 2 + [[1, 1, 1, 1, 0, 0]] * 2
    assert torch.equal(group_mask(2, 2, unblocked(2)), torch.tensor(wanted, dtype=torch.bool))


@pytest.mark.parametrize(
    "groups, size, num, blocked", [(14, 14, 900, 212_072), (33, 6, 900, 216_216), (5, 3, 300, 4_680)]
)
def test_how_many_entries_a_mask_blocks(groups, size, num, blocked):
    mask = group_mask(groups, size, unblocked(num))
    assert mask.sum() == blocked and not mask.all(1).any()


def test_a_mask_that_the_queries_have_is_kept():
    own = torch.tensor([[False, True], [False, False]])
    assert torch.equal(group_mask(1, 1, own)[1:, 1:], own)


@pytest.mark.parametrize("num_classes, changed", [(80, 0.2469), (91, 0.2473), (1, 0.0)])
def test_how_many_contrastive_labels_change(num_classes, changed):
    torch.manual_seed(0)
    tape = NoiseTape.draw(200_000, num_classes, torch.device("cpu"))
    share = ((tape.label < 0.25) & (tape.new_label != 0)).float().mean()
    assert share == pytest.approx(changed, abs=4e-3)


def test_how_many_negatives_turn_inside_out():
    torch.manual_seed(0)
    boxes = torch.tensor([A[:4]]).expand(100_000, 4)
    negative = torch.zeros(100_000, dtype=torch.bool)
    for scale, share in ((1.0, 0.4375), (0.4, 0.0)):
        cdn = ContrastiveDenoising(num_classes=80, embed_dim=8, box_noise=scale)
        size = cdn.noised_boxes(boxes, negative, NoiseTape.draw(100_000, 80, boxes.device))[:, 2:]
        assert (size < 0).any(1).float().mean() == pytest.approx(share, abs=5e-3)


IMAGES = [
    make_image(64, 64, [[4, 4, 30, 40], [20, 10, 60, 60], [1, 30, 12, 62]], [0, 2, 1]),
    make_image(48, 64, [[10, 10, 30, 30]], [1], seed=1),
]


@pytest.mark.parametrize("options", [DINO, DN_DEFORMABLE], ids=["cdn", "dn"])
def test_matching_queries_do_not_feel_the_denoising_ones(options):
    model = wake_up(make_model(options))
    memory = memory_of(model, IMAGES)
    source, augmenter, route = model.sources["main"], model.augmenters["main"], model.routes["main"]
    targets = make_targets([A, B], [C])
    alone = route(source(memory), memory)
    together = augmenter(source(memory), targets)
    count = together.groups[0].stop
    for layer, with_noise in zip(alone, route(together, memory)):
        torch.testing.assert_close(with_noise.boxes[:, count:], layer.boxes)
        torch.testing.assert_close(with_noise.logits[:, count:], layer.logits)


@pytest.mark.parametrize("options", [DINO, DN_DEFORMABLE], ids=["cdn", "dn"])
def test_a_group_does_not_feel_another_ones_noise(options):
    model = wake_up(make_model(options))
    memory, targets = memory_of(model, IMAGES), make_targets([A, B], [C])
    augmenter, route = model.augmenters["main"], model.routes["main"]
    slots = Slots.lay_out(targets, augmenter.num_groups(2), augmenter.kinds)
    rows = len(slots.slot)
    first, second = make_tape(rows, 3), make_tape(rows, 3, seed=1)
    of_first_group = slots.slot < slots.size
    mixed = NoiseTape(
        **{
            name: torch.where(of_first_group.view(-1, *[1] * (value.ndim - 1)), value, getattr(second, name))
            for name, value in vars(first).items()
        }
    )
    outputs = [
        route(augmenter(model.sources["main"](memory), targets, tape=tape), memory)[-1] for tape in (first, mixed)
    ]
    size = slots.size
    torch.testing.assert_close(outputs[0].boxes[:, :size], outputs[1].boxes[:, :size])
    assert not torch.allclose(outputs[0].boxes[:, size : slots.count], outputs[1].boxes[:, size : slots.count])


def test_the_loss_counts_real_objects_times_groups_and_all_slots():
    """All logits at -log 99: the focal loss of 2 g (3 + 3) slots, of which g (3 + 1) are positive, over g times 4."""
    model = make_model({**DINO, "MODEL.DETR.DENOISING.CDN.PAIRS": 99, "MODEL.DETR.LOSS.CLASS_WEIGHT": 1.0})
    groups = 33
    logit = torch.tensor(0.01).logit()
    positive = 0.25 * 0.99**2 * F.softplus(-logit)
    negative = 0.75 * 0.01**2 * F.softplus(logit)
    positives, entries = groups * 4, 2 * groups * 6 * 3
    wanted = (positives * positive + (entries - positives) * negative) / (groups * 4)
    with torch.no_grad():
        for head in model.routes["main"].decoder.class_heads:
            head.weight.zero_()
    assert model(IMAGES)["loss_class/dn_layer1"].item() == pytest.approx(wanted.item(), rel=1e-5)


def test_ignored_filling_has_no_loss_and_is_not_seen():
    model = wake_up(make_model({**DINO, "MODEL.DETR.DENOISING.PADDING_SLOTS": "ignored"}))
    torch.manual_seed(0)
    output = predictions_of(model, IMAGES, make_targets([A, B], [C]))["dn_final"].output
    assert output.valid.sum(1).tolist() == [2 * 3 * 2, 2 * 3 * 1]  # 3 groups of 2 + 2 and of 1 + 1


@pytest.mark.parametrize("options", [DN_DEFORMABLE, {**DINO, **KEPT}], ids=["dn", "cdn_kept"])
def test_unsupervised_filling_is_seen_as_background_is_but_has_no_loss(options):
    found = {}
    for kind in ("background", "unsupervised"):
        model = wake_up(make_model({**options, "MODEL.DETR.DENOISING.PADDING_SLOTS": kind}))
        torch.manual_seed(0)
        found[kind] = predictions_of(model, IMAGES, make_targets([A, B], [C]))
    seen, without_loss = found["background"]["dn_final"], found["unsupervised"]["dn_final"]
    torch.testing.assert_close(without_loss.output.logits, seen.output.logits)
    assert seen.output.valid is None or seen.output.valid.all()
    filled = torch.zeros_like(without_loss.output.valid)
    filled[0], filled[1, ::2] = True, True  # of the second image's slots, every other one has an object
    assert torch.equal(without_loss.output.valid, filled)
    final = [kinds["final"].output for kinds in found.values()]
    assert final[0].valid is final[1].valid is None or torch.equal(final[0].valid, final[1].valid)


@pytest.mark.parametrize("options", [DINO, DN_DEFORMABLE], ids=["cdn", "dn"])
def test_a_step_without_objects_has_the_same_losses_at_zero(options):
    model = make_model(options)
    names = set(model(IMAGES))
    losses = model([make_image(64, 64), make_image(48, 64)])
    assert set(losses) == names
    assert all(value == 0 for name, value in losses.items() if "/dn_" in name)
    sum(losses.values()).backward()
    assert model.augmenters["main"].labels.weight.grad is not None  # no parameter is unused on an empty rank


def test_five_hundred_objects_in_one_image_train():
    boxes = [[1 + i % 50, 1 + i // 50, 12 + i % 50, 12 + i // 50] for i in range(500)]
    losses = make_model(DINO)([make_image(64, 64, boxes, [0] * 500)])
    assert all(value.isfinite() for value in losses.values())


def test_a_class_list_of_one_trains():
    model = make_model({**DINO, "MODEL.DETR.CLASS_NAMES": ["cell"]})
    losses = model([make_image(64, 64, [[4, 4, 30, 40]], [0])])
    assert len(model.augmenters["main"].labels.weight) == 1 and all(value.isfinite() for value in losses.values())


def test_queries_with_fixed_positions_get_theirs_from_the_source():
    model = wake_up(make_model({**PLUSPLUS, "MODEL.DETR.QUERIES.AUGMENT": "cdn"}))
    memory, source = memory_of(model, IMAGES), model.sources["main"]
    queries = model.augmenters["main"](source(memory), make_targets([A, B], [C]))
    count = queries.groups[0].stop
    torch.testing.assert_close(queries.position[:, :count], source.codes(queries.reference[:, :count])[1])


def test_boxes_alone_have_contents_from_the_source():
    queries = make_queries(2)
    queries.codes = lambda boxes: (boxes.repeat(1, 1, 2), None)
    out = BoxDenoising(queries=5)(queries, make_targets([A, B], [C]), tape=make_tape(6))
    assert out.groups[0].stop == 4
    torch.testing.assert_close(out.content[:, :4], out.reference[:, :4].repeat(1, 1, 2))


def test_the_indicator_is_zero_for_matching_queries_and_one_for_the_others():
    model = wake_up(make_model(DN_DEFORMABLE))
    memory = memory_of(model, IMAGES)
    queries = model.augmenters["main"](model.sources["main"](memory), make_targets([A, B], [C]))
    count = queries.groups[0].stop
    assert (queries.content[:, count:, -1] == 0).all()
    assert queries.content[0, :count, -1].tolist() == [1] * count


def test_the_noise_comes_from_torchs_generator():
    model = wake_up(make_model(DINO))
    values = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        values.append(model(IMAGES)["loss_l1/dn_final"])
    assert values[0] == values[1] != values[2]


def test_nothing_is_denoised_at_inference():
    model = wake_up(make_model(DINO)).eval()
    with torch.no_grad():
        before = decode(model, IMAGES)[-1]
        model.drop_training_parts()
        after = decode(model, IMAGES)[-1]
    assert torch.equal(before.boxes, after.boxes) and before.boxes.shape[1] == 12
    assert not any("augmenters" in name for name in model.state_dict())


DENOISED_DEHOMO = {
    **DEHOMO,
    "MODEL.DETR.QUERIES.AUGMENT": "cdn",
    "MODEL.DETR.DENOISING.CDN.PAIRS": 6,
    "MODEL.DETR.DEHOMO.FLOOR_SCORE": 0.3,
    "MODEL.DETR.DEHOMO.IOU_THRESHOLD": 0.1,
}


@pytest.mark.parametrize("options", [DENOISED_DEHOMO], ids=["dehomo"])
def test_dh_detrs_generator_tells_each_group_apart_by_itself(options):
    """Matching queries as without denoising; a group's queries as if they alone were there; none of them is dropped."""
    model = wake_up(make_model(options))
    memory, targets = memory_of(model, IMAGES), make_targets([A, B], [C])
    queries = model.sources["main"](memory)
    alone = model.routes["main"](queries, memory)
    together = model.augmenters["main"](queries, targets)
    count, size = together.groups[0].stop, 4
    outputs = model.routes["main"](together, memory)
    for layer, with_noise in zip(alone, outputs):
        torch.testing.assert_close(with_noise.logits[:, count:], layer.logits)
        assert torch.equal(with_noise.valid[:, count:], layer.valid) and with_noise.valid[:, :count].all()
    only_first = QuerySet(
        together.content[:, :size],
        together.reference[:, :size],
        together.position[:, :size],
        attention_mask=torch.zeros(size, size, dtype=torch.bool),
    )
    model.routes["main"].decoder.layers[1].interactions[0].floor_score = 0.0
    model.routes["main"].decoder.layers[2].interactions[0].floor_score = 0.0
    for layer, with_noise in zip(model.routes["main"](only_first, memory), outputs):
        torch.testing.assert_close(with_noise.logits[:, :size], layer.logits, atol=1e-4, rtol=1e-4)


def test_sets_are_told_from_the_mask_and_the_matching_queries_are_set_zero():
    assert separate_sets(group_mask(3, 2, unblocked(4))).tolist() == [3, 3, 2, 2, 1, 1, 0, 0, 0, 0]
    assert separate_sets(group_mask(1, 0, unblocked(2))).tolist() == [0, 0]
