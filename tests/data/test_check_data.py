# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""paq-detr check-data finds what is wrong with pictures and boxes, and shows what is right."""

import json
import math

import numpy as np
import pytest
from detectron2.structures import BoxMode
from PIL import Image

from paq_detr.check_data import contact_sheet
from paq_detr.cli import main
from paq_detr.data.formats import find_source, open_source
from paq_detr.data.statistics import describe

from .other_formats import write_coco, write_csv, write_voc, write_yolo


@pytest.fixture
def folder(content, save, tmp_path):
    """A COCO json with its pictures in folders of their own: annotations.json and images."""
    _, pictures = save(content)
    write_coco(content, pictures, tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def check(tmp_path, capsys):
    """Runs the command; gives its exit code, what it printed and the report."""

    def check(*arguments):
        output = tmp_path / "out"
        code = main(["check-data", *map(str, arguments), "--output", str(output), "--overwrite"])
        printed = capsys.readouterr()
        report = json.loads((output / "report.json").read_text()) if (output / "report.json").is_file() else {}
        return code, printed.out + printed.err, report

    return check


def change(folder, **keys):
    """Give the first annotation other values."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0].update(keys)
    path.write_text(json.dumps(content))


def test_a_sound_dataset_is_described_and_passes(folder, check):
    code, text, report = check(folder)
    assert code == 0
    for line in (
        f"COCO json {folder}/annotations.json, images in {folder}/images",
        "  images       2, 1 without objects",
        "  objects      2, and 1 ignore regions",
        "  per image    median 1, 99th percentile 2, most 2",
        "  image sizes  median 30 x 40, widths 20 to 40, heights 30 to 50",
        "  object sizes median 14 pixels, 11 to 17; 100% small, 0% medium, 0% large",
        "  overlap      0.0% of the objects have an IoU above 0.5 to another one",
        "  dust   1  ##############################",
        "  fibre  0",
        "  note: 1 of 3 classes have no object: fibre",
    ):
        assert line in text.splitlines()
    assert "No problems found" in text
    (data,) = report["datasets"]
    assert (report["problems"], data["problems"], data["statistics"]["classes"]["cell"]) == (0, [], 1)


def test_json_is_all_that_is_printed_when_asked_for(folder, check):
    code, text, report = check(folder, "--json")
    assert code == 0 and json.loads(text) == report


def _save(folder, pixels, **how):
    Image.fromarray(pixels).save(folder / "images" / "a.png", **how)


def _truncated(folder):
    path = folder / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:-900])


def _turned(folder):
    """A JPEG under the same name, lying on its side by its EXIF."""
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (30, 40)).save(folder / "images" / "a.png", "JPEG", exif=exif)


GREY = np.zeros((30, 40), dtype=np.uint8)
PICTURES = {  # what is done to a.png, and what is said of it: a problem, or else a note
    "missing": (
        lambda f: (f / "images" / "a.png").unlink(),
        "problem: 1 of 2 pictures are missing; the first is {}/images/a.png",
    ),
    "truncated": (_truncated, "problem: 1 of 1 pictures cannot be read: the image {}/images/a.png cannot be read"),
    "a text": (
        lambda f: (f / "images" / "a.png").write_text("none"),
        "problem: 1 of 2 pictures cannot be read: the image {}/images/a.png cannot be read: it is no picture",
    ),
    "another size": (
        lambda f: _save(f, np.zeros((40, 30, 3), np.uint8)),
        "problem: 1 of 2 pictures have another size: {}/images/a.png is 40 x 30 (height x width), its annotations say",
    ),
    "16 bits": (lambda f: _save(f, GREY.astype(np.uint16) + 4000), "note: 1 of 2 pictures are not 8-bit: integers are"),
    "turned": (_turned, "note: 1 of 2 pictures have an EXIF rotation, which is applied before their boxes are"),
    "cmyk": (
        lambda f: Image.new("CMYK", (40, 30)).save(f / "images" / "a.png", "TIFF"),
        "note: 1 of 2 pictures are CMYK, and become RGB",
    ),
    "transparent": (
        lambda f: _save(f, np.zeros((30, 40, 4), np.uint8)),
        "note: 1 of 2 pictures have an alpha channel, which is dropped",
    ),
    "two frames": (
        lambda f: Image.new("L", (40, 30)).save(
            f / "images" / "a.png", "TIFF", save_all=True, append_images=[Image.new("L", (40, 30))]
        ),
        "note: 1 of 2 pictures have several frames, of which the first is read",
    ),
}


@pytest.mark.parametrize("spoil, message", PICTURES.values(), ids=PICTURES)
def test_every_picture_is_opened(folder, check, spoil, message):
    spoil(folder)
    code, text, _ = check(folder / "annotations.json", "--images", folder / "images")
    message = message.replace("1 of 1", "1 of 2").format(folder)
    assert message in text
    assert code == message.startswith("problem")


BOXES = {
    "leaves": (
        [30, 5, 20, 10],
        "problem: 1 of 3 boxes leave their image or are under a pixel (are they [x, y, width, h",
    ),
    "shares": ([0.1, 0.2, 0.5, 0.4], "a.png [0.1, 0.2, 0.5, 0.4]"),
    "no area": (
        [3, 3, 0, 5],
        "problem: dropped 1 of 3 boxes: annotation 1 of a.png, [3.0, 3.0, 0.0, 5.0], has no area",
    ),
}


@pytest.mark.parametrize("box, message", BOXES.values(), ids=BOXES)
def test_every_box_is_looked_at(folder, check, box, message):
    change(folder, bbox=box)
    code, text, report = check(folder)
    assert code == 1 and message in text
    count = text.count("  problem: ")
    assert report["problems"] == count and f"{count} problem{'s' * (count > 1)} found" in text


def spoilt_yolo(content, pictures, folder):
    write_yolo(content, pictures, folder)
    with open(folder / "labels" / "train" / "a.txt", "a") as file:
        file.write("7 0.5 0.5 0.1 0.1\n0 0.5 cat\n" + "0 0.5 0.5 0.1\n" * 30)
    (folder / "images" / "train" / "b.png").write_text("none")
    return folder / "data.yaml", "--split", "train"


def spoilt_csv(content, pictures, folder):
    """Without sizes, so that the headers of the pictures must tell them; the first picture is missing."""
    write_csv(content, pictures, folder)
    path = folder / "annotations_train.csv"
    lines = [",".join(line.split(",")[:6]) + "\n" for line in path.read_text().splitlines()]
    path.write_text("gone.png,1,2,3,4,cell\n" + "".join(lines) + "a.png,9,9,1,1,cell\na.png,1\n")
    return (path,)


def spoilt_voc(content, pictures, folder):
    write_voc(content, pictures, folder)
    path = folder / "Annotations" / "a.xml"
    path.write_text(path.read_text().replace("<xmax>", "<xmax>-", 1))
    (folder / "Annotations" / "b.xml").write_text("<annotation>")
    with open(folder / "ImageSets" / "Main" / "train.txt", "a") as file:
        file.write("gone\n")
    return (folder,)


SPOILT = {
    "yolo": (
        spoilt_yolo,
        ("line 3: the class is 7, must", "line 4: '0 0.5 cat' must be a class id", "line 5 holds 3 numbers"),
        ("b.png cannot be read", "13 more lines, files or pictures are faulty", "  images       1, 0 without"),
    ),
    "csv": (
        spoilt_csv,
        ("line 5: the box x1,y1,x2,y2 is 9,9,1,1, but", "line 6 has 2 columns", "gone.png cannot be read"),
        ("  images       2, 1 without objects", "  objects      2, "),
    ),
    "voc": (
        spoilt_voc,
        ("a.xml, object 1, cell: its box is", "b.xml is no valid xml", "1 of 3 images of"),
        ("  images       1, 0 without objects", "  objects      1, "),
    ),
}


@pytest.mark.parametrize("form", SPOILT)
def test_faulty_lines_are_left_out_and_told_and_the_rest_is_looked_at(content, save, tmp_path, check, form):
    _, pictures = save(content)
    write, problems, others = SPOILT[form]
    source = write(content, pictures, tmp_path / "spoilt")
    code, text, report = check(*source)
    assert code == 1
    for said in (*problems, *others):
        assert said in text, text
    assert len(report["datasets"][0]["problems"]) <= 21 + 1
    with pytest.raises(ValueError, match="spoilt"):  # where nobody collects, the first one ends the reading
        open_source(find_source(str(source[0]), "train" if form == "yolo" else ""))


def test_data_of_faulty_lines_alone_are_one_sentence(content, save, tmp_path, check):
    (tmp_path / "a.csv").write_text("a.png,9,9,1,1,cell\n")
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    code, text, _ = check(tmp_path / "a.csv")
    assert code == 2 and "a.csv holds no box, after 1 faults, the first: " in text and "line 1: the box" in text


def test_a_box_that_stands_twice_is_found(folder, check):
    change(folder, bbox=[20, 5, 15, 20], category_id=1)
    code, text, _ = check(folder)
    assert code == 1 and "problem: 1 of 3 boxes stand there twice, with the same class: a.png [20, 5, 15, 20]" in text


def test_all_splits_are_checked_and_held_against_each_other(content, save, tmp_path, check):
    _, pictures = save(content)
    write_yolo(content, pictures, tmp_path / "yolo")  # its yaml gives both splits the same folder
    code, text, report = check(tmp_path / "yolo")
    assert code == 1 and len(report["datasets"]) == 2
    assert f"problem: 2 pictures are in both train and val; the first is {tmp_path}/yolo/images/train/a.png" in text
    assert (tmp_path / "out" / "sheet_train.jpg").is_file() and (tmp_path / "out" / "sheet_val.jpg").is_file()
    assert check(tmp_path / "yolo", "--split", "val")[0] == 0


def test_an_odgt_and_a_config_are_checked_too(write, content, save, tmp_path, check):
    path, _ = write([{"ID": "a", "gtboxes": [{"tag": "person", "fbox": [1, 2, 300, 40], "hbox": [1, 2, 0.5, 4]}]}])
    assert check(path)[0] == 0  # full bodies may leave the picture
    code, text, _ = check(path, "--box", "head")
    assert code == 1 and "1 of 1 boxes leave their image or are under a pixel" in text
    _, pictures = save(content)
    entry = write_voc(content, pictures, tmp_path / "voc")
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"DATASETS: {{FILES: [{{name: mine, path: {entry['path']}}}], TRAIN: [mine], TEST: [synthetic_crowd_val]}}\n"
        "MODEL: {DETR: {CLASS_NAMES: []}}\n"
    )
    code, text, _ = check("--config", config)
    assert code == 2 and "the classes of dataset 'synthetic_crowd_val'" in text
    config.write_text(config.read_text().replace("[synthetic_crowd_val]", "[mine]"))
    code, text, _ = check("mine", "--config", config)
    assert code == 0 and f"dataset mine of {config}" in text and "note: pixels count from 1, as VOC's" in text
    code, text, _ = check("other", "--config", config)
    assert code == 2 and f"{config} has the datasets mine, not other." in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "paq-detr: Name the data to check, or a config by --config."),
        (("nowhere",), "paq-detr: the data nowhere do not exist."),
        (("{}/data/annotations.json", "--split", "val"), "has no split 'val', it is one split."),
        (("--config", "{}/no.yaml"), "no.yaml does not exist."),
    ],
)
def test_what_cannot_be_read_is_one_sentence(folder, check, tmp_path, arguments, message):
    code, text, _ = check(*(argument.format(tmp_path) for argument in arguments))
    assert code == 2 and message in text


def test_a_json_without_images_is_one_sentence(folder, check):
    (folder / "annotations.json").write_text(
        '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}'
    )
    code, text, _ = check(folder / "annotations.json", "--images", folder / "images")
    assert code == 2 and f"annotations.json, images in {folder}/images holds no image." in text


# ----------------------------------------------------------------------------------------------------------------------
# Numbers and pictures


def record(boxes, labels=None, crowd=(), size=(100, 100)):
    labels = labels or [0] * len(boxes)
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, "iscrowd": int(i in crowd)}
        for i, (box, label) in enumerate(zip(boxes, labels))
    ]
    return {"file_name": "a.png", "width": size[0], "height": size[1], "annotations": annotations}


def test_statistics_are_those_of_a_hand_made_example():
    records = [
        # The first two share 80 of 120 columns: an IoU of 2/3; the third is far away; the last is an ignore region.
        record([[0, 0, 100, 10], [20, 0, 120, 10], [0, 50, 10, 60], [0, 0, 100, 100]], [0, 1, 1, 0], crowd=(3,)),
        record([]),
        record([[0, 0, 40, 40]], [1], size=(200, 50)),
    ]
    s = describe(records, ["cat", "dog", "ant"])
    assert (s.images, s.images_without_objects, s.objects, s.ignore_regions) == (3, 1, 4, 1)
    assert s.classes == {"cat": 1, "dog": 3, "ant": 0}
    assert (s.objects_per_image.median, s.objects_per_image.largest) == (1, 3)
    assert s.overlap == 2 / 4
    assert s.size_shares == {"small": 3 / 4, "medium": 1 / 4, "large": 0}  # 1000 pixels are small
    assert (s.image_widths.largest, s.image_heights.smallest) == (200, 50)
    assert s.object_sizes.largest == 40 and s.object_shares.largest == pytest.approx(0.4)
    assert s.classes_per_image.largest == 2


def test_statistics_of_nothing_are_no_numbers():
    s = describe([], ["cat"])
    assert (s.images, s.objects, s.overlap, s.classes) == (0, 0, 0, {"cat": 0})
    assert math.isnan(s.objects_per_image.median)


def test_the_sheet_shows_boxes_where_they_are(tmp_path):
    Image.new("RGB", (240, 180), (90, 90, 90)).save(tmp_path / "a.png")
    one = record([[60, 60, 180, 120]], size=(240, 180))
    one["file_name"] = str(tmp_path / "a.png")
    gone = {**one, "file_name": str(tmp_path / "gone.png")}
    sheet = np.asarray(contact_sheet([one, gone], ["cat"]))  # one cell: the missing picture is left out
    assert sheet.shape == (398, 496, 3)  # 360 of the picture, 22 of the text, 8 around; 480 and 8 around
    coloured = np.ptp(sheet[8:368, 8:488].astype(int), axis=2) > 60
    rows, columns = np.flatnonzero(coloured.any(1)), np.flatnonzero(coloured.any(0))
    assert abs(columns.min() - 120) <= 3 and abs(columns.max() - 360) <= 3  # the box at twice its size
    assert abs(rows.max() - 240) <= 3
