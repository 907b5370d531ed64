# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Annotation files, detections, configs and pictures changed at random: read, or one ``ValueError`` without a line
break; nothing else, and never more than 1 GiB.

PAQ_DETR_FUZZ sets the number of inputs of each kind (default 300).
"""

import copy
import io
import json
import os
import random

import numpy as np
import pytest
import yaml
from detectron2.config import get_cfg
from PIL import Image

from paq_detr import add_paq_detr_config
from paq_detr.data import read_image
from paq_detr.data.coco_file import read_coco
from paq_detr.data.image_file import image_size
from paq_detr.data.json_columns import boxes_xyxy_of
from paq_detr.data.odgt import BOX_KINDS, read_odgt, size_of, tag_of
from paq_detr.engine.checks import check_values
from paq_detr.engine.merge import merge_file
from paq_detr.evaluation.crowd.doubts import Noted
from paq_detr.evaluation.crowd.files import Annotations, open_detections

from .conftest import CONTENT
from .crowdhuman_scene import scene

INPUTS = int(os.environ.get("PAQ_DETR_FUZZ", 300))
VALUES = [None, True, False, 0, -1, 1, 2, 7, 90, 1e308, -0.5, float("nan"), float("inf"), 10**400, "", " ", "0", "1",
          "nan", "1e999", "\ud800", "a\0b", "../..", [], [1], [1, 2, 3, 4], [[1, 2, 3, 4]], ["1", "2", "3", "4"], {},
          {"id": 1}, {"1": {"id": 1}}, "x" * 10_000]  # fmt: skip


def places(content, found):
    """Every (container, key) of nested lists and objects."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        found.append((content, key))
        places(value, found)
    return found


def mutated(content, chance):
    content = copy.deepcopy(content)
    for _ in range(chance.randint(1, 3)):
        container, key = chance.choice(places(content, []) or [(content, None)])
        if key is None:
            break
        if chance.random() < 0.2:
            del container[key]
        elif isinstance(container, list) and chance.random() < 0.2:
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = copy.deepcopy(chance.choice(VALUES))
    return content


def damaged(data, chance):
    """The bytes with some of them changed, cut off or doubled."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        place = chance.randrange(len(data))
        kind = chance.random()
        if kind < 0.6:
            data[place] = chance.randrange(256)
        elif kind < 0.75:
            del data[place:]
        else:
            data[place:place] = data[place : place + chance.randint(1, 40)]
        data = data or bytearray(b"\0")
    return bytes(data)


@pytest.fixture(autouse=True)
def little_memory():
    """The most memory that the process holds at a time grows by less than 1 GiB; Linux tells it."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forgets the peak so far
    except OSError:
        yield
        return
    before = kibibytes("VmRSS")
    yield
    assert kibibytes("VmHWM") - before < 2**20


def kibibytes(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(key))


def read_or_one_sentence(read):
    try:
        read()
    except ValueError as error:
        assert str(error) and "\n" not in str(error)


@pytest.mark.parametrize("in_bytes", [False, True], ids=["values", "bytes"])
def test_coco_files(tmp_path, in_bytes):
    chance, path = random.Random(1), tmp_path / "x.json"
    for _ in range(INPUTS):
        text = json.dumps(CONTENT if in_bytes else mutated(CONTENT, chance)).encode()
        path.write_bytes(damaged(text, chance) if in_bytes else text)
        read_or_one_sentence(lambda: read_coco(str(path)))


@pytest.mark.parametrize("in_bytes", [False, True], ids=["values", "bytes"])
def test_odgt_files(tmp_path, in_bytes):
    chance, path = random.Random(2), tmp_path / "x.odgt"

    def read():
        for where, record in read_odgt(str(path)):
            size_of(record, where)
            for kind in BOX_KINDS.values():
                boxes_xyxy_of(record["gtboxes"], kind, where)
                for box in record["gtboxes"]:
                    tag_of(box, kind, where)

    for _ in range(INPUTS):
        records = scene() if in_bytes else mutated(scene(), chance)
        text = "\n".join(map(json.dumps, records)).encode()
        path.write_bytes(damaged(text, chance) if in_bytes else text)
        read_or_one_sentence(read)


DUMP = [
    {"ID": r["ID"], "height": 300, "width": 400, "gtboxes": [{"box": [1, 2, 3, 4], "tag": 1}],
     "dtboxes": [{"box": [1.5, 2, 30, 40], "score": 0.9, "tag": 1}, {"box": [5, 6, 7, 8], "score": 0.1}]}
    for r in scene()
]  # fmt: skip
RESULTS = [{"image_id": r["ID"], "category_id": 1, **d, "bbox": d["box"]} for r in DUMP for d in r["dtboxes"]]


@pytest.mark.parametrize("form", [DUMP, RESULTS], ids=["dump", "results"])
@pytest.mark.parametrize("in_bytes", [False, True], ids=["values", "bytes"])
def test_detections(tmp_path, in_bytes, form):
    chance, path, truth = random.Random(4), tmp_path / "x.json", tmp_path / "truth.odgt"
    truth.write_text("\n".join(map(json.dumps, scene())))
    annotations = Annotations(str(truth))

    def read():
        file = open_detections(str(path), annotations)
        for piece in file.pieces(2):
            list(file.images(piece, Noted()))

    for _ in range(INPUTS):
        rows = form if in_bytes else mutated(form, chance)
        text = (json.dumps(rows) if form is RESULTS else "\n".join(map(json.dumps, rows))).encode()
        path.write_bytes(damaged(text, chance) if in_bytes else text)
        read_or_one_sentence(read)


YAML = {
    "VERSION": 2,
    "OUTPUT_DIR": "out",
    "MODEL": {"WEIGHTS": "", "PIXEL_MEAN": [1.0, 2.0, 3.0], "DETR": {"CODEC": "logit", "QUERIES": {"NUM": 20}}},
    "DATASETS": {"TRAIN": ["a"], "TEST": [], "COCO_JSON": [["a", "b", "c"]], "SYNTHETIC_CROWD": {"DENSITY": 3.0}},
    "INPUT": {"MIN_SIZE_TRAIN": [64, 72], "FORMAT": "RGB"},
    "SOLVER": {"BASE_LR": 1e-4, "STEPS": [3], "AMP": {"ENABLED": True}},
}


@pytest.mark.parametrize("in_bytes", [False, True], ids=["values", "bytes"])
def test_configs(tmp_path, in_bytes):
    chance, path, default = random.Random(5), tmp_path / "x.yaml", get_cfg()
    add_paq_detr_config(default)
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 5}")
    content = {"_BASE_": str(tmp_path / "base.yaml"), **YAML}

    def read():
        cfg = default.clone()
        merge_file(cfg, str(path))
        check_values(cfg)

    for _ in range(INPUTS // 3):
        text = yaml.safe_dump(content if in_bytes else mutated(content, chance)).encode()
        path.write_bytes(damaged(text, chance) if in_bytes else text)
        read_or_one_sentence(read)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["png", "jpeg", "bmp", "gif", "tiff", "ppm", "webp", "png16", "tifff"])
def test_pictures(tmp_path, kind):
    chance, path, file = random.Random(3), tmp_path / "x", io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    deep = {"png16": (pixels[..., 0].astype(np.uint16) * 9, "png"), "tifff": (pixels[..., 0] / 255, "tiff")}
    array, name = deep.get(kind, (pixels, kind))
    Image.fromarray(array.astype(np.float32) if kind == "tifff" else array).save(file, name)
    for _ in range(INPUTS // 3):
        path.write_bytes(damaged(file.getvalue(), chance))
        read_or_one_sentence(lambda: image_size(str(path)))
        read_or_one_sentence(lambda: read_image(str(path), "RGB"))
