# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import codecs
import json
import logging
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from paq_detr.data import register_coco_json


def test_ids_with_gaps_become_contiguous_in_the_order_of_the_ids(content, save):
    register_coco_json("cells", *save(content))
    metadata = MetadataCatalog.get("cells")
    assert metadata.thing_classes == ["dust", "fibre", "cell"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 7: 1, 90: 2}
    assert [a["category_id"] for a in DatasetCatalog.get("cells")[0]["annotations"]] == [2, 0, 1]


def test_the_dicts_are_detectron2s(content, save):
    path, root = save(content)
    register_coco_json("cells", path, root)
    first, second = DatasetCatalog.get("cells")
    assert (first["file_name"], first["image_id"], first["height"], first["width"]) == (f"{root}/a.png", 5, 30, 40)
    assert first["annotations"][0] == {
        "bbox": [1.0, 2.0, 10.0, 12.0], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 2, "iscrowd": 0,
    }  # fmt: skip
    assert first["annotations"][2]["iscrowd"] == 1
    assert second["annotations"] == []  # an image without objects stays
    metadata = MetadataCatalog.get("cells")
    assert (metadata.json_file, metadata.image_root, metadata.evaluator_type) == (path, root, "coco")


def test_reading_twice_gives_the_same_dicts(content, save):
    register_coco_json("cells", *save(content))
    assert DatasetCatalog.get("cells") == DatasetCatalog.get("cells")


def test_the_id_map_is_logged_once(content, save, caplog):
    with caplog.at_level(logging.INFO, logger="paq_detr"):
        register_coco_json("cells", *save(content))
        DatasetCatalog.get("cells")
        DatasetCatalog.get("cells")
    maps = [record.getMessage() for record in caplog.records if "->" in record.getMessage()]
    assert len(maps) == 1
    assert "dust 1 -> 0 (1), fibre 7 -> 1 (0), cell 90 -> 2 (1)" in maps[0]


def test_boxes_without_area_or_outside_are_dropped_with_one_warning(content, save, caplog):
    for number, box in enumerate(([5, 5, 0, 3], [3, 3, 4, 0], [40, 0, 5, 5], [-9, 0, 9, 9], [0, 30, 2, 2]), start=10):
        content["annotations"].append({"id": number, "image_id": 5, "category_id": 1, "bbox": box})
    path, root = save(content)
    register_coco_json("cells", path, root)
    assert len(DatasetCatalog.get("cells")[0]["annotations"]) == 3
    assert len(DatasetCatalog.get("cells")[0]["annotations"]) == 3
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith(
        f"dataset 'cells' ({path}): dropped 5 of 8 boxes: annotation 10 of a.png, [5.0, 5.0, 0.0, 3.0], has no"
    )
    assert "annotation 12 of a.png, [40.0, 0.0, 5.0, 5.0], lies outside the image of 40 x 30 ..." in warnings[0]


def test_boxes_that_reach_outside_are_kept_as_they_are(content, save):
    content["annotations"][0]["bbox"] = [-5.5, -2, 60, 10]
    register_coco_json("cells", *save(content))
    assert DatasetCatalog.get("cells")[0]["annotations"][0]["bbox"] == [-5.5, -2.0, 60.0, 10.0]


def test_missing_sizes_are_read_from_the_files(content, save):
    del content["images"][0]["width"], content["images"][0]["height"]
    register_coco_json("cells", *save(content))
    assert DatasetCatalog.get("cells")[0]["width"] == 40
    assert DatasetCatalog.get("cells")[0]["height"] == 30


def test_registering_again_the_same_does_nothing(content, save):
    path, root = save(content)
    register_coco_json("cells", path, root)
    before = DatasetCatalog["cells"]
    register_coco_json("cells", path, root + "/")
    assert DatasetCatalog["cells"] is before


def test_registering_a_name_for_another_json_is_an_error(content, save):
    path, root = save(content)
    other, _ = save(content, "other.json")
    register_coco_json("cells", path, root)
    with pytest.raises(ValueError, match=f"'cells' is already registered as {re.escape(path)}.*{re.escape(other)}"):
        register_coco_json("cells", other, root)


def test_a_name_of_other_code_is_an_error(content, save):
    with pytest.raises(ValueError, match="'coco_2017_val' is already registered as a dataset of other code"):
        register_coco_json("coco_2017_val", *save(content))


def _set(section, entry, key, value):
    def change(content):
        content[section][entry][key] = value

    return change


def _drop(section, entry, key):
    def change(content):
        del content[section][entry][key]

    return change


def _no_section(key):
    return lambda content: content.pop(key)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_section("categories"), "the list 'categories' is missing"),
        (lambda content: content["categories"].clear(), "the list 'categories' is empty"),
        (_drop("images", 0, "file_name"), "image 5 has no 'file_name'"),
        (_drop("images", 0, "id"), "image entry 1 has no 'id'"),
        (_drop("annotations", 1, "bbox"), "annotation 2 has no 'bbox'"),
        (_drop("categories", 1, "name"), "category 1 has no 'name'"),
        (_set("images", 1, "width", 0), "the width of image 9 is 0, must be a positive integer"),
        (_set("images", 1, "height", "50 px"), "the height of image 9 is '50 px', must be a positive integer"),
        (_set("images", 1, "id", 5), "two entries have the image id 5"),
        (_set("annotations", 1, "id", 1), "two entries have the annotation id 1"),
        (_set("categories", 1, "id", 90), "two entries have the category id 90"),
        (_set("categories", 1, "name", "cell"), "two categories are named 'cell'"),
        (_set("categories", 1, "id", "dust"), "the category id 'dust' is no integer"),
        (_set("annotations", 1, "image_id", 77), "annotation 2 is of image 77, which is not in 'images'"),
        (_set("annotations", 1, "category_id", 2), "annotation 2 is of category 2, which is not in 'categories'"),
        (_set("annotations", 1, "bbox", [1, 2, float("nan"), 3]), "the bbox of annotation 2 is not finite"),
        (_set("annotations", 1, "bbox", [1, 2, float("inf"), 3]), "the bbox of annotation 2 is not finite"),
        (_set("annotations", 1, "bbox", [1, 2, -3, 3]), "the bbox of annotation 2 has a negative size"),
        (_set("annotations", 1, "bbox", [1, 2, 3]), "the bbox of annotation 2 is not four numbers: [1, 2, 3]"),
        (_set("annotations", 1, "bbox", None), "the bbox of annotation 2 is not four numbers: None"),
    ],
)
def test_bad_content_is_named_with_the_file(content, save, tmp_path, change, message):
    path, root = save(content)
    change(content)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")):
        register_coco_json("cells", path, root)
    assert "cells" not in DatasetCatalog


def test_a_missing_json_or_folder_is_named(content, save):
    path, root = save(content)
    with pytest.raises(FileNotFoundError, match="dataset 'cells': the annotation file nowhere.json does not exist"):
        register_coco_json("cells", "nowhere.json", root)
    with pytest.raises(FileNotFoundError, match="dataset 'cells': the image folder nowhere does not exist"):
        register_coco_json("cells", path, "nowhere")


@pytest.mark.parametrize(
    ("text", "message"), [("{broken", "not valid json: .* at column 2$"), ("[]", "top level must be an object")]
)
def test_a_broken_json_is_named(tmp_path, text, message):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*{message}"):
        register_coco_json("cells", str(path), str(tmp_path))


def test_a_byte_order_mark_is_read_over(content, save):
    path, root = save(content)
    Path(path).write_bytes(codecs.BOM_UTF8 + Path(path).read_bytes())
    register_coco_json("cells", path, root)
    assert MetadataCatalog.get("cells").thing_classes == ["dust", "fibre", "cell"]


def test_a_missing_size_of_an_unreadable_file_is_named(content, save, tmp_path):
    del content["images"][0]["width"]
    path, root = save(content)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="image 5 has no width and height, and the image .*a.png cannot be read"):
        register_coco_json("cells", path, root)
