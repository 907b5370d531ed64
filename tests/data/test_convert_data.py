# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from paq_detr.cli import main as command
from paq_detr.data import register_coco_json, register_crowdhuman
from paq_detr.data.odgt_coco import to_odgt

from .crowdhuman_scene import FULL, HEIGHT, VISIBLE, WIDTH, scene


def main(source, target, *options):
    assert command(["convert-data", source, "--output", target, *options]) == 0


def test_coco_form_has_the_layout_of_other_crowdhuman_code(write, tmp_path):
    path, root = write(scene())
    main(path, str(tmp_path / "coco.json"), "--images", root)
    coco = json.loads((tmp_path / "coco.json").read_text())
    assert coco["categories"] == [{"id": 1, "name": "person"}]
    assert coco["images"][2] == {"id": 3, "file_name": "3,c2.jpg", "height": HEIGHT, "width": WIDTH}
    assert [a["id"] for a in coco["annotations"]] == list(range(1, 10))
    assert [a["image_id"] for a in coco["annotations"]] == [1] * 6 + [3] * 3
    second = coco["annotations"][1]
    assert (second["bbox"], second["area"], second["bbox_vis"]) == ([40, -6, 30, 80], 2400, [42, 0, 20, 60])
    assert [a["iscrowd"] for a in coco["annotations"]] == [0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert all(a["category_id"] == 1 and "ignore" not in a for a in coco["annotations"])


def test_the_coco_form_registers_as_coco_with_the_same_regions(write, tmp_path):
    path, root = write(scene()[:2])
    main(path, str(tmp_path / "coco.json"), "--images", root)
    register_coco_json("coco", str(tmp_path / "coco.json"), root)
    register_crowdhuman("crowd", path, root, "full")
    for left, right in zip(DatasetCatalog.get("coco"), DatasetCatalog.get("crowd"), strict=True):
        assert left["file_name"] == right["file_name"]
        assert [a["bbox"] for a in left["annotations"]] == [a["full_bbox"] for a in right["annotations"]]
        assert [a["iscrowd"] for a in left["annotations"]] == [a["iscrowd"] for a in right["annotations"]]


def test_the_round_trip_gives_the_same_records_with_sizes(write, tmp_path):
    path, root = write(scene())
    coco, back, again = (str(tmp_path / name) for name in ("coco.json", "back.odgt", "again.json"))
    main(path, coco, "--images", root)
    main(coco, back)
    records = [json.loads(line) for line in Path(back).read_text().splitlines()]
    assert records == [{**record, "height": HEIGHT, "width": WIDTH} for record in scene()]
    main(back, again)  # sizes are there now
    assert Path(again).read_text() == Path(coco).read_text()


def test_names_that_a_file_cannot_carry_come_back(tmp_path, capsys):
    sized = {"height": HEIGHT, "width": WIDTH, "gtboxes": []}
    records = [{"ID": name, **sized} for name in (7, "part/a", "b.c", "plain")]
    source = tmp_path / "names.odgt"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    coco, back = str(tmp_path / "coco.json"), tmp_path / "back.odgt"
    main(str(source), coco)
    main(coco, str(back))
    assert [json.loads(line) for line in back.read_text().splitlines()] == records
    images = json.loads(Path(coco).read_text())["images"]
    assert [image.get("ID") for image in images] == [7, "part/a", None, None]
    assert "note:" not in capsys.readouterr().out


def test_keys_that_are_not_converted_are_counted(write, tmp_path, capsys):
    records = scene()
    records[0]["weather"] = "rain"
    for box in records[2]["gtboxes"]:
        box["pose"] = 1
    path, root = write(records)
    main(path, str(tmp_path / "coco.json"), "--images", root)
    first = capsys.readouterr().out.splitlines()[0]
    assert first == "note: these keys are not converted: 'pose' (3 times), 'weather' (1 times)"


def test_pictures_that_an_odgt_cannot_name_are_counted():
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(("a.jpg", "b.png", "val/c.jpg"))],
        "annotations": [{"image_id": 0, "bbox": FULL, "segmentation": []}],
        "categories": [{"id": 1, "name": "person"}],
    }
    records, notes = to_odgt(coco, "coco.json")
    assert [record["ID"] for record in records] == ["a", "b", "c"]
    assert notes == [
        "2 of 3 pictures are not named ID.jpg, where an odgt's pictures are looked for; the first is "
        "'b.png' with the ID 'b'",
        "these keys are not converted: 'segmentation' (1 times)",
    ]


def test_a_json_of_other_code_becomes_persons_and_masks():
    boxes = [{"bbox": FULL, "bbox_vis": VISIBLE, "iscrowd": 0}, {"bbox": FULL, "iscrowd": 1}]
    coco = {
        "images": [{"id": 5, "file_name": "val/a.jpg", "height": 60, "width": 80}, {"id": 6, "file_name": "b.jpg"}],
        "annotations": [{"id": i, "image_id": 5, "category_id": 1, **b} for i, b in enumerate(boxes)],
        "categories": [{"id": 1, "name": "person"}],
    }
    (first, second), _ = to_odgt(coco, "coco.json")
    assert first["gtboxes"] == [
        {"fbox": FULL, "vbox": VISIBLE, "tag": "person", "extra": {"ignore": 0}},
        {"fbox": FULL, "tag": "mask", "extra": {"ignore": 1}},
    ]
    assert (first["ID"], first["height"]) == ("a", 60) and second == {"ID": "b", "gtboxes": []}


def refuses(change, message):
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 1, "bbox": FULL}],
        "categories": [{"id": 1, "name": "person"}],
    }
    change(coco)
    with pytest.raises(ValueError, match=re.escape(message)):
        to_odgt(coco, "coco.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda coco: coco.pop("images"), "coco.json: no 'images'"),
        (
            lambda coco: coco["categories"].append({}),
            "CrowdHuman has one category, person; there are 2 here",
        ),
        (lambda coco: coco["images"].append(coco["images"][0]), "two images have the id 1 or the name 'a'"),
        (
            lambda coco: coco["annotations"][0].update(image_id=9),
            "coco.json, entry 1 of 'annotations' is of image 9, which is not in",
        ),
        (
            lambda coco: coco["annotations"][0].pop("bbox"),
            "coco.json, entry 1 of 'annotations': no 'bbox' in {'image_id': 1}",
        ),
    ],
)
def test_a_broken_json_is_named(change, message):
    refuses(change, message)


@pytest.mark.parametrize(
    "change, flag",
    [({"iscrowd": v}, 1) for v in (1, True, "1", "true")] + [({"iscrowd": v}, 0) for v in (0, None, "", False, "0")]
    + [({"ignore": 1}, 1), ({"ignore": None}, 0), ({"bbox": ["10", "5", "20", "40"]}, 0), ({"image_id": "1"}, 0)],
    ids=str,
)  # fmt: skip
def test_a_json_s_values_of_another_type_are_taken_as_what_they_mean(change, flag):
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": "60", "width": None}],
        "annotations": [{"image_id": 1, "bbox": FULL, **change}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (record,), _ = to_odgt(coco, "coco.json")
    tag = "mask" if flag else "person"
    assert record == {"ID": "a", "gtboxes": [{"fbox": FULL, "tag": tag, "extra": {"ignore": flag}}]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda coco: coco.update(images={}), "coco.json: 'images' is {}, must be a list"),
        (lambda coco: coco.update(images=[5]), "coco.json, entry 1 of 'images': no 'file_name' in 5"),
        (lambda coco: coco["images"][0].update(file_name=None), "'images': 'file_name' is None, must be a text"),
        (lambda coco: coco["images"][0].update(id=[1]), "entry 1 of 'images': 'id' is [1], must be"),
        (lambda coco: coco["images"][0].update(height=-1, width=5), "entry 1 of 'images': height -1 and width 5"),
        (lambda coco: coco["annotations"][0].update(iscrowd="perhaps"), "'iscrowd' is 'perhaps', must be 0 or 1"),
        (lambda coco: coco["annotations"][0].update(bbox=[1, 2, 3]), "entry 1 of 'annotations': 'bbox' is [1, 2, 3]"),
        (lambda coco: coco["annotations"][0].update(bbox=[1, 2, 3, None]), "'bbox' is [1, 2, 3, None], must be four"),
        (lambda coco: coco["annotations"][0].update(bbox_vis="here"), "'bbox_vis' is 'here', must be four finite"),
        (lambda coco: coco.update(annotations=None), "coco.json: 'annotations' is None, must be a list"),
    ],
)  # fmt: skip
def test_a_json_s_values_that_mean_nothing_are_named(change, message):
    refuses(change, message)


def test_an_odgt_s_numbers_in_texts_are_numbers_in_the_json(write, tmp_path, capsys):
    records = scene()[:1]
    records[0]["gtboxes"][0]["fbox"] = [str(v) for v in FULL]
    path, root = write(records)
    main(path, str(tmp_path / "coco.json"), "--images", root)
    first = json.loads((tmp_path / "coco.json").read_text())["annotations"][0]
    assert (first["bbox"], first["area"]) == (FULL, FULL[2] * FULL[3])
    records[0]["gtboxes"][0]["vbox"] = [1, 2, 3, "x"]
    path, root = write(records)
    assert command(["convert-data", path, "--output", str(tmp_path / "coco.json"), "--images", root]) == 2
    assert "line 1, image '7,b0', box 1: 'vbox' is [1, 2, 3, 'x'], must be four finite" in capsys.readouterr().err


def test_the_command_ends_with_one_sentence(write, tmp_path, capsys):
    path, root = write(scene())
    for source, output, message in (
        (path, "a.txt", f"--output is {tmp_path}/a.txt, must end in .json or .odgt."),
        (path, "annotation.odgt", f"--output {path} is the source itself."),
        ("no.json", "a.json", "the data no.json do not exist."),
        (root, "a.json", f"{root} holds nothing of a known format"),
        (path, "none/a.json", f"--output {tmp_path}/none/a.json: the folder {tmp_path}/none does not exist."),
    ):
        assert command(["convert-data", source, "--output", str(tmp_path / output)]) == 2
        assert capsys.readouterr().err.startswith(f"paq-detr: {message}")
    assert not (tmp_path / "a.json").exists()
