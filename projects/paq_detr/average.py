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
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .convert.files import check_checkpoint_path, missing_file, read_weights, write_checkpoint
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
    if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):  # NaN is neither
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
                f"{first_file} and {file} are of different models: {name} is {tuple(tensor.shape)} in the first "
                f"and {tuple(theirs[name].shape)} in the second."
            )
    if first.get("class_names") != other.get("class_names"):
        raise UserError(f"{first_file} and {file} have different class names.")


def main(arguments: Sequence[str] | None = None, prog: str = "python -m paq_detr.average") -> None:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    parser.add_argument("out", help="file to write, which must not exist")
    parser.add_argument("files", nargs="+", metavar="in", help="checkpoints of one training")
    parser.add_argument(
        "--shares", nargs="+", type=float, help="one for each file, with a sum of 1; default: equal ones"
    )
    options = parser.parse_args(arguments)
    try:
        check_checkpoint_path(options.out)
        write_checkpoint(average(options.files, options.shares), options.out)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(f"{options.out}: mean of {len(options.files)} checkpoints")


if __name__ == "__main__":
    main()
