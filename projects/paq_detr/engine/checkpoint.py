# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Saving and loading checkpoints: safely, with a report, and with class-sized tensors matched by class name.

A module declares its parameters that have one row per class, or per query (rows.py). Checkpoints carry ``class_names``,
so that a parameter takes over the rows of the classes that both models know and keeps its fresh initialisation for the
others. Rows beyond the last class (a "no object" entry) stay last. Of queries the first ones are taken over.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from tabulate import tabulate
from torch import Tensor, nn

from ..convert import LAYOUTS, Conversion, convert_if_foreign, part_of
from ..convert.classes import UNUSED, coco_names
from ..convert.files import missing_file, read_checkpoint, strip_wrappers
from ..convert.layout import number_of_classes
from ..errors import UserError
from ..whole_file import whole_file
from .output import AVERAGED, BEST, LAST_CHECKPOINT
from .pretrained import BUNDLED, bundled_file, check_statistics
from .rows import FittedRows, fit_leading_rows, match_classes

logger = logging.getLogger(__name__)


@dataclass
class LoadReport:
    """What became of every tensor, by name."""

    loaded: list[str] = field(default_factory=list)
    by_class: list[str] = field(default_factory=list)  # rows of the shared class names taken over
    fitted: list[FittedRows] = field(default_factory=list)  # more or fewer rows than in the file
    reshaped: list[str] = field(default_factory=list)  # another shape: freshly initialised
    missing: list[str] = field(default_factory=list)  # not in the file: freshly initialised
    unexpected: list[str] = field(default_factory=list)  # only in the file: ignored
    dropped: list[str] = field(default_factory=list)  # of a known layout, under its names: not needed here
    classes: list[str] = field(default_factory=list)  # the model's, where they are not the file's
    stored_classes: list[str] = field(default_factory=list)  # the file's
    layout: str = ""  # of a file from elsewhere
    sizes: dict[str, int] = field(default_factory=dict)  # of the model's parameters

    def __str__(self) -> str:
        title = f"Weights, from the layout of {self.layout}:" if self.layout else "Weights:"
        sentences = (self.of_classes(), self.absent())
        return "\n".join(filter(None, (title, self.parts(), "\n" + self.table(), *sentences)))

    @property
    def shared_classes(self) -> list[str]:
        return [name for name in self.classes if name in self.stored_classes]

    @property
    def new_classes(self) -> list[str]:
        return [name for name in self.classes if name not in self.stored_classes]

    @property
    def untrained(self) -> list[str]:
        """Tensors that the file does not give, or not all of what decides a prediction."""
        partly = [rows.name for rows in self.fitted if rows.new and rows.decide]
        return [*self.missing, *self.reshaped, *partly]

    def misfit(self) -> str:
        """One sentence on what of the model the file does not give; "" where it gives all."""
        fresh = Counter(map(part_of, self.untrained))
        parts = f"{fresh.total()} tensors of {', '.join(fresh)} begin anew" if fresh else ""
        rows = f"the classes {listed(self.new_classes)} begin anew" if self.new_classes else ""
        if self.new_classes and not self.shared_classes:
            rows = f"none of its {len(self.stored_classes)} classes is one of the model's, all of which begin anew"
        found = "; ".join(filter(None, (rows, parts)))
        return f"the weight file gives only a part of the model: {found}" if found else ""

    def parts(self) -> str:
        """How much of each part of the model is loaded."""
        loaded = [*self.loaded, *(rows.name for rows in self.fitted)]
        kinds = (loaded, self.by_class, [*self.reshaped, *self.missing])
        counts = [Counter(map(part_of, names)) for names in kinds]
        parameters: Counter[str] = Counter()
        for name, size in self.sizes.items():
            parameters[part_of(name)] += size
        rows = [
            (part, f"{parameters[part]:,}", *(count[part] or "" for count in counts))
            for part in dict.fromkeys(map(part_of, [*self.sizes, *(name for names in kinds for name in names)]))
        ]
        headers = ["part", "parameters", "tensors loaded", "by class name", "initialised"]
        return tabulate(rows, headers=headers, tablefmt="simple", colalign=("left", *["right"] * 4))

    def of_classes(self) -> str:
        """One sentence on whose rows are whose, where the classes are others than the file's; "" where they are not."""
        gone = [name for name in self.stored_classes if name not in self.classes]
        kinds = (("kept", self.shared_classes), ("initialised", self.new_classes), ("dropped", gone))
        told = [f"{len(names)} {fate} ({listed(names)})" for fate, names in kinds if names]
        return f"Rows of classes: {', '.join(told)}." if self.by_class and (self.new_classes or gone) else ""

    def absent(self) -> str:
        """One sentence on what the file holds for training alone and this model was built without; "" where nothing."""
        left_out = Counter(map(part_of, self.unexpected))
        routes = [part for part in left_out if part.startswith("routes.")]
        parts = [part for part in left_out if part.startswith(("sources.", "augmenters.")) or part in routes]
        parts = sorted(set(parts) - set(map(part_of, self.sizes)))
        if not parts:
            return ""
        keys = [f"ROUTES [{', '.join(part.removeprefix('routes.') for part in routes)}]"] if routes else []
        keys += ["QUERIES.AUGMENT"] if any(part.startswith("augmenters.") for part in parts) else []
        tensors = sum(left_out[part] for part in parts)
        return (
            f"Of the file's training, {tensors} tensors of {', '.join(parts)} are left out, parts that this model was "
            f"built without (below MODEL.DETR: {' and '.join(keys) or 'ROUTES'})."
        )

    def table(self, longest: int = 8) -> str:
        """What was loaded, and by name what was not."""
        rows = [
            ("loaded", len(self.loaded), ""),
            (f"loaded for {len(self.shared_classes)} shared classes", len(self.by_class), cut(self.by_class, longest)),
            ("loaded in part", len(self.fitted), cut(list(map(str, self.fitted)), longest)),
            ("initialised: other shape", len(self.reshaped), cut(self.reshaped, longest)),
            ("initialised: not in the file", len(self.missing), cut(self.missing, longest)),
            ("ignored: not in the model", len(self.unexpected), cut(self.unexpected, longest)),
            ("left out: not needed here", len(self.dropped), cut(self.dropped, longest)),
        ]
        return tabulate([row for row in rows if row[1]], headers=["", "tensors", "names"], tablefmt="simple")


def cut(names: Sequence[str], longest: int) -> str:
    """The names, one per line; of a long list only how many there are under each first two parts of the name."""
    if len(names) > longest:
        counts = Counter(".".join(name.split(".")[:2]) for name in names)
        names = [f"{prefix}.* ({count})" for prefix, count in counts.items()]
    if len(names) > longest:
        names = [*names[:longest], f"... and {len(names) - longest} more"]
    return "\n".join(names)


def listed(names: Sequence[str], longest: int = 5) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:longest]) + (f" and {len(names) - longest} more" if len(names) > longest else "")


class DetrCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer, which can also read what this one writes, with the abilities named above.

    ``report`` is the :class:`LoadReport` of the last load.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **checkpointables: Any):
        super().__init__(model, save_dir, **checkpointables)
        self.class_names = list(getattr(self.model, "class_names", ()))
        self.class_renames = dict(getattr(self.model, "class_renames", {}))
        self.report = LoadReport()
        self.run_config = ""  # yaml of the training's config, for those who load the weights
        self._check: Callable[[dict[str, Any]], None] | None = None

    def save(self, name: str, **extra: Any) -> None:
        """Write model and state to ``name``.pth, where ``--resume`` finds it."""
        if self.save_dir and self.save_to_disk:
            state = {key: item.state_dict() for key, item in self.checkpointables.items()}
            self.save_weights(name, **state, **extra)
            self.tag_last_checkpoint(f"{name}.pth")

    def save_weights(self, name: str, weights: dict[str, Tensor] | None = None, **extra: Any) -> None:
        """Write the weights (None: the model's), the class names and ``extra`` to ``name``.pth, whole or not at all."""
        if self.save_dir and self.save_to_disk:
            path = os.path.join(self.save_dir, f"{name}.pth")
            weights = self.model.state_dict() if weights is None else weights
            content = {"model": weights, "class_names": self.class_names, "run_config": self.run_config}
            try:
                with whole_file(path) as part:
                    torch.save({**content, **extra}, part)
            except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
                if isinstance(error, RuntimeError) and not re.search("writ|unexpected pos", str(error)):
                    raise
                raise UserError(self._not_saved(path, error)) from error
            logger.info("Saved %s", path)

    def _not_saved(self, path: str, error: Exception) -> str:
        free = shutil.disk_usage(self.save_dir).free / 2**20
        reason = getattr(error, "strerror", None) or " ".join(str(error).split("\n")[0].split())
        name = os.path.basename(self.get_checkpoint_file()) if self.has_checkpoint() else ""
        older = f"; the last whole one is {name}" if name else ""
        return f"Checkpoint {path} could not be written: {reason} ({free:.0f} MiB are free on that disk){older}."

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the checkpoint that ``--resume`` goes on from, whole or not at all."""
        path = os.path.join(self.save_dir, LAST_CHECKPOINT)
        with whole_file(path) as part, open(part, "w") as file:
            file.write(last_filename_basename)

    def last_checkpoint(self) -> str:
        """Path of the checkpoint to go on from.

        Raises:
            UserError: there is none, or it does not exist.
        """
        name = ""
        if self.has_checkpoint():
            with open(os.path.join(self.save_dir, LAST_CHECKPOINT), errors="replace") as file:
                name = file.read(4096).strip()
            name = name if name.isprintable() else repr(name)
        if not name:
            raise UserError(f"--resume: OUTPUT_DIR {self.save_dir} holds no checkpoint.")
        path = os.path.join(self.save_dir, name)
        if not os.path.isfile(path):
            there = sorted(entry for entry in os.listdir(self.save_dir) if entry.endswith(".pth"))
            hint = f"write one of these names into it: {', '.join(there)}" if there else "there is no other"
            raise UserError(f"--resume: {self.save_dir}/{LAST_CHECKPOINT} names {path}, which does not exist; {hint}.")
        return path

    def others_than(self, path: str, error: Exception) -> str:
        """What else there is to go on from, where ``path``, the last checkpoint, cannot be read itself."""
        names = sorted(os.path.basename(other) for other in self.get_all_checkpoint_files())
        others = [name for name in names if name not in (os.path.basename(path), BEST, AVERAGED)]
        if "was not loaded" not in str(error) or not others:
            return ""
        note = os.path.join(self.save_dir, LAST_CHECKPOINT)
        return f" To go on from an earlier one, write its name into {note}: {', '.join(others)}."

    def load(
        self, path: str, *args: Any, check: Callable[[dict[str, Any]], None] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """As Detectron2's; a file that is missing or of another kind raises UserError with one sentence.

        ``path`` may also be the name of weights in a package (pretrained.py).
        ``check`` is called with the file's content before anything is loaded.
        """
        self._check = check
        if path in BUNDLED:
            check_statistics(path, self.model)
            path = bundled_file(path)
        if path:
            try:
                path = self.path_manager.get_local_path(path)
            except Exception as error:  # the handlers of URLs raise what their libraries raise
                raise UserError(f"Weight file {path} could not be fetched: {error}") from error
            if not os.path.isfile(path):
                raise missing_file(path)
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename)
        markers = {layout.markers[0] for layout in LAYOUTS}
        content["model"] = strip_wrappers(content["model"], set(self.model.state_dict()), markers)
        if not content.get("matching_heuristics", False):
            self._convert_ndarray_to_tensor(content["model"])
            conversion = self._convert(content["model"], content["config"])
            content["model"] = conversion.weights
            content["layout"], content["dropped"] = conversion.layout, conversion.dropped
            content.setdefault("class_names", conversion.class_names)
        names = content.get("class_names") or self._coco_names(content["model"])
        content["class_names"] = self._renamed(names, filename)
        content["file"] = filename
        if self._check is not None:
            self._check(content)
        return content

    def _coco_names(self, weights: dict[str, Tensor]) -> list[str] | None:
        """COCO's names, where the file tells none and has as many classes as COCO, numbered one way or another."""
        rows = number_of_classes(weights)
        return coco_names(rows) if rows and rows != len(self.class_names) else None

    def _renamed(self, names: Sequence[str] | None, path: str) -> list[str] | None:
        """The file's class names by what they are called here. Those of a run that has renamed them stay."""
        if not names or not self.class_renames or list(names) == self.class_names:
            return names
        for old, new in self.class_renames.items():
            key = f"MODEL.DETR.CLASS_RENAMES [{old}, {new}]"
            if new not in self.class_names:
                raise UserError(f"{key}: {new} is no class of this model, which has {listed(self.class_names)}.")
            if old not in names:
                raise UserError(f"{key}: {path} has no class {old}, but {listed(names)}.")
        renamed = [self.class_renames.get(name, name) for name in names]
        twice = next((name for name in renamed if name in self.class_names and renamed.count(name) > 1), None)
        if twice:
            raise UserError(f"MODEL.DETR.CLASS_RENAMES gives {path} two classes {twice}: rename the other one, too.")
        return renamed

    def _convert(self, weights: dict[str, Tensor], config: Any) -> Conversion:
        """The weights under this model's names. The backbone knows its classification files, convert/ all others."""
        read = getattr(getattr(self.model, "backbone", None), "from_classifier", None)
        found = read(weights) if read is not None else None
        if found is None:
            return convert_if_foreign(weights, config)
        known, dropped = found
        known = {f"backbone.{name}": tensor for name, tensor in known.items()}
        return Conversion(known, layout="a classification file of the backbone", dropped=dropped)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        path, class_names = checkpoint.pop("file"), checkpoint.pop("class_names", None)
        self.report = LoadReport(layout=checkpoint.pop("layout", ""), dropped=checkpoint.pop("dropped", []))
        if class_names and self.class_names and list(class_names) != self.class_names:
            self.report.stored_classes = [name for name in class_names if name != UNUSED]
            self.report.classes = self.class_names
            self.report.by_class = match_classes(self.model, checkpoint["model"], self.class_names, class_names)
        if not checkpoint.get("matching_heuristics", False):
            self.report.fitted = list(fit_leading_rows(self.model, checkpoint["model"]))
        own = self.model.state_dict()
        # Names that Detectron2 matches by its heuristics stand otherwise in the file.
        stored = own if checkpoint.get("matching_heuristics", False) else set(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        self._complete_report(incompatible, stored)
        if not (self.report.loaded or self.report.by_class or self.report.fitted):
            first = next(iter(self.report.unexpected or self.report.reshaped), "none")
            raise UserError(f"Weight file {path} fits no part of the model (its first tensor: {first}).")
        return incompatible

    def _complete_report(self, incompatible: Any, stored: Container[str]) -> None:
        report = self.report
        report.reshaped = [key for key, _, _ in incompatible.incorrect_shapes]
        report.missing = [key for key in incompatible.missing_keys if key not in report.reshaped]
        report.unexpected = list(incompatible.unexpected_keys)
        # torch does not call a batch norm's counter missing, so what is loaded must also stand in the file.
        fitted = (rows.name for rows in report.fitted)
        untouched = {*report.reshaped, *report.missing, *report.by_class, *fitted}
        report.loaded = [key for key in self.model.state_dict() if key in stored and key not in untouched]
        report.sizes = {key: parameter.numel() for key, parameter in self.model.named_parameters()}

    def _log_incompatible_keys(self, incompatible: Any) -> None:
        misfit = self.report.misfit()
        if misfit:
            logger.warning("%s", misfit)
        logger.log(logging.WARNING if misfit or self.report.fitted else logging.INFO, "%s", self.report)
