# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a config; ``paq-detr train`` and ``paq-detr eval`` do the same.

python train_net.py --config-file configs/demo.yaml [--num-gpus N] [--resume] [KEY VALUE ...]
python train_net.py --config-file output/config.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import argparse
import sys

from paq_detr._detectron2 import needed_by
from paq_detr._threads import wait_asleep
from paq_detr.cli import add_launch_arguments

wait_asleep()
with needed_by("train_net"):
    from paq_detr.engine import run_cli
    from paq_detr.engine.main import run, worker  # noqa: F401  (Detectron2's users look for the worker here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config-file", default="", metavar="FILE", help="a yaml file, or a name such as crowd/paq_dh")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of OUTPUT_DIR")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS")
    parser.add_argument("--allow-partial", action="store_true", help="--eval-only of weights that fit only in part")
    add_launch_arguments(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(run_cli(main, "train_net"))
