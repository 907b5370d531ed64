# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DDQ-DETR: Dense Distinct Query for End-to-End Object Detection (CVPR 2023, arXiv 2303.12776).

| release | here | key |
|---|---|---|
| distinct query selection on the encoder's proposals | ``DistinctTopN`` | QUERIES.NAME DistinctTopN |
| contents from the chosen tokens (query map) | ``MappedToken`` | QUERIES.CONTENT mapped_token |
| distinct query selection between decoder layers | ``DistinctCascade`` | DECODER.NAME distinct_cascade |
| its attention mask | ``DistinctSelfAttention`` | DECODER.INTERACTION distinct_self_attention |
| dense queries, training only | ``DenseQueries``, ``build_dense_route`` | ROUTES [dense] |
| their matching and losses | ``DenseCost``, ``DenseAssigner``, ``DenseLoss`` | DDQ.DENSE_* |
| losses of matched pairs, divided by their number | ``modeling.objective`` | LOSS.NORMALIZER pairs |

The rest is DINO's. Each part goes without the others; papers/README.md lists where code and we differ.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.config import CfgNode as CN
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from ..checks import Choice, check_range
from ..errors import UserError
from ..layers import boxes_cxcywh_to_xyxy
from ..modeling.assignment import HungarianAssigner, MatchCost, Pairs, cost_terms, solve_images
from ..modeling.contents import ContentSource
from ..modeling.decoder import CascadeDecoder, decoder_parts, over_borrowed
from ..modeling.interactions import SelfAttention, blocked_pairs
from ..modeling.losses import ClassificationLoss, Matches, giou_loss
from ..modeling.objective import Objective, build_objective
from ..modeling.proposals import EncoderTopN, taken, top_n_parts
from ..modeling.route import Borrowed, Route
from ..registry import CONTENTS, DECODERS, INTERACTIONS, ROUTES, SOURCES, Kit, adds_config, needs_of
from ..structures import DecoderState, LayerOutput, Memory, Prediction, QuerySet, Targets


@adds_config
def add_config(cfg: CN) -> None:
    cfg.MODEL.DETR.DDQ = D = CN()
    D.IOU_THRESHOLD = 0.8  # of two queries that overlap more, the one that scores lower is not distinct
    # Who may be selected between layers: "distinct", who was so before; "all", also who was not (ours); "released": as
    # "distinct", but where the encoder's best proposal is distinct, everybody takes part in losses and output, and all
    # may be selected anew.
    D.CANDIDATES = "distinct"
    D.DENSE_RATIO = 1.5  # dense queries per distinct one
    D.DENSE_COPIES = 4  # dense queries per object
    # True, as released: the matching of dense queries takes the sigmoid of scores, which makes its class cost nearly
    # flat.
    D.DENSE_SECOND_SIGMOID = False


# ----------------------------------------------------------------------------------------------------------------------
# Distinct queries


@torch.no_grad()
def distinct(boxes: Tensor, scores: Tensor, candidates: Tensor, iou_threshold: float) -> Tensor:
    """(B, N) which queries no better candidate of their image overlaps: NMS without regard to classes.

    Args:
        boxes: (B, N, 4); scores: (B, N), of equals the first counts as higher.
        candidates: (B, N) False for queries that neither are distinct nor suppress others. Of an image that has any,
            one at least is distinct.
    """
    exact = torch.float32 if torch.compiler.is_exporting() else torch.float64  # ONNX knows no other suppression
    lowest = torch.finfo(exact).min
    ranked = scores.to(exact).nan_to_num(lowest, neginf=lowest).masked_fill(~candidates, -torch.inf)
    corners = boxes_cxcywh_to_xyxy(boxes.to(exact))
    chosen = torch.zeros_like(candidates)
    for image, (image_corners, image_scores) in enumerate(zip(corners, ranked)):
        chosen[image].index_fill_(0, nms(image_corners, image_scores, iou_threshold), True)
    return chosen & candidates


class DistinctTopN(EncoderTopN):
    """The encoder's N best distinct proposals. Contents may be made of the tokens themselves, before any projection."""

    def __init__(self, *, iou_threshold: float = 0.8, **parts):
        """
        Args:
            parts: as in ``EncoderTopN``.
        """
        super().__init__(**parts)
        self.iou_threshold = iou_threshold

    def proposals_by(self, class_head: nn.Module, box_head: nn.Module, memory: Memory) -> LayerOutput:
        return replace(super().proposals_by(class_head, box_head, memory), content=memory.tokens)

    best_of_all = EncoderTopN.best  # distinct or not

    def best(self, proposals: LayerOutput, num_queries: int, skip: int = 0) -> tuple[Tensor, Tensor]:
        """As in ``EncoderTopN``, among the distinct ones.

        Whether a proposal is distinct depends on better ones alone, so that the best few are looked at first; an
        exported program, which cannot ask for more, looks at all.
        """
        wanted = skip + num_queries
        looked_at = proposals.logits.shape[1] if torch.compiler.is_exporting() else 4 * wanted
        while True:
            index, usable = self.best_of_all(proposals, looked_at)
            boxes = proposals.boxes.gather(1, index[..., None].expand(-1, -1, 4))
            places = torch.arange(index.shape[1], device=index.device).expand_as(index)
            kept = distinct(boxes, -places, usable, self.iou_threshold)
            if looked_at >= proposals.logits.shape[1] or bool(((kept.sum(1) >= wanted) | ~usable[:, -1]).all()):
                break
            looked_at *= 4
        order = places + places.shape[1] * ~kept  # those that are kept come first
        front = order.topk(min(wanted, places.shape[1]), largest=False).indices[:, min(skip, index.shape[1] - 1) :]
        return index.gather(1, front), kept.gather(1, front)


class MappedToken(ContentSource):
    """A linear map of the chosen proposals' content, detached; with ``DistinctTopN``, of their tokens (query map)."""

    needs = frozenset({"proposals"})

    def __init__(self, embed_dim: int):
        super().__init__()
        self.map = nn.Linear(embed_dim, embed_dim)

    def forward(self, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        return self.map(chosen.content.detach())


class DistinctCascade(CascadeDecoder):
    """Selects the distinct queries again before every layer but the first. The others still run, and are refined, but
    have neither losses nor output until they are selected.

    Selected by what the layer before makes of its content without the output norm, boxes as scores.
    """

    CANDIDATES = ("distinct", "all", "released")

    def __init__(self, *, iou_threshold: float = 0.8, candidates: str = "distinct", **parts):
        """
        Args:
            candidates: see ``DDQ.CANDIDATES``.
            parts: as in ``CascadeDecoder``.
        """
        super().__init__(**parts)
        self.iou_threshold, self.candidates = iou_threshold, candidates

    def step(self, layer: int, state: DecoderState, memory: Memory) -> DecoderState:
        if layer == 0:  # the source's own order
            return super().step(layer, state, memory)
        valid = torch.ones_like(state.reference[..., 0], dtype=torch.bool) if state.valid is None else state.valid
        kept = self.select(layer, state, valid)
        state = super().step(layer, replace(state, alive=kept), memory)
        if self.candidates == "released":
            state = replace(state, alive=torch.where(kept[:, state.first_matching, None], valid, kept))
        return state

    @torch.no_grad()
    def select(self, layer: int, state: DecoderState, valid: Tensor) -> Tensor:
        """(B, N) who is distinct, of the queries that may be; groups in front of them are as they were."""
        first = state.first_matching
        candidates = valid if self.candidates == "all" or state.alive is None else state.alive
        scores = self.classify(layer - 1, state.content[:, first:]).amax(-1)
        kept = distinct(state.reference[:, first:], scores, candidates[:, first:], self.iou_threshold)
        return torch.cat([valid[:, :first], kept], 1)


class DistinctSelfAttention(SelfAttention):
    """Queries that are alive see all; the others see those that are alive, and not each other, nor themselves."""

    def blocked(self, state: DecoderState) -> Tensor | None:
        """True where a query (row) must not see another (column)."""
        if state.alive is None:  # nobody is out
            return super().blocked(state)
        everybody = blocked_pairs(replace(state, alive=state.valid), 1)
        dead = ~state.alive if state.valid is None else ~state.alive & state.valid
        blocked = dead[:, :, None] & dead[:, None]
        blocked = blocked if everybody is None else blocked | everybody
        return blocked.repeat_interleave(self.attention.num_heads, 0)


# ----------------------------------------------------------------------------------------------------------------------
# Dense queries


class DenseQueries(nn.Module):
    """The best proposals of a second pair of heads on the main source's projected tokens, distinct or not."""

    def __init__(self, main: DistinctTopN, num_queries: int, objective: Objective):
        super().__init__()
        self.main, self.num_queries, self.objective = Borrowed(main), num_queries, objective
        self.class_head, self.box_head = copy.deepcopy(main.class_head), copy.deepcopy(main.box_head)
        self.provides = main.provides

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
        main = self.main
        proposals = main.proposals_by(self.class_head, self.box_head, memory)
        index, usable = main.best_of_all(proposals, self.num_queries)
        chosen = taken(proposals, index, usable)
        queries = main.queries(chosen)
        queries.content = main.content(memory, chosen)
        queries.predictions.append(Prediction("encoder", chosen, self.objective))
        return queries


@dataclass(frozen=True)
class DenseCost(MatchCost):
    """The matching cost with L1 between corners; ``second_sigmoid``: of the class scores in place of the logits."""

    corners: bool = True
    second_sigmoid: bool = False

    def __call__(self, output: LayerOutput, targets: Targets) -> Tensor:
        logits = output.logits.float().sigmoid() if self.second_sigmoid else output.logits
        return super().__call__(replace(output, logits=logits), targets)


class DenseAssigner(HungarianAssigner):
    """The Hungarian matching with every object standing in it ``copies`` times, or as often as there are queries."""

    def solve(self, measured: Sequence[np.ndarray], targets: Targets, previous: Pairs | None = None) -> Pairs:
        (cost,) = measured
        copies = [min(self.copies, max(1, cost.shape[1] // max(1, count))) for count in targets.counts]
        return solve_images(cost, np.repeat(copies, targets.counts), targets)


class DenseLoss(ClassificationLoss):
    """A matched entry of score s learns t: ``|t - s|^2 BCE(s, t)``; others ``s^2 BCE(s, 0)``, with factors that carry a
    gradient. GIoU of a pair is multiplied by t. Images without objects have no loss.

    With m = s u^6 of the score and the IoU u of a pair, t is m over the largest m of its object, times its largest u.
    """

    def target(self, matches: Matches) -> Tensor:
        """(P,) t."""
        measure, objects = matches.scores * matches.iou**6, matches.pairs.target

        def largest(values: Tensor) -> Tensor:
            best = values.new_zeros(len(matches.targets.boxes)).scatter_reduce(0, objects, values, "amax")
            return best[objects]

        return measure / (largest(measure) + 1e-7) * largest(matches.iou)

    def __call__(self, matches: Matches) -> Tensor:
        logits, target = matches.logits, matches.spread(self.target(matches))
        cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        has_objects = logits.new_zeros(len(logits), 1, 1).index_fill(0, matches.targets.image, 1.0)
        return has_objects * (target - logits.sigmoid()) ** 2 * cross_entropy

    def pair_factors(self, matches: Matches) -> Mapping[str, Tensor]:
        return {"giou": self.target(matches)}

    def normalizer(self, matches: Matches) -> Tensor:
        """The sum of t."""
        return self.target(matches).sum()


# ----------------------------------------------------------------------------------------------------------------------
# From names to parts


@SOURCES.register("DistinctTopN")
def build_distinct_top_n(cfg: CN, kit: Kit) -> DistinctTopN:
    return DistinctTopN(iou_threshold=_iou_threshold(cfg), **top_n_parts(cfg, kit))


def _iou_threshold(cfg: CN) -> float:
    return check_range("MODEL.DETR.DDQ.IOU_THRESHOLD", cfg.MODEL.DETR.DDQ.IOU_THRESHOLD, "(0, 1]")


@CONTENTS.register("mapped_token")
def build_mapped_token(cfg: CN, kit: Kit) -> MappedToken:
    return MappedToken(cfg.MODEL.DETR.HIDDEN_DIM)


_CANDIDATES = Choice("MODEL.DETR.DDQ.CANDIDATES", DistinctCascade.CANDIDATES)


@DECODERS.register("distinct_cascade")
def build_distinct_cascade(cfg: CN, kit: Kit) -> DistinctCascade:
    D = cfg.MODEL.DETR
    if "boxes" not in kit.sources["main"].provides:
        raise UserError(
            f"{DECODERS.key} distinct_cascade needs queries with boxes, which {SOURCES.key} {D.QUERIES.NAME} does not "
            "make"
        )
    return DistinctCascade(
        iou_threshold=_iou_threshold(cfg),
        candidates=_CANDIDATES(D.DDQ.CANDIDATES),
        refine_boxes=D.DECODER.BOX_REFINE,
        look_forward_twice=D.DECODER.LOOK_FORWARD_TWICE,
        **decoder_parts(cfg, kit),
    )


@INTERACTIONS.register("distinct_self_attention")
def build_distinct_self_attention(cfg: CN, kit: Kit) -> DistinctSelfAttention:
    D = cfg.MODEL.DETR
    return DistinctSelfAttention(D.HIDDEN_DIM, D.NUM_HEADS, D.DROPOUT)


@ROUTES.register("dense")
def build_dense_route(cfg: CN, kit: Kit) -> Route:
    """The main route's layers over dense queries, with heads of their own, which start as copies.

    The release runs both in one pass behind an attention mask, which keeps them apart as two passes do.
    """
    D, source, main = cfg.MODEL.DETR, kit.sources["main"], kit.routes["main"].decoder
    key = "MODEL.DETR.DDQ"
    if not isinstance(source, DistinctTopN) or "proposals" not in needs_of(source.content):
        raise UserError(
            f"{ROUTES.key} dense needs {SOURCES.key} DistinctTopN and a content from the proposals ({CONTENTS.key} "
            f"mapped_token), these are {D.QUERIES.NAME} and {D.QUERIES.CONTENT}"
        )
    ratio = check_range(f"{key}.DENSE_RATIO", D.DDQ.DENSE_RATIO, "(0, inf)")
    objective = build_dense_objective(cfg)
    kit.sources["dense"] = DenseQueries(source, max(1, int(ratio * D.QUERIES.NUM)), objective)
    decoder = over_borrowed(
        main,
        layers=[Borrowed(layer) for layer in main.layers],
        class_heads=[copy.deepcopy(main.class_heads[-1]) for _ in main.layers],
        box_heads=[copy.deepcopy(main.box_heads[-1]) for _ in main.layers[: main.box_layers]],
    )
    return Route(
        name="dense", source="dense", decoder=decoder, objectives=[objective] * len(main.layers), train_only=True
    )


def build_dense_objective(cfg: CN) -> Objective:
    D, key = cfg.MODEL.DETR, "MODEL.DETR.DDQ"
    cost = DenseCost(**{**cost_terms(cfg), "corners": True}, second_sigmoid=D.DDQ.DENSE_SECOND_SIGMOID)
    copies = check_range(f"{key}.DENSE_COPIES", D.DDQ.DENSE_COPIES, "[1, inf)")
    loss = DenseLoss()
    objective = build_objective(cfg, assigner=DenseAssigner(cost, copies), classification=loss)
    pair_losses = {"giou": (D.LOSS.GIOU_WEIGHT, giou_loss)}
    return replace(objective, pair_losses=pair_losses, normalizer=loss.normalizer)
