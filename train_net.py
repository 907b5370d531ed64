# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a config; ``paq-detr train`` and ``paq-detr eval`` do the same.

python train_net.py --config-file configs/demo.yaml [--num-gpus N] [--resume] [KEY VALUE ...]
python train_net.py --config-file output/config.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import sys

from detectron2.engine import default_argument_parser

from paq_detr.engine import run_cli
from paq_detr.engine.main import run, worker  # noqa: F401  (Detectron2's users look for the worker here)


def main() -> None:
    parser = default_argument_parser()
    parser.add_argument("--allow-partial", action="store_true", help="--eval-only of weights that fit only in part")
    run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(run_cli(main, "train_net"))
