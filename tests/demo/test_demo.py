# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from detectron2.structures import BoxMode
from matplotlib.colors import same_color

from paq_detr import cli
from paq_detr.demo.command import ground_truth
from paq_detr.demo.figures import DPI, PAIRS, PANEL, Labelled, draw_predictions
from paq_detr.drawing import MASK_ALPHA

from ..figures import rectangles, texts

BOX, REGION, FOUND = (5.0, 5, 20, 30), (30.0, 5, 50, 20), [(4.0, 7, 21, 30), (-3.0, -2, 10, 12)]


def scene(count):
    """Images of different grey, each with a thing, a region and two predictions."""
    images = [np.full((40, 60, 3), 50 * i, np.uint8) for i in range(count)]
    truth = [Labelled(np.array([BOX]), [0], ignored_xyxy=np.array([REGION]))] * count
    return images, truth, [Labelled(np.array(FOUND), [1, 0], [0.876, 0.4])] * count


@pytest.mark.parametrize("count", [1, 3, 4])
def test_every_image_is_drawn_twice_and_enlarged(tmp_path, count):
    draw_predictions(str(tmp_path / "p.png"), *scene(count), ["a thing", "another"])
    height, width, _ = plt.imread(tmp_path / "p.png").shape
    assert width == 2 * PAIRS * PANEL * DPI
    assert height > -(-count // PAIRS) * PANEL * DPI * 40 / 60


def test_objects_stand_left_and_predictions_right_of_the_same_image(tmp_path, figures):
    draw_predictions(str(tmp_path / "p.png"), *scene(3), ["a thing", "another"])
    panels = figures["p.png"].axes
    assert [panel.get_title() for panel in panels[:4]] == ["Ground truth", "Predictions (score in percent)"] * 2
    assert [len(panel.images) for panel in panels] == [1] * 6 + [0] * 2
    for number, (left, right) in enumerate(zip(panels[:6:2], panels[1:6:2], strict=True)):
        assert np.unique(left.images[0].get_array()) == np.unique(right.images[0].get_array()) == 50 * number
        assert rectangles(left) == [REGION, BOX] and rectangles(right) == FOUND
        assert texts(left) == ["a thing"] and texts(right) == ["another 88", "a thing 40"]


def test_masks_show_in_the_colour_of_their_class(tmp_path, figures):
    images, truth, found = scene(1)
    mask = np.zeros((2, 40, 60), bool)
    mask[0, 10:20, 30:50] = True
    found = [replace(found[0], masks=mask)]
    draw_predictions(str(tmp_path / "p.png"), images, truth, found, ["a thing", "another"])
    left, right = (np.asarray(axis.images[0].get_array()) for axis in figures["p.png"].axes[:2])
    assert (left == images[0]).all() and (images[0] == 0).all()
    changed = (right != 0).any(-1)
    assert (changed == mask[0]).all()
    wanted = np.array(plt.get_cmap("tab10")(1)[:3]) * 255 * MASK_ALPHA  # the first is of class 1
    assert np.abs(right[15, 40] - wanted).max() <= 1


def test_a_class_has_one_colour_in_boxes_labels_and_legend(tmp_path, figures):
    draw_predictions(str(tmp_path / "p.png"), *scene(1), ["a thing", "another"])
    (legend,) = figures["p.png"].legends
    assert [text.get_text() for text in legend.get_texts()] == ["a thing", "another", "ignore region"]
    thing, another, _ = (handle.get_facecolor() for handle in legend.legend_handles)
    assert not same_color(thing, another)
    left, right = figures["p.png"].axes[:2]
    assert same_color(left.patches[1].get_edgecolor(), thing)
    for patch, text, color in zip(right.patches, right.texts, (another, thing), strict=True):
        assert same_color(patch.get_edgecolor(), color)
        assert same_color(text.get_bbox_patch().get_facecolor()[:3], color[:3])
    assert right.texts[1].get_position() == (0, 0)  # a box that starts outside is labelled inside


def test_the_ground_truth_keeps_regions_apart():
    def annotation(category, box, mode, **flags):
        return {"category_id": category, "bbox": box, "bbox_mode": mode, **flags}

    record = {
        "annotations": [
            annotation(2, [1, 2, 3, 4], BoxMode.XYWH_ABS),
            annotation(0, [5, 6, 9, 9], BoxMode.XYXY_ABS, iscrowd=1),
            annotation(1, [5, 6, 9, 9], BoxMode.XYXY_ABS, iscrowd=0),
        ]
    }
    labelled = ground_truth(record)
    assert labelled.boxes_xyxy.tolist() == [[1, 2, 4, 6], [5, 6, 9, 9]] and labelled.classes == [2, 1]
    assert labelled.ignored_xyxy.tolist() == [[5, 6, 9, 9]] and labelled.scores is None


def test_the_demo_needs_a_test_set_and_is_found_from_any_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "DATASETS.TEST", "[]", "DATASETS.SYNTHETIC_CROWD.NUM_TRAIN", "2"]) == 2
    assert "DATASETS.TEST is empty: the demo draws pictures of a test set." in capsys.readouterr().err
    assert not (tmp_path / "output").exists()
