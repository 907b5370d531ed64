# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from pycocotools import mask as rle

from paq_detr.data import register_coco_json, register_datasets
from paq_detr.data.segmentation import as_segmentation, to_run_lengths

from ..conftest import data_folder
from ..modeling.assemblies import make_cfg


def runs_of(mask):
    """Column by column, zeros first."""
    runs, value, length = [], 0, 0
    for pixel in mask.ravel(order="F").tolist():
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return [*runs, length]


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_compressed_or_not_are_the_same_mask(seed):
    random = np.random.RandomState(seed)
    mask = np.asfortranarray(random.rand(*random.randint(1, 60, 2)) < random.rand(), dtype=np.uint8)
    size, text = list(mask.shape), rle.encode(mask)["counts"].decode()
    for counts in (runs_of(mask), text, text.encode()):
        segmentation = as_segmentation({"size": size, "counts": counts})
        assert (rle.decode(segmentation) == mask).all()


POLYGON = [1, 1, 9, 1, 5, 8]


@pytest.mark.parametrize("value", [[POLYGON], POLYGON, [POLYGON, POLYGON], [[str(x) for x in POLYGON]]], ids=str)
def test_polygons_with_and_without_a_list_around_them_are_one_mask(value):
    masks = [rle.decode(to_run_lengths(as_segmentation(v), 10, 12)) for v in (value, [POLYGON])]
    assert (masks[0] == masks[1]).all() and masks[0].shape == (10, 12)


SIZE = {"size": [4, 5]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mask.png", "must be a list of polygons, or size and counts"),
        (7, "must be a list of polygons"),
        ([[]], "0 numbers"),
        ([[1, 2, 3, 4]], "4 numbers, must be x, y of three corners or more"),
        ([[1, 2, 3, 4, 5, 6, 7]], "7 numbers"),
        ([[[1, 2], [3, 4], [5, 6]]], "must be a list of polygons"),
        ([[1, 2, 3, 4, 5, "a"]], "must be numbers"),
        ([[1, 2, 3, 4, 5, float("nan")]], "not finite"),
        ({"counts": [20]}, "its size is None"),
        ({"size": [4], "counts": [20]}, r"its size is \[4\]"),
        ({"size": [4, 0], "counts": []}, "its size is"),
        ({**SIZE, "counts": None}, "no run lengths"),
        ({**SIZE, "counts": []}, "no run lengths"),
        ({**SIZE, "counts": [25, -5]}, "no run lengths"),
        ({**SIZE, "counts": [10, "10"]}, "no run lengths"),
        ({**SIZE, "counts": [10, 11]}, "add up to 21 pixels of 4 x 5"),
        ({**SIZE, "counts": ""}, "no run lengths"),
        ({**SIZE, "counts": "d0\u007f"}, "no run lengths"),
        ({**SIZE, "counts": "o"}, "no run lengths"),  # says that a digit follows
        ({**SIZE, "counts": "5"}, "add up to 5 pixels"),
        ({**SIZE, "counts": "oooooooooo0"}, "no run lengths"),
    ],
    ids=str,
)
def test_what_is_no_mask_is_said_with_the_value(value, message):
    with pytest.raises(ValueError, match=message):
        as_segmentation(value)


@pytest.fixture
def cells(tmp_path):
    """Writes a json of one image with an object and a crowd; gives its path and folder."""

    def write(**changes):
        box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 6, 5], "area": 30}
        objects = [
            {"id": 7, **box, "segmentation": [[1, 1, 7, 1, 7, 6, 1, 6]], **changes},
            {"id": 8, **box, "iscrowd": 1},
        ]
        content = {
            "images": [{"id": 1, "file_name": "a.png", "width": 12, "height": 10}],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": objects,
        }
        path = tmp_path / "cells.json"
        path.write_text(json.dumps(content))
        return str(path), str(tmp_path)

    yield write
    for name in ("cells", "boxes"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)


def test_a_dataset_has_segmentations_only_where_they_are_asked_for(cells):
    register_coco_json("cells", *cells())
    assert "segmentation" not in DatasetCatalog.get("cells")[0]["annotations"][0]
    register_coco_json("cells", *cells(), masks=True)  # the same one again, now with masks
    nucleus, crowd = DatasetCatalog.get("cells")[0]["annotations"]
    assert nucleus["segmentation"][0].tolist() == [1, 1, 7, 1, 7, 6, 1, 6] and "segmentation" not in crowd


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "annotation 7 has no segmentation, as have 1 of 2, and MODEL.DETR.MASK.ENABLED needs"),
        ([], "annotation 7 has no segmentation"),
        ([[1, 2]], r"the segmentation of annotation 7 is \[1, 2\]: 2 numbers"),
        ({"size": [12, 10], "counts": [120]}, r"annotation 7 is 12 x 10 \(height x width\), its image is 10 x 12"),
    ],
)
def test_a_file_without_sound_segmentations_is_refused_with_the_annotation(cells, segmentation, message):
    with pytest.raises(ValueError, match=f"cells.json: .*{message}"):
        register_coco_json("cells", *cells(segmentation=segmentation), masks=True)
    register_coco_json("cells", *cells(segmentation=segmentation))  # boxes do not mind


@pytest.mark.parametrize("name", ["DATASETS.TRAIN", "DATASETS.TEST"])
def test_a_dataset_that_never_has_masks_is_refused(name):
    cfg = make_cfg({"MODEL.DETR.MASK.ENABLED": True, "DATASETS.TRAIN": (), "DATASETS.TEST": ()})
    cfg.merge_from_list([name, ("synthetic_crowd_val",)])
    with pytest.raises(ValueError, match="'synthetic_crowd_val' has no segmentations, which MODEL.DETR.MASK.ENABLED"):
        register_datasets(cfg)


@pytest.mark.parametrize("folder", ["coco_mini", "dsb2018_nuclei"])
def test_real_files_of_both_forms_are_read(folder):
    folder = data_folder(folder)
    for annotation in json.loads((folder / "val.json").read_text())["annotations"]:
        segmentation = as_segmentation(annotation["segmentation"])
        if isinstance(segmentation, dict) and not annotation["iscrowd"]:  # COCO counts crowds' areas otherwise
            assert rle.area(segmentation) == pytest.approx(annotation["area"], rel=0.05, abs=2)
