# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""paq_detr.Detector: whatever form a picture comes in, whoever calls, and in whatever form results are wanted."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.structures import Boxes, Instances
from PIL import Image
from pycocotools.coco import COCO

from paq_detr import Detector, load_config
from paq_detr.engine import UserError

from .conftest import NAMES, picture


def alike(result, other):
    return (
        len(result) == len(other) > 0
        and np.allclose(result.boxes, other.boxes, atol=1e-3)
        and np.allclose(result.scores, other.scores, atol=1e-5)
        and result.names == other.names
    )


@pytest.fixture(scope="module")
def expected(detector):
    return detector.predict(picture(), threshold=0.0)


RGB = picture()
FORMS = {
    "a tensor": torch.from_numpy(RGB).permute(2, 0, 1),
    "a tensor with its channels last": torch.from_numpy(RGB),
    "a PIL image": Image.fromarray(RGB),
    "with alpha": np.dstack([RGB, RGB[..., 0]]),
    "16 bits": RGB.astype(np.uint16) * 257,
    "64 bits": RGB.astype(np.int64),
    "floats": RGB.astype(np.float32),
    "fractions": RGB / 255,
    "half of a bfloat": torch.from_numpy(RGB).bfloat16(),
    "not contiguous": np.asfortranarray(RGB),
    "read-only": np.frombuffer(RGB.tobytes(), np.uint8).reshape(RGB.shape),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_picture_in_any_form_gives_the_same_detections(detector, expected, form):
    assert alike(detector.predict(FORMS[form], threshold=0.0), expected)


def test_bgr_is_told_apart_from_rgb(detector, expected):
    backwards = np.ascontiguousarray(RGB[..., ::-1])
    assert alike(detector.predict(backwards, threshold=0.0, channels="BGR"), expected)
    assert not alike(detector.predict(backwards, threshold=0.0), expected)


def test_grey_is_rgb_of_equal_channels_and_true_is_white(detector):
    grey = RGB[..., 0]
    want = detector.predict(np.dstack([grey] * 3), threshold=0.0)
    for form in (grey, grey[..., None], np.dstack([grey, grey]), Image.fromarray(grey), torch.from_numpy(grey)):
        assert alike(detector.predict(form, threshold=0.0), want)
    assert np.array_equal(detector.predict(grey > 99).image, np.dstack([(grey > 99) * np.uint8(255)] * 3))


@pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (3000, 2), (1, 1, 3)])
def test_a_picture_of_any_size_is_taken(detector, shape):
    result = detector.predict(np.zeros(shape, np.uint8), threshold=0.0)
    height, width = shape[:2]
    assert result.size == (height, width) and np.isfinite(result.boxes).all()
    assert (result.boxes >= 0).all() and (result.boxes <= [width, height, width, height]).all()
    assert result.draw().size == (width, height)


@pytest.mark.parametrize(
    "image, message",
    [
        (None, "The image is None, must be .*cv2.imread"),
        ([RGB, None], "The image 1 is None"),
        ("nowhere.jpg", "The image nowhere.jpg cannot be read: No such file"),
        (b"bytes", "is a bytes, must be a path"),
        (7, "is a int, must be a path"),
        (np.array(["a"]), "holds <U1, no numbers"),
        (np.zeros((4, 4), complex), "holds complex128, no numbers"),
        (np.zeros(5), r"has the shape \(5,\), must be"),
        (np.zeros((3, 40, 50)), r"has the shape \(3, 40, 50\), as if its channels stood first"),
        (np.zeros((2, 40, 50, 3)), "as if it were a batch .hand over a list"),
        (np.zeros((0, 5, 3)), "has no pixels"),
        (np.full((5, 5), np.nan), "holds values that are NaN"),
    ],
)
def test_what_is_no_picture_is_one_sentence(detector, image, message):
    with pytest.raises(UserError, match=message) as caught:
        detector.predict(image)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"threshold": 1.5}, r"The threshold is 1.5, must be a number from 0 to 1, or auto\.$"),
        ({"threshold": 40}, r"The threshold is 40, must be a number from 0 to 1, or auto \(did you mean 0.4\?\)\."),
        ({"threshold": -0.1}, "The threshold is -0.1, must be"),
        ({"threshold": float("nan")}, "The threshold is nan"),
        ({"threshold": "half"}, "The threshold is half"),
        ({"threshold": "auto"}, "No threshold is stored in .*paq-detr eval"),
        ({"classes": ["dgo"]}, r"There is no class dgo \(did you mean dog\?\); the model's are cat, dog, guide dog"),
        ({"tile": 3}, "tile is 3, must be at least 16"),
        ({"tile": 64, "overlap": 1.0}, "overlap is 1.0, must be in"),
        ({"batch": 0}, "batch is 0"),
        ({"channels": "rgb"}, "channels is"),
    ],
)
def test_wrong_options_are_one_sentence(detector, options, message):
    with pytest.raises(UserError, match=message) as caught:
        detector.predict(RGB, **options)
    assert "\n" not in str(caught.value)


def test_threshold_and_classes_choose_among_the_detections(detector, expected):
    middle = float(np.median(expected.scores))
    chosen = detector.predict(RGB, threshold=middle, classes=["dog", "guide dog"])
    keep = (expected.scores >= middle) & np.isin(expected.classes, [1, 2])
    assert 0 < keep.sum() < len(expected) and np.array_equal(chosen.boxes, expected.boxes[keep])
    assert set(chosen.names) <= {"dog", "guide dog"} and chosen.names == [NAMES[c] for c in chosen.classes]


def test_auto_takes_what_evaluation_stored_with_the_weights(run_folder, detector, tmp_path):
    folder = run_folder / "inference" / "synthetic_crowd_val"
    folder.mkdir(parents=True)
    try:
        (folder / "f1_threshold.json").write_text('{"threshold": 0.55, "metric": "F1 at IoU 0.5", "value": 0.8}')
        result = detector.predict(RGB, threshold="auto")
        assert len(result) and result.scores.min() >= 0.55
        assert detector.threshold("auto") == (0.55, "best F1 at IoU 0.5 on synthetic_crowd_val, 0.800")
    finally:
        (folder / "f1_threshold.json").unlink()


def test_pictures_of_other_sizes_in_one_batch_or_one_by_one(detector, pictures):
    files = [pictures / "a.png", pictures / "b.jpg", RGB]
    one_by_one = detector.predict(files, threshold=0.0)
    assert [result.size for result in one_by_one] == [(64, 80), (48, 100), (64, 80)]
    assert [result.path for result in one_by_one] == [str(pictures / "a.png"), str(pictures / "b.jpg"), ""]
    assert np.array_equal(one_by_one[0].image, picture(1))  # read again
    batched = detector.predict(files, threshold=0.0, batch=3)  # a ResNet sees the padding of the second a little
    assert [result.size for result in batched] == [(64, 80), (48, 100), (64, 80)]
    files = [files[0], files[2], files[0]]
    assert all(map(alike, detector.predict(files, threshold=0.0, batch=2), [one_by_one[i] for i in (0, 2, 0)]))
    assert detector.predict([]) == []


def test_detectron2s_predictor_gives_the_same(run_folder, expected):
    cfg = load_config(run_folder, {"MODEL.DETR.CLASS_NAMES": [], "DATASETS.TRAIN": [], "DATASETS.TEST": []})
    cfg.MODEL.DETR.CLASS_NAMES = NAMES
    found = DefaultPredictor(cfg)(RGB[..., ::-1])["instances"]
    assert np.allclose(found.pred_boxes.tensor.numpy(), expected.boxes, atol=1e-3)
    assert np.allclose(found.scores.numpy(), expected.scores, atol=1e-5)


def test_threads_share_a_detector(detector):
    images = [picture(seed) for seed in range(8)]
    alone = [detector.predict(image, threshold=0.0) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: detector.predict(image, threshold=0.0), images))
    assert all(map(alike, together, alone))


def test_a_forked_process_may_use_it(detector, expected):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def child():
        result = detector.predict(RGB, threshold=0.0)
        queue.put((result.boxes, result.scores, torch.get_num_threads()))

    process = context.Process(target=child)
    process.start()
    boxes, scores, threads = queue.get(timeout=60)
    process.join()
    assert np.allclose(boxes, expected.boxes) and np.allclose(scores, expected.scores) and threads == 1


def test_a_fork_of_a_process_that_uses_the_gpu_is_told_so(detector, monkeypatch):
    monkeypatch.setattr(torch.cuda, "_is_in_bad_fork", lambda: True)
    monkeypatch.setattr(detector, "cfg", detector.cfg.clone())
    detector.cfg.MODEL.DEVICE = "cuda"
    with pytest.raises(UserError, match="forked from one that uses the GPU"):
        detector.predict(RGB)


# ---- results ----


def found(boxes, scores, classes, size=(60, 80), **fields):
    instances = Instances(size)
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor(scores, dtype=torch.float32)
    instances.pred_classes = torch.tensor(classes, dtype=torch.int64)
    for name, value in fields.items():
        instances.set(name, value)
    return instances


def test_tiles_find_what_the_whole_picture_holds(detector, monkeypatch):
    """Squares of a shade each; the model's stand-in finds the box of every shade that it sees."""
    image, truth = np.zeros((300, 400, 3), np.uint8), {}
    random = np.random.RandomState(0)
    for shade, place in enumerate(np.ndindex(6, 8), start=10):
        y, x = np.array(place) * 50 + random.randint(0, 20, 2)
        image[y : y + 28, x : x + 24] = shade
        truth[shade] = (x, y, x + 24, y + 28)

    def forward(views, lowest):
        seen = []
        for view in views:
            shades = [s for s in np.unique(view) if s]
            spots = [np.argwhere(view[..., 0] == s) for s in shades]
            boxes = [[*spot.min(0)[::-1], *(spot.max(0)[::-1] + 1)] for spot in spots]
            scores = [len(spot) / 1000 + s / 10000 for s, spot in zip(shades, spots)]
            seen.append(found(boxes, scores, [0] * len(boxes), view.shape[:2]))
        return seen

    monkeypatch.setattr(detector, "_forward", forward)
    result = detector.predict(image, threshold=0.0, tile=100, overlap=0.4, batch=4)
    assert result.size == (300, 400) and (np.diff(result.scores) <= 0).all()
    assert sorted(map(tuple, result.boxes.tolist())) == sorted(truth.values())
    assert alike(detector.predict(image, threshold=0.0, tile=1000), detector.predict(image, threshold=0.0))


def test_tiles_say_that_they_have_no_masks(detector, monkeypatch):
    def forward(views, lowest):
        return [found([(0, 0, 5, 5)], [0.9], [0], v.shape[:2], pred_masks=torch.zeros(1, *v.shape[:2])) for v in views]

    monkeypatch.setattr(detector, "_forward", forward)
    with pytest.warns(UserWarning, match="tiles have no masks yet"):
        assert detector.predict(np.zeros((60, 80), np.uint8), tile=40).masks is None


@pytest.fixture
def result(detector, monkeypatch):
    boxes, masks = [(4.5, 5, 20, 30.25), (0, 0, 10, 10)], torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 5:30, 5:20] = True
    instances = found(boxes, [0.9, 0.4567891], [1, 2], pred_masks=masks)
    monkeypatch.setattr(detector, "_forward", lambda views, lowest: [instances])
    return detector.predict(np.zeros((60, 80), np.uint8))


def test_results_tell_names_and_coco_reads_them(result, tmp_path):
    assert result.names == ["dog", "guide dog"] and repr(result) == "image (80 x 60): 1 dog, 1 guide dog"
    rows = result.to_coco(image_id=7)
    assert [(r["image_id"], r["category_id"], r["bbox"], r["score"]) for r in rows] == [
        (7, 2, [4.5, 5, 15.5, 25.25], 0.9),
        (7, 3, [0, 0, 10, 10], 0.456789),
    ]
    assert [row["category_id"] for row in result.to_coco(category_ids=[18, 90, 3])] == [90, 3]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 7, "height": 60, "width": 80}],
        "categories": [{"id": i} for i in (1, 2, 3)],
        "annotations": [],
    }
    truth.createIndex()
    read = truth.loadRes(rows)
    assert result.masks.sum() == 25 * 15 and result.masks.dtype == bool
    assert read.annToMask(read.anns[1]).sum() == 25 * 15 and read.annToMask(read.anns[2]).sum() == 0


def test_supervision_reads_a_result_as_detectron2s(result):
    """What supervision.Detections.from_detectron2 does."""
    instances = result["instances"]
    read = SimpleNamespace(
        xyxy=instances.pred_boxes.tensor.cpu().numpy(),
        confidence=instances.scores.cpu().numpy(),
        mask=instances.pred_masks.cpu().numpy() if hasattr(instances, "pred_masks") else None,
        class_id=instances.pred_classes.cpu().numpy().astype(int),
    )
    assert np.array_equal(read.xyxy, result.boxes) and read.mask.shape == (2, 60, 80)
    assert read.class_id.tolist() == [1, 2] and read.confidence.dtype == np.float32
    with pytest.raises(KeyError):
        result["boxes"]


def test_masks_are_drawn_in_the_colour_of_their_class(result):
    drawn = np.asarray(result.draw(labels="off"))
    assert (drawn[15, 12] > 0).any() and not drawn[45, 60].any() and not result.image.any()


def test_a_detector_comes_from_weights_alone_and_takes_changes(run_folder, tmp_path, expected):
    weights = tmp_path / "alone.pth"
    weights.write_bytes((run_folder / "model_final.pth").read_bytes())
    detector = Detector(weights, device="cpu", opts={"TEST.DETECTIONS_PER_IMAGE": 5})
    assert detector.class_names == tuple(NAMES)
    few = detector.predict(RGB, threshold=0.0)
    assert len(few) == 5 and np.allclose(few.scores, expected.scores[:5], atol=1e-5)
