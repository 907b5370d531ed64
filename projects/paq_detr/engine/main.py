# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate on one process or several: what ``train_net.py`` and ``paq-detr train`` and ``eval`` do."""

from __future__ import annotations

import argparse
import os

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..data import register_datasets
from ..errors import UserError
from .cli import setup_config, start_run
from .environment import place_in
from .evaluate import load_trained
from .processes import join, launch, one_sentence, pass_signals_on
from .trainer import Trainer


def worker(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What every process does."""
    if comm.get_world_size() > 1:
        register_datasets(cfg, test_only=args.eval_only)  # catalogs are per process
    start_run(cfg, args)
    if args.eval_only:
        model = load_trained(cfg, args.resume, getattr(args, "allow_partial", False))
        Trainer.test(cfg, model, report=True)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def run(args: argparse.Namespace) -> CfgNode:
    """Train, or evaluate, as a command line says; returns the config that it came to. A process that torchrun or srun
    started joins the others.

    Args:
        args: as of train_net.py.
    """
    place = place_in(os.environ)
    if place is not None and (args.num_gpus > 1 or args.num_machines > 1):
        raise UserError(
            f"{place.starter} has started {place.world} processes already: leave out --num-gpus and --num-machines."
        )
    cfg = setup_config(args, place)
    if place is not None:
        join(place, worker, (cfg, args))
        return cfg
    with one_sentence() as guarded:
        if args.num_gpus > 1:
            pass_signals_on()
        launch(
            guarded,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(worker, cfg, args),
        )
    return cfg
