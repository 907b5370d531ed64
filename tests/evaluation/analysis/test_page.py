# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What the page says, where its numbers come from, and how it looks in a browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from paq_detr.cli import main
from paq_detr.evaluation import CocoBoxEvaluator
from paq_detr.evaluation.analysis import analyse, scene_of_evaluation, write_report
from paq_detr.evaluation.analysis.advice import RULES, what_to_do
from paq_detr.evaluation.analysis.page import render
from paq_detr.evaluation.analysis.sources import scene_of_files
from paq_detr.evaluation.coco_truth import GroundTruth
from paq_detr.evaluation.records import finite_detections

from ..scenes import feed, instances
from .reference import make_scene, random_scene

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def grid(count, side=40, first=0):
    """Boxes side by side, inside a wide image."""
    return [[10 + 50 * (first + i), 10, 10 + 50 * (first + i) + side, 10 + side] for i in range(count)]


BOXES = grid(10)


def right(boxes, kind=0, score=0.9):
    return [(0, kind, box, score - 0.001 * i) for i, box in enumerate(boxes)]


def wrong(shift=(0, 0), kind=0, score=0.99, boxes=BOXES):
    """False detections, of higher scores than the right ones."""
    return [(0, kind, [box[0] + shift[0], box[1] + shift[1], box[2] + shift[0], box[3] + shift[1]], score - 0.001 * i)
            for i, box in enumerate(boxes)]  # fmt: skip


def objects(boxes, kind=0):
    return [(0, kind, box) for box in boxes]


SMALL, CROWDED = grid(10, side=20, first=20), [[900 + i, 100, 960 + i, 160] for i in range(0, 100, 20)]
LOW = wrong((0, 400), score=0.1)
CUT = [[0, 200 + 50 * i, 40, 240 + 50 * i] for i in range(10)]
SCENES = {
    "no objects": ([], right(BOXES), "There is nothing to find"),
    "nothing found": (objects(BOXES), wrong((0, 300)), "Hardly anything is found"),
    "all right": (objects(BOXES), right(BOXES), "No kind of error costs more than 1 point"),
    "full": (objects(BOXES + SMALL), right(BOXES), "more objects than the 10 detections that they got"),
    "small": (objects(BOXES + SMALL), right(BOXES) + LOW, "most of these are small: raise INPUT"),
    "crowded": (objects(BOXES + CROWDED), right(BOXES) + LOW, "most of these are hidden in crowds"),
    "cut off": (objects(BOXES + CUT), right(BOXES) + LOW, "cut off by the image's border"),
    "missed": (objects(BOXES + grid(10, first=10)), right(BOXES) + LOW, "of no one size or place"),
    "classes": (
        objects(BOXES) + objects(grid(5, first=10), 1),
        right(BOXES) + wrong(kind=0, boxes=grid(5, first=10)),
        "most often class 1 taken for class 0 (5 times)",
    ),
    "places": (objects(BOXES), right(BOXES[:5]) + wrong((20, 5), boxes=BOXES[5:]), "badly placed boxes"),
    "duplicates": (objects(BOXES), right(BOXES, score=0.995) + wrong(score=0.9945), "detected twice"),
    "background": (objects(BOXES), right(BOXES) + wrong((0, 300)), "where no object is"),
    "both": (objects(BOXES) + objects([[0, 300, 9, 309]], 1),
             right(BOXES) + right([[0, 300, 9, 309]], 1) + wrong((20, 5), kind=1), "wrong class that are badly placed"),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENES)
def test_the_sentence_follows_from_the_errors(name):
    truth, found, said = SCENES[name]
    sentence, place = what_to_do(analyse(make_scene(truth, found, size=(800, 1400))))
    assert said in sentence
    assert place == list(SCENES).index(name)  # every rule has its scene


def test_every_rule_has_a_scene():
    assert len(SCENES) == len(RULES)


class Checker(HTMLParser):
    """Every element is closed where it should be; nothing is fetched."""

    EMPTY = {"meta", "input", "rect", "path", "image", "circle"}

    def __init__(self):
        super().__init__()
        self.open, self.links = [], []

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("href", "src")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


@pytest.fixture
def pictured(tmp_path):
    made = random_scene(2, images=4, classes=3)
    made.class_names = ["<b>", "a&b", "plain"]
    rng = np.random.default_rng(0)
    made.files = [str(tmp_path / f"{i}.png") for i in range(4)]
    for file in made.files[:3]:  # one is missing
        Image.fromarray(rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)).save(file)
    return made


def test_the_page_is_whole_and_needs_nothing_else(pictured, tmp_path, caplog):
    write_report(pictured, str(tmp_path / "report.html"), "A <title>", {"AP": 12.34, "APl": float("nan")})
    text = (tmp_path / "report.html").read_text()
    checker = Checker()
    checker.feed(text)
    assert not checker.open
    assert checker.links and all(link.startswith("data:image/jpeg;base64,") for link in checker.links)
    assert not re.search(r"https?://(?!www\.w3\.org)", text) and "url(" not in text
    assert "<h1>A &lt;title&gt;</h1>" in text and "<b>12.3</b><span>AP</span>" in text and "<b>–</b>" in text
    assert "&lt;b&gt;" in text and "a&amp;b" in text
    assert "the report is without the picture of 3.jpg" in caplog.text and str(tmp_path) not in text


def test_the_confusion_s_cells_stand_under_their_names():
    truth, found, _ = SCENES["classes"]
    text = render(analyse(make_scene(truth, found, size=(800, 1400))), "page")
    tips = set(re.findall(r'title="([^"]*of the row[^"]*)"', text))
    assert {"class 0 → class 0: 10 (100% of the row)", "class 1 → class 0: 5 (100% of the row)"} <= tips
    assert "class 0 → missed: 0 (0% of the row)" in tips and "nothing → class 1: 0 (0% of the row)" in tips


def test_a_page_of_nothing_says_so():
    assert "holds no object" in render(analyse(make_scene([], [])), "empty")


def coco_files(folder, images, predictions, names):
    """The same as COCO's files."""
    annotations, results = [], []
    for image, rows in images:
        for kind, (x0, y0, x1, y1), crowd in rows:
            box = [float(x0), float(y0), float(x1 - x0), float(y1 - y0)]
            annotations.append({"id": len(annotations) + 1, "image_id": image, "category_id": kind + 1, "bbox": box,
                                "area": box[2] * box[3], "iscrowd": int(crowd)})  # fmt: skip
        found = predictions[image]
        for (x0, y0, x1, y1), score, kind in zip(
            found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist()
        ):
            results.append(
                {"image_id": image, "category_id": kind + 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
            )
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 200, "width": 300} for i, _ in images],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
        "annotations": annotations,
    }
    paths = folder / "gt.json", folder / "dt.json"
    for path, what in zip(paths, (content, results)):
        path.write_text(json.dumps(what))
    return paths


IMAGES = [
    (7, [(0, (10, 10, 60, 60), 0), (1, (100, 10, 160, 90), 0), (0, (0, 100, 90, 190), 1)]),
    (3, [(0, (10, 10, 60, 60), 0)]),
]
PREDICTIONS = {
    7: instances([[12, 10, 60, 60], [100, 10, 160, 90], [5, 110, 60, 180]], [0.9, 0.8, 0.7], [0, 0, 0]),
    3: instances([[200, 10, 260, 60]], [0.6], [1]),
}


def numbers(made):
    found = analyse(made)
    groups = [number for group in found.groups for number in (group.count, found.recall(group))]
    return [found.ap50, found.score, *found.costs.values(), *found.confusion.flatten(), *groups]


def test_records_and_files_give_the_same_scene(register_dataset, tmp_path):
    name = register_dataset(IMAGES, ("dog", "cat"))
    records = {image: finite_detections(found) for image, found in PREDICTIONS.items()}
    of_records = scene_of_evaluation(GroundTruth(name), records)
    of_files = scene_of_files(*map(str, coco_files(tmp_path, IMAGES, PREDICTIONS, ("dog", "cat"))))
    assert numbers(of_records) == pytest.approx(numbers(of_files))
    assert of_records.image_names == of_files.image_names == ["7.jpg", "3.jpg"]
    assert of_records.objects.ignored.sum() == 1


def test_an_evaluation_writes_the_page_where_it_is_asked_to(register_dataset, tmp_path):
    name = register_dataset(IMAGES, ("dog", "cat"))
    result = feed(CocoBoxEvaluator(name, 100, str(tmp_path), report=True), PREDICTIONS)["bbox"]
    text = (tmp_path / "report.html").read_text()
    assert f"<b>{result['AP50']:.1f}</b><span>AP50</span>" in text and "AP-dog" not in text
    thresholds = json.loads((tmp_path / "f1_threshold.json").read_text())
    found = analyse(scene_of_evaluation(GroundTruth(name), {i: finite_detections(p) for i, p in PREDICTIONS.items()}))
    assert found.score == pytest.approx(thresholds["threshold"]) and found.overall.best == thresholds["value"]
    assert found.ap50 == pytest.approx(result["AP50"])
    feed(CocoBoxEvaluator(name, 100, str(tmp_path / "without")), PREDICTIONS)
    assert not (tmp_path / "without" / "report.html").exists()


def test_the_command_reads_crowdhumans_files_too(tmp_path, capsys):
    gt, dt, page = tmp_path / "gt.odgt", tmp_path / "dt.json", tmp_path / "page.html"
    person = {"tag": "person", "fbox": [10, 10, 50, 50], "vbox": [10, 10, 50, 50], "hbox": [20, 10, 10, 10]}
    region = {"tag": "mask", "fbox": [100, 10, 90, 90], "extra": {"ignore": 1}}
    gt.write_text(json.dumps({"ID": "a", "gtboxes": [person, region], "height": 200, "width": 300}) + "\n")
    dt.write_text(json.dumps({"ID": "a", "dtboxes": [{"box": [10, 10, 50, 50], "score": 0.9}]}) + "\n")
    assert main(["report", "--gt", str(gt), "--dt", str(dt), "--output", str(page)]) == 0
    assert "1 objects of 1 classes, 1 detections" in page.read_text()
    assert "No kind of error costs" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, message",
    [
        ({"gt": "none.json"}, "cannot read none.json"),
        ({"images": "none"}, "--images none is no folder."),
        ({"output": "none/report.html"}, "--output none/report.html: the folder none does not exist."),
        ({"row": {"image_id": 9}}, "result 1: the image_id 9 is not in "),
        ({"row": {"category_id": 5}}, "result 1: the category_id 5 is not in "),
        ({"row": {"score": 90.0}}, "scores are above 1, the first is 'score' 90.0 of the image '7.jpg'"),
        ({"row": {"bbox": [1, 2, 3]}}, "must be four numbers"),
        ({"dt": "{}"}, "holds no COCO results list"),
    ],
)
def test_wrong_files_are_one_sentence(tmp_path, capsys, change, message):
    gt, dt = coco_files(tmp_path, IMAGES, PREDICTIONS, ("dog", "cat"))
    rows = json.loads(dt.read_text())
    rows[0].update(change.get("row", {}))
    dt.write_text(change.get("dt") or json.dumps(rows))
    options = [
        "--gt",
        change.get("gt", str(gt)),
        "--dt",
        str(dt),
        "--output",
        change.get("output", str(tmp_path / "r")),
    ]
    options += ["--images", change["images"]] if "images" in change else []
    assert main(["report", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


@pytest.mark.skipif(BROWSER is None, reason="finds no Chromium")
@pytest.mark.parametrize("width", [1200, 500])  # headless Chromium makes no window narrower than 500
def test_a_browser_shows_the_page_without_scrolling_sideways(pictured, tmp_path, width):
    page = tmp_path / "report.html"
    write_report(pictured, str(page), "Evaluation")
    probe = (
        "<script>document.title = JSON.stringify([document.documentElement.scrollWidth <= innerWidth, "
        "[...document.images, ...document.querySelectorAll('image')].length, document.querySelectorAll('rect').length, "
        "getComputedStyle(document.querySelector('rect.missed')).stroke])</script>"
    )
    page.write_text(page.read_text().replace("</body>", probe + "</body>"))
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    fits, pictures, boxes, stroke = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])
    assert fits and pictures == 3 and boxes > 10 and stroke == "rgb(229, 36, 42)"
