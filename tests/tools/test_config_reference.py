# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from config_reference import PAGE, entries, functions, page
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from paq_detr import add_paq_detr_config, registry
from paq_detr.engine.checks import flat


def test_the_page_is_current():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python tools/config_reference.py"


def test_every_key_that_is_added_is_on_the_page():
    cfg, old = get_cfg(), dict(flat(get_cfg()))
    add_paq_detr_config(cfg)
    added = {key for key, value in flat(cfg) if key not in old or old[key] != value}
    foreign = [add for add in registry._adders if not add.__module__.startswith("paq_detr.")]  # of other tests
    added -= {entry.key for add in foreign for entry in entries(add)}
    assert added <= {entry.key for _, adders in functions() for adder in adders for entry in entries(adder)}


def test_comments_above_and_behind_belong_to_their_key():
    def add(cfg):
        # Of the section,
        # in two lines.
        cfg.A = X = CN()
        X.B = 1  # behind

        # far above

        X.C = [1, 2]
        Y = X.D = CN()
        Y.E = "a | b"

    found = [(entry.key, entry.default, entry.text) for entry in entries(add)]
    assert found == [
        ("A", None, "Of the section, in two lines."),
        ("A.B", "1", "behind"),
        ("A.C", "[1, 2]", ""),
        ("A.D", None, ""),
        ("A.D.E", "'a | b'", ""),
    ]
