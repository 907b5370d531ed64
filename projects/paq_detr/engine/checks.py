# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Values of the config that no training can have, found before anything is built.

Here stand those that would only fail after minutes, or in a part that does not know their key. Those of a mechanism are
checked where it is built.
"""

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from .. import registry
from ..checks import Choice, check_choice, check_numbers, check_range
from ..data.augment import build_augmentations
from ..evaluation.crowd.protocols import PROTOCOLS
from . import solver  # noqa: F401  (its keys' choices)
from .compile import PARTS

RANGES = {
    "DATALOADER.NUM_WORKERS": "[0, inf)",
    "DATASETS.SYNTHETIC_CROWD.NUM_TRAIN": "[0, 10000000]",
    "DATASETS.SYNTHETIC_CROWD.NUM_VAL": "[0, 10000000]",
    "INPUT.MAX_PIXELS": "[0, inf)",
    "INPUT.MAX_SIZE_TEST": "[1, inf)",
    "INPUT.MAX_SIZE_TRAIN": "[1, inf)",
    "INPUT.MIN_SIZE_TEST": "[0, inf)",
    "MODEL.DETR.DECODER.FFN_DIM": "[1, inf)",
    "MODEL.DETR.DECODER.NUM_LAYERS": "[1, inf)",
    "MODEL.DETR.DECODER.NUM_POINTS": "[1, inf)",
    "MODEL.DETR.DROPOUT": "[0, 1)",
    "MODEL.DETR.ENCODER.FFN_DIM": "[1, inf)",
    "MODEL.DETR.ENCODER.NUM_LAYERS": "[0, inf)",
    "MODEL.DETR.ENCODER.NUM_POINTS": "[1, inf)",
    "MODEL.DETR.HIDDEN_DIM": "[1, inf)",
    "MODEL.DETR.NUM_HEADS": "[1, inf)",
    "MODEL.DETR.QUERIES.NUM": "[1, inf)",
    "SEED": "(-inf, 4294967000]",  # numpy's end, less the processes, which count on from it
    "SOLVER.ACCUMULATE": "[1, inf)",
    "SOLVER.BACKBONE_MULTIPLIER": "[0, inf)",
    "SOLVER.BASE_LR": "[0, inf)",
    "SOLVER.BIAS_LR_FACTOR": "[0, inf)",
    "SOLVER.CHECKPOINT_EPOCHS": "[0, inf)",
    "SOLVER.CHECKPOINT_KEEP": "[0, inf)",
    "SOLVER.CHECKPOINT_PERIOD": "[1, inf)",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": "(0, inf)",
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": "(0, inf]",
    "SOLVER.EMA.DECAY": "[0, 1)",
    "SOLVER.EMA.WARMUP_ITERS": "[0, inf)",
    "SOLVER.EPOCHS": "[0, inf)",
    "SOLVER.GAMMA": "[0, inf)",
    "SOLVER.IMS_PER_BATCH": "[1, inf)",
    "SOLVER.MAX_ITER": "[1, inf)",
    "SOLVER.MOMENTUM": "[0, 1)",
    "SOLVER.OFFSET_MULTIPLIER": "[0, inf)",
    "SOLVER.REFERENCE_BATCH": "[0, inf)",
    "SOLVER.WARMUP_FACTOR": "[0, inf)",
    "SOLVER.WARMUP_ITERS": "[0, inf)",
    "SOLVER.WEIGHT_DECAY": "[0, inf)",
    "SOLVER.WEIGHT_DECAY_NORM": "[0, inf)",
    "TEST.DETECTIONS_PER_IMAGE": "[1, inf)",
    "TEST.EVAL_EPOCHS": "[0, inf)",
    "TEST.EVAL_PERIOD": "[0, inf)",
    "TEST.PATIENCE": "[0, inf)",
    "TEST.PICTURES": "[0, inf)",
    "TEST.QUERY_USE.THRESHOLD": "[0, 1)",
}

_NORMS = ("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "GN", "")
_RESNET_MAPS = ("stem", "res2", "res3", "res4", "res5")

# Of Detectron2's keys and those of the whole; parts have theirs beside them (checks.Choice).
CHOICES = {
    "DATALOADER.SAMPLER_TRAIN": ("TrainingSampler",),
    "DATASETS.SYNTHETIC_CROWD.BOX": ("full", "visible"),
    "INPUT.CROP.TYPE": ("absolute_range", "absolute", "relative_range", "relative"),
    "INPUT.FORMAT": ("RGB", "BGR", "L"),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ("choice", "range"),
    "INPUT.RANDOM_FLIP": ("horizontal", "vertical", "none"),
    "MODEL.FPN.FUSE_TYPE": ("sum", "avg"),
    "MODEL.FPN.NORM": _NORMS,
    "MODEL.RESNETS.DEPTH": (18, 34, 50, 101, 152),
    "MODEL.RESNETS.NORM": (*_NORMS, "FrozenStatsBN"),
    "MODEL.RESNETS.RES5_DILATION": (1, 2),
    "SOLVER.AMP.DTYPE": ("bfloat16", "float16"),
    "SOLVER.WARMUP_METHOD": ("linear", "constant"),
    "TEST.CROWD.PROTOCOL": PROTOCOLS,
}


def check_values(cfg: CfgNode) -> None:
    """Refuses a config with such a value.

    Raises:
        ValueError: naming the key, the value and what it must be.
    """
    for key, interval in RANGES.items():
        check_range(key, value_of(cfg, key), interval)
    for key, value in flat(cfg.MODEL.DETR, "MODEL.DETR."):
        if key.endswith(("_COST", "_SCALE", "_WEIGHT")):  # factors of costs and losses, of whichever paper
            check_range(key, value, "[0, inf)")
    for key, choices in CHOICES.items():
        check_choice(key, value_of(cfg, key), choices)
    for choice in Choice.all.values():
        choice(value_of(cfg, choice.key))
    for key, known in (("MODEL.META_ARCHITECTURE", META_ARCH_REGISTRY), ("MODEL.BACKBONE.NAME", BACKBONE_REGISTRY)):
        check_choice(key, value_of(cfg, key), [name for name, _ in known])
    _check_part_names(cfg)
    for name in cfg.MODEL.COMPILE:
        check_choice("MODEL.COMPILE", name, tuple(PARTS))
    build_augmentations(cfg)
    for key in ("DATASETS.TRAIN", "DATASETS.TEST", "MODEL.DETR.CLASS_NAMES", "MODEL.RESNETS.OUT_FEATURES"):
        if not all(isinstance(name, str) for name in value_of(cfg, key)):
            raise ValueError(f"{key} is {value_of(cfg, key)}, must be a list of names")
    _check_resnet_maps(cfg.MODEL.RESNETS.OUT_FEATURES)
    check_renames(cfg.MODEL.DETR.CLASS_RENAMES)
    for key in ("SOLVER.EPOCH_STEPS", "SOLVER.STEPS"):
        check_numbers(key, value_of(cfg, key), "[0, inf)")
        if sorted(value_of(cfg, key)) != list(value_of(cfg, key)):
            raise ValueError(f"{key} is {value_of(cfg, key)}, must be in ascending order")
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    check_numbers("MODEL.PIXEL_MEAN", cfg.MODEL.PIXEL_MEAN, length=channels)
    check_numbers("MODEL.PIXEL_STD", cfg.MODEL.PIXEL_STD, "(0, inf)", channels)
    _check_sizes(cfg)
    _check_device_name(cfg.MODEL.DEVICE)
    _check_heads(cfg.MODEL.DETR.HIDDEN_DIM, cfg.MODEL.DETR.NUM_HEADS)
    _check_best_metric(cfg.TEST.BEST_METRIC)
    _check_patience(cfg)


def check_renames(pairs: Any) -> None:
    """See that MODEL.DETR.CLASS_RENAMES is a map from old class names to new ones."""
    key = "MODEL.DETR.CLASS_RENAMES"
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(isinstance(name, str) for name in pair):
            raise ValueError(f"{key} holds {pair}, must be pairs of names [old, new]")
    for place, which in enumerate(("old", "new")):
        names = [pair[place] for pair in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{key} holds the {which} name {twice} twice")


def value_of(cfg: CfgNode, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), cfg)


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a config or of nested dicts, with its value."""
    for name, value in config.items():
        if isinstance(value, dict):  # a CfgNode is one
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _check_part_names(cfg: CfgNode) -> None:
    """The names in every slot; whether the parts fit each other is seen when they are built."""
    slots = {slot.key: slot for slot in vars(registry).values() if isinstance(slot, registry.Registry)}
    slots |= {key: slot for key, slot in registry.FURTHER_SLOTS.items() if value_of(cfg, key)}
    for key, slot in slots.items():
        value = value_of(cfg, key)
        values = {f"{key}.{name}": item for name, item in value.items()} if isinstance(value, CfgNode) else {key: value}
        for key, value in values.items():
            several = isinstance(value, (list, tuple))
            for name in value if several else [value]:
                for part in str(name).split("+") if slot is registry.INTERACTIONS else [name]:
                    named = f"an entry of {key}" if several else key
                    check_choice(named, part.strip() if isinstance(part, str) else part, slot.names())


def _check_resnet_maps(names: Sequence[str]) -> None:
    key = "MODEL.RESNETS.OUT_FEATURES"
    if not names:
        raise ValueError(f"{key} is empty, must name some of {', '.join(_RESNET_MAPS)}")
    for name in names:
        check_choice(f"an entry of {key}", name, _RESNET_MAPS)


def _check_sizes(cfg: CfgNode) -> None:
    """Those that images are resized and cropped to."""
    key, sizes = "INPUT.MIN_SIZE_TRAIN", cfg.INPUT.MIN_SIZE_TRAIN
    check_numbers(key, sizes, "[0, inf)")
    if not sizes:
        raise ValueError(f"{key} is empty, must be sizes to choose from")
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and sizes[0] > sizes[-1]:
        raise ValueError(f"{key} is {sizes}, must be the least and the largest size, as {key}_SAMPLING is range")
    check_numbers("INPUT.CROP.RESIZE", cfg.INPUT.CROP.RESIZE, "[1, inf)")
    if cfg.INPUT.CROP.ENABLED and not cfg.INPUT.CROP.RESIZE:
        raise ValueError("INPUT.CROP.RESIZE is empty, must be sizes to choose from")
    interval = "(0, 1]" if cfg.INPUT.CROP.TYPE.startswith("relative") else "[1, inf)"
    check_numbers("INPUT.CROP.SIZE", cfg.INPUT.CROP.SIZE, interval, length=2)


def _check_device_name(name: str) -> None:
    try:
        torch.device(name)
    except RuntimeError:
        raise ValueError(f'MODEL.DEVICE is "{name}", must be a device of torch, such as cuda, cuda:1 or cpu') from None


def _check_heads(hidden: int, heads: int) -> None:
    if hidden % 32 or hidden % heads:
        raise ValueError(
            f"MODEL.DETR.HIDDEN_DIM is {hidden}, must be divisible by 32 (group norm) and by "
            f"MODEL.DETR.NUM_HEADS {heads}"
        )


def _check_best_metric(metric: str) -> None:
    """MR is the one metric here of which less is better; without its minus the worst weights would be kept."""
    if re.match(r"MR(-|$)", metric.split("/")[-1]) and not metric.startswith("-"):
        raise ValueError(f"TEST.BEST_METRIC is {metric}, but a lower MR is better: write -{metric}")


def _check_patience(cfg: CfgNode) -> None:
    if cfg.TEST.PATIENCE and not (cfg.DATASETS.TEST and cfg.TEST.BEST_METRIC):
        key = "TEST.BEST_METRIC" if cfg.DATASETS.TEST else "DATASETS.TEST"
        raise ValueError(f"TEST.PATIENCE is {cfg.TEST.PATIENCE}, but there is nothing to wait for: {key} is empty")
