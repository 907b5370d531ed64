# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a config; ``paq-detr train`` and ``paq-detr eval`` do the same.

python train_net.py --config-file configs/demo.yaml [--num-gpus N] [--resume] [KEY VALUE ...]
python train_net.py --config-file output/config.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
"""

import sys

from paq_detr._threads import wait_asleep

wait_asleep()

from detectron2.engine import default_argument_parser  # noqa: E402  (torch comes after that)

from paq_detr.engine import run_cli  # noqa: E402
from paq_detr.engine.main import run, worker  # noqa: E402, F401  (Detectron2's users look for the worker here)


def main() -> None:
    run(default_argument_parser().parse_args())


if __name__ == "__main__":
    sys.exit(run_cli(main, "train_net"))
