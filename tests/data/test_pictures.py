# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import os
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from paq_detr.data import check_pictures, pictures, register_coco_json, register_datasets


@pytest.fixture
def register(content, save, tmp_path):
    """Registers "cells" with another name for the first picture, whose file is there as a.png."""

    def register(file_name, **image):
        _, root = save(content)
        content["images"][0].update(file_name=file_name, **image)
        (tmp_path / "annotations.json").write_text(json.dumps(content))
        register_coco_json("cells", str(tmp_path / "annotations.json"), root)
        return root

    return register


MISSING = {
    "gone": ("gone.png", "first is {root}/gone.png$"),
    "a folder that is not there": ("train/a.png", "first is {root}/train/a.png; {root}/a.png exists"),
    "another ending": ("a.jpg", "first is {root}/a.jpg; {root}/a.png exists"),
    "other letters": ("A.PNG", "first is {root}/A.PNG; {root}/a.png exists"),
    "http": ("http://host/a.png", "; that is a URL, and pictures must be local files"),
    "https": ("https://host/folder/a.png?x=1", "; that is a URL"),
    "s3": ("s3://bucket/a.png", "; that is a URL"),
    "file": ("file:///tmp/a.png", "; that is a URL"),
    "label studio's upload": ("/data/upload/3/a.png", "; that is a path inside Label Studio, .*{root}/a.png exists"),
    "label studio's storage": ("/data/local-files/?d=set/a.png", "that is a path inside Label Studio, .*a.png exists"),
    "windows": ("C:\\Users\\me\\set\\a.png", "; that is a path of a Windows machine, .*{root}/a.png exists"),
    "windows with slashes": ("D:/set/a.png", "; that is a path of a Windows machine"),
    "blanks around": ("a.png ", "first is {root}/a.png ; {root}/a.png exists"),
    "letters of a URL": ("%61.png", "first is {root}/%61.png; {root}/a.png exists"),
    "the folder twice": ("images/a.png", "first is {root}/images/a.png; {root}/a.png exists"),
    "without ending": ("a", "first is {root}/a; {root}/a.png exists"),
    "another machine": ("/home/you/set/a.png", "first is /home/you/set/a.png; {root}/a.png exists"),
}


@pytest.mark.parametrize("name, message", MISSING.values(), ids=MISSING)
def test_a_missing_picture_is_counted_and_its_name_explained(register, tmp_path, name, message):
    root = register(name)
    where = re.escape(f"dataset 'cells' ({tmp_path}/annotations.json)")
    with pytest.raises(
        ValueError, match=f"^1 of 2 pictures of {where} are missing; .*{message.format(root=root)}"
    ) as e:
        check_pictures(["cells"])
    assert "\n" not in str(e.value)


def test_the_same_is_said_where_the_size_must_be_read(register):
    with pytest.raises(ValueError, match="image 5 has no width and height, and .*that is a URL"):
        register("http://host/a.png", width=None)


@pytest.mark.parametrize("name", ["set\\deep\\a.png", ".\\set\\deep\\a.png", "set/deep\\a.png", "set/deep/a.png"])
def test_backslashes_part_folders(register, tmp_path, name):
    (tmp_path / "set" / "deep").mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "set" / "deep" / "a.png")
    register(name, width=None)
    check_pictures(["cells"])
    assert os.path.isfile(DatasetCatalog.get("cells")[0]["file_name"])


def test_a_backslash_in_a_real_name_stays(register, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "odd\\name.png")
    register("odd\\name.png")
    check_pictures(["cells"])


def test_absolute_names_do_with_an_empty_root(content, save, tmp_path, monkeypatch):
    path, root = save(content)
    for image in content["images"]:
        image["file_name"] = f"{root}/{image['file_name']}"
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    monkeypatch.chdir("/")
    register_coco_json("cells", path, "")
    check_pictures(["cells"])


def test_relative_names_start_at_the_working_directory_where_the_root_is_empty(content, save, monkeypatch):
    path, root = save(content)
    monkeypatch.chdir(root)
    register_coco_json("cells", path, "")
    check_pictures(["cells"])


def test_a_dataset_without_images_is_named(content, save):
    content["images"], content["annotations"] = [], []
    path, root = save(content)
    register_coco_json("cells", path, root)
    with pytest.raises(ValueError, match=re.escape(f"dataset 'cells' ({path}) holds no image")):
        check_pictures(["cells"])


def test_the_synthetic_crowd_has_no_files_to_miss(cfg):
    register_datasets(cfg)
    check_pictures(["synthetic_crowd_train", "synthetic_crowd_val"])


def truncate(file):
    file.write_bytes(file.read_bytes()[:20])


FAULTY = {
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "a.png cannot be read: Is a directory"),
    "a link to nowhere": (
        lambda file: (file.unlink(), file.symlink_to("/nowhere")),
        "a.png cannot be read: No such file",
    ),
    "an lfs pointer": (
        lambda file: file.write_text("version https://git-lfs"),
        "a.png cannot be read: it is no picture",
    ),
    "empty": (lambda file: file.write_bytes(b""), "a.png cannot be read: it is no picture"),
    "cut off in its header": (truncate, "a.png cannot be read: "),
    "of another size": (lambda file: Image.new("L", (80, 60)).save(file), "a.png is 60 x 80 .*, .* say 30 x 40$"),
    "turned": (
        lambda file: Image.new("L", (30, 40)).save(file),
        "a.png is 40 x 30 .*, .* say 30 x 40; perhaps .* swap",
    ),
}


@pytest.mark.parametrize("change, message", FAULTY.values(), ids=FAULTY)
def test_a_faulty_picture_among_those_looked_at_is_said_at_the_start(content, save, tmp_path, change, message):
    path, root = save(content)
    register_coco_json("cells", path, root)
    change(tmp_path / "a.png")
    where = re.escape(f"1 of 2 pictures looked at in dataset 'cells' ({path}) are faulty; the first: ")
    with pytest.raises(ValueError, match=f"^{where}.*{message}") as caught:
        check_pictures(["cells"])
    assert "\n" not in str(caught.value)


def test_the_size_of_a_turned_picture_is_that_of_what_is_seen(content, save, tmp_path):
    path, root = save(content)
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (30, 40)).save(tmp_path / "a.png", exif=exif)
    register_coco_json("cells", path, root)
    check_pictures(["cells"])


def test_accents_may_be_composed_otherwise(register, tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "e\u0301.png")
    root = register("\u00e9.png")
    with pytest.raises(ValueError, match=f"{root}/e\u0301.png exists"):
        check_pictures(["cells"])


def test_of_many_pictures_the_folder_is_listed_once_and_a_thousand_are_opened(tmp_path, monkeypatch):
    names = [f"{i}.png" for i in range(1200)]
    Image.new("L", (4, 4)).save(tmp_path / "picture.png")
    for name in names:
        os.symlink("picture.png", tmp_path / name)
    DatasetCatalog.register("many", lambda: [{"file_name": str(tmp_path / name)} for name in names])
    opened, listed = [], []
    header, listdir = pictures.look_at_header, os.listdir
    monkeypatch.setattr(pictures, "look_at_header", lambda file: opened.append(file) or header(file))
    monkeypatch.setattr(os, "listdir", lambda folder: listed.append(folder) or listdir(folder))
    monkeypatch.setattr(os.path, "isfile", lambda file: pytest.fail("each file is asked for"))
    check_pictures(["many"])
    ends = [str(tmp_path / name) for name in (names[0], names[-1])]
    assert len(set(opened)) == len(opened) == 1000 and set(ends) <= set(opened)
    assert listed == [str(tmp_path)]


def test_a_json_that_numbers_the_same_classes_otherwise_is_matched_by_name(cfg, content, save, tmp_path):
    path, root = save(content)
    numbers = {90: 4, 1: 6, 7: 5}
    for category in content["categories"]:
        category["id"] = numbers[category["id"]]
    for annotation in content["annotations"]:
        annotation["category_id"] = numbers[annotation["category_id"]]
    (tmp_path / "other.json").write_text(json.dumps(content))
    cfg.DATASETS.COCO_JSON = [["train", path, root], ["val", str(tmp_path / "other.json"), root]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train",), ("val",)
    for _ in range(2):  # also where it is registered already, as in a second run of one process
        register_datasets(cfg)
        train, val = (MetadataCatalog.get(name) for name in ("train", "val"))
        assert train.thing_classes == val.thing_classes == ["dust", "fibre", "cell"]
        assert val.thing_dataset_id_to_contiguous_id == {4: 2, 5: 1, 6: 0}
        assert DatasetCatalog.get("val") == DatasetCatalog.get("train")  # the first call and a later one
    assert np.array_equal(DatasetCatalog["val"].objects_per_image, [2, 0])


def test_other_classes_are_still_refused(cfg, content, save, tmp_path):
    path, root = save(content)
    content["categories"][0]["name"] = "Cell"
    (tmp_path / "other.json").write_text(json.dumps(content))
    cfg.DATASETS.COCO_JSON = [["train", path, root], ["val", str(tmp_path / "other.json"), root]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("train",), ("val",)
    with pytest.raises(ValueError, match="the classes of dataset 'val', 3 .* are not those of dataset 'train'"):
        register_datasets(cfg)
