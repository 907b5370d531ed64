# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""How evenly the query slots of a detector are used: activation counts and their Gini coefficient (PaQ-DETR)."""

from __future__ import annotations

import csv
import logging
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.structures import Instances

from .records import RecordingEvaluator

logger = logging.getLogger(__name__)

# 0.3 is the threshold of the authors' script; the same model gives 0.88, 0.94 and 0.97 at 0.3, 0.4 and 0.5.
REPORTED_THRESHOLDS = (0.3, 0.4, 0.5)


@dataclass
class QueryUse:
    """The use of all query slots at one score threshold."""

    threshold: float
    counts: np.ndarray  # (N,) images in which the slot was active
    num_images: int

    @property
    def active_slots(self) -> float:
        """Mean number of active slots in an image; NaN without images."""
        return float(self.counts.sum() / self.num_images) if self.num_images else float("nan")

    @property
    def gini(self) -> float:
        return gini_coefficient(self.counts)

    @property
    def top20_share(self) -> float:
        """Share of all activations that the most active fifth of the slots has; NaN without activations."""
        top = max(1, round(len(self.counts) / 5))
        total = self.counts.sum()
        return float(np.sort(self.counts)[-top:].sum() / total) if total else float("nan")


def gini_coefficient(counts: np.ndarray) -> float:
    """Gini coefficient of ``counts`` (N,), zeros kept: 0 where all are equal, (N - 1) / N where one has everything.

    With x sorted ascending and i = 1..N: ``2 * sum(i * x_i) / (N * sum(x)) - (N + 1) / N``. NaN where all are zero.
    """
    ordered = np.sort(np.asarray(counts, dtype=np.float64))
    total, n = ordered.sum(), len(ordered)
    if total == 0:
        return float("nan")
    return float(2 * (np.arange(1, n + 1) * ordered).sum() / (n * total) - (n + 1) / n)


@dataclass
class SlotScores:
    """What is kept of an image: its detections above the lowest threshold."""

    slots: np.ndarray  # (D,) int64 slot of each
    scores: np.ndarray  # (D,) float32
    num_queries: int  # slots that the image is known to have


class QueryUseEvaluator(RecordingEvaluator):
    """In how many images each query slot is active, and how uneven that is.

    A slot is active in an image when its best detection scores strictly above a threshold T. Zeros stay in: a slot
    that is never active counts. Two things make the Gini coefficient easy to misread, so T and the mean number of
    active slots per image always stand beside it:

    * It depends on T and on how many slots are active: fewer active slots give a higher value, whatever the model.
      Dropping never-active slots would lower it; they are kept.
    * In a two-stage model a slot is the *rank of the proposal*, so sorting alone makes the first slots active and the
      coefficient high. Only models with a learned query per slot (one-stage) show how queries specialise.

    Args:
        num_queries: query slots of the model, N. Where an image uses more, as those of a model whose number varies may,
            N grows to that.
        threshold: T of the plot and of the first report; 0.3, 0.4 and 0.5 are reported as well.
        output_dir: folder for ``query_use.csv`` and ``query_use.png``; None writes nothing.

    The model's ``Instances`` must hold ``query_indices`` (int64 slot of each detection) beside ``scores``.
    """

    def __init__(self, num_queries: int, threshold: float = 0.3, output_dir: str | None = None):
        if num_queries < 1:
            raise ValueError(f"num_queries must be at least 1, got {num_queries}")
        super().__init__(output_dir)
        self.num_queries = num_queries
        self.threshold = threshold
        self.thresholds = sorted({threshold, *REPORTED_THRESHOLDS})

    def record_of(self, image_id: Hashable, instances: Instances) -> SlotScores:
        if not instances.has("query_indices"):
            raise ValueError("the model's Instances have no field query_indices, which query use is counted by")
        slots = instances.query_indices.to("cpu").numpy()
        scores = instances.scores.detach().to("cpu").float().numpy()
        if len(slots) and slots.min() < 0:
            raise ValueError(f"query_indices of image {image_id!r} go down to {slots.min()}; slots count from 0")
        active = np.isfinite(scores) & (scores > self.thresholds[0])
        return SlotScores(slots[active], scores[active], int(slots.max(initial=-1)) + 1)

    def results_of(self, records: dict[Hashable, SlotScores]) -> dict[str, dict[str, float]]:
        """``{"query_use": {"gini@0.3", "active_slots@0.3", "top20_share@0.3", ...}}``."""
        num_queries = max([self.num_queries, *(record.num_queries for record in records.values())])
        uses = [_count(records.values(), num_queries, threshold) for threshold in self.thresholds]
        for use in uses:
            logger.info("query use at score > %g in %d images: Gini %.4f, %.2f of %d slots active per image, "
                        "top 20%% share %.4f", use.threshold, use.num_images, use.gini, use.active_slots,
                        num_queries, use.top20_share)  # fmt: skip
        if not uses[self.thresholds.index(self.threshold)].counts.any():
            logger.warning("no query scored above %g in any image: its Gini coefficient is NaN", self.threshold)
        if self.output_dir:
            _write_csv(uses, self._path("query_use.csv"))
            plot_query_use(uses, self.threshold, self._path("query_use.png"))
        metrics = {}
        for use in uses:
            metrics[f"gini@{use.threshold:g}"] = use.gini
            metrics[f"active_slots@{use.threshold:g}"] = use.active_slots
            metrics[f"top20_share@{use.threshold:g}"] = use.top20_share
        return {"query_use": metrics}


def _count(records: Collection[SlotScores], num_queries: int, threshold: float) -> QueryUse:
    counts = np.zeros(num_queries, dtype=np.int64)
    for record in records:
        counts[np.unique(record.slots[record.scores > threshold])] += 1
    return QueryUse(threshold, counts, len(records))


def _write_csv(uses: Sequence[QueryUse], path: str) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", *(f"images_above_{use.threshold:g}" for use in uses)])
        for slot, counts in enumerate(zip(*(use.counts.tolist() for use in uses))):
            writer.writerow([slot, *counts])


def plot_query_use(uses: Sequence[QueryUse], threshold: float, path: str) -> None:
    """Sorted activation counts and Lorenz curves of ``uses`` as a picture; ``threshold`` names the one in the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for use in uses:
        main = use.threshold == threshold
        style = {
            "linewidth": 2.2 if main else 1.1,
            "linestyle": "-" if main else "--",
            "label": f"T = {use.threshold:g}",
        }
        left.plot(np.arange(1, len(use.counts) + 1), np.sort(use.counts)[::-1], **style)
        if use.counts.any():
            share = np.concatenate([[0.0], np.cumsum(np.sort(use.counts)) / use.counts.sum()])
            style["label"] = f"T = {use.threshold:g}: Gini {use.gini:.3f}, {use.active_slots:.1f} active"
            right.plot(np.linspace(0, 1, len(share)), share, **style)
    right.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="all slots used alike")
    left.set(xlabel="query slots, most active first", ylabel="images in which the slot is active")
    right.set(
        xlabel="share of query slots, least active first", ylabel="share of activations", xlim=(0, 1), ylim=(0, 1)
    )
    left.legend()
    right.legend(loc="upper left")
    chosen = next(use for use in uses if use.threshold == threshold)
    figure.suptitle(
        f"Query use: Gini {chosen.gini:.3f} at T = {threshold:g}, {chosen.active_slots:.1f} of {len(chosen.counts)} "
        f"slots active per image, {chosen.num_images} images"
    )
    about = (
        "A slot is active where it scores above T. The more slots share the work, the later the left curve falls, and "
    )
    figure.supxlabel(f"{about}the nearer the right one is to the grey line.", fontsize=9)
    figure.savefig(path, dpi=120)
