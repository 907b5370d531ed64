# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""CrowdHuman's records in small, for the tests of the crowd metrics and of the files that they come from."""

import json
import logging

SIZE = {"height": 200, "width": 300}
A, B = (10, 10, 40, 100), (100, 10, 40, 100)


def person(x, y, w, h, **extra):
    return {"tag": "person", "fbox": [x, y, w, h], "vbox": [x, y, w, h], "hbox": [x, y, w, h], **extra}


def mask(x, y, w, h):
    return {**person(x, y, w, h), "tag": "mask"}


def one_image(objects, detections, key="box"):
    """The records of an image "a" with ``detections`` as (box, score)."""
    found = [{key: list(box), "score": score} for box, score in detections]
    return [{"ID": "a", "gtboxes": objects}], [{"ID": "a", **SIZE, "dtboxes": found}]


def same(first, second):
    """Equal to the last bit, NaN included."""
    return json.dumps(first) == json.dumps(second)


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
