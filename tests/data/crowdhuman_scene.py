# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""CrowdHuman in small: three images of an odgt file."""

import logging

HEIGHT, WIDTH = 60, 80
KINDS = {"full": "fbox", "visible": "vbox", "head": "hbox"}
FULL, VISIBLE, HEAD = [10, 5, 20, 40], [12, 6, 16, 30], [15, 5, 8, 9]


def person(full=FULL, visible=VISIBLE, head=HEAD, tag="person", **flags):
    return {"tag": tag, "fbox": list(full), "vbox": list(visible), "hbox": list(head), **flags}


def scene():
    """Three images, not in the order of their names: everything the format knows, and boxes at and beyond the edges."""
    return [
        {
            "ID": "7,b0",
            "gtboxes": [
                person(extra={"box_id": 0, "occ": 1}, head_attr={"ignore": 0, "unsure": 0, "occ": 0}),
                person((40, -6, 30, 80), (42, 0, 20, 60), (48, -6, 10, 10), extra={"box_id": 1}),
                person((70, 10, 25, 30), (70, 12, 10, 20), (78, 10, 9, 9), head_attr={"ignore": 1}),
                person((5, 40, 12, 18), (5, 40, 12, 18), (7, 40, 5, 5), extra={"ignore": 1}),
                person((0, 0, 9, 9), (0, 0, 9, 9), (0, 0, 9, 9), tag="mask"),
                person((30, 30, 9, 20), (30, 30, 9, 20), (90, 30, 5, 5)),  # the head lies beyond the right edge
            ],
        },
        {"ID": "12,a1", "gtboxes": []},
        {"ID": "3,c2", "gtboxes": [person((85, 10, 9, 9)), person((-30, 10, 20, 9)), person((20, 20, 30, 30))]},
    ]


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
