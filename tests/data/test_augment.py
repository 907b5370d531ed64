# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Each augmentation on each kind of annotation: the picture says where an object is, and so must box and mask."""

import itertools

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from PIL import Image

from paq_detr import add_paq_detr_config
from paq_detr.data.augment import AUGMENTATIONS, Augmentations, LargeScaleJitter, Mix, build_augmentations, step_of
from paq_detr.data.mix import CopyPaste, Mixup, Mosaic
from paq_detr.data.sample import areas, cut, mask_of, overlaid, piece_of, sample_of
from paq_detr.errors import UserError

from . import scenes

LEAST = 0.3


@pytest.fixture(autouse=True)
def pure_colors(monkeypatch):
    """Pictures are resized without mixing neighbours: half a colour is another one."""
    apply = T.ResizeTransform.apply_image
    monkeypatch.setattr(
        T.ResizeTransform, "apply_image", lambda self, image, interp=None: apply(self, image, Image.NEAREST)
    )


def sample(number, kind):
    dataset_dict, image = scenes.record(number, kind)
    return sample_of(dataset_dict, image, scenes.NUM_CLASSES, kind in ("polygons", "run lengths"))


def others(kind):
    """Draws the other scenes in turn, so that no colour comes twice."""
    numbers = itertools.cycle(range(1, scenes.SCENES))
    return lambda: sample(next(numbers), kind)


def albumented(*entries):
    pytest.importorskip("albumentations", reason="needs the extra 'augment'")
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.INPUT.AUGMENT, cfg.INPUT.ALBUMENTATIONS = ["albumentations"], list(entries)
    return build_augmentations(cfg).steps[0]


TURNED = {"Affine": {"scale": [0.7, 1.3], "translate_percent": [-0.2, 0.2], "p": 1.0, "interpolation": 0}}
STEPS = {
    "mosaic": lambda: Mosaic(1.0, (1.0, 1.5), LEAST),
    "mixup, the first": lambda: Mixup(1.0, (1.0, 1.0), LEAST),
    "mixup, the other": lambda: Mixup(1.0, (0.0, 0.0), LEAST),
    "copy_paste": lambda: CopyPaste(1.0, 4, (0.5, 2.0), 0.5, LEAST),
    "copy_paste beside": lambda: CopyPaste(1.0, 4, (1.0, 1.0), 1.0, LEAST),
    "large_scale_jitter": lambda: step_of(LargeScaleJitter((0.5, 2.0), (40, 56))),
    "albumentations, flip and crop": lambda: albumented("HorizontalFlip", {"RandomCrop": {"height": 30, "width": 40}}),
    "albumentations, affine": lambda: albumented(TURNED),
}


@pytest.mark.parametrize("kind", scenes.KINDS)
@pytest.mark.parametrize("name", STEPS)
def test_boxes_and_masks_are_where_the_picture_shows_the_object(name, kind):
    augment = Augmentations([STEPS[name]()])
    pictured = 0
    for seed in range(6):
        np.random.seed(seed)
        found = augment(sample(0, kind), others(kind))
        check(found)
        labels = found.classes.tolist()
        if name == "mixup, the first":
            labels = [label for label in labels if label < scenes.PER_SCENE]
        if name == "mixup, the other":
            labels = [label for label in labels if label >= scenes.PER_SCENE]
        for i, label in enumerate(found.classes.tolist()):
            if label in labels and areas(found.boxes)[i] > 30:
                pictured += check_object(found, i, scenes.shown(found.image, label), kind)
    assert pictured > 6 or kind == "empty"


def check(found):
    height, width = found.size
    assert found.image.dtype == np.uint8 and found.image.shape[2] == 3
    assert len({len(found.boxes), len(found.seen), len(found.classes), len(found.ignore), len(found.amodal)}) == 1
    assert found.masks is None or len(found.masks) == len(found)
    assert (found.boxes >= 0).all() and (found.boxes <= [width, height, width, height]).all()
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()


def check_object(found, i, pixels, kind):
    """Box, visible box and mask of an object against the pixels of its colour; resampling moves edges by 1."""
    box, seen = found.boxes[i], found.seen[i]
    if not pixels.any():
        assert min(seen[2:] - seen[:2]) < 2 or found.ignore[i]  # too thin to keep its colour
        return False
    edge = scenes.tight(pixels)
    if found.ignore[i] or kind in ("boxes", "ignore"):  # covered or not, these stay whole
        assert (box[:2] <= edge[:2] + 1.01).all() and (box[2:] >= edge[2:] - 1.01).all()
    elif kind == "visible":
        np.testing.assert_allclose(seen, edge, atol=1.6)
        assert box[3] - box[1] > 1.15 * (seen[3] - seen[1]) or box[3] > found.size[0] - 1 or seen[3] > box[3] - 3
    else:
        np.testing.assert_allclose(box, edge, atol=1.6)
    if found.masks is not None and found.masks[i] is not None:
        x, y, piece = piece_of(found.masks[i], found.size)
        mask = np.zeros(found.size, dtype=bool)
        mask[y : y + piece.shape[0], x : x + piece.shape[1]] = piece
        assert not (eroded(mask) & ~pixels).any() and not (eroded(pixels) & ~mask).any()
    return True


def eroded(mask):
    padded = np.pad(mask, 1, constant_values=True)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    return windows.all((2, 3))


def test_masks_serve_to_copy_where_only_boxes_are_learnt():
    """Some objects have a mask and some have none; each is copied by what it has."""
    record, image = scenes.record(1, "run lengths")
    for annotation in record["annotations"][::2]:
        del annotation["segmentation"]
    source = sample_of(record, image, scenes.NUM_CLASSES, "some")
    assert [mask is None for mask in source.masks] == [True, False] * 2 == source.amodal.tolist()
    for seed in range(8):
        np.random.seed(seed)
        found = CopyPaste(1.0, 4, (1.0, 1.0), 0.5, LEAST)(sample_of(*scenes.record(0), scenes.NUM_CLASSES, "some"),
                                                          lambda: source)  # fmt: skip
        check(found)
        for i, label in enumerate(found.classes.tolist()):
            kind = "boxes" if found.masks[i] is None else "run lengths"
            check_object(found, i, scenes.shown(found.image, label), kind)


def pieces(found):
    """A part that covers the left half of every scene, as ``overlaid`` takes it."""
    blank = found.take([])
    blank.image = np.full((scenes.HEIGHT, 20, 3), 7, dtype=np.uint8)
    return [(blank, None, 0, 0)]


@pytest.mark.parametrize("kind", scenes.KINDS)
@pytest.mark.parametrize("least", [0.0, 0.3, 0.9, 1.0])
def test_an_object_is_dropped_when_too_little_of_it_is_left_and_only_then(kind, least):
    for number in range(scenes.SCENES):
        before = sample(number, kind)
        after = overlaid(before, pieces(before), least)
        expected = []
        for i, label in enumerate(before.classes.tolist()):
            share = scenes.shown(after.image, label).sum() / scenes.shown(before.image, label).sum()
            if share > 0 and (before.ignore[i] or share >= least):
                expected.append(label)
        assert after.classes.tolist() == expected
        kept = before.take(np.isin(before.classes, expected))
        if kind in ("boxes", "visible", "ignore"):
            assert np.array_equal(after.boxes, kept.boxes)  # whole
        else:
            assert np.array_equal(after.boxes[:, 0], np.maximum(kept.boxes[:, 0], 20))
        assert np.array_equal(after.ignore, kept.ignore)


@pytest.mark.parametrize("kind", scenes.KINDS)
@pytest.mark.parametrize("least", [0.0, 0.5, 1.0])
def test_a_cut_keeps_what_lies_inside_by_its_share(kind, least):
    before = sample(2, kind)
    window = 13, 7, 47, 31
    after = cut(before, window, least)
    check(after)
    assert np.array_equal(after.image, before.image[7:31, 13:47])
    whole = [scenes.shown(before.image, label).sum() for label in before.classes]
    part = [scenes.shown(after.image, label).sum() for label in before.classes]
    expected = [p > 0 and (ignored or p >= least * w) for p, w, ignored in zip(part, whole, before.ignore)]
    assert after.classes.tolist() == before.classes[np.array(expected, dtype=bool)].tolist()
    for i, label in enumerate(after.classes.tolist()):
        check_object(after, i, scenes.shown(after.image, label), kind)


def test_visible_boxes_as_targets_shrink_to_what_is_left():
    before = sample(0, "boxes")
    before.amodal[:] = False
    after = overlaid(before, pieces(before), 0.0)
    for i, label in enumerate(after.classes.tolist()):
        assert after.boxes[i].tolist() == scenes.tight(scenes.shown(after.image, label)).tolist()


def test_a_later_part_covers_an_earlier_one_and_shares_are_of_the_picture_before_all():
    base, first, second = (sample(number, "boxes") for number in range(3))
    after = overlaid(base, [(first, None, 0, 0), (second, None, 0, 0)], LEAST)
    assert after.classes.tolist() == second.classes.tolist()
    assert np.array_equal(after.image, second.image)


def test_an_ignore_region_is_dropped_only_when_it_is_covered_all_over():
    before = sample(0, "ignore")
    after = overlaid(before, pieces(before), 1.0)
    covered = before.boxes[:, 2] <= 20
    assert after.classes[after.ignore].tolist() == before.classes[before.ignore & ~covered].tolist()


def test_without_masks_what_stands_in_the_pasted_box_comes_along():
    source, base = sample(1, "boxes"), sample(0, "empty")
    source.seen[0] = 0, 0, scenes.WIDTH, scenes.HEIGHT  # the first is seen in all of the picture
    step = CopyPaste(1.0, 1, (1.0, 1.0), 0.0, LEAST)
    counts = {len(step(base, lambda: source)) for _ in range(20)}
    assert counts == {1, scenes.PER_SCENE}


def test_a_pasted_object_stands_in_front_of_its_partner_and_is_about_as_large():
    step = CopyPaste(1.0, 1, (0.1, 10.0), 1.0, 0.0)
    base = sample(0, "boxes").take([0])
    for seed in range(30):
        np.random.seed(seed)
        found = step(base, others("boxes"))
        partner, pasted = found.boxes[0], found.boxes[-1]
        assert 0.7 < (pasted[3] - pasted[1]) / (partner[3] - partner[1]) < 1.4
        assert pasted[3] >= partner[3] - 1


@pytest.mark.parametrize("hidden, copied", [(0.2, True), (0.5, False)])
def test_an_object_that_is_hidden_for_the_most_part_is_not_copied(hidden, copied):
    source, base = sample(1, "visible").take([0]), sample(0, "empty")
    source.seen[0, 3] = source.boxes[0, 3] - hidden * (source.boxes[0, 3] - source.boxes[0, 1])
    found = CopyPaste(1.0, 1, (1.0, 1.0), 0.0, LEAST)(base, lambda: source)
    assert len(found) == copied
    if copied:  # the whole person, also where nothing of it is seen
        assert found.boxes[0, 3] - found.boxes[0, 1] > found.seen[0, 3] - found.seen[0, 1] + 1


def test_a_mask_that_shrinks_to_nothing_is_not_pasted():
    source, base = sample(1, "run lengths"), sample(0, "run lengths")
    dot = np.zeros((1, 12), dtype=bool)
    dot[0, 1] = dot[0, 10] = True
    source = source.take([0])
    source.masks = [mask_of((3, 3, dot), source.size)]
    counts = set()
    for seed in range(30):
        np.random.seed(seed)
        found = CopyPaste(1.0, 1, (0.1, 0.2), 0.0, LEAST)(base, lambda: source)
        counts.add(len(found) - len(base))
        check(found)
    assert 0 in counts


def test_color_jitter_moves_nothing(cfg):
    cfg.INPUT.AUGMENT, cfg.INPUT.COLOR_JITTER.PROB = ["color_jitter"], 1.0
    before = sample(0, "polygons")
    after = build_augmentations(cfg)(before, None)
    assert not np.array_equal(after.image, before.image) and np.array_equal(after.boxes, before.boxes)
    assert [np.array_equal(a[0], b[0]) for a, b in zip(after.masks, before.masks)] == [True] * len(before)


@pytest.mark.parametrize("image_format", ["RGB", "BGR", "L"])
@pytest.mark.parametrize("name", ["color_jitter", "albumentations"])
def test_colors_are_those_of_the_format(cfg, name, image_format):
    """The same jitter, whichever way the channels stand."""
    if name == "albumentations":
        pytest.importorskip("albumentations", reason="needs the extra 'augment'")
        cfg.INPUT.ALBUMENTATIONS = [{"RGBShift": {"p": 1.0}}] if image_format != "L" else ["HorizontalFlip"]
    cfg.INPUT.AUGMENT, cfg.INPUT.COLOR_JITTER.PROB = [name], 1.0
    results = []
    for channels in ("RGB", image_format):
        cfg.INPUT.FORMAT = channels
        before = sample(0, "boxes")
        before.image = {"RGB": before.image, "BGR": before.image[..., ::-1], "L": before.image[..., :1]}[channels]
        np.random.seed(0)
        __import__("torch").manual_seed(0)
        results.append(build_augmentations(cfg)(before, None).image)
    if image_format == "L":
        assert results[1].shape == (scenes.HEIGHT, scenes.WIDTH, 1)
    else:
        assert np.array_equal(results[0], results[1] if image_format == "RGB" else results[1][..., ::-1])


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("name", STEPS)
def test_tiny_pictures_never_crash(name, shape):
    if "crop" in name:
        pytest.skip("Albumentations' crops ask for their size")
    tiny = {"file_name": "tiny.png", "annotations": [{"bbox": [0, 0, *shape[::-1]], "bbox_mode": 1, "category_id": 0}]}
    step = Augmentations([STEPS[name]()])
    for seed in range(5):
        np.random.seed(seed)
        draw = others("boxes") if seed % 2 else lambda: sample_of(tiny, np.zeros((*shape, 3), np.uint8), 1)
        check(step(sample_of(tiny, np.zeros((*shape, 3), np.uint8), 1), draw))


def test_others_go_through_the_steps_before_that_mix_none():
    """[A, mix, B, mix]: the first mix draws pictures that A has seen, the second such that A and B have."""
    seen = []

    class Recorder(Mix):
        def __call__(self, sample, draw):
            seen.append(draw())
            return sample

    steps = [lambda s: [*s, "A"], Recorder(), lambda s: [*s, "B"], Recorder()]
    augment = Augmentations(steps)
    assert augment([], lambda: ["other"]) == ["A", "B"] and seen == [["other", "A"], ["other", "A", "B"]]
    assert augment.without_mixing().steps == [steps[0], steps[2]]


WRONG = {
    "AUGMENT": (["mosaik"], 'INPUT.AUGMENT is "mosaik", must be one of albumentations, color_jitter, copy_paste'),
    "MIN_VISIBLE": (1.5, r"INPUT.MIN_VISIBLE is 1.5, must be in \[0, 1\]"),
    "MIX_OFF_EPOCHS": (-1, "INPUT.MIX_OFF_EPOCHS is -1, must be at least 0"),
    "MOSAIC.PROB": (2.0, r"INPUT.MOSAIC.PROB is 2.0, must be in \[0, 1\]"),
    "MOSAIC.ZOOM": ([0.5, 1.0], "a number of INPUT.MOSAIC.ZOOM is 0.5, must be at least 1"),
    "MIXUP.WEIGHT": ([0.6, 0.4], r"INPUT.MIXUP.WEIGHT is \[0.6, 0.4\], must be the least and the largest value"),
    "COPY_PASTE.MAX_OBJECTS": (0, "INPUT.COPY_PASTE.MAX_OBJECTS is 0, must be in"),
    "COPY_PASTE.SCALE": ([1.0], r"INPUT.COPY_PASTE.SCALE is \[1.0\], must be a list of 2 numbers"),
    "COPY_PASTE.BESIDE": (-0.1, "INPUT.COPY_PASTE.BESIDE is -0.1, must be in"),
    "COLOR_JITTER.HUE": (0.7, r"INPUT.COLOR_JITTER.HUE is 0.7, must be in \[0, 0.5\]"),
    "LARGE_SCALE_JITTER.SIZE": ([0, 9], "a number of INPUT.LARGE_SCALE_JITTER.SIZE is 0, must be at least 1"),
    "LARGE_SCALE_JITTER.SCALE": (["a", 2], "INPUT.LARGE_SCALE_JITTER.SCALE is .*, must be a list of 2 numbers"),
    "CROP.ENABLED": (True, "large_scale_jitter crops by itself: set INPUT.CROP.ENABLED False"),
    "ALBUMENTATIONS": (
        ["HorizontalFlip"],
        "INPUT.ALBUMENTATIONS is set, but INPUT.AUGMENT, .* does not name albumentations",
    ),
}


@pytest.mark.parametrize("key", WRONG)
def test_a_wrong_value_is_named(cfg, key):
    value, message = WRONG[key]
    cfg.INPUT.AUGMENT = [name for name in AUGMENTATIONS.names() if name != "albumentations"]
    *path, name = key.split(".")
    section = cfg.INPUT[path[0]] if path else cfg.INPUT
    section[name] = value
    with pytest.raises(UserError, match=message):
        build_augmentations(cfg)
