# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Convert published weights once, in place of at every loading.

    python -m paq_detr.convert IN OUT.pth [--class-names person car ...]

OUT holds "model", the tensors under this project's names, and "class_names" where they are known: given here, stored in
IN, in transformers' config.json beside it, or COCO's where a head has 80 or 91 rows.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter

import torch
from tabulate import tabulate

from .._detectron2 import needed_by
from ..errors import UserError
from . import LAYOUTS, Conversion, convert_if_foreign, part_of
from .files import check_checkpoint_path, read_checkpoint, strip_wrappers, write_checkpoint
from .layout import number_of_classes

OWN = re.compile(r"(module\.)?(sources|routes)\.\w+\.")


def convert_file(path: str, class_names: list[str] | None = None) -> Conversion:
    """The weights of a file of any known layout.

    Raises:
        UserError: if it is no weight file, or of no known layout, or ``class_names`` are not as many as its classes.
    """
    content = read_checkpoint(path)
    if any(OWN.match(name) for name in content["model"]):
        raise UserError(f"Weight file {path} is in this project's own layout already.")
    weights = strip_wrappers(content["model"], (), {layout.markers[0] for layout in LAYOUTS})
    conversion = convert_if_foreign(
        {name: torch.as_tensor(value) for name, value in weights.items()}, content["config"]
    )
    if not conversion.layout:
        raise UserError(
            f"Weight file {path} is of no known layout (its first tensor: {next(iter(weights), 'none')}); known are "
            f"{', '.join(layout.title for layout in LAYOUTS if not layout.refusal)}."
        )
    names = class_names or content.get("class_names") or conversion.class_names
    classes = number_of_classes(conversion.weights) or "no"
    if names and len(names) != classes:
        raise UserError(f"There are {len(names)} class names for weight file {path}, which has {classes} classes.")
    conversion.class_names = names and list(names)
    return conversion


def describe(conversion: Conversion) -> str:
    """A table of what the parts of a model get."""
    tensors, values = Counter(), Counter()
    for name, tensor in conversion.weights.items():
        tensors[part_of(name)] += 1
        values[part_of(name)] += tensor.numel()
    rows = [(part, tensors[part], f"{values[part]:,}") for part in tensors]
    rows += [("left out", len(conversion.dropped), "")] if conversion.dropped else []
    table = tabulate(
        rows, headers=["part", "tensors", "values"], tablefmt="simple", colalign=("left", "right", "right")
    )
    return f"layout: {conversion.layout}\n{table}"


def write(conversion: Conversion, path: str, overwrite: bool) -> None:
    """Write the file, whole or not at all; errors as of ``write_checkpoint``."""
    model = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in conversion.weights.items()}
    names = {"class_names": conversion.class_names} if conversion.class_names else {}
    write_checkpoint({"model": model, **names}, path, overwrite)


def main(arguments: list[str] | None = None, prog: str = "python -m paq_detr.convert") -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    parser.add_argument("weights", metavar="IN", help="weight file, as published (.pth, .safetensors, ...)")
    parser.add_argument("out", metavar="OUT", help="file to write (.pth)")
    parser.add_argument("--class-names", nargs="+", metavar="NAME", help="of the rows of the class heads, in order")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    options = parser.parse_args(arguments)
    try:
        check_checkpoint_path(options.out, options.overwrite)
        conversion = convert_file(options.weights, options.class_names)
        write(conversion, options.out, options.overwrite)
    except UserError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(describe(conversion))
    known = f"{len(conversion.class_names)} class names" if conversion.class_names else "no class names"
    print(f"wrote {options.out}, with {known}")


if __name__ == "__main__":
    with needed_by("python -m paq_detr.convert"):
        main()
