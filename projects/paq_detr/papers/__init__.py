# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""One paper, one file: each brings its config keys, registers its parts, and names the equations it implements.

Every module of this folder is imported with the package; nothing else lists them.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
