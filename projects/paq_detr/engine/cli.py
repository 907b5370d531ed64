# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From the command line to a checked config: whatever is wrong is said in one sentence before anything is built."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shlex
import signal
import sys
import urllib.parse
from collections.abc import Callable

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..checks import expanded_path
from ..convert.files import missing_file
from ..data import check_pictures, register_datasets
from ..detector import add_paq_detr_config
from ..errors import Interrupted, NonFiniteLossError, UserError
from ..output_paths import make_output_folder
from .build import build_detector
from .checkpoint import DetrCheckpointer
from .checks import check_values, value_of
from .environment import Place
from .hooks import EnoughTraining
from .loggers import check_loggers
from .merge import merge_file, merge_opts
from .output import claim, fault_of_machine, holds_checkpoint, remove_parts, run_files, set_aside
from .pretrained import BUNDLED, bundled_file

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


def setup_config(args: argparse.Namespace, place: Place | None = None) -> CfgNode:
    """The frozen config of ``args.config_file`` and ``args.opts``, its datasets registered.

    ``MODEL.DETR.CLASS_NAMES`` is filled from the datasets. Without a CUDA device ``MODEL.DEVICE`` becomes "cpu".

    Args:
        place: of this process, where torchrun or srun started several.

    Raises:
        UserError: an unknown key, a missing file, picture or dataset, a value of another type; one sentence.
    """
    setup_logger(
        distributed_rank=place.rank if place else 0, name="paq_detr"
    )  # what is said of datasets and keys is shown as well
    _check_processes(args)
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    if args.config_file:
        merge_file(cfg, args.config_file)
    merge_opts(cfg, list(args.opts or []))
    _check_epochs(cfg, list(args.opts or []))
    _warn_of_idle_keys(cfg)
    _settle_paths(cfg)
    per_machine = place.per_machine if place else getattr(args, "num_gpus", 1)
    _check_device(cfg, per_machine, "" if place is None else place.starter)
    _check_batch(cfg, place.world if place else per_machine * getattr(args, "num_machines", 1))
    _check_weights(cfg)
    evaluates = getattr(args, "eval_only", False)
    if evaluates and not cfg.DATASETS.TEST:
        raise UserError("An evaluation needs a dataset in DATASETS.TEST, which is empty.")
    if evaluates and getattr(args, "resume", False) and "MODEL.WEIGHTS" in (args.opts or [])[::2]:
        raise UserError(
            f"--eval-only --resume evaluates the last checkpoint of OUTPUT_DIR, so that MODEL.WEIGHTS "
            f"{cfg.MODEL.WEIGHTS} would be ignored: leave one of them out."
        )
    try:
        check_values(cfg)
        check_loggers(cfg)
        register_datasets(cfg, test_only=evaluates)
        check_pictures(cfg.DATASETS.TEST if evaluates else (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    except (OSError, ValueError) as error:
        raise UserError(f"{error}.") from error
    cfg.freeze()
    return cfg


def start_run(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Output folder, loggers and seeds; on every process.

    A training that does not resume begins in a folder without another run's files: they are moved into a numbered
    folder in it (``output.set_aside``).
    Detectron2's ``default_setup`` does the same, but shows several hundred lines of config on the way.
    """
    rank, aside = comm.get_rank(), ""
    if comm.is_main_process():
        make_output_folder("OUTPUT_DIR", cfg.OUTPUT_DIR)
        if not getattr(args, "eval_only", False):
            claim(cfg.OUTPUT_DIR)
            remove_parts(cfg.OUTPUT_DIR)
            if not (getattr(args, "resume", False) and holds_checkpoint(cfg.OUTPUT_DIR)):
                if run_files(cfg.OUTPUT_DIR):
                    _try_model(cfg)
                aside = set_aside(cfg.OUTPUT_DIR, keep=cfg.MODEL.WEIGHTS)
    comm.synchronize()
    for name in ("fvcore", "detectron2", "paq_detr"):
        logging.getLogger(name).handlers.clear()  # of setup_config, which had no folder yet
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name=name)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_expected_error_to_sentence)
    logger.info("Command line: %s", args)
    if aside:
        logger.warning("%s held an earlier run, whose files are now in %s", cfg.OUTPUT_DIR, aside)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.SOLVER.TF32:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def _try_model(cfg: CfgNode) -> None:
    """Build the model and load its weights once in vain, in silence: what is wrong with them is said before an earlier
    run's files are moved for a training that never begins."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        DetrCheckpointer(build_detector(cfg)).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    finally:
        logging.disable(before)


def _expected_error_to_sentence(record: logging.LogRecord) -> bool:
    """A filter for Detectron2's loop, which logs the traceback of whatever ends a training."""
    error = record.exc_info and record.exc_info[1]
    if isinstance(error, EnoughTraining):  # no error; the trainer says it
        return False
    if isinstance(error, (UserError, NonFiniteLossError)) or (error and fault_of_machine(error)):
        record.msg, record.exc_info = fault_of_machine(error) or str(error), None
    elif comm.get_world_size() > 1 and re.search(r"[Cc]onnection (closed|reset)|gloo/transport", str(error)):
        record.msg, record.exc_info = "Another process ended", None
    return True


def save_config(cfg: CfgNode) -> None:
    """Write config.yaml and environment.txt into the output folder: what a training about to start runs with."""
    if comm.is_main_process():
        for file, text in (("config.yaml", cfg.dump()), ("environment.txt", collect_env_info())):
            with open(os.path.join(cfg.OUTPUT_DIR, file), "w", encoding="utf-8") as stream:
                stream.write(text)
        logger.info("The full config and the environment are in %s", cfg.OUTPUT_DIR)


def run_cli(main: Callable[[], int | None], program: str) -> int:
    """Call ``main``; print an expected error as one sentence.

    Returns the exit code: 2 for wrong input and what the machine has no room for, 1 for an infinite loss, 128 + its
    number for a signal.
    """
    try:
        return main() or 0
    except UserError as error:
        return _tell(program, str(error), 2)
    except NonFiniteLossError as error:
        return _tell(program, str(error), 1)
    except Interrupted as error:
        return _tell(program, f"{error} Go on with: {resume_command()}", 128 + error.signal)
    except KeyboardInterrupt:
        return _tell(program, "Stopped; nothing was saved but what the log says.", 128 + signal.SIGINT)
    except (OSError, MemoryError, RuntimeError) as error:
        if not fault_of_machine(error):
            raise
        return _tell(program, fault_of_machine(error), 2)


def _tell(program: str, sentence: str, code: int) -> int:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{program}: {sentence}", file=sys.stderr, flush=True)
    return code


def resume_command() -> str:
    """The command line of this process, with --resume."""
    script, *arguments = sys.argv
    if os.path.basename(script) == "__main__.py":
        command = ["python", "-m", "paq_detr"]
    else:
        command = ["python", script] if script.endswith(".py") else [os.path.basename(script)]
    if arguments[:1] in (["train"], ["demo"]):  # of paq-detr
        command.append(arguments.pop(0))
    arguments = arguments if "--resume" in arguments else ["--resume", *arguments]
    return shlex.join([*command, *arguments])


def _check_epochs(cfg: CfgNode, opts: list[str]) -> None:
    """Iterations asked for on the command line are not lost because the file counts in epochs."""
    idle = [key for key in opts[::2] if key in ("SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.CHECKPOINT_PERIOD")]
    if cfg.SOLVER.EPOCHS and idle:
        raise UserError(
            f"{' and '.join(idle)} would have no effect, because SOLVER.EPOCHS is {cfg.SOLVER.EPOCHS:g}; set "
            "SOLVER.EPOCHS 0 as well to count in iterations."
        )


def _warn_of_idle_keys(cfg: CfgNode) -> None:
    default = get_cfg()
    for key in IDLE_KEYS:
        if value_of(cfg, key) != value_of(default, key):
            logger.warning("%s is a key of Detectron2's that has no effect on this trainer", key)


def _settle_paths(cfg: CfgNode) -> None:
    if not cfg.OUTPUT_DIR:
        raise UserError("OUTPUT_DIR is empty, must be the folder that results go to.")
    try:
        cfg.OUTPUT_DIR = expanded_path("OUTPUT_DIR", cfg.OUTPUT_DIR)
        if "://" not in cfg.MODEL.WEIGHTS:
            cfg.MODEL.WEIGHTS = expanded_path("MODEL.WEIGHTS", cfg.MODEL.WEIGHTS)
    except UserError as error:
        raise UserError(f"{error}.") from error


def _check_processes(args: argparse.Namespace) -> None:
    machines, rank = getattr(args, "num_machines", 1), getattr(args, "machine_rank", 0)
    for option, number in (("--num-gpus", getattr(args, "num_gpus", 1)), ("--num-machines", machines)):
        if number < 1:
            raise UserError(f"{option} is {number}, must be at least 1.")
    if not 0 <= rank < machines:
        raise UserError(f"--machine-rank is {rank}, must be from 0 to {machines - 1}, as --num-machines is {machines}.")
    url = getattr(args, "dist_url", None) or "auto"
    if url != "auto" and not _is_rendezvous(url):
        raise UserError(f"--dist-url is {url}, must be auto, tcp://HOST:PORT or file:///PATH.")


def _is_rendezvous(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        return bool(parts.hostname and parts.port) if parts.scheme == "tcp" else parts.scheme in ("file", "env")
    except ValueError:  # no port
        return False


def _check_batch(cfg: CfgNode, processes: int) -> None:
    images, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE
    if processes > 1 and images % processes:
        raise UserError(f"SOLVER.IMS_PER_BATCH {images} cannot be divided among {processes} processes.")
    share = images // processes
    if parts > 1 and share % parts:
        what = f"the {share} images of each process" if processes > 1 else f"SOLVER.IMS_PER_BATCH {images}"
        raise UserError(f"SOLVER.ACCUMULATE is {parts}, but {what} cannot be divided into {parts} equal parts.")


def _check_device(cfg: CfgNode, num_gpus: int, starter: str = "") -> None:
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        return
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if starter and have and num_gpus > have:
        raise UserError(f"{starter} started {num_gpus} processes on this machine, but torch finds {have} CUDA devices.")
    if not starter and num_gpus > max(have, 1):
        raise UserError(f"--num-gpus is {num_gpus}, but torch finds {have} CUDA devices here.")
    if not have:
        logger.warning("torch finds no CUDA device: MODEL.DEVICE is cpu instead of %s", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"


def _check_weights(cfg: CfgNode) -> None:
    """A local weight file that is missing is said now, not after the model was built."""
    path = cfg.MODEL.WEIGHTS
    if path in BUNDLED:
        path = bundled_file(path)
    if path and "://" not in path and not os.path.isfile(path):
        raise missing_file(path)
