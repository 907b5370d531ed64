# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The weighted mean of several checkpoints of one training, as one.

    python -m paq_detr.average OUT IN [IN ...] [--shares SHARE ...]

Mr. DETR's zoo of 12 epochs averages three: ``--shares 0.8 0.15 0.05`` for iterations 90k, 30k and 60k. A number that
comes from an average should say so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .convert.files import missing_file, read_weights
from .engine.output import PART
from .errors import UserError


def average(files: Sequence[str], shares: Sequence[float] | None = None) -> dict[str, Any]:
    """A checkpoint whose floating-point tensors are means of the files', in fp64 on the way; the rest is the first's.

    Args:
        files: checkpoints of this project.
        shares: one for each file, at least 0 with a sum of 1; None: equal ones.

    Returns:
        The first file's "model", averaged, with its "class_names" and "run_config".

    Raises:
        UserError: a file cannot be read, files do not fit each other, shares do not fit.
    """
    shares = [1 / len(files)] * len(files) if shares is None else list(shares)
    if len(shares) != len(files):
        raise UserError(f"--shares has {len(shares)} entries for {len(files)} files.")
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"--shares {' '.join(map(str, shares))} must be at least 0 and have a sum of 1.")
    first = _read(files[0])
    sums = {name: tensor.double() * shares[0] for name, tensor in first["model"].items() if tensor.is_floating_point()}
    for file, share in zip(files[1:], shares[1:]):
        other = _read(file)
        _check_alike(files[0], first, file, other)
        for name, total in sums.items():
            total += other["model"][name].double() * share
    model = {name: sums[name].to(tensor.dtype) if name in sums else tensor for name, tensor in first["model"].items()}
    return {**{key: first[key] for key in ("class_names", "run_config") if key in first}, "model": model}


def _read(file: str) -> dict[str, Any]:
    if not os.path.isfile(file):
        raise missing_file(file)
    content = read_weights(file)
    weights = content.get("model")
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise UserError(f"Weight file {file} is no checkpoint of this project: it holds no tensors under model.")
    return content


def _check_alike(first_file: str, first: dict[str, Any], file: str, other: dict[str, Any]) -> None:
    ours, theirs = first["model"], other["model"]
    odd = sorted(ours.keys() ^ theirs.keys())
    if odd:
        holder = first_file if odd[0] in ours else file
        raise UserError(f"{first_file} and {file} are of different models: {odd[0]} is only in {holder}.")
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            raise UserError(
                f"{first_file} and {file} are of different models: {name} is {tuple(tensor.shape)} here and "
                f"{tuple(theirs[name].shape)} there."
            )
    if first.get("class_names") != other.get("class_names"):
        raise UserError(f"{first_file} and {file} have different class names.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m paq_detr.average", description=__doc__.split("\n")[0])
    parser.add_argument("out", help="file to write, which must not exist")
    parser.add_argument("files", nargs="+", metavar="in", help="checkpoints of one training")
    parser.add_argument(
        "--shares", nargs="+", type=float, help="one for each file, with a sum of 1; default: equal ones"
    )
    options = parser.parse_args(arguments)
    try:
        if os.path.exists(options.out):
            raise UserError(f"{options.out} exists; name a new file, or remove it first.")
        content = average(options.files, options.shares)
        try:
            torch.save(content, options.out + PART)
            os.replace(options.out + PART, options.out)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{options.out} could not be written: {' '.join(str(error).split())}.") from error
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{options.out}: mean of {len(options.files)} checkpoints\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
