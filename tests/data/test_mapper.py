# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import pickle
import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, build_detection_test_loader, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as rle

from paq_detr.data import DetrDatasetMapper, SyntheticCrowd, read_image, register_datasets
from paq_detr.data.mapper import ResizeShortSide


def mapper(*augmentations, num_classes=3, **arguments):
    return DetrDatasetMapper(
        augmentations=augmentations, image_format="RGB", num_classes=num_classes, **{"is_train": True, **arguments}
    )


@pytest.fixture
def record(tmp_path):
    """A 30 x 40 image with two objects, of which one reaches outside, and an ignore region."""
    pixels = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    boxes = ([1, 2, 10, 12], 2, 0), ([30, 20, 15, 20], 0, 0), ([0, 0, 40, 4], 1, 1)
    return {
        "file_name": str(tmp_path / "a.png"), "image_id": 5, "height": 30, "width": 40,
        "annotations": [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": category, "iscrowd": crowd}
            for box, category, crowd in boxes
        ],
    }  # fmt: skip


def test_the_result_is_what_the_detector_reads(record):
    result = mapper()(record)
    assert result["image"].shape == (3, 30, 40) and result["image"].dtype == torch.uint8
    assert (result["file_name"], result["image_id"], result["height"], result["width"]) == (
        record["file_name"],
        5,
        30,
        40,
    )
    instances = result["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[1, 2, 11, 14], [30, 20, 40, 30], [0, 0, 40, 4]]  # clipped
    assert instances.gt_classes.tolist() == [2, 0, 1] and instances.gt_classes.dtype == torch.int64
    assert instances.gt_ignore.tolist() == [False, False, True]


def test_the_dataset_dict_is_not_changed(record):
    before = pickle.dumps(record)
    mapper(ResizeShortSide([50]))(record)
    assert pickle.dumps(record) == before


def test_boxes_follow_resize_and_flip(record):
    result = mapper(T.RandomFlip(1.0), ResizeShortSide([60]))(record)
    assert result["image"].shape == (3, 60, 80)
    assert (result["height"], result["width"]) == (30, 40)  # of the image before the resize
    assert result["instances"].gt_boxes.tensor[0].tolist() == [2 * (40 - 11), 4, 2 * (40 - 1), 28]
    assert result["instances"].image_size == (60, 80)


def test_the_crop_branch_is_taken_by_half_of_the_images(record):
    crop = [T.RandomCrop("absolute_range", [10, 12])]
    shapes = [mapper(crop=crop)(record)["image"].shape[1:] for _ in range(200)]
    cropped = [shape for shape in shapes if shape != (30, 40)]
    assert all(10 <= side <= 12 for shape in cropped for side in shape)
    assert 60 < len(cropped) < 140


def test_objects_outside_the_crop_are_dropped_and_the_others_clipped(record):
    for _ in range(50):
        instances = mapper(T.RandomCrop("absolute", [9, 9]))(record)["instances"]
        boxes = instances.gt_boxes.tensor
        assert (boxes >= 0).all() and (boxes <= 9).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert len(instances.gt_classes) == len(instances.gt_ignore) == len(boxes)


def test_a_crop_without_any_object_gives_empty_instances(record):
    record["annotations"] = record["annotations"][:1]
    counts = [len(mapper(T.RandomCrop("absolute", [5, 5]))(record)["instances"]) for _ in range(100)]
    assert 0 in counts and 1 in counts


def test_an_image_without_objects_has_empty_instances(record):
    record["annotations"] = []
    instances = mapper(T.RandomFlip(1.0), ResizeShortSide([60]))(record)["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4)
    assert instances.gt_classes.dtype == torch.int64 and instances.gt_ignore.dtype == torch.bool


def test_at_test_time_there_are_no_instances(record):
    assert "instances" not in mapper(is_train=False)(record)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named_with_its_file(record, label):
    record["annotations"][1]["category_id"] = label
    with pytest.raises(ValueError, match=rf"a.png: label {label} of the box \[30, 20, 15, 20\] is not in 0 .. 2"):
        mapper()(record)


@pytest.mark.parametrize("kept_bytes", [0, 20, 1000])
def test_an_unreadable_or_truncated_image_is_named(record, tmp_path, kept_bytes):
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:kept_bytes])
    with pytest.raises(ValueError, match=re.escape(f"the image {record['file_name']} cannot be read")):
        mapper()(record)


def test_a_missing_image_is_named(record):
    record["file_name"] = "nowhere.png"
    with pytest.raises(ValueError, match=r"the image nowhere.png cannot be read"):
        mapper()(record)


def test_a_size_other_than_the_annotations_is_named(record):
    record["height"] = 31
    with pytest.raises(ValueError, match=r"a.png is 30 x 40 \(height x width\), its annotations say 31 x 40$"):
        mapper()(record)


def test_exchanged_height_and_width_point_to_the_exif_rotation(record):
    record["height"], record["width"] = 40, 30
    with pytest.raises(ValueError, match="annotations say 40 x 30; .* EXIF rotation"):
        mapper()(record)


def test_the_image_format_is_honoured(record):
    rgb, bgr, gray = (read_image(record["file_name"], name) for name in ("RGB", "BGR", "L"))
    assert np.array_equal(rgb[:, :, ::-1], bgr)
    assert gray.shape == (30, 40, 1)
    url = SyntheticCrowd().url("val", 0)
    assert np.array_equal(read_image(url, "RGB")[:, :, ::-1], read_image(url, "BGR"))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4000), (4000, 1), (3, 2)])
@pytest.mark.parametrize("size", [0, 1, 800])
def test_tiny_and_very_long_images_never_crash(tmp_path, shape, size):
    Image.fromarray(np.zeros((*shape, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    record = {"file_name": str(tmp_path / "a.png"), "image_id": 0, "annotations": [
        {"bbox": [0, 0, shape[1], shape[0]], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}]}  # fmt: skip
    result = mapper(ResizeShortSide([size], 1333), crop=[T.RandomCrop("absolute_range", [384, 600])])(record)
    height, width = result["image"].shape[1:]
    assert height >= 1 and width >= 1 and (size == 0 or max(height, width) <= 1333)
    assert result["instances"].gt_boxes.tensor.tolist() == [[0, 0, width, height]]


def test_the_short_side_gets_the_asked_length_unless_the_long_one_grows_too_long():
    resize = ResizeShortSide([100], 150)
    shapes = [resize.get_transform(np.zeros(shape)) for shape in ((50, 60), (60, 50), (10, 30))]
    assert [(t.new_h, t.new_w) for t in shapes] == [(100, 120), (120, 100), (50, 150)]


def test_from_config_builds_detrs_augmentation(cfg):
    register_datasets(cfg)
    cfg.INPUT.CROP.ENABLED = True
    built = DetrDatasetMapper(cfg, True)
    assert [type(a).__name__ for a in built.augmentations.augs] == ["RandomFlip", "ResizeShortSide"]
    assert [type(a).__name__ for a in built.crop.augs] == [
        "ResizeShortSide",
        "RandomCrop",
        "RandomFlip",
        "ResizeShortSide",
    ]
    assert built.num_classes == 4
    test = DetrDatasetMapper(cfg, False)
    assert [type(a).__name__ for a in test.augmentations.augs] == ["ResizeShortSide"] and test.crop is None


def test_a_range_of_sizes_is_honoured(cfg):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (50, 52), "range"
    assert DetrDatasetMapper(cfg, True).augmentations.augs[-1].sizes == (50, 51, 52)


def test_an_unknown_flip_is_named(cfg):
    cfg.INPUT.RANDOM_FLIP = "diagonal"
    with pytest.raises(ValueError, match='INPUT.RANDOM_FLIP is "diagonal", must be one of'):
        DetrDatasetMapper(cfg, True)


def test_synthetic_images_do_not_depend_on_the_workers(cfg):
    cfg.DATASETS.SYNTHETIC_CROWD.NUM_VAL = 6
    register_datasets(cfg)
    batches = []
    for workers in (0, 2):
        loader = build_detection_test_loader(
            DatasetCatalog.get("synthetic_crowd_val"), mapper=DetrDatasetMapper(cfg, False), num_workers=workers
        )
        batches.append([item for batch in loader for item in batch])
    assert [item["image_id"] for item in batches[0]] == list(range(6))
    for alone, shared in zip(*batches, strict=True):
        assert alone["file_name"] == shared["file_name"]
        assert torch.equal(alone["image"], shared["image"])


def test_same_seed_gives_the_same_augmentation(cfg):
    register_datasets(cfg)
    cfg.INPUT.CROP.ENABLED = True
    record = DatasetCatalog.get("synthetic_crowd_train")[0]
    results = []
    for _ in range(2):
        np.random.seed(3)
        results.append(DetrDatasetMapper(cfg, True)(record))
    assert torch.equal(results[0]["image"], results[1]["image"])
    assert torch.equal(results[0]["instances"].gt_boxes.tensor, results[1]["instances"].gt_boxes.tensor)


def test_images_without_objects_reach_the_training_loop(cfg):
    cfg.DATASETS.SYNTHETIC_CROWD.DENSITY = cfg.DATASETS.SYNTHETIC_CROWD.IGNORE = 0.0
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = 2, 0
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    register_datasets(cfg)
    batch = next(iter(build_detection_train_loader(cfg, mapper=DetrDatasetMapper(cfg, True))))
    assert [len(item["instances"]) for item in batch] == [0, 0]


def test_the_mapper_can_be_sent_to_a_worker(cfg):
    register_datasets(cfg)
    assert pickle.loads(pickle.dumps(DetrDatasetMapper(cfg, True))).num_classes == 4


# ---- masks ----


def run_lengths(mask):
    return rle.encode(np.asfortranarray(mask, dtype=np.uint8))


@pytest.fixture
def masked(record):
    """The record with a polygon, uncompressed and compressed run lengths, and a crowd without a mask."""
    rows, columns = np.mgrid[:30, :40]
    blob = (rows - 24) ** 2 + (columns - 35) ** 2 < 30
    flat = blob.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    first, second, crowd = record["annotations"]
    first["segmentation"] = [[1.0, 2, 11, 2, 11, 14, 1, 14]]
    second["segmentation"] = {"size": [30, 40], "counts": counts}
    compressed = {"size": [30, 40], "counts": run_lengths(blob)["counts"].decode()}
    record["annotations"] = [first, second, crowd, {**second, "segmentation": compressed}]
    square = np.zeros((30, 40), dtype=bool)
    square[2:14, 1:11] = True
    record["dense"] = [square, blob, np.zeros_like(blob), blob]
    return record


def test_masks_are_asked_for_or_not_read(masked):
    masked["annotations"][0]["segmentation"] = "broken"
    assert not mapper()(masked)["instances"].has("gt_masks")


def test_masks_of_both_forms_are_the_dense_ones(masked):
    masks = mapper(masks=True)(masked)["instances"].gt_masks
    assert masks.dense().numpy().tolist() == np.array(masked["dense"]).tolist()


@pytest.mark.parametrize(
    "augmentations",
    [[T.RandomFlip(1.0)], [T.RandomFlip(1.0, horizontal=False, vertical=True)], [ResizeShortSide([60])],
     [ResizeShortSide([47])], [T.RandomCrop("absolute", [20, 25])],
     [ResizeShortSide([45]), T.RandomCrop("absolute", [30, 30]), T.RandomFlip(1.0), ResizeShortSide([41])]],
    ids=["horizontal", "vertical", "twice", "odd", "crop", "all"],
)  # fmt: skip
def test_masks_follow_the_image(masked, augmentations):
    """The picture shows the second object's mask; polygons are drawn anew, so their edge may move by a pixel."""
    pixels = np.stack([mask * 255 for mask in masked["dense"][:2]] + [np.zeros((30, 40))], -1).astype(np.uint8)
    Image.fromarray(pixels).save(masked["file_name"])
    for seed in range(5):
        np.random.seed(seed)
        result = mapper(*augmentations, masks=True)(masked)
        instances = result["instances"]
        shown = result["image"][:2] >= 128
        dense = instances.gt_masks.dense()
        assert dense.shape[0] == len(instances)
        by_class = dict(zip(instances.gt_classes.tolist(), dense))
        for channel, label in ((0, 2), (1, 0)):
            mask = by_class.get(label, torch.zeros_like(shown[0]))
            inner = torch.nn.functional.max_pool2d((~shown[channel]).float()[None], 3, 1, 1)[0] == 0
            outer = torch.nn.functional.max_pool2d(shown[channel].float()[None], 3, 1, 1)[0] == 1
            assert not (inner & ~mask).any() and not (mask & ~outer).any()


def test_an_object_whose_mask_has_left_the_crop_keeps_its_box(masked):
    """Boxes are the same with masks and without; the object has no mask loss."""
    masked["annotations"] = masked["annotations"][1:2]
    masked["annotations"][0]["bbox"] = [5, 5, 33, 25]
    for seed in range(40):
        np.random.seed(seed)
        instances = mapper(T.RandomCrop("absolute", [12, 12]), masks=True)(masked)["instances"]
        if len(instances) and not instances.gt_masks.present.any():
            return
    raise AssertionError("no crop left the mask out")


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "is None, must be a list of polygons"),
        ([[1.0, 2, 3, 4]], "4 numbers, must be x, y of three corners"),
        ({"size": [30, 41], "counts": [30 * 41]}, r"is 30 x 41 \(height x width\), its image is 30 x 40"),
        ({"size": [30, 40], "counts": [7]}, "add up to 7 pixels of 30 x 40"),
    ],
)
def test_a_segmentation_that_is_missing_or_unsound_is_named_with_its_file(masked, segmentation, message):
    masked["annotations"][1]["segmentation"] = segmentation
    with pytest.raises(ValueError, match=rf"a.png: the segmentation of the box \[30, 20, 15, 20\] .*{message}"):
        mapper(masks=True)(masked)


def test_segmentations_of_some_objects_are_read_for_copy_paste_alone(cfg, content, save):
    content["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 14]]
    content["annotations"][1]["segmentation"] = [[1, 2, 3]]  # unsound
    path, root = save(content)
    cfg.DATASETS.COCO_JSON, cfg.DATASETS.TRAIN = [["partly", path, root]], ["partly"]
    cfg.INPUT.AUGMENT, cfg.INPUT.COPY_PASTE.PROB = ["copy_paste"], 1.0
    register_datasets(cfg)
    dicts = DatasetCatalog.get("partly")
    assert ["segmentation" in a for a in dicts[0]["annotations"]] == [True, False, False]
    built = DetrDatasetMapper(cfg, True)
    built.others = dicts
    assert not built(dicts[1])["instances"].has("gt_masks")
    cfg.MODEL.DETR.MASK.ENABLED = True
    with pytest.raises(ValueError, match="3 numbers, must be x, y of three corners"):
        register_datasets(cfg)
