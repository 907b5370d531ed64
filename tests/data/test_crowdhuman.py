# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import re
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from paq_detr.data import DetrDatasetMapper, coco_json, odgt, register_crowdhuman, register_datasets
from paq_detr.evaluation import build_evaluator
from paq_detr.evaluation.crowdhuman import evaluate_files

from .crowdhuman_scene import FULL, HEIGHT, KINDS, WIDTH, person, scene, warnings

# ---- dataset dicts ----


def test_the_dicts_are_detectron2s_in_the_order_of_the_file(write):
    path, root = write(scene())
    register_crowdhuman("crowd", path, root, "full")
    dicts = DatasetCatalog.get("crowd")
    assert [d["image_id"] for d in dicts] == ["7,b0", "12,a1", "3,c2"]
    assert dicts[0]["file_name"] == f"{root}/7,b0.jpg"
    assert {(d["height"], d["width"]) for d in dicts} == {(HEIGHT, WIDTH)}
    assert dicts[0]["annotations"][0] == {
        "bbox": FULL, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0, "full_bbox": FULL,
        "visible_bbox": scene()[0]["gtboxes"][0]["vbox"],
    }  # fmt: skip
    assert dicts[1]["annotations"] == []
    assert DatasetCatalog.get("crowd") == dicts and DatasetCatalog.get("crowd")[0] is not dicts[0]


def test_the_metadata_has_one_class_and_no_json_file(write):
    path, root = write(scene())
    register_crowdhuman("crowd", path, root, "head")
    metadata = MetadataCatalog.get("crowd")
    assert metadata.thing_classes == ["person"] and metadata.thing_dataset_id_to_contiguous_id == {1: 0}
    assert (metadata.evaluator_type, metadata.odgt_file, metadata.box) == ("crowdhuman", path, "head")
    assert metadata.get("json_file") is None  # it would be read as COCO's


@pytest.mark.parametrize("box", KINDS)
def test_the_box_chooses_the_targets_which_end_at_the_edge(write, box):
    register_crowdhuman("crowd", *write(scene()), box)
    found = DatasetCatalog.get("crowd")[0]["annotations"]
    assert [a[f"{box}_bbox"] for a in found] == [b[KINDS[box]] for b in scene()[0]["gtboxes"]]
    assert [a["full_bbox"] for a in found] == [b["fbox"] for b in scene()[0]["gtboxes"]]
    inside = {"full": [40, 0, 30, 60], "visible": [42, 0, 20, 60], "head": [48, 0, 10, 4]}
    assert found[1]["bbox"] == inside[box]


REGION = {
    "a person": (person(), 0, 0),
    "a mask with its flag": (person(tag="mask", extra={"ignore": 1}), 1, 1),
    "a mask without a flag": (person(tag="mask"), 1, 1),
    "a tag that nobody knows": (person(tag="dog"), 1, 1),
    "an ignored person": (person(extra={"ignore": 1}), 1, 1),
    "any ignore but 0": (person(extra={"ignore": 2}), 1, 1),
    "an ignore of 0": (person(extra={"ignore": 0}, head_attr={"ignore": 0}), 0, 0),
    "extra without ignore": (person(extra={"box_id": 3, "occ": 1}, head_attr={"occ": 1}), 0, 0),
    "an ignored head": (person(head_attr={"ignore": 1}), 0, 1),
    "an unsure head": (person(head_attr={"ignore": 0, "unsure": 1, "occ": 1}), 0, 0),
    "an ignored person with a good head": (person(extra={"ignore": 1}, head_attr={"ignore": 0}), 1, 1),
}


@pytest.mark.parametrize("case", REGION)
def test_which_boxes_are_ignored(write, case):
    entry, body, head = REGION[case]
    files = write([{"ID": "a", "gtboxes": [entry]}])
    for box, region in (("full", body), ("visible", body), ("head", head)):
        register_crowdhuman(box, *files, box)
        (annotation,) = DatasetCatalog.get(box)[0]["annotations"]
        assert annotation["iscrowd"] == region, box
        assert annotation["category_id"] == 0
        assert DatasetCatalog[box].objects_per_image.tolist() == [1 - region]


DOUBTS = {
    "corners": (lambda x, y, w, h: [x, y, x + w, y + h], "reach far outside their image: they are probably corners"),
    "fractions": (lambda x, y, w, h: [x / WIDTH, y / HEIGHT, w / WIDTH, h / HEIGHT], "are probably fractions"),
    "as they are": (lambda *box: list(box), ""),
    "bodies that end outside": (lambda x, y, w, h: [x, y, w + WIDTH, h + HEIGHT], ""),
}


@pytest.mark.parametrize("read, message", DOUBTS.values(), ids=DOUBTS)
def test_boxes_that_are_hardly_x_y_width_height_are_counted(write, caplog, read, message):
    boxes = [(0.3 * WIDTH + i, 0.3 * HEIGHT, 0.4 * WIDTH, 0.6 * HEIGHT) for i in range(4)]
    path, folder = write([{"ID": "a", "gtboxes": [person(read(*box)) for box in boxes]}])
    register_crowdhuman("crowd", path, folder, "full")
    DatasetCatalog.get("crowd")
    found = [text for text in warnings(caplog) if text.startswith(f"dataset 'crowd' ({path}): 4 of 4 boxes")]
    assert [message in text for text in found] == ([True] if message else [])


@pytest.mark.parametrize("tag", ["background", "pedestrian"])
def test_a_box_of_an_unusual_tag_is_a_region_and_said(write, caplog, tag):
    register_crowdhuman("crowd", *write([{"ID": "a", "gtboxes": [person(tag=tag)]}]), "full")
    assert DatasetCatalog.get("crowd")[0]["annotations"][0]["iscrowd"] == 1
    assert f"1 images hold boxes of the tags ['{tag}'], which become ignore regions" in warnings(caplog)[0]


def test_boxes_without_area_in_the_image_stay_but_are_counted_once(write, caplog):
    records = [*scene(), {"ID": "n", "gtboxes": [person((50, 30, -10, 20)), person((20, 20, 5, 0))]}]
    path, root = write(records)
    register_crowdhuman("crowd", path, root, "full")
    assert [len(d["annotations"]) for d in DatasetCatalog.get("crowd")] == [6, 0, 3, 2]
    assert all(a["bbox"][2] >= 0 for d in DatasetCatalog.get("crowd") for a in d["annotations"])
    (text,) = warnings(caplog)
    assert text.startswith(f"dataset 'crowd' ({path}): 4 of 9 persons have no area inside their image")
    assert f"{path}, line 3, image '3,c2', [85.0, 10.0, 9.0, 9.0]; " in text and text.endswith(" ...")


def test_the_mapper_trains_on_persons_and_leaves_regions_out_of_the_loss(write, cfg):
    cfg.DATASETS.CROWDHUMAN = [["crowd", *write(scene()), "full"]]
    cfg.DATASETS.TRAIN = ("crowd",)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    register_datasets(cfg)
    assert cfg.MODEL.DETR.CLASS_NAMES == ["person"]
    mapper = DetrDatasetMapper(cfg)
    first, _, last = (mapper(d)["instances"] for d in DatasetCatalog.get("crowd"))
    assert first.gt_ignore.tolist() == [False, False, False, True, True, False]
    assert first.gt_boxes.tensor[1].tolist() == [40, 0, 70, 60]
    assert last.gt_boxes.tensor.tolist() == [[20, 20, 50, 50]]  # the two outside are no targets


def test_more_persons_than_queries_are_a_warning(write, cfg, caplog):
    cfg.DATASETS.CROWDHUMAN = [["crowd", *write(scene()), "full"]]
    cfg.DATASETS.TRAIN = ("crowd",)
    cfg.MODEL.DETR.QUERIES.NUM = 3
    register_datasets(cfg)
    text = "1 of 3 images of crowd hold more objects than MODEL.DETR.QUERIES.NUM = 3; the largest count is 4"
    assert any(warning.startswith(text) for warning in warnings(caplog))


def test_a_set_without_any_object_is_a_warning(write, cfg, caplog):
    cfg.DATASETS.CROWDHUMAN = [["crowd", *write([{"ID": "1,a", "gtboxes": [person(tag="mask")]}]), "full"]]
    cfg.DATASETS.TRAIN = ("crowd",)
    register_datasets(cfg)
    assert any(warning.startswith("no image of crowd holds an object") for warning in warnings(caplog))


# ---- sizes ----


def test_sizes_are_read_once_and_only_where_the_line_has_none(write, monkeypatch):
    records = scene()
    records[1].update(height=HEIGHT, width=WIDTH)
    register_crowdhuman("crowd", *write(records), "full")
    read = []
    monkeypatch.setattr(odgt, "image_size", lambda name: read.append(name) or coco_json.image_size(name))
    assert read == []
    DatasetCatalog.get("crowd")
    DatasetCatalog.get("crowd")
    assert sorted(Path(name).name for name in read) == ["3,c2.jpg", "7,b0.jpg"]


def test_a_turned_picture_has_the_size_that_one_sees(write, tmp_path):
    path, root = write([{"ID": "a", "gtboxes": [person()]}])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(f"{root}/a.jpg", exif=exif)
    register_crowdhuman("crowd", path, root, "full")
    (record,) = DatasetCatalog.get("crowd")
    assert (record["height"], record["width"]) == (WIDTH, HEIGHT)


# ---- bad input ----


def _break(key, value=None):
    def change(records):
        records[1]["gtboxes"] = [person()]
        records[1]["gtboxes"][0][key] = value
        if value is None:
            del records[1]["gtboxes"][0][key]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records[1].pop("ID"), "line 2: no 'ID'"),
        (lambda records: records[1].update(ID=["x"]), "line 2: the ID ['x'] is no name"),
        (lambda records: records[1].pop("gtboxes"), "line 2: no 'gtboxes'"),
        (lambda records: records[1].update(gtboxes={}), "line 2, image '12,a1': 'gtboxes' is no list of objects: {}"),
        (lambda records: records[1].update(gtboxes=[3]), "line 2, image '12,a1': 'gtboxes' is no list of objects"),
        (_break("fbox"), "line 2, image '12,a1': entry 1 has no 'fbox': {'tag': 'person', 'vbox'"),
        (_break("fbox", [1, 2, 3]), "line 2, image '12,a1': the 'fbox' of entry 1 is [1, 2, 3], must be four"),
        (
            _break("fbox", [1, 2, 3, float("nan")]),
            "line 2, image '12,a1': the 'fbox' of entry 1 is [1, 2, 3, nan], must",
        ),
        (_break("fbox", "here"), "line 2, image '12,a1': the 'fbox' of entry 1 is 'here', must be four"),
        (_break("tag"), "line 2, image '12,a1': no 'tag' in {'fbox'"),
        (_break("extra", [1]), "line 2, image '12,a1': 'extra' is no object: [1]"),
        (_break("extra", {"ignore": "yes"}), "line 2, image '12,a1': 'extra.ignore' is 'yes', must be a number"),
        (lambda records: records[1].update(height=0, width=3), "line 2, image '12,a1': height 0 and width 3 are no"),
        (lambda records: records[1].update(ID="7,b0"), "line 2 annotates the image '7,b0' more than once; line 1 does"),
    ],
)
def test_a_broken_line_is_named_with_its_image(write, tmp_path, change, message):
    path, root = write(scene())
    records = scene()
    change(records)
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))
    register_crowdhuman("crowd", path, root, "full")
    with pytest.raises(ValueError, match=re.escape(f"{path}, {message}")):
        DatasetCatalog.get("crowd")


@pytest.mark.parametrize(("box", "key"), [("visible", "vbox"), ("head", "hbox")])
def test_a_box_without_the_chosen_kind_is_named(write, box, key):
    records = scene()
    del records[0]["gtboxes"][2][key]
    path, root = write(records)
    register_crowdhuman("crowd", path, root, box)
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 1, image '7,b0': entry 3 has no '{key}'")):
        DatasetCatalog.get("crowd")
    register_crowdhuman("full", path, root, "full")
    assert len(DatasetCatalog.get("full")) == 3


def test_a_line_that_is_no_json_is_named(write):
    path, root = write(scene())
    Path(path).write_text(json.dumps(scene()[0]) + '\n\n{"ID": "12,a1", "gtb')
    register_crowdhuman("crowd", path, root, "full")
    with pytest.raises(ValueError, match=re.escape(f"{path}, line 3: not valid json")):
        DatasetCatalog.get("crowd")
    Path(path).write_text("\n")
    with pytest.raises(ValueError, match="annotation.odgt holds no annotations"):
        DatasetCatalog.get("crowd")


def test_missing_pictures_are_counted_before_training(write, cfg):
    records = [{**record, "height": HEIGHT, "width": WIDTH} for record in scene()]
    path, root = write(records)
    for record in records[1:]:
        Path(root, f"{record['ID']}.jpg").unlink()
    cfg.DATASETS.CROWDHUMAN = [["crowd", path, root, "full"]]
    cfg.DATASETS.TRAIN = ("crowd",)
    text = f"2 of 3 pictures are missing; the first is {root}/12,a1.jpg of {path}, line 2, image '12,a1'"
    with pytest.raises(ValueError, match=re.escape(text)):
        register_datasets(cfg)


def test_an_unreadable_picture_is_named_before_training_where_its_size_is_needed(write, cfg):
    path, root = write(scene())
    Path(root, "12,a1.jpg").write_bytes(b"no picture")
    cfg.DATASETS.CROWDHUMAN = [["crowd", path, root, "full"]]
    cfg.DATASETS.TEST = cfg.DATASETS.TRAIN = ("crowd",)
    text = f"{path}, line 2, image '12,a1': no image size there, and the image {root}/12,a1.jpg cannot be read"
    with pytest.raises(ValueError, match=re.escape(text)):
        register_datasets(cfg)


def test_missing_files_and_unknown_boxes_are_named(write):
    path, root = write(scene())
    with pytest.raises(FileNotFoundError, match="dataset 'crowd': the annotation file no.odgt does not exist"):
        register_crowdhuman("crowd", "no.odgt", root, "full")
    with pytest.raises(FileNotFoundError, match="dataset 'crowd': the image folder nowhere does not exist"):
        register_crowdhuman("crowd", path, "nowhere", "full")
    with pytest.raises(ValueError, match="dataset 'crowd': the box must be 'full', 'visible' or 'head' .*, got 'body'"):
        register_crowdhuman("crowd", path, root, "body")


def test_the_files_own_word_for_a_box_means_the_same(write):
    path, root = write(scene())
    register_crowdhuman("crowd", path, root, "vbox")
    register_crowdhuman("crowd", path, root, "visible")
    assert MetadataCatalog.get("crowd").box == "visible"
    assert DatasetCatalog.get("crowd")[0]["annotations"][1]["bbox"] == [42, 0, 20, 60]


def test_a_name_stands_for_one_dataset(write):
    path, root = write(scene())
    register_crowdhuman("crowd", path, root, "full")
    before = DatasetCatalog["crowd"]
    register_crowdhuman("crowd", path, root + "/", "full")
    assert DatasetCatalog["crowd"] is before
    with pytest.raises(ValueError, match="'crowd' is already registered as .* full boxes; .* and head boxes"):
        register_crowdhuman("crowd", path, root, "head")


def test_a_wrong_entry_is_shown(cfg):
    cfg.DATASETS.CROWDHUMAN = [["crowd", "annotation.odgt", "Images"]]
    with pytest.raises(ValueError, match=r"DATASETS.CROWDHUMAN wants \[name, annotation odgt, .*got \['crowd', 'anno"):
        register_datasets(cfg)


# ---- evaluation ----


def perfect(record, box):
    """Detections of all boxes, regions included; scores fall from box to box."""
    boxes = [b[KINDS[box]] for b in record["gtboxes"]]
    return boxes, [round(0.95 - 0.1 * place, 2) for place in range(len(boxes))]


def instances(boxes, scores):
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    result = Instances((HEIGHT, WIDTH))
    result.pred_boxes = Boxes(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
    result.scores = torch.tensor(scores, dtype=torch.float32)
    result.pred_classes = torch.zeros(len(scores), dtype=torch.int64)
    return result


@pytest.mark.parametrize("protocol", ["crowddet", "dh"])
@pytest.mark.parametrize("box", KINDS)
def test_perfect_detections_score_as_by_the_command(write, cfg, tmp_path, box, protocol):
    path, root = write(scene())
    cfg.DATASETS.CROWDHUMAN = [["crowd", path, root, box]]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("crowd",)
    cfg.TEST.CROWD.ENABLED, cfg.TEST.CROWD.PROTOCOL = True, protocol
    register_datasets(cfg)
    evaluator = build_evaluator(cfg, "crowd", str(tmp_path / "out"))
    evaluator.reset()
    rows = []
    for record in reversed(scene()):
        boxes, scores = perfect(record, box)
        evaluator.process([{"image_id": record["ID"]}], [{"instances": instances(boxes, scores)}])
        rows += [{"image_id": record["ID"], "bbox": b, "score": s} for b, s in zip(boxes, scores, strict=True)]
    ours = evaluator.evaluate()

    results = tmp_path / "results.json"
    results.write_text(json.dumps(rows))
    metrics = ("AP", "MR", "JI", "Recall")
    for detections in (results, tmp_path / "out" / "crowd_detections.json"):
        command = evaluate_files(path, str(detections), KINDS[box], protocol, root, workers=1)
        assert {m: ours["crowd"][m] for m in metrics} == {m: 100 * command[m] for m in metrics}
        assert command["images_without_size"] == 0
    assert command["persons"] == DatasetCatalog["crowd"].objects_per_image.sum()
    recall = {"full": 600 / 7, "visible": 100, "head": 100}  # what lies left of the image never matches
    assert ours["crowd"]["Recall"] == pytest.approx(recall[box])
    assert set(ours) == {"bbox", "crowd"}
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert {(row["image_id"], row["category_id"]) for row in written} == {("7,b0", 1), ("3,c2", 1)}
