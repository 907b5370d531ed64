# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Values of another type in a COCO json: converted where there is no doubt, else one sentence."""

import json
import logging
import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from paq_detr.data import register_coco_json
from paq_detr.data.coco_file import read_coco


def put(section, place, **values):
    def change(content):
        content[section][place].update(values)

    return change


def as_object(section):
    """The list becomes an object of entries by id."""

    def change(content):
        content[section] = {str(entry.pop("id")): entry for entry in content[section]}

    return change


def names_alone(content):
    content["categories"] = {str(entry["id"]): entry["name"] for entry in content["categories"]}


def all_texts(content):
    for section in ("images", "annotations", "categories"):
        for entry in content[section]:
            for key, value in entry.items():
                entry[key] = [str(v) for v in value] if isinstance(value, list) else str(value)


def huge_ids(content):
    for image in content["images"]:
        image["id"] += 10**30
    for annotation in content["annotations"]:
        annotation["id"], annotation["image_id"] = annotation["id"] + 10**30, annotation["image_id"] + 10**30


def negative_ids(content):
    for image in content["images"]:
        image["id"] *= -1
    for annotation in content["annotations"]:
        annotation["image_id"] *= -1


def whole_floats(content):
    for section in ("images", "annotations"):
        for entry in content[section]:
            entry.update({key: float(value) for key, value in entry.items() if isinstance(value, int)})


SAME = {
    "all numbers as texts": all_texts,
    "whole numbers as floats": whole_floats,
    "iscrowd null": put("annotations", 0, iscrowd=None),
    "iscrowd blank": put("annotations", 0, iscrowd=" "),
    "iscrowd false": put("annotations", 0, iscrowd=False),
    "iscrowd 'false'": put("annotations", 0, iscrowd="False"),
    "iscrowd true": put("annotations", 2, iscrowd=True),
    "iscrowd '1'": put("annotations", 2, iscrowd="1"),
    "ignore in place of iscrowd": put("annotations", 2, iscrowd=0, ignore=1),
    "ignore null": put("annotations", 0, ignore=None),
    "area null": put("annotations", 0, area=None),
    "area blank": put("annotations", 0, area=""),
    "the image's id as text": put("annotations", 0, image_id="5"),
    "the class's id as text": put("annotations", 0, category_id="90"),
    "images as an object": as_object("images"),
    "annotations as an object": as_object("annotations"),
    "categories as an object": as_object("categories"),
    "class names by id": names_alone,
    "an annotation without id": lambda content: content["annotations"][1].pop("id"),
    "an annotation whose id is null": put("annotations", 1, id=None),
    "an annotation whose id is a uuid": put("annotations", 1, id="3fa85f64-5717"),
    "the width is null": put("images", 0, width=None),
    "the height is blank": put("images", 0, height=""),
    "ids beyond 64 bits": huge_ids,
    "ids below 0": negative_ids,
    "numbers with an exponent": put("annotations", 0, bbox=["1e0", "+2", "1.0E1", "12."]),
}


def plain(dicts):
    """The dicts with the image ids that ``content`` has."""
    return [{**d, "image_id": abs(int(d["image_id"])) % 10**20} for d in dicts]


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
def test_what_is_unambiguous_gives_the_same_dataset(content, save, tmp_path, change):
    path, root = save(content)
    register_coco_json("plain", path, root)
    change(content)
    (tmp_path / "other.json").write_text(json.dumps(content))
    register_coco_json("other", str(tmp_path / "other.json"), root)
    assert plain(DatasetCatalog.get("other")) == plain(DatasetCatalog.get("plain"))
    found, wanted = MetadataCatalog.get("other"), MetadataCatalog.get("plain")
    assert found.thing_dataset_id_to_contiguous_id == wanted.thing_dataset_id_to_contiguous_id
    assert found.thing_classes == wanted.thing_classes


BAD = {
    "the bbox holds a flag": (put("annotations", 0, bbox=[True, 1, 2, 3]), "the bbox of annotation 1 is not four num"),
    "the bbox is a text": (put("annotations", 0, bbox="1,2,3,4"), "the bbox of annotation 1 is not four numbers: '1,2"),
    "the bbox is an object": (put("annotations", 0, bbox={"x": 1}), "the bbox of annotation 1 is not four numbers"),
    "the bbox is nested": (put("annotations", 0, bbox=[[1, 2, 3, 4]]), "the bbox of annotation 1 is not four numbers"),
    "the bbox holds null": (put("annotations", 0, bbox=[1, 2, None, 4]), "the bbox of annotation 1 is not four"),
    "the bbox holds words": (put("annotations", 0, bbox=[1, 2, "ten", 4]), "the bbox of annotation 1 is not four"),
    "decimal commas": (put("annotations", 0, bbox=["1,5", 2, 3, 4]), "the bbox of annotation 1 is not four numbers"),
    "the bbox holds 'nan'": (put("annotations", 0, bbox=["nan", 2, 3, 4]), "the bbox of annotation 1 is not four num"),
    "a number beyond floats": (put("annotations", 0, bbox=[10**400, 2, 3, 4]), "the bbox of annotation 1 is not fin"),
    "iscrowd 2": (put("annotations", 0, iscrowd=2), "the iscrowd of annotation 1 is 2, must be 0 or 1"),
    "iscrowd is a list": (put("annotations", 0, iscrowd=[]), "the iscrowd of annotation 1 is [], must be 0 or 1"),
    "ignore 'maybe'": (put("annotations", 0, ignore="maybe"), "the ignore of annotation 1 is 'maybe', must be 0 or 1"),
    "area is a list": (put("annotations", 0, area=[4]), "the area of annotation 1 is [4], must be a number"),
    "area is negative": (put("annotations", 0, area=-4), "the area of annotation 1 is -4, must not be negative"),
    "area NaN": (put("annotations", 0, area=float("nan")), "the area of annotation 1 is nan, which is not finite"),
    "image_id null": (put("annotations", 0, image_id=None), "the image_id of annotation 1 is None, must be an integer"),
    "image_id is a list": (put("annotations", 0, image_id=[5]), "the image_id of annotation 1 is [5], must be an int"),
    "image_id true": (put("annotations", 0, image_id=True), "the image_id of annotation 1 is True, must be an integer"),
    "category_id is an object": (put("annotations", 0, category_id={}), "the category_id of annotation 1 is {}"),
    "an image's id null": (put("images", 1, id=None), "the id of image entry 2 is None"),
    "ids that mean the same": (put("images", 1, id="5"), "two entries have the image id 5"),
    "width true": (put("images", 0, width=True), "the width of image 5 is True, must be a positive integer"),
    "width 40.5": (put("images", 0, width=40.5), "the width of image 5 is 40.5, must be a positive integer"),
    "width infinite": (put("images", 0, width=float("inf")), "the width of image 5 is inf, must be a positive integer"),
    "width is a list": (put("images", 0, width=[40]), "the width of image 5 is [40], must be a positive integer"),
    "file_name null": (put("images", 0, file_name=None), "the file_name of image 5 is None, must be a text"),
    "file_name a number": (put("images", 0, file_name=7), "the file_name of image 5 is 7, must be a text"),
    "file_name blank": (put("images", 0, file_name=" "), "the file_name of image 5 is ' ', must be a text"),
    "a class's name null": (put("categories", 0, name=None), "the name of category 90 is None, must be a text"),
    "a class's name blank": (put("categories", 0, name=""), "the name of category 90 is '', must be a text"),
    "a class's name a list": (put("categories", 0, name=["cell"]), "the name of category 90 is ['cell'], must be a"),
    "a class's name with half a character": (
        put("categories", 0, name="\ud800x"),
        r"the name of category 90 is '\ud800x', which holds half a character",
    ),
    "a class's name true": (put("categories", 0, name=True), "the name of category 90 is True, must be a text"),
    "classes are mere names": (
        lambda c: c.update(categories=["cell"]),
        "entry 1 of 'categories' is 'cell', must be",
    ),
    "a class's id is its name": (put("categories", 0, id="cell"), "the category id 'cell' is no integer"),
    "the bbox is null": (put("annotations", 0, bbox=None), "the bbox of annotation 1 is not four numbers: None"),
    "the bbox is empty": (put("annotations", 0, bbox=[]), "the bbox of annotation 1 is not four numbers: []"),
    "a turned bbox": (put("annotations", 0, bbox=[1, 2, 3, 4, 0.5]), "the bbox of annotation 1 is not four numbers"),
    "iscrowd 0.5": (put("annotations", 0, iscrowd=0.5), "the iscrowd of annotation 1 is 0.5, must be 0 or 1"),
    "an image is a text": (lambda c: c["images"].append("b.png"), "entry 3 of 'images' is 'b.png', must be an object"),
    "an annotation is null": (lambda c: c["annotations"].append(None), "entry 4 of 'annotations' is None, must be an"),
    "images is a number": (lambda c: c.update(images=3), "'images' is 3, must be a list"),
    "annotations is null": (lambda c: c.update(annotations=None), "the list 'annotations' is missing"),
    "categories is a text": (lambda c: c.update(categories="cell"), "'categories' is 'cell', must be a list"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_what_is_not_gives_one_sentence_with_file_entry_key_and_value(content, save, tmp_path, change, message):
    path, root = save(content)
    change(content)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(f"{path}: {message}")) as caught:
        register_coco_json("cells", path, root)
    assert "\n" not in str(caught.value)


def test_class_names_that_are_numbers_become_texts(content, save):
    content["categories"][0]["name"], content["categories"][1]["name"] = 7, "8"
    register_coco_json("cells", *save(content))
    assert MetadataCatalog.get("cells").thing_classes == ["8", "fibre", "7"]


def test_the_reader_gives_what_the_evaluator_needs(content, save):
    content["annotations"][0].update(area="55.5", bbox=["1", "2", "10", "12"], image_id="5")
    content["annotations"][1].update(ignore="1")
    first, second, third = read_coco(save(content)[0]).annotations
    assert (first.image_id, first.category_id, first.bbox, first.area) == (5, 90, [1, 2, 10, 12], 55.5)
    assert [(a.iscrowd, a.ignore) for a in (first, second, third)] == [(0, 0), (1, 1), (1, 0)]
    assert second.area is None


def test_ignored_annotations_are_ignore_regions_and_counted(content, save, caplog):
    content["annotations"][0]["ignore"] = 1
    path, root = save(content)
    register_coco_json("cells", path, root)
    assert [a["iscrowd"] for a in DatasetCatalog.get("cells")[0]["annotations"]] == [1, 0, 1]
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    text = "1 of 3 annotations have 'ignore' 1: they are ignore regions, as those with 'iscrowd' 1"
    assert warnings == [f"dataset 'cells' ({path}): {text}"]


def test_a_json_without_annotations_is_a_test_set(content, save, cfg):
    from paq_detr.data import register_datasets

    del content["annotations"]
    path, root = save(content)
    register_coco_json("cells", path, root)
    assert [d["annotations"] for d in DatasetCatalog.get("cells")] == [[], []]
    assert MetadataCatalog.get("cells").annotated is False
    cfg.DATASETS.TRAIN = ("cells",)
    with pytest.raises(
        ValueError, match=f"{re.escape(path)}: the list 'annotations' is missing, which .*'cells' needs"
    ):
        register_datasets(cfg)


def test_a_json_that_is_nested_without_end_is_named(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="deep.json: "):
        read_coco(str(path))


def whole(content):
    """The content with every key that COCO's files have: these are read column by column."""
    content["images"][0]["id"] = "5"
    for annotation in content["annotations"]:
        annotation.update(area=12.5, iscrowd=int(annotation["id"] == 3), ignore=int(annotation["id"] == 2))
    return content


def test_a_file_without_a_doubt_is_read_as_one_with_a_doubt(content, tmp_path):
    (tmp_path / "plain.json").write_text(json.dumps(whole(content)))
    content["annotations"][0]["area"] = "12.5"  # from here on entry by entry
    (tmp_path / "odd.json").write_text(json.dumps(content))
    plain, odd = (read_coco(str(tmp_path / f"{name}.json")) for name in ("plain", "odd"))
    assert plain.annotations == odd.annotations and plain.images == odd.images
    assert [(a.image_id, a.iscrowd, a.ignore) for a in plain.annotations] == [("5", 0, 0), ("5", 1, 1), ("5", 1, 0)]
    assert {type(value) for a in plain.annotations for value in (*a.bbox, a.area)} == {float}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"id": 2}, "two entries have the annotation id 2"),
        ({"image_id": 6}, "annotation 1 is of image 6, which is not in 'images'"),
        ({"category_id": 2}, "annotation 1 is of category 2, which is not in 'categories'"),
        ({"bbox": [1, 2, -3, 4]}, "annotation 1 has a negative size"),
        ({"bbox": [1, 2, 3, float("inf")]}, "the bbox of annotation 1 is not finite"),
        ({"bbox": [1, 2, 3, 10**400]}, "the bbox of annotation 1 is not finite"),
        ({"area": -1}, "the area of annotation 1 is -1, must not be negative"),
        ({"iscrowd": 2}, "the iscrowd of annotation 1 is 2, must be 0 or 1"),
        ({"ignore": True, "id": True}, "the id of annotation entry 1 is True, must be"),
    ],
    ids=str,
)
def test_a_wrong_value_among_plain_ones_is_said(content, tmp_path, change, message):
    whole(content)["annotations"][0].update(change)
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(message)):
        read_coco(str(tmp_path / "x.json"))


URL = "http://images.cocodataset.org/train2017/000000391895.jpg"


@pytest.mark.parametrize(
    "values, name",
    [
        ({"coco_url": URL}, "train2017/000000391895.jpg"),
        ({"coco_url": URL, "file_name": None}, "train2017/000000391895.jpg"),
        ({"coco_url": URL, "file_name": "a.png"}, "a.png"),
    ],
)
def test_without_file_name_it_follows_from_coco_url(content, tmp_path, values, name):
    content["images"][0].pop("file_name")
    content["images"][0].update(values)
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    assert read_coco(str(tmp_path / "lvis.json")).images[0].file_name == name


@pytest.mark.parametrize("url", [7, None, "000000391895.jpg", "http://host"])
def test_a_coco_url_without_folder_gives_no_file_name(content, tmp_path, url):
    content["images"][0].pop("file_name")
    content["images"][0]["coco_url"] = url
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="image 5 has no 'file_name'"):
        read_coco(str(tmp_path / "lvis.json"))
