# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From the command line to a checked config: whatever is wrong is said in one sentence before anything is built."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..data import register_datasets
from ..detector import add_paq_detr_config
from ..errors import NonFiniteLossError, UserError
from ..registry import load_plugins
from .checks import check_values, value_of
from .weights import missing_file

logger = logging.getLogger(__name__)

# Keys of Detectron2's default trainer that nothing here reads.
IDLE_KEYS = (
    "DATASETS.PROPOSAL_FILES_TRAIN",
    "MODEL.LOAD_PROPOSALS",
    "SOLVER.REFERENCE_WORLD_SIZE",
    "TEST.AUG.ENABLED",
    "TEST.EXPECTED_RESULTS",
    "TEST.PRECISE_BN.ENABLED",
    "VIS_PERIOD",
)


def setup_config(args: argparse.Namespace) -> CfgNode:
    """The frozen config of ``args.config_file`` and ``args.opts``, its datasets registered.

    ``MODEL.DETR.CLASS_NAMES`` is filled from the datasets. Without a CUDA device ``MODEL.DEVICE`` becomes "cpu".

    Raises:
        UserError: an unknown key, a missing file or dataset, a value of another type; one sentence.
    """
    setup_logger(name="paq_detr")  # what is said of datasets and keys is shown as well
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    if args.config_file:
        _merge_file(cfg, args.config_file)
    _merge_opts(cfg, list(args.opts or []))
    _check_epochs(cfg, list(args.opts or []))
    _warn_of_idle_keys(cfg)
    _check_device(cfg, getattr(args, "num_gpus", 1))
    _check_weights(cfg)
    try:
        check_values(cfg)
        register_datasets(cfg)
    except (OSError, ValueError) as error:
        raise UserError(f"{error}.") from error
    cfg.freeze()
    return cfg


def start_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Output folder, loggers and seeds; on every process.

    Detectron2's ``default_setup`` does the same, but shows several hundred lines of config on the way.
    """
    rank = comm.get_rank()
    if comm.is_main_process():
        os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    for name in ("fvcore", "detectron2", "paq_detr"):
        logging.getLogger(name).handlers.clear()  # of setup_config, which had no folder yet
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_expected_error_to_sentence)
    logger.info("Command line: %s", args)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def _expected_error_to_sentence(record: logging.LogRecord) -> bool:
    """A filter for Detectron2's loop, which logs the traceback of whatever ends a training."""
    error = record.exc_info and record.exc_info[1]
    if isinstance(error, (UserError, NonFiniteLossError)):
        record.msg, record.exc_info = str(error), None
    return True


def save_config(cfg: CfgNode) -> None:
    """Write config.yaml and environment.txt into the output folder: what a training about to start runs with."""
    if comm.is_main_process():
        for file, text in (("config.yaml", cfg.dump()), ("environment.txt", collect_env_info())):
            with open(os.path.join(cfg.OUTPUT_DIR, file), "w") as stream:
                stream.write(text)
        logger.info("The full config and the environment are in %s", cfg.OUTPUT_DIR)


def run_cli(main: Callable[[], int | None], program: str) -> int:
    """Call ``main``; print an expected error as one sentence. Returns the exit code: 2 for wrong input."""
    try:
        return main() or 0
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except NonFiniteLossError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1


def _merge_file(cfg: CfgNode, path: str) -> None:
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        close = difflib.get_close_matches(os.path.basename(path), os.listdir(folder)) if os.path.isdir(folder) else []
        hint = f" (did you mean {os.path.join(folder, close[0])}?)" if close else ""
        raise UserError(f"The config file {path} does not exist{hint}.")
    try:
        given = CfgNode(CfgNode.load_yaml_with_base(path, allow_unsafe=True))
        _load_plugins(cfg, _plugins_of(given))
        _mend_types(given, cfg)
        cfg.merge_from_other_cfg(given)
    except UserError as error:
        raise UserError(f"{path}: {error}.") from error
    except KeyError as error:
        key = re.search(r"(?:[Nn]on-existent config key: |Key )([\w.]+)", str(error))
        raise UserError(f"{path}: {_unknown(cfg, key[1]) if key else error}.") from error
    except (ValueError, TypeError, AssertionError, OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}.") from error


def _plugins_of(given: CfgNode) -> object:
    for name in ("MODEL", "DETR"):
        given = given.get(name)
        if not isinstance(given, CfgNode):
            return []
    return given.get("PLUGINS", [])


def _load_plugins(cfg: CfgNode, names: object) -> None:
    """Imports what MODEL.DETR.PLUGINS names, also from the working directory, before keys are merged."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    load_plugins([names] if isinstance(names, str) else names, cfg)


def _mend_types(given: CfgNode, cfg: CfgNode) -> None:
    """1 means 1.0 where ``cfg`` holds a float, and a name a list of one where it holds a list; yacs refuses both."""
    for name, value in given.items():
        now = cfg.get(name)
        if isinstance(value, CfgNode) and isinstance(now, CfgNode):
            _mend_types(value, now)
        else:
            given[name] = _mended(value, now)


def _mended(value: object, now: object) -> object:
    if type(value) is int and isinstance(now, float):
        return float(value)
    if isinstance(value, str) and isinstance(now, list) and not value.lstrip().startswith(("[", "(")):
        return [value]
    return value


def _merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    if len(opts) % 2:
        raise UserError(f"Options come as pairs KEY VALUE, but these are {len(opts)}: {' '.join(opts)}.")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == "MODEL.DETR.PLUGINS":
            names = yaml.safe_load(value)
            _load_plugins(cfg, names if isinstance(names, (str, list)) else [value])
    known = set(_keys(cfg))
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key not in known:
            raise UserError(f"{_unknown(cfg, key)}.")
        if isinstance(value_of(cfg, key), float) and re.fullmatch(r"[+-]?\d+", value):
            value = float(value)
        value = _mended(value, value_of(cfg, key))
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"{key} cannot be {value!r}: {' '.join(str(error).split())}.") from error


def _check_epochs(cfg: CfgNode, opts: list[str]) -> None:
    """Iterations asked for on the command line are not lost because the file counts in epochs."""
    idle = [key for key in opts[::2] if key in ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.CHECKPOINT_PERIOD")]
    if cfg.SOLVER.EPOCHS and idle:
        raise UserError(
            f"{' and '.join(idle)} would have no effect, because SOLVER.EPOCHS is {cfg.SOLVER.EPOCHS:g}; set "
            "SOLVER.EPOCHS 0 as well to count in iterations."
        )


def _unknown(cfg: CfgNode, key: str) -> str:
    """That there is no such key, and which was probably meant, or how it is written now."""
    if cfg.key_is_renamed(key):
        _, how = cfg.__dict__[CfgNode.RENAMED_KEYS][key]
        return f"{key} is gone: {how}"
    known = list(_keys(cfg))
    leaf = key.split(".")[-1].upper()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    near = near or [name for name in known if name.split(".")[-1] == leaf]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f" (did you mean {' or '.join(near[:3])}?)" if near else ""
    return f"There is no config key {key}{hint}"


def _keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _warn_of_idle_keys(cfg: CfgNode) -> None:
    default = get_cfg()
    for key in IDLE_KEYS:
        if value_of(cfg, key) != value_of(default, key):
            logger.warning("%s is a key of Detectron2's that has no effect on this trainer", key)


def _check_device(cfg: CfgNode, num_gpus: int) -> None:
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if num_gpus > max(have, 1):
        raise UserError(f"--num-gpus is {num_gpus}, but torch finds {have} CUDA devices here.")
    if not have:
        logger.warning("torch finds no CUDA device: MODEL.DEVICE is cpu instead of %s", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def _check_weights(cfg: CfgNode) -> None:
    """A local weight file that is missing is said now, not after the model was built."""
    path = cfg.MODEL.WEIGHTS
    if path and "://" not in path and not os.path.isfile(path):
        raise missing_file(path)
