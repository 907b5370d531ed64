# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Where commands write: what cannot be written to is said in one sentence before their work, not behind it."""

from __future__ import annotations

import os
import tempfile

from .errors import UserError


def check_output_file(name: str, path: str | os.PathLike) -> None:
    """See that a file can be written at ``path``; nothing is left there.

    Args:
        name: of the option, for messages.

    Raises:
        UserError: the path is a folder, its own folder is missing, or nothing can be written there.
    """
    folder = os.path.dirname(path) or "."
    if os.path.isdir(path):
        raise UserError(f"{name} {path} is a folder, must be a file.")
    if not os.path.isdir(folder):
        fault = f"{folder} is a file, no folder" if os.path.exists(folder) else f"the folder {folder} does not exist"
        raise UserError(f"{name} {path}: {fault}.")
    try:
        if os.path.exists(path):
            open(path, "ab").close()
        else:
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"{name} {path} cannot be written to: {error.strerror}.") from error


def make_output_folder(name: str, folder: str | os.PathLike) -> None:
    """Make ``folder``, unless it is there, and see that files can be written into it.

    Args:
        name: of the option or key, for messages.

    Raises:
        UserError: it is a file or in one, cannot be made, or takes no files.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except FileExistsError as error:
        raise UserError(f"{name} {folder} is a file, must be a folder.") from error
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name} {folder} cannot be written to: {reason}.") from error
