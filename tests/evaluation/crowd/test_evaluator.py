# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import math

import numpy as np
import pytest
from detectron2.config import get_cfg

from paq_detr import add_paq_detr_config
from paq_detr.evaluation import CocoBoxEvaluator, CrowdHumanEvaluator, QueryUseEvaluator, build_evaluator
from paq_detr.evaluation.crowd.cli import evaluate_files

from ..scenes import feed, instances
from . import reference

METRICS = ("AP", "MR", "JI", "Recall")


def crowd(seed=5):
    """A random crowd as a dataset's images, as predictions and as odgt records of the size that ``feed`` has."""
    annotations, dump = reference.random_scene(seed, size=(200, 300))
    by_id = {record["ID"]: record for record in dump}
    images, predictions = [], {}
    for record in annotations:
        objects = [(0, corners(b["fbox"]), reference.tag(b, "fbox") == -1) for b in record["gtboxes"]]
        images.append((record["ID"], objects))
        found = by_id[record["ID"]]["dtboxes"]
        predictions[record["ID"]] = instances([corners(d["box"]) for d in found], [d["score"] for d in found])
    return images, predictions, annotations, dump


def corners(box):
    return [float(v) for v in reference.corners(box)]


@pytest.mark.parametrize("protocol", ["crowddet", "dh"])
def test_evaluator_gives_the_numbers_of_the_loops(register_dataset, protocol):
    images, predictions, annotations, dump = crowd()
    result = feed(CrowdHumanEvaluator(register_dataset(images), protocol=protocol), predictions)["crowd"]
    expected = reference.evaluate(annotations, dump, protocol=protocol)
    assert {m: result[m] for m in METRICS} == pytest.approx({m: 100 * expected[m] for m in METRICS}, abs=1e-7)
    assert result["JI_threshold"] == expected["JI_threshold"]


def test_written_detections_give_the_same_numbers_by_the_command(register_dataset, tmp_path):
    images, predictions, annotations, _ = crowd()
    result = feed(CrowdHumanEvaluator(register_dataset(images), str(tmp_path)), predictions)["crowd"]
    gt = tmp_path / "gt.odgt"
    gt.write_text("".join(json.dumps(record) + "\n" for record in annotations))
    again = evaluate_files(str(gt), str(tmp_path / "crowd_detections.json"), workers=1)
    assert {m: 100 * again[m] for m in METRICS} == {m: result[m] for m in METRICS}
    written = json.loads((tmp_path / "crowd_metrics.json").read_text())
    assert written["protocol"] == "crowddet" and written["classes"]["person"]["AP"] == again["AP"]


def test_classes_are_evaluated_apart_and_averaged_where_they_have_objects(register_dataset, caplog):
    caplog.set_level("INFO")
    a, b = (10, 10, 60, 60), (100, 20, 160, 120)
    images = [(1, [(0, a, 0), (0, b, 0), (1, a, 0), (1, b, 1)])]
    name = register_dataset(images, ("person", "dog", "absent"))
    found = instances([a, b, a, b], [0.9, 0.8, 0.7, 0.95], [0, 0, 1, 1])
    result = feed(CrowdHumanEvaluator(name), {1: found})["crowd"]
    assert (result["AP-person"], result["AP-dog"]) == (50, 0)  # 1 - 1 / persons
    assert math.isnan(result["AP-absent"])
    assert (result["AP"], result["Recall"], result["MR"]) == (25, 100, 0)
    assert "boxes of dog" in caplog.text and "crowdedness of a dog" in caplog.text and "persons" not in caplog.text


def test_a_class_that_is_never_detected_is_not_left_out_of_a_mean(register_dataset, tmp_path, caplog):
    a = (10, 10, 60, 60)
    name = register_dataset([(1, [(0, a, 0), (1, a, 0)])], ("person", "dog", "absent"))
    found = instances([a, a], [0.9, 0.8], [0, 2])
    result = feed(CrowdHumanEvaluator(name, str(tmp_path)), {1: found})["crowd"]
    assert result["Recall"] == 50 and result["MR-person"] == 0
    assert math.isnan(result["MR-dog"]) and math.isnan(result["MR"])
    assert result["JI"] == pytest.approx(50, abs=1e-3)  # of the two classes that have objects
    assert f"no detections of dog on {name}: its MR-2 is NaN, and so is the mean over classes" in caplog.text
    written = (tmp_path / "crowd_metrics.json").read_text()
    assert "NaN" not in written and json.loads(written)["classes"]["dog"]["MR"] is None


def test_float32_scores_do_not_pass_the_threshold_they_stand_for(register_dataset):
    a = (10, 10, 60, 60)
    assert float(np.float32(0.3)) > 0.3
    result = feed(CrowdHumanEvaluator(register_dataset([(1, [(0, a, 0)])])), {1: instances([a], [0.3])})
    assert result["crowd"]["JI_threshold"] == 0 and result["crowd"]["JI"] == pytest.approx(100, abs=1e-3)


def test_split_by_crowdedness_is_among_the_results(register_dataset):
    close = [(0, (10, 10, 50, 110), 0), (0, (20, 10, 60, 110), 0)]  # IoU 0.6 less an epsilon
    apart = [(0, (10, 10, 50, 110), 0), (0, (100, 10, 140, 110), 0)]
    name = register_dataset([(1, close), (2, apart)])
    found = instances([(10, 10, 50, 110), (100, 10, 140, 110)], [0.9, 0.8])
    result = feed(CrowdHumanEvaluator(name), {1: found, 2: found})["crowd"]
    assert (result["Recall-crowded0.5"], result["Recall-crowded0.0"]) == (50, 100)


def test_nan_detections_and_images_without_any_do_not_stop_it(register_dataset, caplog):
    a = (10, 10, 60, 60)
    name = register_dataset([(1, [(0, a, 0)]), (2, [])])
    found = instances([a, a], [0.9, float("nan")])
    result = feed(CrowdHumanEvaluator(name), {1: found, 2: instances([], [])})["crowd"]
    assert result["Recall"] == 100
    assert "1 detections with a NaN" in caplog.text
    assert math.isnan(feed(CrowdHumanEvaluator(name), {1: instances([], [])})["crowd"]["MR"])


def test_a_test_set_without_annotations_gives_a_dump_and_no_metrics(register_dataset, tmp_path, caplog):
    a = (10, 10, 60, 60)
    for name in (register_dataset([(1, None)]), register_dataset([(1, [])], annotated=False)):
        caplog.clear()
        assert feed(CrowdHumanEvaluator(name, str(tmp_path)), {1: instances([a], [0.9])}) == {}
        (line,) = (tmp_path / "crowd_detections.json").read_text().splitlines()
        assert json.loads(line) == {
            "ID": 1, "height": 200, "width": 300, "dtboxes": [{"box": [10, 10, 50, 50], "score": 0.9, "tag": 1}],
        }  # fmt: skip
        assert f"{name} has no annotations" in caplog.text
        assert not (tmp_path / "crowd_metrics.json").exists()


@pytest.mark.parametrize("objects", [[], [(0, (10, 10, 60, 60), 1)]], ids=["nothing", "a region"])
def test_a_set_without_objects_has_nan_with_a_sentence(register_dataset, tmp_path, caplog, objects):
    name = register_dataset([(1, objects), (2, [])])
    result = feed(CrowdHumanEvaluator(name, str(tmp_path)), {1: instances([(100, 20, 160, 120)], [0.9])})["crowd"]
    assert all(math.isnan(result[metric]) for metric in ("AP", "MR", "Recall"))
    assert f"{name} holds no object of the class person: its AP, MR-2 and recall are NaN" in caplog.text
    assert json.loads((tmp_path / "crowd_metrics.json").read_text())["classes"]["person"]["AP"] is None


def test_unknown_protocol_and_image_are_refused(register_dataset):
    name = register_dataset([(1, [])])
    with pytest.raises(ValueError, match='protocol is "iter", must be one of crowddet, dh'):
        CrowdHumanEvaluator(name, protocol="iter")
    with pytest.raises(ValueError, match="image_id 7 "):
        feed(CrowdHumanEvaluator(name), {7: instances([], [])})


def test_config_chooses_the_evaluators(register_dataset, tmp_path):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.TEST.CROWD.ENABLED, cfg.TEST.CROWD.PROTOCOL = True, "dh"
    cfg.TEST.QUERY_USE.ENABLED = True
    name = register_dataset([(1, [(0, (10, 10, 60, 60), 0)])])
    evaluators = build_evaluator(cfg, name, str(tmp_path))
    kinds = [type(evaluator) for evaluator in evaluators._evaluators]
    assert kinds == [CocoBoxEvaluator, QueryUseEvaluator, CrowdHumanEvaluator]
    found = instances([(10, 10, 60, 60)], [0.9], query_indices=[3])
    results = feed(evaluators, {1: found})
    assert list(results) == ["bbox", "query_use", "crowd"]
    written = json.loads((tmp_path / "crowd_metrics.json").read_text())
    assert written["protocol"] == "dh"
    assert results["query_use"]["active_slots@0.3"] == 1


def test_config_folder_is_the_dataset_s_own_and_query_use_counts_the_slots_of_the_test(register_dataset, tmp_path):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.OUTPUT_DIR, cfg.TEST.QUERY_USE.ENABLED, cfg.MODEL.DETR.QUERIES.NUM_TEST = str(tmp_path), True, 7
    name = register_dataset([(1, [])])
    feed(build_evaluator(cfg, name), {1: instances([(10, 10, 60, 60)], [0.9], query_indices=[3])})
    folder = tmp_path / "inference" / name
    assert len((folder / "query_use.csv").read_text().splitlines()) == 1 + 7
    assert (folder / "coco_instances_results.json").exists() and not (folder / "crowd_metrics.json").exists()
