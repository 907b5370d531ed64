# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import codecs
import gzip
import json
import math
import subprocess
import sys

import pytest

from paq_detr.evaluation.crowd.cli import evaluate_files, main
from paq_detr.evaluation.crowd.report import describe

from . import reference
from .odgt_scenes import A, B, mask, one_image, person, same, warnings


def test_coco_results_give_the_same_as_the_dump(evaluate):
    annotations, dump = reference.random_scene(70)
    annotations = [{**record, "height": 120, "width": 200} for record in annotations]
    place = {record["ID"]: i for i, record in enumerate(annotations, start=1)}
    rows = [(r["ID"], d) for r in dump for d in r["dtboxes"]]
    by_name = [{"image_id": key, "category_id": 1, "bbox": d["box"], "score": d["score"]} for key, d in rows]
    by_number = [{**row, "image_id": place[row["image_id"]]} for row in by_name]
    expected = evaluate(annotations, dump)
    assert same(evaluate(annotations, by_name), expected)
    assert same(evaluate(annotations, by_number), expected)


def test_sizes_come_from_the_pictures_where_no_file_has_them(evaluate, tmp_path, caplog):
    from PIL import Image

    outside = (280, 10, 100, 100)
    annotations, dump = one_image([person(*outside), person(*A)], [((280, 10, 20, 100), 0.9), (A, 0.8)])
    del dump[0]["height"]
    assert evaluate(annotations, dump)["Recall"] == 0.5
    assert "not clipped" in caplog.text
    Image.new("L", (300, 200)).save(tmp_path / "a.jpg")
    assert evaluate(annotations, dump, image_folder=str(tmp_path))["Recall"] == 1


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda gt, dt: gt[0].pop("ID"), r"gt.odgt, line 1: no 'ID'"),
        (lambda gt, dt: gt[0]["gtboxes"][0].pop("fbox"), r"gt.odgt, line 1, image 'a': entry 1 has no 'fbox'"),
        (lambda gt, dt: gt[0]["gtboxes"][0].pop("tag"), r"gt.odgt, line 1, image 'a': no 'tag'"),
        (lambda gt, dt: gt.append(gt[0]), r"annotates the image 'a' more than once"),
        (lambda gt, dt: dt.append({**dt[0], "ID": "b"}), r"1 images of .*dt.json are not annotated in .*the first: "),
        (
            lambda gt, dt: gt[0]["gtboxes"][0].update(extra={"ignore": "no"}),
            r"gt.odgt, line 1, image 'a': 'extra.ignore' is 'no', must be a number",
        ),
        (lambda gt, dt: dt[0].update(ID=["a"]), r"dt.json, line 1: the ID \['a'\] is no name"),
        (lambda gt, dt: dt[0]["dtboxes"][0].pop("box"), r"dt.json, line 1, image 'a': entry 1 has no 'box'"),
        (lambda gt, dt: dt[0]["dtboxes"][0].pop("score"), r"line 1, image 'a': entry 1 has no 'score'"),
        (
            lambda gt, dt: dt[0]["dtboxes"][0].update(score=math.nan),
            r"line 1, image 'a': the 'score' of entry 1 is nan, which is not finite",
        ),
        (
            lambda gt, dt: dt[0]["dtboxes"][0].update(box=[1, 2, 3]),
            r"image 'a': the 'box' of entry 1 is \[1, 2, 3\], must be four numbers",
        ),
        (lambda gt, dt: dt[0].update(height="tall"), r"height 'tall' and width 300 are no image size"),
        (lambda gt, dt: dt[0].update(width=-5), r"height 200 and width -5 are no image size, both must be positive"),
    ],
)
def test_bad_input_is_said_with_file_line_and_image(evaluate, change, message):
    annotations, dump = one_image([person(*A)], [(A, 0.9)])
    change(annotations, dump)
    with pytest.raises(ValueError, match=message):
        evaluate(annotations, dump)


def test_a_corrupt_line_is_named(tmp_path):
    gt, dt = tmp_path / "gt.odgt", tmp_path / "dt.json"
    records = one_image([person(*A)], [(A, 0.9)])
    gt.write_text(json.dumps(records[0][0]) + "\n")
    dt.write_text(json.dumps(records[1][0]) + '\n\n{"ID": "a", "dtbo')
    with pytest.raises(
        ValueError, match=r"dt.json, line 3: not valid json: Unterminated string starting at column 13$"
    ):
        evaluate_files(str(gt), str(dt), workers=2)
    dt.write_text('[\n{"image_id": "a",')
    with pytest.raises(ValueError, match=r"dt.json: not valid json: .* at line 2, column 18$"):
        evaluate_files(str(gt), str(dt))
    with pytest.raises(ValueError, match="cannot read .*nowhere.json"):
        evaluate_files(str(gt), str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize("form", ["dump", "coco"])
def test_a_byte_order_mark_is_read_over_in_both_files(evaluate, tmp_path, form):
    annotations, dump = one_image([person(*A), person(*B)], [(A, 0.9), (B, 0.8)])
    rows = [{"image_id": "a", "bbox": d["box"], "score": d["score"]} for d in dump[0]["dtboxes"]]
    evaluate(annotations, dump if form == "dump" else rows)
    for name in ("gt.odgt", "dt.json"):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + (tmp_path / name).read_bytes())
    assert evaluate_files(str(tmp_path / "gt.odgt"), str(tmp_path / "dt.json"), workers=1)["Recall"] == 1


@pytest.mark.parametrize("name", ["gt.odgt", "dt.json"])
def test_a_compressed_file_is_refused_as_such(evaluate, tmp_path, name):
    evaluate(*one_image([person(*A)], [(A, 0.9)]))
    (tmp_path / name).write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name} is compressed by gzip; unpack it first"):
        evaluate_files(str(tmp_path / "gt.odgt"), str(tmp_path / "dt.json"))


def test_coco_results_of_several_categories_are_refused(evaluate):
    annotations, _ = one_image([person(*A)], [])
    rows = [{"image_id": "a", "category_id": c, "bbox": list(A), "score": 0.9} for c in (1, 3)]
    with pytest.raises(ValueError, match=r"dt.json holds 2 category ids \(1, 3\); keep the detections of persons only"):
        evaluate(annotations, rows)
    assert evaluate(annotations, rows[1:])["Recall"] == 1
    with pytest.raises(ValueError, match=r"dt.json, result 1: the image_id \['a'\] is no name"):
        evaluate(annotations, [{**rows[0], "image_id": ["a"]}])


def test_boxes_are_named_in_words_or_as_in_the_file(evaluate):
    annotations, dump = reference.random_scene(71, num_images=5)
    for word, kind in (("full", "fbox"), ("visible", "vbox"), ("head", "hbox")):
        assert same(evaluate(annotations, dump, box=word), evaluate(annotations, dump, box=kind))
    with pytest.raises(ValueError, match="gt.odgt: the box must be 'full', 'visible' or 'head' .*, got 'body'"):
        evaluate(annotations, dump, box="body")


def test_command_writes_json_at_full_precision(tmp_path):
    annotations, dump = reference.random_scene(80, num_images=12)
    gt, dt, out = (tmp_path / name for name in ("gt.odgt", "dt.json", "out.json"))
    gt.write_text("".join(json.dumps(record) + "\n" for record in annotations))
    dt.write_text("".join(json.dumps(record) + "\n" for record in dump))
    command = [sys.executable, "-m", "paq_detr.evaluation.crowdhuman", "--gt", gt, "--dt", dt, "--json", out]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    written = json.loads(out.read_text())
    expected = evaluate_files(str(gt), str(dt), workers=1)
    assert "NaN" not in out.read_text() and json.dumps(written) == json.dumps(expected).replace("NaN", "null")
    assert {"AP", "MR", "JI", "JI_threshold", "Recall"} <= written.keys()
    assert "crowdedness of a person" in result.stdout and "12/12" in result.stderr
    assert "protocol crowddet, boxes fbox" in result.stdout and "fractions of 1" in result.stdout


def test_the_text_says_units_direction_and_the_bounds_of_the_bins(evaluate):
    close = (15, 10, 40, 100)  # IoU 0.78 with A
    summary = evaluate(*one_image([person(*A), person(*close), person(*B)], [(A, 0.9)]))
    assert list(summary["by_person_crowdedness"]) == ["0.0", "0.6+"]
    text = describe(summary)
    assert "fractions of 1; of MR-2, lower is better" in text
    for label in ("0.0 to 0.1", "0.5 to 0.6", "0.6 or more"):
        assert label in text


def test_command_starts_without_torch():
    program = "import sys, paq_detr.evaluation.crowdhuman; sys.exit(bool({'torch', 'detectron2'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_command_runs_without_any_person_and_says_so(tmp_path, caplog):
    gt, dt = tmp_path / "gt.odgt", tmp_path / "dt.json"
    records = one_image([mask(*A)], [(B, 0.9)])
    gt.write_text(json.dumps(records[0][0]))
    dt.write_text(json.dumps(records[1][0]))
    main(["--gt", str(gt), "--dt", str(dt), "--workers", "1", "--json", str(tmp_path / "out.json")])
    assert json.loads((tmp_path / "out.json").read_text())["AP"] is None
    assert f"{gt} holds no person whose fbox counts: AP, MR-2 and recall are undefined" in warnings(caplog)


@pytest.mark.parametrize("workers", ["0", "-3"])
def test_command_refuses_a_number_of_workers_that_cannot_be(capsys, workers):
    with pytest.raises(SystemExit) as end:
        main(["--gt", "x", "--dt", "y", "--workers", workers])
    assert end.value.code == 2 and f"--workers is {workers}, must be at least 1" in capsys.readouterr().err


def test_command_finds_that_it_cannot_write_before_it_works(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("paq_detr.evaluation.crowd.cli.evaluate_files", lambda *_: pytest.fail("works"))
    for path in (tmp_path / "none" / "out.json", tmp_path):
        with pytest.raises(SystemExit) as end:
            main(["--gt", "x", "--dt", "y", "--json", str(path)])
        assert end.value.code == 2 and str(path) in capsys.readouterr().err
    (tmp_path / "kept.json").write_text("{}")
    for name in ("new.json", "kept.json"):
        monkeypatch.setattr("paq_detr.evaluation.crowd.cli.evaluate_files", interrupt)
        with pytest.raises(SystemExit) as end:
            main(["--gt", "x", "--dt", "y", "--json", str(tmp_path / name)])
        assert end.value.code == 130 and capsys.readouterr().err == "stopped\n"
    assert [path.name for path in tmp_path.iterdir()] == ["kept.json"]


def interrupt(*_):
    raise KeyboardInterrupt


def test_command_ends_with_one_sentence_on_bad_input(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--gt", str(tmp_path / "none.odgt"), "--dt", str(tmp_path / "none.json")])
    assert end.value.code == 2
    assert capsys.readouterr().err.count(": cannot read") == 1
