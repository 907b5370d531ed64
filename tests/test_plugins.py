# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A paper outside the package, and what old names of keys say."""

import sys
from argparse import Namespace

import pytest
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from paq_detr import add_paq_detr_config, registry
from paq_detr.engine import UserError, setup_config
from paq_detr.registry import CONTENTS

PLUGIN = """
from detectron2.config import CfgNode as CN
from torch import nn
from paq_detr.modeling.contents import LearnedContent
from paq_detr.registry import CONTENTS, adds_config


@adds_config
def add_config(cfg):
    cfg.MODEL.DETR.LOUD = CN()
    cfg.MODEL.DETR.LOUD.FACTOR = 3.0


class LoudContent(LearnedContent):
    def __init__(self, num_queries, embed_dim, factor):
        super().__init__(num_queries, embed_dim)
        nn.init.constant_(self.table, factor)


@CONTENTS.register("{name}")
def build_loud(cfg, kit):
    D = cfg.MODEL.DETR
    return LoudContent(D.QUERIES.NUM, D.HIDDEN_DIM, D.LOUD.FACTOR)
"""

YAML = """
MODEL:
  DEVICE: cpu
  RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}
  DETR:
    PLUGINS: [PLUGIN_]
    HIDDEN_DIM: 32
    NUM_HEADS: 2
    ENCODER: {NUM_LAYERS: 0}
    DECODER: {NUM_LAYERS: 1, INTERACTION: self_attention}
    QUERIES: {NUM: 5, CONTENT: PLUGIN_}
    LOUD: {FACTOR: 7}
DATASETS: {TRAIN: [synthetic_crowd_train], TEST: [], SYNTHETIC_CROWD: {NUM_TRAIN: 1}}
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch, request):
    """A module of its own name for each test, below the working directory."""
    name = f"loud_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(PLUGIN.replace("{name}", name))
    (tmp_path / "loud.yaml").write_text(YAML.replace("PLUGIN_", name))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(CONTENTS, "_builders", dict(CONTENTS._builders))  # what a test registers goes with it
    monkeypatch.setattr(registry, "_adders", list(registry._adders))
    return name


def config(*opts, file="loud.yaml"):
    return setup_config(Namespace(config_file=file, opts=list(opts), num_gpus=1))


def test_a_module_that_yaml_names_brings_parts_and_keys(plugin):
    cfg = config()
    assert cfg.MODEL.DETR.LOUD.FACTOR == 7.0
    model = build_model(cfg)
    assert (model.sources["main"].content.table == 7).all()


def test_the_command_line_can_name_it_too(plugin):
    (open("loud.yaml", "w")).write(YAML.replace("    PLUGINS: [PLUGIN_]\n", "").replace("    LOUD: {FACTOR: 7}\n", "")
                                   .replace("PLUGIN_", plugin))  # fmt: skip
    cfg = config("MODEL.DETR.LOUD.FACTOR", "2", "MODEL.DETR.PLUGINS", plugin)
    assert cfg.MODEL.DETR.LOUD.FACTOR == 2.0 and cfg.MODEL.DETR.PLUGINS == [plugin]


def test_an_import_before_the_config_is_made_does_the_same(plugin, monkeypatch):
    monkeypatch.syspath_prepend(".")
    __import__(plugin)
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    assert cfg.MODEL.DETR.LOUD.FACTOR == 3.0


def test_a_process_that_is_handed_a_finished_config_imports_the_plug_ins(plugin):
    cfg = config().clone()
    del sys.modules[plugin]
    build_model(cfg)
    assert plugin in sys.modules


@pytest.mark.parametrize("name", ["no_such_module", "paq_detr.papers.no_paper"])
def test_a_plug_in_that_is_not_there_is_named(plugin, name):
    with pytest.raises(
        UserError, match=f"PLUGINS names {name}, which cannot be imported from .*: No module named"
    ) as caught:
        config("MODEL.DETR.PLUGINS", f"['{name}']")
    assert "\n" not in str(caught.value)


def test_a_plug_in_that_breaks_gives_one_sentence_too(plugin):
    with open("broken_plug_in.py", "w") as file:
        file.write("this is no Python\n")
    with pytest.raises(UserError, match="broken_plug_in, which cannot be imported .* SyntaxError"):
        config("MODEL.DETR.PLUGINS", "broken_plug_in")
    with pytest.raises(UserError, match=r"PLUGINS is \[1\], must be a list of module names"):
        config("MODEL.DETR.PLUGINS", "[1]")


OLD = [
    ("PATTERNS.ENABLED", True, "MODEL.DETR.QUERIES.CONTENT: patterns"),
    ("QUALITY_ASSIGNMENT.ENABLED", False, "MODEL.DETR.ASSIGNER.INTERMEDIATE: quality_count"),
    ("QUALITY_ASSIGNMENT.ENCODER", True, "MODEL.DETR.ASSIGNER.ENCODER: quality_count"),
    ("DEHOMO.LAYERS", [2, 3], "MODEL.DETR.DECODER.INTERACTION: a list with dehomo"),
    ("DEHOMO.CENTER_INSIDE", True, "MODEL.DETR.MATCHER.COST: a list with center_inside"),
    ("SOFT_TARGET.ENABLED", True, "MODEL.DETR.LOSS.ENCODER_CLASSIFICATION: soft_focal"),
    ("HYBRID.ENABLED", True, r"MODEL.DETR.ROUTES: \[hybrid\]"),
    ("DECODER.SELF_ATTENTION", False, r"MODEL.DETR.DECODER.INTERACTION: \[self_attention\] or \[none\]"),
]


@pytest.mark.parametrize(("key", "value", "now"), OLD, ids=[key for key, *_ in OLD])
def test_an_old_key_says_how_it_is_written_now(key, value, now, tmp_path):
    node, leaf = key.split(".")
    file = tmp_path / "old.yaml"
    file.write_text(f"MODEL: {{DETR: {{{node}: {{{leaf}: {value}}}}}}}\n")
    for arguments in ({"file": str(file)}, {"file": ""}):
        opts = () if arguments["file"] else (f"MODEL.DETR.{key}", str(value))
        with pytest.raises(UserError, match=rf"MODEL.DETR.{key} is gone: write {now}") as caught:
            config(*opts, **arguments)
        assert "\n" not in str(caught.value)


def test_one_name_may_stand_where_a_list_of_names_is_wanted(tmp_path):
    file = tmp_path / "one.yaml"
    file.write_text("MODEL: {DETR: {DECODER: {INTERACTION: none}, QUERIES: {NAME: EncoderTopN}}}\n"
                    "DATASETS: {TRAIN: [], TEST: []}\n")  # fmt: skip
    for typed in ("hybrid", "[hybrid]", "['hybrid']"):
        cfg = config("MODEL.DETR.ROUTES", typed, file=str(file))
        assert cfg.MODEL.DETR.DECODER.INTERACTION == ["none"] and cfg.MODEL.DETR.ROUTES == ["hybrid"]
