# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Files for torch itself, which need neither this package nor Detectron2: ExportedProgram (.pt2) and TorchScript."""

from __future__ import annotations

import json
import zipfile
from typing import Any

import numpy as np
import torch

from ..whole_file import whole_file

RECORD = "paq_detr.json"  # the metadata inside of a file


def write_torch_export(program: torch.export.ExportedProgram, path: str, metadata: dict[str, Any]) -> None:
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files
    with whole_file(path) as part, open(part, "wb") as file:
        torch.export.save(program, file, extra_files={RECORD: json.dumps(metadata)})


def write_torchscript(program: torch.export.ExportedProgram, path: str, metadata: dict[str, Any]) -> None:
    """A trace of a program of one size."""
    images = torch.rand(*metadata["shape"])
    with torch.no_grad():
        traced = torch.jit.trace(program.module(), (images,), check_trace=False)
    with whole_file(path) as part:
        torch.jit.save(traced, part, _extra_files={RECORD: json.dumps(metadata)})
        _drop_records(part, ".debug_pkl")  # paths of source files


def _drop_records(path: str, ending: str) -> None:
    """The file without the records of its archive that end so."""
    with zipfile.ZipFile(path) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in records:
            if not name.endswith(ending):
                archive.writestr(name, content)


class TorchRunner:
    """A file of either kind."""

    def __init__(self, path: str, script: bool):
        self.run = torch.jit.load(path) if script else torch.export.load(path).module()

    @torch.no_grad()
    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return [tensor.numpy() for tensor in self.run(*map(torch.from_numpy, inputs))]
