# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a config.

python train_net.py --config-file configs/demo.yaml [--num-gpus N] [--resume] [KEY VALUE ...]
python train_net.py --config-file output/config.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import argparse
import sys

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from paq_detr.data import register_datasets
from paq_detr.engine import Trainer, load_trained, run_cli, setup_config, start_run
from paq_detr.engine.processes import launch, one_sentence, pass_signals_on


def worker(cfg, args: argparse.Namespace) -> None:
    """What every process does."""
    if comm.get_world_size() > 1:
        register_datasets(cfg)  # catalogs are per process
    start_run(cfg, args)
    if args.eval_only:
        Trainer.test(cfg, load_trained(cfg, resume=args.resume))
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def main() -> None:
    args = default_argument_parser().parse_args()
    cfg = setup_config(args)
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


if __name__ == "__main__":
    sys.exit(run_cli(main, "train_net"))
