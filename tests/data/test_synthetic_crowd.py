# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import hashlib
from collections import Counter
from dataclasses import asdict, replace

import numpy as np
import pytest

from paq_detr.data.figures import CLASSES, class_size, part_map
from paq_detr.data.synthetic_crowd import CLASS_SHARES, MIN_VISIBILITY, SyntheticCrowd, read_url

CROWD = SyntheticCrowd(density=10.0, occlusion=0.6, ignore=0.5)


def labels(crowd, count=60):
    return [crowd.label("train", index)[0] for index in range(count)]


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0) * max(height, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def mean_largest_iou(images):
    """Mean over all objects of the IoU with their nearest neighbour."""
    return np.mean(
        [
            max([iou(a.full_box, b.full_box) for b in objects if b is not a], default=0.0)
            for objects in images
            for a in objects
        ]
    )


def test_same_seed_gives_the_same_bytes_on_every_machine():
    digest = hashlib.sha256()
    for split, index in (("train", 0), ("train", 7), ("val", 3)):
        for crowd in (SyntheticCrowd(), CROWD, SyntheticCrowd(seed=3, height=97, width=131, density=25, occlusion=0.9)):
            digest.update(crowd.draw(split, index).tobytes())
            digest.update(repr(crowd.label(split, index)).encode())
    assert digest.hexdigest() == "66d79028d2ad860f8db1c2d916372250a25628cd91c4aadd15f22fb92218ef75"


def test_defaults_are_those_of_the_configuration(cfg):
    keys = cfg.DATASETS.SYNTHETIC_CROWD
    assert asdict(SyntheticCrowd()) == {name: keys[name.upper()] for name in asdict(SyntheticCrowd())}


def test_an_image_does_not_depend_on_the_order_of_drawing():
    forwards = [CROWD.draw("train", index) for index in (0, 1, 2)]
    backwards = [CROWD.draw("train", index) for index in (2, 1, 0)]
    assert all(np.array_equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


def test_seeds_splits_and_indices_give_different_images():
    images = [
        CROWD.draw("train", 0),
        CROWD.draw("train", 1),
        CROWD.draw("val", 0),
        replace(CROWD, seed=2).draw("val", 0),
    ]
    assert len({image.tobytes() for image in images}) == 4


def test_images_have_the_asked_size():
    assert SyntheticCrowd(height=64, width=150).draw("val", 0).shape == (64, 150, 3)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 300), (300, 32)])
def test_extreme_sizes_are_drawn(height, width):
    crowd = SyntheticCrowd(height=height, width=width, density=12.0, occlusion=0.9, ignore=1.0)
    for index in range(30):
        assert crowd.draw("train", index).shape == (height, width, 3)
        crowd.label("train", index)


def test_density_is_the_mean_number_of_figures():
    for density in (2.0, 8.0, 20.0):
        counts = [len(objects) for objects in labels(SyntheticCrowd(density=density, occlusion=0.0), 150)]
        assert np.mean(counts) == pytest.approx(density, rel=0.12)
    assert all(not objects for objects in labels(SyntheticCrowd(density=0.0), 10))


def test_density_raises_the_overlap():
    overlaps = [mean_largest_iou(labels(SyntheticCrowd(density=density))) for density in (3.0, 10.0, 30.0)]
    assert overlaps[0] < overlaps[1] < overlaps[2]


def test_occlusion_raises_the_overlap_and_lowers_the_visibility():
    images = [labels(SyntheticCrowd(occlusion=occlusion)) for occlusion in (0.0, 0.4, 0.9)]
    overlaps = [mean_largest_iou(image) for image in images]
    visibilities = [np.mean([item.visibility for objects in image for item in objects]) for image in images]
    assert overlaps[0] < 0.02 < overlaps[1] < 0.15 < overlaps[2]
    assert visibilities[0] > 0.98 > visibilities[1] > 0.85 > visibilities[2]


def test_persons_are_the_most_frequent_class_and_all_classes_occur():
    counts = Counter(item.category for objects in labels(SyntheticCrowd(occlusion=0.0), 200) for item in objects)
    shares = [counts[index] / counts.total() for index in range(len(CLASSES))]
    np.testing.assert_allclose(shares, CLASS_SHARES, atol=0.04)


def test_ignore_is_the_share_of_images_with_an_ignore_region():
    for share in (0.0, 0.3, 1.0):
        regions = [SyntheticCrowd(ignore=share).label("train", index)[1] for index in range(200)]
        assert np.mean([len(boxes) for boxes in regions]) == pytest.approx(share, abs=0.1)


def test_ignore_regions_lie_in_the_image_and_change_no_label():
    for index in range(20):
        objects, regions = replace(CROWD, ignore=1.0).label("train", index)
        (x0, y0, x1, y1) = regions[0]
        assert 0 <= x0 < x1 <= CROWD.width and 0 <= y0 < y1 <= CROWD.height
        assert objects == replace(CROWD, ignore=0.0).label("train", index)[0]


def test_visible_boxes_lie_in_the_full_box_and_in_the_image():
    for objects in labels(CROWD):
        for item in objects:
            full, visible = item.full_box, item.visible_box
            assert full[0] <= visible[0] < visible[2] <= full[2] and full[1] <= visible[1] < visible[3] <= full[3]
            assert 0 <= visible[0] and 0 <= visible[1] and visible[2] <= CROWD.width and visible[3] <= CROWD.height
            assert MIN_VISIBILITY <= item.visibility <= 1


def test_some_full_boxes_reach_outside_the_image():
    boxes = [item.full_box for objects in labels(CROWD) for item in objects]
    assert any(box[0] < 0 for box in boxes) and any(box[3] > CROWD.height for box in boxes)


def test_an_uncovered_figure_in_the_image_has_equal_full_and_visible_boxes():
    alone = [item for objects in labels(SyntheticCrowd(occlusion=0.0)) for item in objects if item.visibility == 1]
    inside = [i for i in alone if min(i.full_box) >= 0 and i.full_box[2] <= 208 and i.full_box[3] <= 160]
    assert len(inside) > 100
    assert all(item.full_box == item.visible_box for item in inside)


def test_boxes_are_tight_around_what_is_painted():
    """A lone figure's box is the box of the pixels that differ from the same image without figures."""
    seen = 0
    for index in range(60):
        crowd = SyntheticCrowd(density=1.0, ignore=0.0)
        objects, _ = crowd.label("train", index)
        if len(objects) != 1:
            continue
        # The same random numbers, but the figure is left out.
        bare = _WithoutFigures(density=1.0, ignore=0.0).draw("train", index)
        rows, columns = np.nonzero((crowd.draw("train", index) != bare).any(2))
        x0, y0, x1, y1 = objects[0].visible_box
        painted = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(painted, (x0, y0, x1, y1), atol=1)  # a pixel may be painted in its old colour
        seen += 1
    assert seen > 10


class _WithoutFigures(SyntheticCrowd):
    def _figures(self, random, horizon):
        super()._figures(random, horizon)
        return []


def test_visibility_is_the_uncovered_share_of_the_pixels_in_the_image():
    for index in range(10):
        random, horizon = CROWD._start("train", index)
        CROWD._far_crowd(random, horizon)
        figures = CROWD._figures(random, horizon)
        owner = np.full((CROWD.height, CROWD.width), -1)
        drawn = np.zeros(len(figures), dtype=int)
        for number, figure in enumerate(figures):
            mask = part_map(figure.category, figure.height, figure.width, figure.looks) > 0
            for y, x in zip(*np.nonzero(mask), strict=True):
                if 0 <= y + figure.top < CROWD.height and 0 <= x + figure.left < CROWD.width:
                    owner[y + figure.top, x + figure.left] = number
                    drawn[number] += 1
        shares = [np.count_nonzero(owner == number) / drawn[number] for number in range(len(figures))]
        expected = [share for share in shares if share >= MIN_VISIBILITY]
        assert [item.visibility for item in CROWD.label("train", index)[0]] == expected


@pytest.mark.parametrize("category", range(len(CLASSES)))
def test_every_shape_fills_its_rectangle_at_every_size(category):
    random = np.random.RandomState(0)
    for person in (1.0, 12.0, 30.0, 200.0):
        looks = random.random_sample(32)
        height, width = class_size(category, person, looks)
        mask = part_map(category, height, width, looks) > 0
        assert mask.shape == (height, width)
        assert mask.mean() > 0.3


def test_the_url_is_enough_to_draw_the_image():
    crowd = SyntheticCrowd(seed=7, height=50, width=60, density=3.3, occlusion=1 / 3, ignore=0.25)
    assert np.array_equal(read_url(crowd.url("val", 12)), crowd.draw("val", 12))


@pytest.mark.parametrize(
    "url", ["synthetic-crowd://train/x?seed=1", "synthetic-crowd://test/1?seed=1", "synthetic-crowd://train/1?sead=1"]
)
def test_a_broken_url_is_named(url):
    with pytest.raises(ValueError, match="synthetic") as error:
        read_url(url)
    assert url in str(error.value) or "splits train and val, not 'test'" in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", -1), ("height", 8), ("width", 31), ("density", -1.0), ("density", float("nan")), ("occlusion", 1.5),
     ("ignore", -0.1)],
)  # fmt: skip
def test_a_parameter_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} of the synthetic crowd must be .*, got {value}"):
        SyntheticCrowd(**{name: value})
