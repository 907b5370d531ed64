# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from paq_detr import add_paq_detr_config
from paq_detr.engine import UserError
from paq_detr.engine.solver import build_clipper, build_optimizer, build_scheduler, resolve_schedule


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    return cfg


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.sampling_offsets = nn.Linear(2, 2)
        self.reference_points = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)
        self.same_head = self.head
        self.norm = nn.LayerNorm(2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def hyperparameters(optimizer, model):
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}


def test_backbone_and_offsets_learn_at_a_tenth(cfg):
    model = Detector()
    found = hyperparameters(build_optimizer(cfg, model), model)
    assert found["head.weight"] == (2e-4, 1e-4)
    for name in ("backbone.weight", "sampling_offsets.bias", "reference_points.weight"):
        assert found[name] == (pytest.approx(2e-5), 1e-4)


def test_every_trainable_parameter_is_optimised_once(cfg):
    model = Detector()
    found = [id(p) for group in build_optimizer(cfg, model).param_groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_norms_have_a_weight_decay_of_their_own(cfg):
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    model = Detector()
    found = hyperparameters(build_optimizer(cfg, model), model)
    assert found["norm.weight"][1] == found["norm.bias"][1] == 0.0
    assert found["head.weight"][1] == 1e-4


def test_biases_have_a_weight_decay_of_their_own(cfg):
    cfg.SOLVER.WEIGHT_DECAY_BIAS = 0.0
    model = nn.MultiheadAttention(8, 2)
    found = hyperparameters(build_optimizer(cfg, model), model)
    assert {name for name, (_, decay) in found.items() if decay == 0} == {"in_proj_bias", "out_proj.bias"}


def test_on_a_cpu_one_kernel_steps_all_parameters_as_torchs_default_would(cfg):
    torch.manual_seed(0)
    model = Detector()
    optimizer = build_optimizer(cfg, model)
    assert optimizer.defaults["fused"]
    expected = [p.detach().clone().requires_grad_() for p in optimizer.param_groups[0]["params"]]
    group = optimizer.param_groups[0]
    plain = torch.optim.AdamW(expected, lr=group["lr"], weight_decay=group["weight_decay"], foreach=False)
    for _ in range(3):
        for ours, theirs in zip(group["params"], expected, strict=True):
            ours.grad = theirs.grad = torch.randn_like(theirs)
        optimizer.step()
        plain.step()
    torch.testing.assert_close(group["params"], expected)


def test_an_unknown_optimizer_is_named(cfg):
    cfg.SOLVER.OPTIMIZER = "Adamw"
    with pytest.raises(UserError, match='"Adamw".*AdamW'):
        build_optimizer(cfg, Detector())


def test_full_model_clipping_bounds_the_norm_of_all_gradients_together(cfg):
    parameters = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 2.0)
    norm = build_clipper(cfg)(parameters)
    assert norm.item() == pytest.approx(2 * 7**0.5)
    torch.testing.assert_close(torch.cat([p.grad for p in parameters]), torch.full((7,), 0.1 / 7**0.5))


def test_clipping_can_be_switched_off(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.ones(1)
    assert build_clipper(cfg)([parameter]) is None
    assert parameter.grad.item() == 1


def test_an_unknown_clip_type_is_named(cfg):
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "model"
    with pytest.raises(UserError, match='"model".*full_model'):
        build_clipper(cfg)


def test_twelve_epochs_of_coco_are_ninety_thousand_iterations(cfg):
    cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS = 12, [11]
    cfg = resolve_schedule(cfg, 118287)
    assert cfg.SOLVER.MAX_ITER == round(12 * 118287 / 16) == 88715
    assert cfg.SOLVER.STEPS == (round(11 * 118287 / 16),)
    assert cfg.SOLVER.CHECKPOINT_PERIOD == cfg.TEST.EVAL_PERIOD == 7393


def test_half_the_batch_is_twice_the_iterations(cfg):
    cfg.SOLVER.EPOCHS = 12
    whole = resolve_schedule(cfg, 1600).SOLVER.MAX_ITER
    cfg.SOLVER.IMS_PER_BATCH //= 2
    assert resolve_schedule(cfg, 1600).SOLVER.MAX_ITER == 2 * whole


def test_without_epochs_the_iteration_keys_count(cfg):
    cfg.SOLVER.MAX_ITER = 123
    resolved = resolve_schedule(cfg, 1000)
    assert resolved.SOLVER.MAX_ITER == 123 and resolved.SOLVER.ITERS_PER_EPOCH == 1000 / 16
    cfg.SOLVER.ITERS_PER_EPOCH = 1000 / 16
    assert resolved == cfg


def test_the_learning_rate_starts_at_its_base_without_warm_up_and_drops_at_the_step(cfg):
    cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS, cfg.SOLVER.IMS_PER_BATCH = 4, [3], 2
    cfg = resolve_schedule(cfg, 4)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = build_scheduler(cfg, optimizer), []
    for _ in range(cfg.SOLVER.MAX_ITER):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1, 1, 1, 1, 1, 1, 0.1, 0.1])


def test_a_drop_at_the_end_is_no_drop(cfg):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 3, (3,)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    build_scheduler(cfg, optimizer)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_an_unknown_schedule_is_named(cfg):
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLr"
    with pytest.raises(UserError, match='SOLVER.LR_SCHEDULER_NAME is "WarmupCosineLr", must be one of'):
        build_scheduler(cfg, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))


@pytest.mark.parametrize("warmup", [0, 3])
def test_a_warm_up_longer_than_the_training_is_said(cfg, caplog, warmup):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 3, (), warmup
    build_scheduler(cfg, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    assert ("never reaches SOLVER.BASE_LR 0.0002: SOLVER.WARMUP_ITERS is 3" in caplog.text) == bool(warmup)


class NumberedLayers(nn.Module):
    """A backbone of a stem, two blocks and a norm behind them."""

    def __init__(self):
        super().__init__()
        self.stem, self.first, self.second, self.norm = (nn.Linear(2, 2) for _ in range(4))

    def layer_ids(self):
        names = {"stem": 0, "first": 1, "second": 2}
        return {f"{name}.{leaf}": i for name, i in names.items() for leaf in ("weight", "bias")}, 2


def test_layers_of_the_backbone_learn_the_slower_the_earlier_they_are(cfg):
    model = Detector()
    model.backbone = NumberedLayers()
    cfg.SOLVER.LAYER_DECAY = 0.5
    found = hyperparameters(build_optimizer(cfg, model), model)
    for name, factor in (("stem", 0.125), ("first", 0.25), ("second", 0.5), ("norm", 1.0)):
        assert found[f"backbone.{name}.weight"] == (pytest.approx(2e-5 * factor), 1e-4)
    assert found["head.weight"] == (2e-4, 1e-4)


def test_layer_decay_needs_a_backbone_whose_layers_are_numbered(cfg):
    cfg.SOLVER.LAYER_DECAY = 0.5
    with pytest.raises(
        UserError, match="SOLVER.LAYER_DECAY is 0.5, but the layers of MODEL.BACKBONE.NAME build_resnet"
    ):
        build_optimizer(cfg, Detector())


@pytest.mark.parametrize("epochs", [0, 4])
def test_a_learning_rate_is_scaled_from_the_batch_that_it_is_meant_for_once(cfg, caplog, epochs):
    cfg.merge_from_list([
        *("SOLVER.REFERENCE_BATCH", 16, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 1e-4, "SOLVER.WARMUP_ITERS", 10),
        *("SOLVER.EPOCHS", epochs, "SOLVER.MAX_ITER", 90, "SOLVER.STEPS", (60,), "TEST.EVAL_PERIOD", 0),
    ])  # fmt: skip
    with caplog.at_level("INFO", logger="paq_detr.engine.solver"):
        once = resolve_schedule(cfg, 40)
    solver = once.SOLVER
    assert (solver.BASE_LR, solver.WARMUP_ITERS, solver.REFERENCE_BATCH) == (pytest.approx(2.5e-5), 40, 4)
    assert (solver.MAX_ITER, solver.STEPS) == ((40, ()) if epochs else (360, (240,)))
    assert once.TEST.EVAL_PERIOD == (10 if epochs else 0)
    assert "Scaled from SOLVER.REFERENCE_BATCH 16 to IMS_PER_BATCH 4: SOLVER.BASE_LR 0.0001 -> 2.5e-05" in caplog.text
    assert resolve_schedule(once, 40) == once
