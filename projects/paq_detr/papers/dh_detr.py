# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""DH-DETR: Dense Object Detection Based on De-Homogenized Queries (Electronics 13(12):2312, arXiv 2502.07194).

| released code | here | key |
|---|---|---|
| De-Homo Coding Generator | ``DehomoGenerator`` | DEHOMO.LAYERS, .NUM_NEIGHBORS, .IOU_THRESHOLD, ... |
| activity mask | ``DehomoLayer.alive`` | DEHOMO.FLOOR_SCORE |
| aligned decoder layer | ``modeling.decoder.DecoderLayer`` without interaction | DECODER.SELF_ATTENTION |
| boxes of the first layer only, early stop | ``modeling.decoder.Decoder`` | DECODER.BOX_LAYERS, .TEST_LAYERS |
| matching behind a generator | ``AdmissibleCost`` | DEHOMO.CENTER_INSIDE |
| GIoU-aware query selection | ``SoftFocalLoss`` | SOFT_TARGET.* |

The numbers are those of the authors' release (config.py there); papers/README.md lists where code and we differ.

Shape legend: B images, N queries, K neighbour slots, C channels, L stacked layers, M objects of the batch.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from .. import ops
from ..checks import check_choice, check_range
from ..layers import MLP, boxes_cxcywh_to_xyxy, paired_iou
from ..modeling.decoder import DecoderLayer
from ..modeling.losses import ClassificationLoss
from ..modeling.matcher import FORBIDDEN, MatchCost
from ..structures import LayerOutput, Memory, QuerySet, Targets

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
        self.num_neighbors = check_range("DEHOMO.NUM_NEIGHBORS", num_neighbors, "[1, inf)")
        self.iou_threshold = check_range("DEHOMO.IOU_THRESHOLD", iou_threshold, "(0, 1]")
        self.low_score = check_range("DEHOMO.LOW_SCORE", low_score, "[0, 1)")
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
    rank = scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return ((scores > low_score).sum(-1, keepdim=True) - rank).to(scores.dtype)


class DehomoLayer(DecoderLayer):
    """A decoder layer behind a generator: it goes on with the queries that the layer before found worth a look.

    The release multiplies by the activity mask again inside the cross-attention; that only changes rows which nothing
    reads.
    """

    def __init__(self, layer: DecoderLayer, generator: DehomoGenerator, embed_dim: int, floor_score: float = 0.05):
        super().__init__(layer.interaction, layer.cross_attention, layer.ffn)
        self.generator, self.floor_score = generator, check_range("DEHOMO.FLOOR_SCORE", floor_score, "[0, 1)")
        self.norm = nn.LayerNorm(embed_dim)

    def alive(self, queries: QuerySet, previous: LayerOutput | None) -> Tensor:
        alive = best_score(previous) > self.floor_score
        return alive if queries.valid is None else alive & queries.valid

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        queries: QuerySet,
        memory: Memory,
        previous: LayerOutput,
    ) -> Tensor:
        if queries.attention_mask is not None:
            raise ValueError("DEHOMO.LAYERS compares all queries of an image: it cannot keep masked groups apart")
        content = self.generator(content, previous.boxes, best_score(previous), queries.valid)
        content = self.norm(content.masked_fill(~queries.valid[..., None], 0.0))
        return super().forward(content, position, reference, queries, memory, previous)


def best_score(output: LayerOutput) -> Tensor:
    """(B, N) score of each query's best class, detached."""
    return output.logits.detach().float().sigmoid().amax(-1)


class AdmissibleCost(MatchCost):
    """A matching cost that forbids pairs whose predicted centre does not lie strictly inside the object's box.

    Layers behind a generator only rescore boxes; a box that is elsewhere cannot become right.
    """

    def __call__(self, output: LayerOutput, targets: Targets) -> Tensor:
        center, size = output.boxes[:, targets.image].chunk(2, -1)  # (L, M, N, 2)
        low, high = boxes_cxcywh_to_xyxy(targets.boxes)[:, None].chunk(2, -1)  # (M, 1, 2)
        admissible = ((center > low) & (center < high) & (size > 0)).all(-1)
        return super().__call__(output, targets).masked_fill(~admissible, FORBIDDEN)


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
        self.measure = check_choice("SOFT_TARGET.MEASURE", measure, ("giou", "iou"))
        self.target_gradient = target_gradient
        self.min_target = check_range("SOFT_TARGET.MIN", min_target, "[-1, 1]")
        self.alpha, self.gamma = alpha, gamma

    def quality(self, boxes: Tensor, wanted: Tensor) -> Tensor:
        boxes = boxes if self.target_gradient else boxes.detach()
        if self.measure == "iou":
            overlap = paired_iou(boxes, wanted)
        else:
            overlap = 1 - generalized_box_iou_loss(boxes_cxcywh_to_xyxy(boxes), boxes_cxcywh_to_xyxy(wanted))
        return overlap.clamp(min=self.min_target)

    def __call__(self, logits: Tensor, positive: Tensor, quality: Tensor) -> Tensor:
        p, t = logits.sigmoid(), quality
        balance = self.alpha * t + (1 - self.alpha) * (1 - t)
        cross_entropy = F.softplus(logits) - t * logits  # unlike torch's, sure to be differentiable in t
        return balance * (p + t - 2 * p * t) ** self.gamma * cross_entropy
