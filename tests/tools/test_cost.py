# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from argparse import Namespace
from pathlib import Path

import cost
import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from paq_detr.layers import DeformableAttention
from paq_detr.structures import Grid, Memory

CONFIGS = Path(__file__).parents[2] / "configs"


class Attend(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = DeformableAttention(32, num_heads=4, num_levels=2, num_points=3)

    def forward(self, query):
        grid = Grid([(4, 4), (2, 2)], [8, 16], [(32, 32)], (32, 32), [[(4, 4), (2, 2)]])
        memory = Memory(torch.zeros(1, 20, 32), torch.zeros(1, 20, 32), grid)
        return self.attention(query, torch.rand(1, query.shape[1], 2), memory)


def test_deformable_attention_is_counted_sample_by_sample():
    analysis = FlopCountAnalysis(Attend().eval(), torch.rand(1, 7, 32))
    for name in ("fused_ms_deform_attn", "ms_deform_attn"):
        analysis.set_op_handle(f"paq_detr::{name}", cost.sampling_flops)
    sampled = sum(count for name, count in analysis.by_operator().items() if "deform" in name)
    assert sampled in (0, 5 * 7 * 4 * 2 * 3 * 8)  # without the native operator there is nothing to count it by
    projections = 32 * (20 * 32 + 7 * 32 + 7 * (48 + 24))  # of values and output, of offsets and weights
    assert analysis.by_operator()["linear"] == projections


class Product(torch.nn.Module):
    def forward(self, query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)


def test_the_product_of_attention_is_counted():
    inputs = torch.rand(2, 4, 7, 8), torch.rand(2, 4, 5, 8), torch.rand(2, 4, 5, 6)
    analysis = FlopCountAnalysis(Product(), inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", cost.attention_flops)
    assert analysis.total() == 2 * 4 * 7 * 5 * (8 + 6)


def test_a_system_costs_more_in_training_than_at_inference():
    args = Namespace(size=[64, 96], classes=3, objects=2, batch=1, device="cpu", rounds=1, clock="cpu", options=[])
    found = cost.measure(CONFIGS / "crowd" / "paq.yaml", args)
    assert set(found) == set(cost.COLUMNS) and all(value >= 0 for value in found.values())
    dino = cost.measure(CONFIGS / "bccd" / "dino.yaml", Namespace(**{**vars(args), "options": ["MODEL.WEIGHTS", ""]}))
    labels = 3 * 128
    assert round((dino["parameters"] - dino["inference_parameters"]) * 1e6) == labels
    masked = Namespace(**{**vars(args), "options": ["MODEL.WEIGHTS", "", "MODEL.DETR.MASK.NUM_POINTS", "20"]})
    assert cost.measure(CONFIGS / "nuclei" / "baseline.yaml", masked)["parameters"] > 0
    assert cost.table({"paq": found}).count("|") == 3 * (len(cost.COLUMNS) + 2)


def test_a_config_that_is_not_there_is_named(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cost.py", "--configs", "nowhere.yaml"])
    with pytest.raises(SystemExit):
        cost.main()
    assert "no such config: nowhere.yaml" in capsys.readouterr().err
