# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint against the config that it is to go on with or to be evaluated with.

Checkpoints carry the config of their run (``run_config``, as yaml). Every key that differs is named in one sentence,
with what becomes of it: applied, not applied, or refused.
"""

from __future__ import annotations

import logging
from types import NoneType
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from torch import nn

from ..errors import UserError
from .checks import flat

logger = logging.getLogger(__name__)

_OF_THE_PLACE = ("OUTPUT_DIR", "VERSION", "MODEL.DEVICE")  # may differ without a word
_NOT_APPLIED = {
    "MODEL.WEIGHTS": "the checkpoint's weights count",
    "SEED": "order and augmentation of the data go on as they began",
}
_STATE = {  # what Trainer.state_dict holds
    "iteration": int,
    "optimizer": dict,
    "scaler": dict,
    "data": dict,
    "rng": (list, NoneType),
}
_DATA = ("seed", "start", "batches", "batch_size", "world_size")  # what TrainLoader.state_dict holds

_FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where PyYAML was built with it
Change = tuple[str, Any, Any]  # key, value of the checkpoint, value of this run


def changes(run_config: str | None, cfg: CfgNode) -> list[Change]:
    """The keys that both configs have and that differ; none where the checkpoint carries no config."""
    before = dict(flat(_config_of(run_config)))
    now = dict(flat(yaml.load(cfg.dump(), _FAST)))
    # A key may hold a list since then: one name is a list of it.
    differ = [key for key in now if key in before and now[key] not in (before[key], [before[key]])]
    return [(key, before[key], now[key]) for key in differ]


def _config_of(run_config: Any) -> dict[str, Any]:
    """The config as nested dicts; none where other code has put something else in its place."""
    try:
        content = yaml.load(run_config, _FAST) if isinstance(run_config, str) else None
    except yaml.YAMLError:
        content = None
    return content if isinstance(content, dict) else {}


def training_state(content: dict[str, Any]) -> dict[str, Any] | None:
    """What a trainer saved of itself; None where a file holds none that is whole."""
    state = content.get("trainer")
    return state if _fits(state, _STATE) and _fits(state["data"], dict.fromkeys(_DATA, int)) else None


def check_resumable(content: dict[str, Any], cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """See that a checkpoint's training can go on with ``cfg``; one warning names the keys that differ.

    Args:
        content: of the checkpoint file, with its path as ``file``.
        model, optimizer: built from ``cfg``.

    Raises:
        UserError: the file holds no training state, one that is beyond this run's end, or one of another model, of
            other classes, of other trained weights or of another optimiser.
    """
    file, state = content["file"], training_state(content)
    if state is None:
        raise UserError(
            f"{file} holds weights, but no state of a training that --resume could continue; to start from these "
            f"weights, leave --resume out and set MODEL.WEIGHTS {file}."
        )
    done, end = state["iteration"] + 1, cfg.SOLVER.MAX_ITER
    if done > end:
        keys = f"SOLVER.MAX_ITER {end}" + (f" (SOLVER.EPOCHS {cfg.SOLVER.EPOCHS})" if cfg.SOLVER.EPOCHS else "")
        raise UserError(f"{file} was trained for {done} iterations, and {keys} ends before: raise it to go on.")
    differing = [c for c in changes(content.get("run_config"), cfg) if c[0] not in _OF_THE_PLACE]
    refusal = _refusal(content, cfg, model, optimizer)
    if refusal:
        reason, prefixes = refusal
        culprits = [c for c in differing if c[0].startswith(prefixes) and c[0] not in _NOT_APPLIED]
        keys = f" ({_listed(culprits)})" if culprits else ""
        raise UserError(
            f"--resume cannot continue {file}, refused: {reason}{keys}; to start from its weights, leave --resume out "
            f"and set MODEL.WEIGHTS {file}."
        )
    if not state["optimizer"]["state"]:
        logger.warning("%s holds no state of the optimiser, which begins anew", file)
    if differing:
        told = [f"{_listed([c])} ({_fate(c[0])})" for c in differing]
        logger.warning("--resume goes on with other settings than the checkpoint's: %s", "; ".join(told))


def _fits(state: Any, kinds: dict[str, Any]) -> bool:
    """Whether ``state`` is a dict with these keys, each of its type."""
    return isinstance(state, dict) and all(key in state and isinstance(state[key], kinds[key]) for key in kinds)


def _refusal(
    content: dict[str, Any], cfg: CfgNode, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[str, tuple[str, ...]] | None:
    """Why a training cannot go on, and the beginnings of the keys that decide it; None where it can."""
    classes, ours = list(content.get("class_names") or ()), list(cfg.MODEL.DETR.CLASS_NAMES)
    if classes and classes != ours:
        return f"it was trained for {_classes(classes)}, this run has {_classes(ours)}", ("DATASETS.TRAIN",)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    stored = {name: tuple(tensor.shape) for name, tensor in content["model"].items()}
    if shapes != stored:
        first = next(name for name in (*shapes, *stored) if shapes.get(name) != stored.get(name))
        what = f"{first} is {stored.get(first, 'absent')} there and {shapes.get(first, 'absent')} here"
        return f"its model is another one, {what}", ("MODEL.",)
    state = content["trainer"]["optimizer"]
    kind = "momentum_buffer" if isinstance(optimizer, torch.optim.SGD) else "exp_avg"
    if any(kind not in entry for entry in state["state"].values()):
        return "its optimiser is another one", ("SOLVER.OPTIMIZER", "SOLVER.MOMENTUM")
    names, trained = _names(optimizer.state_dict(), state)
    if set(names) != set(trained):
        return f"it trains {len(trained)} tensors, this run {len(names)}", ("MODEL.", "SOLVER.")
    return None


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Each parameter's state by its name; learning rates and weight decays stay those of ``optimizer``."""
    own = optimizer.state_dict()
    names, stored = _names(own, state)
    entries = {index: state["state"].get(stored[name]) for name, index in names.items()}
    entries = {index: entry for index, entry in entries.items() if entry is not None}
    optimizer.load_state_dict({"state": entries, "param_groups": own["param_groups"]})


def tell_other_settings(content: dict[str, Any], cfg: CfgNode) -> None:
    """One warning with the keys of the model that an evaluation sets otherwise than the training did."""
    differing = [c for c in changes(content.get("run_config"), cfg) if _matters(c[0])]
    if differing:
        logger.warning("evaluated with other settings than those of training: %s (applied)", _listed(differing))


def tensors_fault(content: dict[str, Any], cfg: CfgNode, lacking: list[str]) -> str:
    """What is wrong with weights that lack tensors which an evaluation needs, without a full stop; "" where none do."""
    if not lacking:
        return ""
    differing = [c for c in changes(content.get("run_config"), cfg) if _matters(c[0])]
    keys = f"; the model differs by {_listed(differing[:3])}" if differing else ""
    keys += f" and {len(differing) - 3} more keys" if len(differing) > 3 else ""
    return (
        f"Weight file {content['file']} does not fit the model: {len(lacking)} tensors of the model, such as "
        f"{lacking[0]}, are not in it or have another shape{keys}"
    )


def classes_fault(content: dict[str, Any], classes: list[str]) -> str:
    """The same of weights that were not trained for all the classes that an evaluation is for."""
    trained = list(content.get("class_names") or classes)
    unknown = [name for name in classes if name not in trained]
    if not unknown:
        return ""
    if len(unknown) == len(classes):
        return (
            f"Weight file {content['file']} was trained for {_classes(trained)}, and the evaluation is for none of "
            f"them, but for {_classes(classes)}"
        )
    return f"Weight file {content['file']} was not trained for {_classes(unknown)}"


def _matters(key: str) -> bool:
    return (key.startswith("MODEL.") or key == "INPUT.FORMAT") and key not in (*_OF_THE_PLACE, *_NOT_APPLIED)


def _fate(key: str) -> str:
    return f"not applied: {_NOT_APPLIED[key]}" if key in _NOT_APPLIED else "applied"


def _listed(differing: list[Change]) -> str:
    return "; ".join(f"{key} {_short(before)} -> {_short(now)}" for key, before, now in differing)


def _short(value: Any) -> str:
    text = str(value) if value != "" else '""'
    return text if len(text) <= 60 else f"{text[:57]}..."


def _classes(names: list[str]) -> str:
    return f"the classes {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _names(*states: dict[str, Any]) -> list[dict[Any, int]]:
    """Index by name of the parameters of optimisers' states; by place where one numbers them alone, as it did once."""
    named = all("param_names" in group for state in states for group in state["param_groups"])
    found: list[dict[Any, int]] = []
    for state in states:
        found.append({})
        for number, group in enumerate(state["param_groups"]):
            places = [(number, place) for place in range(len(group["params"]))]
            found[-1].update(zip(group["param_names"] if named else places, group["params"], strict=True))
    return found
