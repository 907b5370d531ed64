# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""``paq-detr demo``, as a file."""

import sys

from paq_detr.cli import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
