# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Any format becomes the same records as COCO json, and what is wrong with a file is one sentence."""

import json
import logging
import re
from functools import partial

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from paq_detr.cli import main
from paq_detr.data import register_datasets
from paq_detr.data.formats import find_dataset, find_source, open_source
from paq_detr.errors import UserError
from paq_detr.evaluation import build_evaluator

from .other_formats import WRITERS, write_csv, write_voc, write_yolo

FORMS = {**WRITERS, "voc from 0": partial(write_voc, first=0), "csv with header": partial(write_csv, header=True)}
CROWDS = ("coco", "voc", "voc from 0")  # formats that know ignore regions


def plain(records, names, crowds=True):
    """What must agree: names in place of ids, and boxes to a millionth of a pixel."""
    return [
        (
            record["file_name"].rpartition("/")[2],
            record["height"],
            record["width"],
            [
                (names[a["category_id"]], tuple(np.round(a["bbox"], 6)), a["bbox_mode"], a["iscrowd"])
                for a in record["annotations"]
                if crowds or not a["iscrowd"]
            ],
        )
        for record in records
    ]


@pytest.mark.parametrize("form", FORMS)
def test_each_format_gives_the_records_of_coco_json(content, save, tmp_path, cfg, form):
    json_file, pictures = save(content)
    cfg.DATASETS.COCO_JSON = [["coco", json_file, pictures]]
    cfg.DATASETS.FILES = [{"name": "other", **FORMS[form](content, pictures, tmp_path / "other")}]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco",), ("other",)
    register_datasets(cfg)  # the classes that some formats cannot name without an object are coco's
    assert MetadataCatalog.get("other").thing_classes == MetadataCatalog.get("coco").thing_classes
    names = MetadataCatalog.get("coco").thing_classes
    wanted = plain(DatasetCatalog.get("coco"), names, form in CROWDS)
    assert plain(DatasetCatalog.get("other"), names) == wanted
    assert plain(DatasetCatalog.get("other"), names) == wanted  # read again
    assert DatasetCatalog["other"].objects_per_image.tolist() == [2, 0]


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_or_file_tells_its_format_and_splits(content, save, tmp_path, form):
    _, pictures = save(content)
    entry = FORMS[form](content, pictures, tmp_path / "other")
    words = {"coco": "COCO json", "yolo": "YOLO", "voc": "Pascal VOC", "csv": "CSV"}[form.split()[0]]
    assert find_dataset(entry["path"]).format == words
    found = find_dataset(str(tmp_path / "other"))
    assert found.format == words
    split = {"coco": "annotations", "yolo": "val"}.get(form, "train")
    assert split in found.splits and found.training is not None
    assert open_source(found.splits[split]).class_names  # finds its pictures, too
    name, *_ = entry = found.training.entry("x")
    assert name == "name" and find_source(**{key: entry[key] for key in entry if key != "name"}) == found.training


@pytest.mark.parametrize("form", ["yolo", "voc", "csv"])
def test_a_report_reads_other_formats_too(content, save, tmp_path, capsys, form):
    _, pictures = save(content)
    entry = WRITERS[form](content, pictures, tmp_path / "other")
    coco = find_source(entry["path"], entry.get("split", "")).content().coco
    dt, page = tmp_path / "dt.json", tmp_path / "page.html"
    dt.write_text(json.dumps([{**row, "score": 0.9} for row in coco["annotations"] if not row["iscrowd"]]))
    options = ("--split", entry["split"]) if "split" in entry else ()
    assert main(["report", "--gt", entry["path"], "--dt", str(dt), "--output", str(page), *options]) == 0
    assert "2 objects of" in page.read_text() and "No kind of error costs" in capsys.readouterr().out


def test_the_log_says_in_one_line_what_a_path_is(content, save, tmp_path, cfg, caplog):
    _, pictures = save(content)
    folder = tmp_path / "voc"
    cfg.DATASETS.FILES, cfg.DATASETS.TRAIN = [{"name": "mine", **write_voc(content, pictures, folder)}], ("mine",)
    with caplog.at_level(logging.INFO, logger="paq_detr"):
        register_datasets(cfg)
    texts = [record.getMessage() for record in caplog.records]
    assert f"dataset 'mine': Pascal VOC {folder}, split train, images in {folder}/JPEGImages" in texts
    assert f"dataset 'mine' ({folder}): pixels count from 1, as VOC's" in texts
    assert f"dataset 'mine' ({folder}): 1 of 3 objects have 'difficult' 1: they are ignore regions" in texts


def test_odgt_files_are_registered_as_by_their_own_key(write, cfg):
    path, root = write([{"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 30, 40], "vbox": [1, 2, 30, 20]}]}])
    cfg.DATASETS.FILES = [
        {"name": "found", "path": path},
        {"name": "named", "path": path, "images": root, "box": "visible"},
    ]
    cfg.DATASETS.TRAIN = ("found", "named")
    register_datasets(cfg)
    found, named = (DatasetCatalog.get(name)[0]["annotations"][0]["bbox"] for name in ("found", "named"))
    assert (found, named) == ([1, 2, 30, 40], [1, 2, 30, 20])
    assert MetadataCatalog.get("found").evaluator_type == "crowdhuman"


def test_polygons_of_yolo_are_masks(content, save, tmp_path, cfg):
    content["annotations"][2]["iscrowd"] = 0
    triangle = [1, 2, 11, 2, 11, 14]
    for annotation in content["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h]]
    json_file, pictures = save(content)
    cfg.MODEL.DETR.MASK.ENABLED = True
    cfg.DATASETS.COCO_JSON = [["coco", json_file, pictures]]
    cfg.DATASETS.FILES = [{"name": "yolo", **write_yolo(content, pictures, tmp_path / "yolo")}]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("coco",), ("yolo",)
    register_datasets(cfg)
    coco, yolo = (DatasetCatalog.get(name)[0]["annotations"] for name in ("coco", "yolo"))
    np.testing.assert_allclose(yolo[0]["segmentation"][0], triangle, atol=1e-9)
    for one, other in zip(coco, yolo, strict=True):
        np.testing.assert_allclose(one["bbox"], other["bbox"], atol=1e-9)
        np.testing.assert_allclose(one["segmentation"], other["segmentation"], atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_evaluation_is_that_of_coco_json(content, save, tmp_path, cfg, form):
    """The same detections on the same pictures give the same numbers, crowds' included."""
    if form not in CROWDS:
        content["annotations"][2]["iscrowd"] = 0
    content["annotations"] += [{"id": 9, "image_id": 9, "category_id": 90, "bbox": [2, 3, 12, 40], "iscrowd": 0}]
    json_file, pictures = save(content)
    cfg.DATASETS.COCO_JSON = [["coco", json_file, pictures]]
    cfg.DATASETS.FILES = [{"name": "other", **FORMS[form](content, pictures, tmp_path / "other")}]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.TEST.CROWD.ENABLED = ("coco",), ("other",), True
    register_datasets(cfg)
    found = {
        "a.png": ([[1, 2, 11, 13], [20, 5, 33, 25], [0, 0, 30, 4]], [0.9, 0.6, 0.7], [2, 0, 1]),
        "b.png": ([[2, 3, 14, 40], [5, 5, 10, 10]], [0.8, 0.95], [2, 2]),
    }
    results = []
    for name in ("coco", "other"):
        evaluator = build_evaluator(cfg, name, str(tmp_path / name))
        evaluator.reset()
        for record in DatasetCatalog.get(name):
            boxes, scores, classes = found[record["file_name"].rpartition("/")[2]]
            instances = Instances((record["height"], record["width"]))
            instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32))
            instances.scores, instances.pred_classes = torch.tensor(scores), torch.tensor(classes)
            evaluator.process([record], [{"instances": instances}])
        results.append(evaluator.evaluate())
    assert 0 < results[0]["bbox"]["AP"] < 100 and results[0].keys() == {"bbox", "crowd"}
    for task, metrics in results[0].items():
        np.testing.assert_allclose(list(metrics.values()), list(results[1][task].values()), err_msg=task)


# ----------------------------------------------------------------------------------------------------------------------
# What is wrong with files


@pytest.fixture
def picture(tmp_path):
    """Writes a picture of 40 x 30 (width x height) below the test's folder."""

    def picture(name):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)

    return picture


def refusal(path, **options):
    """The sentence that reading a source ends with."""
    with pytest.raises(ValueError) as error:
        open_source(find_source(str(path), **options))
    text = str(error.value)
    assert "\n" not in text and not text.endswith(".")
    return text


YOLO_LINES = {
    "pixels": ("0 20 15 4 4", "line 1 holds 20, must be shares of the image from 0 to 1; it is probably in pixels"),
    "outside": ("0 .5 .5 1.2 .1", "line 1 holds 1.2, must be shares of the image from 0 to 1"),
    "negative": ("0 -.5 .5 .2 .1", "line 1 holds -0.5, must be shares"),
    "other class": ("7 .5 .5 .2 .2", "line 1: the class is 7, must be a whole number from 0 to 1, as "),
    "half a class": ("0.5 .5 .5 .2 .2", "line 1: the class is 0.5, must be a whole number"),
    "name": ("cat .5 .5 .2 .2", "line 1: 'cat .5 .5 .2 .2' must be a class id and numbers, parted by blanks"),
    "commas": ("0,.5,.5,.2,.2", "line 1: '0,.5,.5,.2,.2' must be a class id and numbers, parted by blanks"),
    "too few": ("0 .5 .5 .2", "line 1 holds 3 numbers behind the class, must hold x, y, width and height, or"),
    "a score": ("0 .5 .5 .2 .2 .9", "line 1 holds 5 numbers behind the class, as if its last were a score, must"),
    "half a corner": ("0 .1 .1 .2 .2 .3 .3 .4", "line 1 holds 7 numbers behind the class, must hold"),
    "second line": ("0 .5 .5 .2 .2\n\n0 nan .5 .2 .2", "line 3: '0 nan .5 .2 .2' must be a class id and numbers"),
}


@pytest.mark.parametrize("text, message", YOLO_LINES.values(), ids=YOLO_LINES)
def test_a_wrong_yolo_line_is_named(tmp_path, picture, text, message):
    picture("images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(text)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert refusal(tmp_path).startswith(f"{tmp_path}/labels/a.txt, {message}")


YAMLS = {
    "no names": ("train: images", "data.yaml is no data.yaml of YOLO data, which names classes (names) and splits"),
    "no splits": ("names: [a]", "data.yaml is no data.yaml of YOLO data"),
    "wrong nc": ("train: images\nnames: [a, b]\nnc: 3", "data.yaml: nc is 3, but there are 2 names"),
    "names with a gap": ("train: images\nnames: {0: a, 2: b}", "names is {{0: 'a', 2: 'b'}}, must be a list of class"),
    "no folder": ("train: [images, more]\nnames: [a]", "data.yaml: train is more, but there is no {}/more"),
    "a number": ("train: 5\nnames: [a]", "data.yaml: train is 5, must be a folder, a txt list or several"),
    "no yaml": ("train: [", "data.yaml is no yaml: while parsing"),
    "names twice": ("train: images\nnames: [a, a]", "two categories are named 'a'"),
    "an empty folder": ("train: none\nnames: [a]", "data.yaml: there is no picture in {}/none"),
    "a list of missing ones": ("train: list.txt\nnames: [a]", "1 of 2 pictures that {}/list.txt names are missing"),
    "labels elsewhere": (
        "train: bare\nnames: [a]",
        "none of the 1 pictures has a label file; that of the first would ",
    ),
}


@pytest.mark.parametrize("text, message", YAMLS.values(), ids=YAMLS)
def test_a_wrong_data_yaml_is_named(tmp_path, picture, text, message):
    picture("images/a.png")
    picture("bare/a.png")
    (tmp_path / "none").mkdir()
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 .5 .5 .2 .2\n")
    (tmp_path / "list.txt").write_text("images/a.png\nimages/b.png\n")
    (tmp_path / "data.yaml").write_text(text)
    assert message.format(tmp_path) in refusal(tmp_path / "data.yaml")


LAYOUTS = {
    "root and split": ("path: {}\ntrain: images", "images/a.png", "labels/a.txt"),
    "root that is another machine's": ("path: ../datasets/x\ntrain: images", "images/a.png", "labels/a.txt"),
    "roboflow": ("train: ../train/images", "train/images/a.png", "train/labels/a.txt"),
    "folders below": ("train: images", "images/x/a.png", "labels/x/a.txt"),
    "beside": ("train: all", "all/a.png", "all/a.txt"),
    "the last images": ("train: images/images", "images/images/a.png", "images/labels/a.txt"),
    "a list": ("train: list.txt", "images/a.png", "labels/a.txt"),
    "two places, one picture twice": ("train: [list.txt, images]", "images/a.png", "labels/a.txt"),
}


@pytest.mark.parametrize("text, image, label", LAYOUTS.values(), ids=LAYOUTS)
def test_yolo_s_layouts_lead_to_the_same(tmp_path, picture, text, image, label):
    picture(image)
    (tmp_path / label).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / label).write_text("1 .5 .5 .2 .2\n")
    (tmp_path / "list.txt").write_text(f"./{image}\n")
    (tmp_path / "data.yaml").write_text(f"{text.format(tmp_path)}\nnames: [cat, dog]")
    dataset = open_source(find_source(str(tmp_path / "data.yaml"), "train"))
    (record,) = dataset()
    assert record["file_name"] == str(tmp_path / image)
    assert [a["category_id"] for a in record["annotations"]] == [1]
    np.testing.assert_allclose(record["annotations"][0]["bbox"], [16, 12, 8, 6])


def test_a_yolo_picture_without_labels_and_labels_without_a_picture_are_counted(tmp_path, picture, caplog):
    for name in ("a", "b", "c"):
        picture(f"images/{name}.png")
    (tmp_path / "labels").mkdir()
    for name, text in (("a", "0 .5 .5 .2 .2"), ("b", ""), ("z", "0 .5 .5 .2 .2")):
        (tmp_path / "labels" / f"{name}.txt").write_text(text)
    (tmp_path / "labels" / "classes.txt").write_text("cat")
    with caplog.at_level(logging.INFO, logger="paq_detr"):
        dataset = open_source(find_source(str(tmp_path)))
    assert dataset.objects_per_image.tolist() == [1, 0, 0]
    (text,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"1 of 3 label files have no picture; the first is {tmp_path}/labels/z.txt" in text
    assert "1 of 3 pictures have no label file, hence no object" in caplog.text


def test_keypoints_of_yolo_are_not_taken_for_a_polygon(tmp_path, picture):
    picture("images/a.png")
    (tmp_path / "labels").mkdir()
    label = tmp_path / "labels" / "a.txt"
    label.write_text("0 .5 .5 .2 .2 .1 .1 2 .3 .3 2")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\nkpt_shape: [2, 3]")
    (record,) = open_source(find_source(str(tmp_path)))()
    np.testing.assert_allclose(record["annotations"][0]["bbox"], [16, 12, 8, 6])
    label.write_text("0 .5 .5 .2 .2 .1 .1 2")
    assert "line 1 holds 7 numbers behind the class, must hold a box and 6 numbers of keypoints" in refusal(tmp_path)


BOX = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>11</xmax><ymax>14</ymax></bndbox>"
XMLS = {
    "no xml": ("<annotation>", "a.xml is no valid xml: no element found: line 1"),
    "other xml": ("<svg></svg>", "a.xml is no file of Pascal VOC: its top element is 'svg', must be 'annotation'"),
    "no name": (f"<annotation><object>{BOX}</object></annotation>", "a.xml, object 1 has no name"),
    "no box": (
        "<annotation><object><name>cat</name></object></annotation>",
        "a.xml, object 1, cat: a value is None, must be a number (xmin None, ymin None, xmax None, ymax None)",
    ),
    "a word": (
        f"<annotation><object><name>cat</name>{BOX.replace('11', 'x')}</object></annotation>",
        "object 1, cat: a value is 'x', must be a number (xmin '1', ymin '2', xmax 'x', ymax '14')",
    ),
    "corners swapped": (
        f"<annotation><object><name>cat</name>{BOX.replace('11', '0')}</object></annotation>",
        "object 1, cat: its box is xmin '1', ymin '2', xmax '0', ymax '14', where max cannot be below min",
    ),
    "difficult": (
        f"<annotation><object><name>cat</name><difficult>7</difficult>{BOX}</object></annotation>",
        "object 1, cat: a value is '7', must be 0 or 1",
    ),
    "no object": ("<annotation></annotation>", "/Annotations: no xml file holds an object"),
}


@pytest.mark.parametrize("text, message", XMLS.values(), ids=XMLS)
def test_a_wrong_voc_file_is_named(tmp_path, picture, text, message):
    picture("JPEGImages/a.png")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text(text)
    assert message in refusal(tmp_path)


def test_a_voc_split_without_its_xml_or_of_another_name_is_named(content, save, tmp_path):
    _, pictures = save(content)
    folder = tmp_path / "voc"
    write_voc(content, pictures, folder)
    assert refusal(folder, split="valid").endswith("has no split 'valid', it has the splits train")
    lists = folder / "ImageSets" / "Main"
    (lists / "val.txt").write_text("a 1\nz -1\n")
    (lists / "cell_val.txt").write_text("a 1\n")  # which images hold a class is no split
    assert list(find_dataset(str(folder)).splits) == ["train", "val"]
    assert refusal(folder, split="val").startswith(f"1 of 2 images of {lists}/val.txt have no xml file; the first")
    assert refusal(folder).endswith("(Pascal VOC) has the splits train, val: say which by split")


def test_xml_files_beside_their_pictures_are_voc_too(tmp_path, picture):
    for split in ("train", "valid"):
        picture(f"{split}/a.png")
        (tmp_path / split / "a.xml").write_text(
            f"<annotation><filename>old.jpg</filename><size><width>0</width><height>0</height></size>"
            f"<object><name>cat</name>{BOX}</object></annotation>"
        )
    found = find_dataset(str(tmp_path))
    assert (found.format, list(found.splits), found.validation.path) == (
        "Pascal VOC", ["train", "valid"], str(tmp_path / "valid"))  # fmt: skip
    (record,) = open_source(found.training)()
    assert (record["file_name"], record["width"], record["height"]) == (str(tmp_path / "train" / "a.png"), 40, 30)
    assert record["annotations"][0]["bbox"] == [0, 1, 11, 13]


TABLES = {
    "columns": ("a.png,1,2,3,4,cat\na.png,1,2,3,4", "line 2 has 5 columns, the first line has 6"),
    "semicolons": ("a.png;1;2;3;4;cat", "line 1 is 'a.png;1;2;3;4;cat', must be image,x1,y1,x2,y2,label"),
    "header without a box": ("image,label\na.png,cat", "line 1 is 'image,label', must be image,x1,y1,x2,y2,label"),
    "a word": ("a.png,1,2,3,4,cat\na.png,1,2,x,4,cat", "line 2: a corner is 'x', must be a number"),
    "quoted over lines": ('a.png,1,2,3,4,"c\nat"\na.png,1,2,x,4,cat', "line 3: a corner is 'x', must be a number"),
    "not finite": (
        "image,x1,y1,x2,y2,label\na.png,1,2,1e999,4,cat",
        "line 2: a corner is '1e999', which is not finite",
    ),
    "swapped": ("a.png,5,2,3,4,cat", "line 1: the box x1,y1,x2,y2 is 5,2,3,4, but x2 and y2 cannot be the smaller"),
    "no label": ("a.png,1,2,3,4,", "line 1: the label is '', must be a class"),
    "no image": (",1,2,3,4,cat", "line 1 names no image"),
    "half a box": ("a.png,1,2,,4,cat", "line 1: a corner is '', must be a number"),
    "two sizes": (
        "a.png,1,2,3,4,cat,40,30\na.png,1,2,3,4,cat,41,30",
        "line 2: the image's width is 41, an earlier line",
    ),
    "size zero": ("a.png,1,2,3,4,cat,0,30", "line 1: the image's width is '0', must be a positive integer"),
    "nothing": ("image,x1,y1,x2,y2,label\n", "t.csv holds no line"),
    "no boxes": ("a.png,,,,,", "t.csv holds no box"),
    "bytes": (b"a.png,1,2,3,4,\xff\xfe", "t.csv is no text in UTF-8 (byte 14)"),
}


@pytest.mark.parametrize("text, message", TABLES.values(), ids=TABLES)
def test_a_wrong_csv_line_is_named(tmp_path, picture, text, message):
    picture("a.png")
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refusal(tmp_path / "t.csv")


HEADS = {
    "none": "images/a.png,4,5,20,25,cat",
    "ours": "image,x1,y1,x2,y2,label\nimages/a.png,4,5,20,25,cat",
    "tensorflow": "filename,width,height,class,xmin,ymin,xmax,ymax\nimages/a.png,40,30,cat,4,5,20,25",
    "any order, a byte order mark": "\ufeffLabel, X1, X2, Y1, Y2, Image Path\r\ncat, 4, 20, 5, 25, images/a.png",
    "sku110k": "images/a.png,4,5,20,25,cat,40,30",
}


@pytest.mark.parametrize("text", HEADS.values(), ids=HEADS)
def test_csv_columns_are_found_by_place_or_name(tmp_path, picture, text):
    picture("images/a.png")
    (tmp_path / "t.csv").write_text(text, encoding="utf-8", newline="")
    dataset = open_source(find_source(str(tmp_path / "t.csv")))
    (record,) = dataset()
    assert dataset.class_names == ["cat"] and (record["width"], record["height"]) == (40, 30)
    assert [a["bbox"] for a in record["annotations"]] == [[4, 5, 16, 20]]


def test_a_class_file_orders_the_classes_and_must_hold_them_all(tmp_path, picture):
    picture("a.png")
    (tmp_path / "t.csv").write_text("a.png,4,5,20,25,cat")
    classes = tmp_path / "classes.txt"
    classes.write_text("dog\ncat\n")
    assert open_source(find_source(str(tmp_path / "t.csv"), classes=str(classes))).class_names == ["dog", "cat"]
    for text, message in (
        ("dog", f"line 1: the label is 'cat', which is not in {classes}"),
        ("dog\n\ncat", f"{classes}, line 2 is empty, must be the name of a class"),
        ("dog\ndog", f"{classes}, line 2 names the class 'dog' again"),
        ("", f"{classes}, line 1 is empty"),
    ):
        classes.write_text(text)
        assert message in refusal(tmp_path / "t.csv", classes=str(classes))


def test_a_training_set_may_lack_no_class_that_a_test_set_has(tmp_path, picture, cfg):
    picture("a.png")
    (tmp_path / "one.csv").write_text("a.png,4,5,20,25,cat")
    (tmp_path / "two.csv").write_text("a.png,4,5,20,25,cat\na.png,4,5,20,25,ant")
    cfg.DATASETS.FILES = [{"name": n, "path": str(tmp_path / f"{n}.csv")} for n in ("one", "two")]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("one",), ("two",)
    with pytest.raises(
        ValueError, match=r"'two', 2 \(ant, cat\), are not those of .*; where files list no classes, the"
    ):
        register_datasets(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("two",), ("one",)
    register_datasets(cfg)
    assert MetadataCatalog.get("one").thing_classes == ["ant", "cat"]
    assert MetadataCatalog.get("one").thing_dataset_id_to_contiguous_id == {2: 0, 1: 1}
    assert DatasetCatalog.get("one")[0]["annotations"][0]["category_id"] == 1


def test_a_path_that_leads_to_nothing_or_to_several_things_is_refused(content, save, tmp_path):
    _, pictures = save(content)
    both = tmp_path / "both"
    write_voc(content, pictures, both)
    (both / "t.csv").write_text("a.png,1,2,3,4,cat")
    assert refusal(both) == f"{both} holds data as Pascal VOC and CSV: say which by format, one of voc, csv"
    assert find_source(str(both), format="voc").title == "Pascal VOC"
    (tmp_path / "empty").mkdir()
    assert refusal(tmp_path / "empty").startswith(f"{tmp_path}/empty holds nothing of a known format (a COCO json, a")
    assert refusal(tmp_path / "bath") == f"the data {tmp_path}/bath do not exist (did you mean {tmp_path}/both?)"
    assert refusal(both, format="tfds").endswith("is 'tfds', must be one of coco, odgt, yolo, voc, csv")
    assert refusal(both, format="voc", box="full").endswith("is Pascal VOC, which takes no 'box'")
    (tmp_path / "t.csv").write_text("z.png,1,2,3,4,cat")
    assert refusal(tmp_path / "t.csv").startswith(
        f"{tmp_path}/t.csv: its first picture, z.png, is in none of the folders"
    )


ENTRIES = {
    "a list": (["a", "b"], r"FILES wants entries \{name: ..., path: ...\}, perhaps with split, .*got \['a', 'b'\]"),
    "no path": ({"name": "a"}, r"FILES wants entries .*got \{'name': 'a'\}"),
    "a typing error": ({"name": "a", "path": "b", "spilt": "c"}, r"FILES wants entries .*'spilt': 'c'"),
    "null": ({"name": "a", "path": None}, r"FILES: path of .* is null, must be a text \(put it in quotes\)"),
    "a number": ({"name": 5, "path": "b"}, r"FILES: name of .* is 5, must be a text"),
    "empty": ({"name": "a", "path": ""}, r"FILES: path of .* is '', must be a text"),
    "a home": ({"name": "a", "path": "$NOWHERE/x"}, r"FILES: path is \$NOWHERE/x, but \$NOWHERE is no variable"),
    "nothing there": ({"name": "a", "path": "no/data"}, r"^dataset 'a': the data no/data do not exist$"),
}


@pytest.mark.parametrize("entry, message", ENTRIES.values(), ids=ENTRIES)
def test_a_wrong_entry_of_the_config_is_shown(cfg, entry, message):
    cfg.DATASETS.FILES = [entry]
    with pytest.raises(UserError, match=message):
        register_datasets(cfg)


def test_a_name_stands_for_one_dataset(content, save, tmp_path, cfg):
    json_file, pictures = save(content)
    entry = write_yolo(content, pictures, tmp_path / "yolo")
    cfg.DATASETS.FILES = [{"name": "mine", **entry}, {"name": "mine", **entry}]
    register_datasets(cfg)
    cfg.DATASETS.FILES = [{"name": "mine", **entry, "split": "val"}]
    text = re.escape(f"dataset 'mine' is already registered as {entry['path']}, split train, with images in ")
    with pytest.raises(ValueError, match=text):
        register_datasets(cfg)
