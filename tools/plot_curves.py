# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Draw the curves of a run that is under way or done: losses of training and over the test data, and AP.

python tools/plot_curves.py output/demo            # writes output/demo/curves.png, as a training does at its end
"""

import argparse
import sys

from paq_detr.engine import UserError, run_cli
from paq_detr.engine.curves import draw_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="RUN", help="a folder that training writes")
    for folder in parser.parse_args().folders:
        path = draw_run(folder)
        if not path:
            raise UserError(f"{folder}/metrics.json holds fewer than two points of the loss: nothing is drawn.")
        print(path)


if __name__ == "__main__":
    sys.exit(run_cli(main, "plot_curves"))
