# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The parts of a detector: sources, decoders, heads, assignment, objectives, routes, read-outs. Every module registers
its parts; none knows a paper."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
