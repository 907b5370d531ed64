# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DH-DETR: Dense Object Detection Based on De-Homogenized Queries (Electronics 13(12):2312, arXiv 2502.07194).

| released code | here | key |
|---|---|---|
| De-Homo Coding Generator | ``DehomoGenerator`` | DECODER.INTERACTION dehomo, DEHOMO.* |
| activity mask | ``Dehomo`` | DEHOMO.FLOOR_SCORE |
| aligned decoder layer | ``modeling.decoder.DecoderLayer`` without attention | DECODER.INTERACTION none |
| boxes of the first layer only, early stop | ``modeling.decoder.Decoder`` | DECODER.BOX_LAYERS, .TEST_LAYERS |
| matching behind a generator | ``AdmissibleCost`` | MATCHER.COST center_inside |
| GIoU-aware query selection | ``SoftFocalLoss`` | LOSS.ENCODER_CLASSIFICATION soft_focal, SOFT_TARGET.* |

The numbers are those of the authors' release (config.py there); papers/README.md lists where code and we differ.

Shape legend: B images, N queries, K neighbour slots, C channels, L stacked layers, M objects of the batch.
"""

from __future__ import annotations

from dataclasses import replace

from detectron2.config import CfgNode as CN
from torch import Tensor, nn
from torch.nn import functional as F

from .. import ops
from ..checks import Choice, check_range
from ..layers import MLP, boxes_cxcywh_to_xyxy, paired_giou, paired_iou, places
from ..modeling.assignment import FORBIDDEN, MatchCost, cost_terms
from ..modeling.interactions import separate_sets
from ..modeling.losses import ClassificationLoss, Matches
from ..registry import CLASS_LOSSES, COSTS, INTERACTIONS, Kit, adds_config
from ..structures import DecoderState, LayerOutput, Memory, Targets


@adds_config
def add_config(cfg: CN) -> None:
    D = cfg.MODEL.DETR
    # De-homo coding generator, the interaction "dehomo"; numbers of the authors' release.
    D.DEHOMO = CN()
    D.DEHOMO.NUM_NEIGHBORS = 10
    D.DEHOMO.IOU_THRESHOLD = 0.4  # smallest overlap of a neighbour
    D.DEHOMO.LOW_SCORE = 0.1  # a neighbour scores higher than this, and than the query itself
    D.DEHOMO.FLOOR_SCORE = 0.05  # queries that do not score higher than this are dropped
    D.DEHOMO.ZERO_FILL = True  # free neighbour slots take part in the maximum as zero
    D.DEHOMO.BREAK_TIES = False  # True, ours: of equal scores the first counts as higher, so that twins can part

    # The class loss "soft_focal" of the encoder: GIoU-aware query selection.
    D.SOFT_TARGET = CN()
    D.SOFT_TARGET.MEASURE = "giou"  # or "iou": of the matched box with its object
    D.SOFT_TARGET.GRADIENT = False  # True, as released: the target carries a gradient to the boxes
    D.SOFT_TARGET.MIN = 0.0  # smallest target of a matched box; -1.0, as released: GIoU as it is


# ----------------------------------------------------------------------------------------------------------------------
# De-Homo Coding Generator


class DehomoGenerator(nn.Module):
    """Tells a query what sets it apart from the more confident queries that overlap it.

    With e = LN(W2 relu(W1 q)) the query's identity and N_i its neighbours (``ops.neighbor_select``):
    ``q_i + relu(W5 max over j in N_i of (W4 relu(W3 (e_i - e_j))))``, every W with a bias.
    """

    def __init__(
        self,
        embed_dim: int,
        *,
        num_neighbors: int = 10,
        iou_threshold: float = 0.4,
        low_score: float = 0.1,
        zero_fill: bool = True,
        break_ties: bool = False,
    ):
        """
        Args:
            num_neighbors, iou_threshold, low_score: which queries are compared; see ``ops.neighbor_select``.
            zero_fill: a free neighbour slot takes part in the maximum as zero, as released; False leaves it out.
            break_ties: of two equally confident queries the first counts as the more confident. As released, equal
                scores exchange nothing, so that twins stay twins.
        """
        super().__init__()
        self.num_neighbors, self.iou_threshold, self.low_score = num_neighbors, iou_threshold, low_score
        self.zero_fill, self.break_ties = zero_fill, break_ties
        self.identity = MLP(embed_dim, embed_dim, embed_dim, 2)
        self.identity_norm = nn.LayerNorm(embed_dim)
        self.difference = MLP(embed_dim, embed_dim, embed_dim, 2)
        self.output = nn.Linear(embed_dim, embed_dim)
        for linear in (self.identity[0], self.identity.last, self.difference[0], self.difference.last, self.output):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, content: Tensor, boxes: Tensor, scores: Tensor, alive: Tensor | None = None) -> Tensor:
        """
        Args:
            content: (B, N, C).
            boxes: (B, N, 4); scores: (B, N) of the layer before. Neither they nor the choice carry a gradient.
            alive: (B, N) False for queries that neither have nor are neighbours.

        Returns:
            (B, N, C).
        """
        low_score = self.low_score
        if self.break_ties:
            scores, low_score = ranked(scores, low_score), 0.0
        index, count = ops.neighbor_select(
            boxes, scores, k=self.num_neighbors, iou_threshold=self.iou_threshold, low_score=low_score, valid=alive
        )
        identity = self.identity_norm(self.identity(content))
        hidden, last = self.difference[0], self.difference.last
        code = ops.neighbor_difference(
            F.linear(identity, hidden.weight), index, count, hidden.bias, last.weight, last.bias, self.zero_fill
        )
        return content + F.relu(self.output(code))


def ranked(scores: Tensor, low_score: float) -> Tensor:
    """(B, N) distinct numbers in the order of ``scores``, of equals the first on top; positive above ``low_score``."""
    return ((scores > low_score).sum(-1, keepdim=True) - places(scores)).to(scores.dtype)


class Dehomo(nn.Module):
    """The interaction: the layer goes on with the queries that the one before found worth a look, told apart.

    The release multiplies by the activity mask again inside the cross-attention; that only changes rows which nothing
    reads. A query that was dropped stays so. Groups of denoising queries, which the release does not have, are told
    apart each by itself; they are asked for an object whatever their score, and none is dropped.
    """

    needs = frozenset({"previous", "boxes"})

    def __init__(self, generator: DehomoGenerator, embed_dim: int, floor_score: float = 0.05):
        super().__init__()
        self.generator, self.floor_score = generator, floor_score
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        previous = state.history[-1]
        boxes, scores = previous.boxes, previous.best_score()
        alive = scores > self.floor_score
        if state.attention_mask is not None:
            sets = separate_sets(state.attention_mask)
            alive = alive | (sets > 0)
            away = boxes.new_tensor([4.0, 0.0, 0.0, 0.0])  # boxes of two sets do not overlap then
            boxes = boxes.detach() + sets[:, None] * away
        if state.alive is not None:
            alive = alive & state.alive
        content = self.generator(state.content, boxes, scores, alive)
        return replace(state, content=self.norm(content.masked_fill(~alive[..., None], 0.0)), alive=alive)


@INTERACTIONS.register("dehomo")
def build_dehomo(cfg: CN, kit: Kit) -> Dehomo:
    H, dim = cfg.MODEL.DETR.DEHOMO, cfg.MODEL.DETR.HIDDEN_DIM
    generator = DehomoGenerator(
        dim,
        num_neighbors=check_range("MODEL.DETR.DEHOMO.NUM_NEIGHBORS", H.NUM_NEIGHBORS, "[1, inf)"),
        iou_threshold=check_range("MODEL.DETR.DEHOMO.IOU_THRESHOLD", H.IOU_THRESHOLD, "(0, 1]"),
        low_score=check_range("MODEL.DETR.DEHOMO.LOW_SCORE", H.LOW_SCORE, "[0, 1)"),
        zero_fill=H.ZERO_FILL,
        break_ties=H.BREAK_TIES,
    )
    return Dehomo(generator, dim, check_range("MODEL.DETR.DEHOMO.FLOOR_SCORE", H.FLOOR_SCORE, "[0, 1)"))


class AdmissibleCost(MatchCost):
    """A matching cost that forbids pairs whose predicted centre does not lie strictly inside the object's box.

    Layers behind a generator only rescore boxes; a box that is elsewhere cannot become right.
    """

    def __call__(self, output: LayerOutput, targets: Targets) -> Tensor:
        center, size = output.boxes[:, targets.image].chunk(2, -1)  # (L, M, N, 2)
        low, high = boxes_cxcywh_to_xyxy(targets.boxes)[:, None].chunk(2, -1)  # (M, 1, 2)
        admissible = ((center > low) & (center < high) & (size > 0)).all(-1)
        return super().__call__(output, targets).masked_fill(~admissible, FORBIDDEN)


@COSTS.register("center_inside")
def build_admissible_cost(cfg: CN, kit: Kit) -> AdmissibleCost:
    return AdmissibleCost(**cost_terms(cfg))


# ----------------------------------------------------------------------------------------------------------------------
# GIoU-aware query selection


class SoftFocalLoss(ClassificationLoss):
    """Focal loss whose target t is how well the matched box lies; the encoder's, so that its best tokens lie well.

    ``(alpha t + (1 - alpha)(1 - t)) (p + t - 2pt)^gamma BCE(z, t)``, with hard targets the focal loss. In the release
    the target carries a gradient, which pushes an unsure box away from its object, and a negative GIoU makes the loss
    unbounded; both are switches, off by default.
    """

    def __init__(
        self,
        measure: str = "giou",
        target_gradient: bool = False,
        min_target: float = 0.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ):
        """
        Args:
            measure: "giou" or "iou".
            target_gradient: the boxes also learn from this loss, as released.
            min_target: smallest target of a matched box; -1 for the release's unclamped GIoU.
        """
        self.measure = {"iou": paired_iou, "giou": paired_giou}[measure]
        self.target_gradient, self.min_target = target_gradient, min_target
        self.alpha, self.gamma = alpha, gamma

    def target(self, matches: Matches) -> Tensor:
        """(P,) what the matched entries shall score."""
        boxes = matches.boxes if self.target_gradient else matches.boxes.detach()
        return self.measure(boxes, matches.wanted).clamp(min=self.min_target)

    def __call__(self, matches: Matches) -> Tensor:
        logits, t = matches.logits, matches.spread(self.target(matches))
        p = logits.sigmoid()
        balance = self.alpha * t + (1 - self.alpha) * (1 - t)
        cross_entropy = F.softplus(logits) - t * logits  # unlike torch's, sure to be differentiable in t
        return balance * (p + t - 2 * p * t) ** self.gamma * cross_entropy


_MEASURE = Choice("MODEL.DETR.SOFT_TARGET.MEASURE", ("giou", "iou"))


@CLASS_LOSSES.register("soft_focal")
def build_soft_focal(cfg: CN, kit: Kit) -> SoftFocalLoss:
    T = cfg.MODEL.DETR.SOFT_TARGET
    return SoftFocalLoss(
        _MEASURE(T.MEASURE),
        T.GRADIENT,
        check_range("MODEL.DETR.SOFT_TARGET.MIN", T.MIN, "[-1, 1]"),
    )
