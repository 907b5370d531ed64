# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Optimiser, gradient clipping, and a schedule in epochs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler
from torch import Tensor, nn

from ..checks import Choice, check_range
from ..errors import UserError

logger = logging.getLogger(__name__)

_OPTIMIZER = Choice("SOLVER.OPTIMIZER", ("AdamW", "SGD"))
_CLIP_TYPE = Choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", ("full_model", "norm", "value"))
_SCHEDULER = Choice("SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR", "WarmupCosineLR"))  # Detectron2's
_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm)


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW (or SGD) with the parameter groups of the DETR family.

    Deformable DETR's recipe: learning rate 2e-4, a tenth of it for the backbone and for the linear maps that make
    sampling offsets and reference points, weight decay 1e-4. ``SOLVER.BACKBONE_MULTIPLIER`` and
    ``SOLVER.OFFSET_MULTIPLIER`` are the two factors; DINO uses 1e-4 and only the backbone's, Sparse R-CNN and AdaMixer
    2.5e-5 everywhere (both factors 1). ``SOLVER.LAYER_DECAY`` lowers the backbone's rate layer by layer.
    """
    groups = defaultdict(list)
    modules = dict(model.named_modules())
    layer_factors = _layer_factors(cfg, model)
    for name, parameter in model.named_parameters():  # names a shared parameter once
        if parameter.requires_grad:
            owner, _, leaf = name.rpartition(".")
            rate = _learning_rate(cfg, name) * layer_factors.get(name, 1.0)
            groups[rate, _weight_decay(cfg, modules[owner], leaf)].append((name, parameter))
    for (rate, decay), parameters in groups.items():
        count = sum(p.numel() for _, p in parameters)
        logger.info("%d parameters with learning rate %g and weight decay %g", count, rate, decay)
    parameter_groups = [{"params": p, "lr": rate, "weight_decay": decay} for (rate, decay), p in groups.items()]
    if _OPTIMIZER(cfg.SOLVER.OPTIMIZER) == "SGD":
        return torch.optim.SGD(
            parameter_groups, lr=cfg.SOLVER.BASE_LR, momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV
        )
    # torch's default walks the parameters one operation after the other on a CPU, four times as long.
    can = {parameter.device.type for _, parameter in sum(groups.values(), [])} <= {"cpu", "cuda"}
    return torch.optim.AdamW(parameter_groups, lr=cfg.SOLVER.BASE_LR, fused=(cfg.SOLVER.FUSED and can) or None)


def _learning_rate(cfg: CfgNode, name: str) -> float:
    rate = cfg.SOLVER.BASE_LR
    if name.split(".")[0] == "backbone":
        rate *= cfg.SOLVER.BACKBONE_MULTIPLIER
    if "sampling_offsets" in name or "reference_points" in name:
        rate *= cfg.SOLVER.OFFSET_MULTIPLIER
    return rate * (cfg.SOLVER.BIAS_LR_FACTOR if name.endswith("bias") else 1.0)


def _layer_factors(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    """decay^(L + 1 - layer) by parameter of a backbone of L layers: layer 0 is the patch embedding (BEiT, ViTDet).

    What follows the last layer (output norms, pyramid) keeps the backbone's rate.
    """
    decay = check_range("SOLVER.LAYER_DECAY", cfg.SOLVER.LAYER_DECAY, "(0, 1]")
    if decay == 1:
        return {}
    backbone = getattr(model, "backbone", None)
    if not hasattr(backbone, "layer_ids"):
        raise UserError(
            f"SOLVER.LAYER_DECAY is {decay}, but the layers of MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME} are not "
            "numbered; those of timm are"
        )
    ids, last = backbone.layer_ids()
    return {f"backbone.{name}": decay ** (last + 1 - layer) for name, layer in ids.items()}


def _weight_decay(cfg: CfgNode, module: nn.Module, name: str) -> float:
    if isinstance(module, _NORMS):
        return cfg.SOLVER.WEIGHT_DECAY_NORM
    if name.endswith("bias") and cfg.SOLVER.WEIGHT_DECAY_BIAS is not None:
        return cfg.SOLVER.WEIGHT_DECAY_BIAS
    return cfg.SOLVER.WEIGHT_DECAY


def build_clipper(cfg: CfgNode) -> Callable[[Iterable[nn.Parameter]], Tensor | None]:
    """A function that clips the gradients of the given parameters in place, to call once they are unscaled.

    ``CLIP_TYPE`` "full_model" bounds the norm over all parameters together (DETR: 0.1) and returns that norm as a 0-d
    tensor on the gradients' device. "norm" and "value" are Detectron2's, per parameter; they return None, as does the
    clipper that ``SOLVER.CLIP_GRADIENTS.ENABLED: False`` gives.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    bound, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    def each_norm(parameters: Iterable[nn.Parameter]) -> None:
        for parameter in parameters:
            nn.utils.clip_grad_norm_(parameter, bound, norm_type)

    clippers = {
        "full_model": lambda parameters: nn.utils.clip_grad_norm_(parameters, bound, norm_type),
        "norm": each_norm,
        "value": lambda parameters: nn.utils.clip_grad_value_(parameters, bound),
    }
    if not clip.ENABLED:
        return lambda parameters: None
    return clippers[_CLIP_TYPE(clip.CLIP_TYPE)]


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Detectron2's schedule of ``SOLVER.LR_SCHEDULER_NAME``; steps that training does not reach are left out."""
    steps = [step for step in cfg.SOLVER.STEPS if step < cfg.SOLVER.MAX_ITER]
    if len(steps) < len(cfg.SOLVER.STEPS):
        logger.warning(
            "training ends at iteration %d, so that the learning rate does not drop at %s (SOLVER.STEPS)",
            *(cfg.SOLVER.MAX_ITER, ", ".join(str(step) for step in cfg.SOLVER.STEPS if step not in steps)),
        )
    if cfg.SOLVER.WARMUP_ITERS >= cfg.SOLVER.MAX_ITER:
        logger.warning(
            "the learning rate never reaches SOLVER.BASE_LR %g: SOLVER.WARMUP_ITERS is %d, SOLVER.MAX_ITER %d",
            *(cfg.SOLVER.BASE_LR, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER),
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.SOLVER.STEPS = tuple(steps)
    _SCHEDULER(cfg.SOLVER.LR_SCHEDULER_NAME)
    return build_lr_scheduler(cfg, optimizer)


def resolve_schedule(cfg: CfgNode, num_images: int, shift: float = 0.0) -> CfgNode:
    """``cfg`` with the iteration keys that follow from its epoch keys, scaled from ``SOLVER.REFERENCE_BATCH``.

    ``num_images`` images make one epoch of num_images / IMS_PER_BATCH iterations. Sets ``SOLVER.ITERS_PER_EPOCH`` and,
    unless ``SOLVER.EPOCHS`` is 0, ``SOLVER.MAX_ITER``, ``STEPS`` and ``CHECKPOINT_PERIOD``, and ``TEST.EVAL_PERIOD``.

    Args:
        shift: iterations done before, more than the images seen since would take: of a resumed training whose batch had
            another size, so that its epochs go on where they were.
    """
    frozen, cfg = cfg.is_frozen(), cfg.clone()
    cfg.defrost()
    cfg.SOLVER.ITERS_PER_EPOCH = num_images / cfg.SOLVER.IMS_PER_BATCH
    if cfg.SOLVER.REFERENCE_BATCH:
        _scale_from_reference(cfg)
    if cfg.SOLVER.EPOCHS:
        _resolve_epochs(cfg, num_images, shift)
    if frozen:
        cfg.freeze()
    return cfg


def _scale_from_reference(cfg: CfgNode) -> None:
    """A learning rate and iterations meant for ``REFERENCE_BATCH`` images, for those there are (Goyal et al. 2017)."""
    solver = cfg.SOLVER
    reference, solver.REFERENCE_BATCH = solver.REFERENCE_BATCH, solver.IMS_PER_BATCH  # a second time changes nothing
    factor = solver.IMS_PER_BATCH / reference
    if factor == 1:
        return
    before, solver.BASE_LR = solver.BASE_LR, solver.BASE_LR * factor
    solver.WARMUP_ITERS = round(solver.WARMUP_ITERS / factor)
    told = f"SOLVER.BASE_LR {before:g} -> {solver.BASE_LR:g}, WARMUP_ITERS {solver.WARMUP_ITERS}"
    if not solver.EPOCHS:  # epochs need no scaling
        for name in ("MAX_ITER", "CHECKPOINT_PERIOD"):
            solver[name] = max(1, round(solver[name] / factor))
        solver.STEPS = tuple(round(step / factor) for step in solver.STEPS)
        if cfg.TEST.EVAL_PERIOD:
            cfg.TEST.EVAL_PERIOD = max(1, round(cfg.TEST.EVAL_PERIOD / factor))
        told += f", MAX_ITER {solver.MAX_ITER}, STEPS {list(solver.STEPS)}"
    logger.info("Scaled from SOLVER.REFERENCE_BATCH %d to IMS_PER_BATCH %d: %s", reference, solver.IMS_PER_BATCH, told)


def _resolve_epochs(cfg: CfgNode, num_images: int, shift: float) -> None:
    solver = cfg.SOLVER

    def iterations(epochs: float, shift: float = 0.0) -> int:
        return max(1, round(epochs * solver.ITERS_PER_EPOCH + shift))

    solver.MAX_ITER = iterations(solver.EPOCHS, shift)
    solver.STEPS = tuple(iterations(epochs, shift) for epochs in solver.EPOCH_STEPS)
    solver.CHECKPOINT_PERIOD = iterations(solver.CHECKPOINT_EPOCHS) if solver.CHECKPOINT_EPOCHS else solver.MAX_ITER
    cfg.TEST.EVAL_PERIOD = iterations(cfg.TEST.EVAL_EPOCHS) if cfg.TEST.EVAL_EPOCHS else 0
    logger.info(
        "%g epochs of %d images at %d images per iteration: %d iterations, learning rate drops at %s, checkpoint every "
        "%d, evaluation every %s.",
        *(solver.EPOCHS, num_images, solver.IMS_PER_BATCH, solver.MAX_ITER, list(solver.STEPS) or "none"),
        *(solver.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD or "end only"),
    )
