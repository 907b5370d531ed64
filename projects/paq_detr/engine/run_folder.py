# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What a training left: a folder or a weight file, found again as a config and weights to go on with."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg

from ..config_files import config_file
from ..convert import convert_if_foreign
from ..convert.files import read_checkpoint, strip_wrappers
from ..detector import add_paq_detr_config
from ..errors import UserError
from .checks import check_values
from .cli import setup_config
from .merge import merge_file, merge_opts, merge_text
from .output import AVERAGED, BEST, FINAL, LAST_CHECKPOINT

CONFIG = "config.yaml"
_WEIGHTS = (".pth", ".pt", ".pkl", ".safetensors", ".bin")


@dataclass(frozen=True)
class Run:
    """A trained model on disk."""

    folder: str  # of the weights, and of what evaluations stored
    weights: str
    config_file: str  # empty: the weight file carries its config


def find_run(path: str | os.PathLike, config_file: str | None = None) -> Run:
    """The run that a folder or a weight file belongs to.

    Args:
        path: a folder that training wrote (the best weights count, else averaged ones, else the final ones), or a
            weight file.
        config_file: in place of the config.yaml beside the weights.

    Raises:
        UserError: there are no weights, or nothing tells their config.
    """
    path = os.path.expanduser(os.fspath(path))
    if config_file is not None:
        config_file = os.path.expanduser(os.fspath(config_file))
    if os.path.isdir(path):
        return Run(path, _weights_in(path), config_file or _config_in(path))
    if not os.path.isfile(path):
        raise UserError(f"The run {path} does not exist{_close_to(path)}.")
    if path.endswith((".yaml", ".yml")):
        raise UserError(f"{path} is a config: name the folder of the run, or its weights (and --config {path}).")
    folder = os.path.dirname(path) or "."
    beside = os.path.join(folder, CONFIG)
    return Run(folder, path, config_file or (beside if os.path.isfile(beside) else ""))


def _config_in(folder: str) -> str:
    path = os.path.join(folder, CONFIG)
    if not os.path.isfile(path):
        what = "is empty" if not os.listdir(folder) else f"holds no {CONFIG}"
        raise UserError(f"{folder} {what}: a run is a folder that training wrote, or a weight file with --config FILE.")
    return path


def _weights_in(folder: str) -> str:
    names = [BEST, AVERAGED, FINAL]
    last = os.path.join(folder, LAST_CHECKPOINT)
    if os.path.isfile(last):
        with open(last, errors="replace") as file:
            names.append(os.path.basename(file.read(4096).strip()))
    found = [path for name in names if name and os.path.isfile(path := os.path.join(folder, name))]
    if found:
        return found[0]
    _config_in(folder)  # which, where it is missing, says more
    others = sorted(name for name in os.listdir(folder) if name.endswith(_WEIGHTS))
    hint = f"; name one of {', '.join(others[:5])}" if others else ": its training has not saved any yet"
    raise UserError(f"{folder} holds neither {BEST} nor {FINAL}{hint}.")


def _close_to(path: str) -> str:
    folder, name = os.path.split(path.rstrip("/"))
    close = difflib.get_close_matches(name, os.listdir(folder or ".")) if os.path.isdir(folder or ".") else []
    return f" (did you mean {os.path.join(folder, close[0])}?)" if close else ""


def trained_config(run: Run, device: str | None = None, opts: Sequence[Any] = ()) -> CfgNode:
    """The config of a run, to predict with; needs none of its datasets.

    Class names that it lacks are taken from the weight file.

    Args:
        device: in place of the config's; None: the config's, or the CPU where there is no such device.
        opts: KEY, VALUE, ... that change it.

    Raises:
        UserError: one sentence on what is wrong with the config, the device or the weight file.
    """
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    if run.config_file:
        merge_file(cfg, run.config_file)
    else:
        text = read_checkpoint(run.weights).get("run_config")
        if not isinstance(text, str) or not text:
            raise UserError(f"Nothing tells the config of {run.weights}: put its {CONFIG} beside it, or name one by "
                            "--config FILE.")  # fmt: skip
        merge_text(cfg, text, run.weights)
    cfg.MODEL.WEIGHTS = run.weights
    merge_opts(cfg, list(opts))
    cfg.MODEL.DEVICE = settle_device(cfg.MODEL.DEVICE if device is None else device, wanted=device is not None)
    try:
        check_values(cfg)
    except ValueError as error:
        raise UserError(f"{error}.") from error
    if not cfg.MODEL.DETR.CLASS_NAMES:
        cfg.MODEL.DETR.CLASS_NAMES = _class_names(run)
    return cfg


def settle_device(name: str, wanted: bool) -> str:
    """The device ``name`` where torch has it; else the CPU, or an error where just that one is ``wanted``."""
    try:
        kind = torch.device(name).type
    except (RuntimeError, TypeError):
        raise UserError(f"The device is {name}, must be one of torch, such as cuda, cuda:1 or cpu.") from None
    if kind == "cpu":
        return name
    have = torch.cuda.is_available() if kind == "cuda" else getattr(torch, kind, None) is not None
    if have and (kind != "cuda" or (torch.device(name).index or 0) < torch.cuda.device_count()):
        return name
    if wanted:
        raise UserError(f"The device is {name}, but torch finds no such device here.")
    return "cpu"


def _class_names(run: Run) -> list[str]:
    content = read_checkpoint(run.weights)
    names = content.get("class_names")
    if not names:
        weights = strip_wrappers(content["model"], (), ())
        names = convert_if_foreign({key: torch.as_tensor(value) for key, value in weights.items()}).class_names
    if not names:
        raise UserError(
            f"The names of the classes stand neither in {run.config_file or 'the config'} nor in {run.weights}: set "
            "MODEL.DETR.CLASS_NAMES in the config."
        )
    return list(names)


def load_config(path: str | os.PathLike, opts: Sequence[Any] | Mapping[str, Any] = ()) -> CfgNode:
    """The config of a yaml file, of a run's folder or weights, or one of the package by its name ("crowd/paq_dh"),
    ready to use: its datasets are registered, the device is one of this machine, and warnings and progress are shown.

        cfg = paq_detr.load_config("output/demo", {"MODEL.DEVICE": "cpu"})
        predictor = detectron2.engine.DefaultPredictor(cfg)

    Of a run, ``MODEL.WEIGHTS`` are its best ones and ``OUTPUT_DIR`` is its folder.

    Args:
        opts: changes, as a dict or KEY, VALUE, ...

    Raises:
        UserError: one sentence on what is wrong.
    """
    path, opts = os.path.expanduser(os.fspath(path)), flat_opts(opts)
    if not os.path.exists(path):
        path = config_file(path)
    if not path.endswith((".yaml", ".yml")):
        run = find_run(path)
        if not run.config_file:
            raise UserError(f"There is no {CONFIG} beside {path}.")
        path, opts = run.config_file, ["MODEL.WEIGHTS", run.weights, "OUTPUT_DIR", run.folder, *opts]
    cfg = setup_config(argparse.Namespace(config_file=path, opts=opts))
    cfg.defrost()
    return cfg


def flat_opts(opts: Sequence[Any] | Mapping[str, Any]) -> list[Any]:
    """KEY, VALUE, ... of a dict, or of what is that already."""
    return [part for pair in opts.items() for part in pair] if isinstance(opts, Mapping) else list(opts)
