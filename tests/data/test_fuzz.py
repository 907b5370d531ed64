# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Annotation files, detections, configs and pictures changed at random: read, or one ``ValueError`` without a line
break; nothing else, no hang, and never more than 1 GiB.

PAQ_DETR_FUZZ sets the number of inputs of each kind (default 100, some 1,400 in all); slow/test_fuzz.py takes more.
"""

import copy
import functools
import io
import json
import logging
import os
import random
import signal
from argparse import Namespace

import numpy as np
import pytest
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tqdm import tqdm

from paq_detr import add_paq_detr_config
from paq_detr.data import check_pictures, read_image, register_coco_json
from paq_detr.data.crowdhuman import CrowdHumanDataset
from paq_detr.data.image_file import image_size
from paq_detr.data.odgt import BOX_KINDS
from paq_detr.engine import setup_config
from paq_detr.engine.merge import keys
from paq_detr.evaluation.coco_truth import GroundTruth
from paq_detr.evaluation.crowd.cli import evaluate_files
from paq_detr.evaluation.crowd.files import Annotations

from .conftest import CONTENT
from .crowdhuman_scene import HEIGHT, WIDTH, scene

INPUTS = int(os.environ.get("PAQ_DETR_FUZZ", 100))
SECONDS = 20  # of the processor for one input; most need a thousandth of one
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


class Hang(BaseException):
    """No ``Exception``, which the code under test may turn into its sentence."""


def hang(*_):
    raise Hang(f"one input takes more than {SECONDS} s")


@pytest.fixture(autouse=True)
def little_time():
    """An input that needs more of the processor's time, however busy the machine is, is a fault."""
    before = signal.signal(signal.SIGPROF, hang)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


@pytest.fixture(autouse=True)
def quiet():
    """What is said of thousands of files fills the memory."""
    logger = logging.getLogger("paq_detr")
    before = logger.handlers[:], logger.propagate
    logging.disable()
    yield
    logging.disable(logging.NOTSET)
    logger.handlers[:], logger.propagate = before


class Tally:
    """Counts what was read and what was refused, so that a reader that refuses all, or nothing, is found."""

    def __init__(self):
        self.read = self.refused = 0

    def read_or_one_sentence(self, read, *args, **options):
        """The first input is an unchanged one, which must be read."""
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            read(*args, **options)
            self.read += 1
        except ValueError as error:
            assert self.read and str(error) and "\n" not in str(error)
            self.refused += 1


@pytest.fixture
def tally():
    tally = Tally()
    yield tally
    assert tally.read and tally.refused


@pytest.fixture
def images(tmp_path):
    """A folder with the pictures of ``CONTENT`` and of ``scene``."""
    folder = tmp_path / "images"
    folder.mkdir()
    for image in CONTENT["images"]:
        Image.new("L", (image["width"], image["height"])).save(folder / image["file_name"])
    for record in scene():
        Image.new("L", (WIDTH, HEIGHT)).save(folder / f"{record['ID']}.jpg")
    return str(folder)


def test_the_limits_are_kept():
    """The fixtures above would tell."""
    with pytest.raises(Hang):
        signal.setitimer(signal.ITIMER_PROF, 0.05)
        while True:
            pass
    faults = (ValueError(""), ValueError("two\nlines"), TypeError("no sentence"))
    for unchanged, fault in ((True, ValueError("refused")), *((False, fault) for fault in faults)):
        tally = Tally()
        tally.read += not unchanged
        with pytest.raises((AssertionError, TypeError)):
            tally.read_or_one_sentence(fail, fault)


def fail(fault):
    raise fault


def variants(count, whole, change):
    """The unchanged one, and changed ones."""
    yield whole
    for _ in range(count - 1):
        yield change(whole)


def texts(content, dump, count, chance, in_bytes):
    """Files of ``content``, changed in its values or in the bytes that it is dumped to."""
    if in_bytes:
        return variants(count, dump(content).encode(), functools.partial(damaged, chance=chance))
    return (dump(changed).encode() for changed in variants(count, content, functools.partial(mutated, chance=chance)))


def lines(records):
    return "\n".join(map(json.dumps, records))


@pytest.mark.parametrize("in_bytes", [False, True], ids=["values", "bytes"])
def test_coco_files(tmp_path, images, tally, in_bytes):
    """As a run takes them: read, checked, and the pictures looked at; and as the evaluation takes them."""
    chance, path = random.Random(1), tmp_path / "x.json"

    def read():
        try:
            register_coco_json("fuzz", str(path), images)
            check_pictures(["fuzz"])
            GroundTruth("fuzz")
        finally:
            DatasetCatalog.pop("fuzz", None)
            MetadataCatalog.pop("fuzz", None)

    for text in texts(CONTENT, json.dumps, INPUTS, chance, in_bytes):
        path.write_bytes(text)
        tally.read_or_one_sentence(read)


@pytest.mark.parametrize("in_bytes", [False, True], ids=["values", "bytes"])
def test_odgt_files(tmp_path, images, tally, in_bytes):
    """As a training takes them, with each kind of boxes, and as the evaluation of files takes them."""
    chance, path = random.Random(2), tmp_path / "x.odgt"

    def read():
        CrowdHumanDataset("fuzz", str(path), images, chance.choice(list(BOX_KINDS)))()
        Annotations(str(path), chance.choice(list(BOX_KINDS.values())), images)

    for text in texts(scene(), lines, INPUTS, chance, in_bytes):
        path.write_bytes(text)
        tally.read_or_one_sentence(read)


DUMP = [
    {"ID": r["ID"], "height": 300, "width": 400, "gtboxes": [{"box": [1, 2, 3, 4], "tag": 1}],
     "dtboxes": [{"box": [1.5, 2, 30, 40], "score": 0.9, "tag": 1}, {"box": [5, 6, 7, 8], "score": 0.1}]}
    for r in scene()
]  # fmt: skip
RESULTS = [{"image_id": r["ID"], "category_id": 1, **d, "bbox": d["box"]} for r in DUMP for d in r["dtboxes"]]


@pytest.mark.parametrize("form", [DUMP, RESULTS], ids=["dump", "results"])
@pytest.mark.parametrize("in_bytes", [False, True], ids=["values", "bytes"])
def test_detections(tmp_path, tally, monkeypatch, in_bytes, form):
    """As the evaluation of files takes them, to the end."""
    chance, path, truth = random.Random(4), tmp_path / "x.json", tmp_path / "truth.odgt"
    truth.write_text("\n".join(map(json.dumps, scene())))
    monkeypatch.setattr("paq_detr.evaluation.crowd.cli.tqdm", functools.partial(tqdm, disable=True))
    for text in texts(form, json.dumps if form is RESULTS else lines, INPUTS, chance, in_bytes):
        path.write_bytes(text)
        protocol = chance.choice(["crowddet", "dh"])
        tally.read_or_one_sentence(evaluate_files, str(truth), str(path), protocol=protocol, workers=1)


YAML = {
    "VERSION": 2,
    "OUTPUT_DIR": "out",
    "SEED": 3,
    "MODEL": {"WEIGHTS": "", "DEVICE": "cpu", "PIXEL_MEAN": [1.0, 2.0, 3.0],
              "DETR": {"CODEC": "logit", "QUERIES": {"NUM": 20}, "MATCHER": {"COST": ["focal_l1_giou"]}}},
    "DATASETS": {"TRAIN": ["synthetic_crowd_train"], "TEST": [], "COCO_JSON": [],
                 "SYNTHETIC_CROWD": {"DENSITY": 3.0, "NUM_TRAIN": 2, "NUM_VAL": 2, "HEIGHT": 64, "WIDTH": 80}},
    "INPUT": {"MIN_SIZE_TRAIN": [64, 72], "FORMAT": "RGB", "CROP": {"ENABLED": True, "SIZE": [20, 30]}},
    "SOLVER": {"BASE_LR": 1e-4, "STEPS": [3], "AMP": {"ENABLED": True}, "CLIP_GRADIENTS": {"CLIP_VALUE": 0.1}},
}  # fmt: skip


@pytest.mark.parametrize("in_bytes", [False, True], ids=["values", "bytes"])
def test_config_files(tmp_path, tally, monkeypatch, in_bytes):
    """By the loader of train_net.py, to the registered datasets."""
    chance, path = random.Random(5), tmp_path / "x.yaml"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 5}")
    content = {"_BASE_": str(tmp_path / "base.yaml"), **YAML}
    for text in texts(content, yaml.safe_dump, INPUTS // 3, chance, in_bytes):
        path.write_bytes(text)
        tally.read_or_one_sentence(setup_config, Namespace(config_file=str(path), opts=[], num_gpus=1))


def test_options(tmp_path, tally, monkeypatch):
    """KEY VALUE of the command line: any key with any value."""
    chance, path, cfg = random.Random(6), tmp_path / "x.yaml", get_cfg()
    monkeypatch.chdir(tmp_path)
    add_paq_detr_config(cfg)
    known, values = list(keys(cfg)), [v if isinstance(v, str) else repr(v) for v in VALUES]
    path.write_text(yaml.safe_dump(YAML))
    for count in (0, *(chance.randint(1, 2) for _ in range(INPUTS // 3))):
        opts = [text for _ in range(count) for text in (chance.choice(known), chance.choice(values))]
        tally.read_or_one_sentence(setup_config, Namespace(config_file=str(path), opts=opts, num_gpus=1))


def saved(array, name, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, name, **options)
    return file.getvalue()


def pictures():
    """The bytes of a picture of each kind."""
    colours = np.random.default_rng(0).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    grey, exif = colours[..., 0], Image.Exif()
    exif[0x112], exif[0x10F] = 6, "a camera"
    return {
        **{name: saved(colours, name) for name in ("png", "jpeg", "bmp", "gif", "tiff", "ppm", "webp", "jpeg2000")},
        "png of 16 bits": saved(grey.astype(np.uint16) * 9, "png"),
        "png with alpha": saved(np.dstack([colours, grey]), "png", exif=exif),
        "jpeg with exif": saved(colours, "jpeg", exif=exif, progressive=True),
        "tiff of floats": saved((grey / 255).astype(np.float32), "tiff"),
        "tiff of 16 bits": saved(grey.astype(np.uint16) * 257, "tiff", compression="tiff_lzw"),
        "tiff of 32 bits": saved(grey.astype(np.int32) * 9, "tiff", compression="tiff_adobe_deflate"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", pictures())
def test_pictures(tmp_path, tally, kind):
    chance, path, whole = random.Random(3), tmp_path / "x", pictures()[kind]
    for content in variants(INPUTS // 3, whole, functools.partial(damaged, chance=chance)):
        path.write_bytes(content)
        tally.read_or_one_sentence(image_size, str(path))
        tally.read_or_one_sentence(read_image, str(path), "RGB")
