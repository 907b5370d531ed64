# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import math
import os
from argparse import Namespace

import pytest
import torch

from paq_detr.engine import Trainer
from paq_detr.engine.ema import WeightAverage
from paq_detr.engine.run_folder import find_run

from .test_trainer import assert_equal_states, train, weights

ON = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.5, "SOLVER.EMA.WARMUP_ITERS", 0, "DATASETS.TEST", "[]")


def test_the_average_follows_the_weights_and_copies_whole_numbers():
    model = torch.nn.BatchNorm1d(1)
    average = WeightAverage(model, decay=0.75, warmup=2)
    average.trainer = Namespace(start_iter=0)
    average.before_train()
    expected = 1.0
    for step, value in enumerate((2.0, 3.0), 1):
        model.weight.data.fill_(value)
        model.num_batches_tracked.fill_(step)
        average.update()
        decay = 0.75 * (1 - math.exp(-step / 2))
        expected = decay * expected + (1 - decay) * value
    assert average.weights["weight"].item() == pytest.approx(expected)
    assert average.weights["num_batches_tracked"] == 2
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 3.0


def test_a_resumed_average_goes_on_exactly_and_has_a_file_of_its_own(make_cfg, tmp_path):
    opts = (*ON, "SOLVER.STEPS", "[]", "SOLVER.MAX_ITER")
    whole = train(make_cfg(*opts, 3, "OUTPUT_DIR", tmp_path / "whole"))
    train(make_cfg(*opts, 2))
    resumed = train(make_cfg(*opts, 3), resume=True)
    assert_equal_states(resumed.average.weights, whole.average.weights)
    run = find_run(tmp_path / "whole")
    assert os.path.basename(run.weights) == "model_ema.pth"
    content = torch.load(run.weights, weights_only=True)
    assert_equal_states(content["model"], whole.average.weights)
    assert content["class_names"] and content["run_config"]
    assert any(not torch.equal(content["model"][name], value) for name, value in weights(whole).items())


def test_an_average_that_is_switched_on_later_begins_at_the_checkpoint(make_cfg):
    first = train(make_cfg("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "[]", "DATASETS.TEST", "[]"))
    resumed = Trainer(make_cfg(*ON))
    resumed.resume_or_load(resume=True)
    resumed.before_train()
    assert_equal_states(resumed.average.weights, weights(first))


@pytest.mark.parametrize("evaluated", [True, False])
def test_averaged_weights_are_evaluated_and_kept_as_the_best(make_cfg, monkeypatch, evaluated):
    seen = []

    def test(cls, cfg, model, **options):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"bbox": {"AP": 1.0}}

    monkeypatch.setattr(Trainer, "test", classmethod(test))
    options = (*ON[:-2], "SOLVER.EMA.EVAL", evaluated, "SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "[]")
    trainer = train(make_cfg(*options))
    expected = trainer.average.weights if evaluated else weights(trainer)
    assert_equal_states(seen[0], expected)
    best = torch.load(os.path.join(trainer.cfg.OUTPUT_DIR, "model_best.pth"), weights_only=True)["model"]
    assert_equal_states(best, expected)
