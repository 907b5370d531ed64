# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

PART = ".part"  # ending of a file that is being written


@contextlib.contextmanager
def whole_file(path: str) -> Iterator[str]:
    """Where to write what shall stand at ``path`` whole or not at all: it is moved there behind the block, and removed
    where the block fails.

    Raises:
        OSError: nothing can be written there; at once, as some libraries would say it by errors of their own.
    """
    part = path + PART
    try:
        open(part, "wb").close()
        yield part
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise
