# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Pipelines of Albumentations from yaml; their geometry is tested with the other augmentations'."""

import sys

import numpy as np
import pytest
import yaml

from paq_detr.data.augment import build_augmentations
from paq_detr.errors import UserError

from .test_augment import sample

A = pytest.importorskip("albumentations", reason="needs the extra 'augment'")

NESTED = [{"OneOf": {"transforms": ["HorizontalFlip", {"RandomGamma": {"gamma_limit": [80, 120]}}], "p": 1.0}}]


def built(cfg, entries):
    cfg.INPUT.AUGMENT, cfg.INPUT.ALBUMENTATIONS = ["albumentations"], entries
    return build_augmentations(cfg).steps[0]


def test_a_pipeline_is_a_list_or_a_file_of_it_or_a_saved_one(cfg, tmp_path):
    (tmp_path / "list.yaml").write_text(yaml.safe_dump(NESTED))
    inner = [A.OneOf([A.HorizontalFlip(), A.RandomGamma(gamma_limit=(80, 120))], p=1.0)]
    for suffix in ("yaml", "json"):
        A.save(A.Compose(inner), tmp_path / f"saved.{suffix}", data_format=suffix)
    results = []
    for entries in (NESTED, *([str(tmp_path / name)] for name in ("list.yaml", "saved.yaml", "saved.json"))):
        step = built(cfg, entries)
        images = []
        for seed in range(6):
            np.random.seed(seed)
            images.append(step(sample(0, "boxes")).image)
        results.append(np.array(images))
    assert len({result.tobytes() for result in results[:2]}) == 1
    assert len({result.tobytes() for result in results[2:]}) == 1  # a Compose more draws another number
    assert len({image.tobytes() for image in results[0]}) > 1


def test_overlapping_masks_stay_apart(cfg):
    before = sample(0, "polygons")
    before.masks[1] = [before.masks[0][0] + 3]
    before.boxes[1] = before.boxes[0] + 3
    after = built(cfg, [{"HorizontalFlip": {"p": 1.0}}])(before)
    from paq_detr.data.sample import piece_of

    for one, other in zip(before.masks, after.masks, strict=True):
        x, y, pixels = piece_of(one, before.size)
        assert piece_of(other, after.size)[:2] == (before.size[1] - x - pixels.shape[1], y)
        assert np.array_equal(piece_of(other, after.size)[2], pixels[:, ::-1])


WRONG = {
    "none": ([], "names albumentations, but INPUT.ALBUMENTATIONS is empty"),
    "an unknown name": (["Nonsense"], "Albumentations has no transform 'Nonsense'"),
    "a function of it": (["save"], "Albumentations has no transform 'save'"),
    "an unknown argument": ([{"HorizontalFlip": {"q": 1}}], "HorizontalFlip cannot be made .*'q'"),
    "a wrong value": ([{"RandomGamma": {"gamma_limit": "a"}}], "RandomGamma cannot be made"),
    "two in one": ([{"HorizontalFlip": {}, "VerticalFlip": {}}], "must be a transform's name or"),
    "arguments in a list": ([{"HorizontalFlip": [1]}], r"the arguments of HorizontalFlip are \[1\], must be"),
    "no file": (["none.yaml"], "INPUT.ALBUMENTATIONS none.yaml cannot be read: No such file"),
    "no list": (["TMP/a.yaml"], "a.yaml must hold a list of transforms"),
    "no yaml": (["TMP/b.yaml"], "b.yaml is no yaml"),
    "a file's wrong entry": (["TMP/c.yaml"], "c.yaml: Albumentations has no transform 'Nonsense'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_pipeline_is_one_sentence(cfg, tmp_path, case):
    entries, message = WRONG[case]
    for name, text in {"a": "7", "b": "[", "c": "[Nonsense]"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    entries = [entry.replace("TMP", str(tmp_path)) if isinstance(entry, str) else entry for entry in entries]
    with pytest.raises(UserError, match=message) as caught:
        built(cfg, entries)
    assert "\n" not in str(caught.value) and "http" not in str(caught.value)


def test_a_missing_package_is_one_sentence(cfg, monkeypatch):
    monkeypatch.setitem(sys.modules, "albumentations", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'paq_detr\[augment\]'"):
        built(cfg, ["HorizontalFlip"])
