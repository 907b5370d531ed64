# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Query sources: where content, reference and position of a decoder pass come from.

A source is called with the encoder's ``Memory`` and returns a ``QuerySet``; what it predicts on the way (encoder
proposals) it returns there as well, to be supervised. The content is a part of its own, a ``ContentSource``, so that
learned tables and PaQ-DETR's patterns go with every source.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..checks import check_choice
from ..layers import MLP, inverse_sigmoid, sine_box_code
from ..structures import LayerOutput, Memory, Prediction, QuerySet
from .heads import ClassHead, ObjectnessHead, build_box_head
from .losses import ClassificationLoss
from .matcher import Assigner


class ContentSource(Protocol):
    """Makes the content of N queries; ``losses`` are its own, already weighted."""

    def __call__(self, memory: Memory) -> Tensor: ...  # (B, N, C)

    def losses(self) -> dict[str, Tensor]: ...


class LearnedContent(nn.Module):
    """A table of contents, the same for every image. Init N(0, 1), as in Deformable DETR, H-DETR and Mr. DETR."""

    def __init__(self, num_queries: int, embed_dim: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_queries, embed_dim))

    def forward(self, memory: Memory) -> Tensor:
        return self.table.expand(len(memory.tokens), -1, -1)

    def losses(self) -> dict[str, Tensor]:
        return {}


class LearnedQueries(nn.Module):
    """Deformable DETR's single-stage queries: learned positions, whose linear map gives the reference points."""

    def __init__(self, *, num_queries: int, embed_dim: int, content: ContentSource):
        super().__init__()
        self.position = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.reference_points = nn.Linear(embed_dim, 2)
        self.content = content
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Memory) -> QuerySet:
        batch = len(memory.tokens)
        return QuerySet(
            content=self.content(memory),
            reference=self.reference_points(self.position).sigmoid().expand(batch, -1, -1),
            position=self.position.expand(batch, -1, -1),
            losses=self.content.losses() if self.training else {},
        )


class LearnedAnchors(nn.Module):
    """DAB-DETR's queries: a table of boxes. Centres start uniform in the image, sizes N(0, 1) in logit space.

    The position code comes from the boxes, in every layer (``DECODER.QUERY_POSITION: sine_mlp``).
    """

    def __init__(self, *, num_queries: int, content: ContentSource):
        super().__init__()
        centers = inverse_sigmoid(torch.rand(num_queries, 2), 1e-3)
        self.anchors = nn.Parameter(torch.cat([centers, torch.randn(num_queries, 2)], 1))
        self.content = content

    def forward(self, memory: Memory) -> QuerySet:
        return QuerySet(
            content=self.content(memory),
            reference=self.anchors.sigmoid().expand(len(memory.tokens), -1, -1),
            losses=self.content.losses() if self.training else {},
        )


class EncoderTopN(nn.Module):
    """Two-stage queries: every encoder token proposes a box, and the N best become queries.

    A token's prior is a box of side 0.05 * 2^level around its centre; where a prior leaves (0.01, 0.99) or the token is
    padding, it can neither be chosen nor supervised. References are detached (Deformable DETR, appendix A.4).
    """

    def __init__(
        self,
        *,
        num_queries: int,
        num_classes: int,
        embed_dim: int,
        content: ContentSource | None,
        score: str,
        assigner: Assigner,
        loss_scale: float = 1.0,
        classification: ClassificationLoss | None = None,
        num_queries_test: int | None = None,
        eps: float = 1e-5,
    ):
        """
        Args:
            content: None takes it from the proposal's box, as the two-stage Deformable DETR of the paper does.
            score: "binary" (channel 0 is objectness, every label counts as 0) or "max" (best class; DINO).
            assigner, loss_scale, classification: how the proposals are supervised; a classification loss of their own
                or, with None, the criterion's.
            num_queries_test: another number of queries at inference; more than in training need content None.
        """
        super().__init__()
        num_queries_test = num_queries_test or num_queries
        if num_queries_test > num_queries and content is not None:
            raise ValueError(
                f"QUERIES.NUM_TEST is {num_queries_test}, but content is learned for QUERIES.NUM {num_queries}; "
                "more queries at inference need QUERIES.CONTENT proposal"
            )
        check_choice("QUERIES.SCORE", score, ("binary", "max"))
        self.num_queries, self.score, self.assigner, self.loss_scale = num_queries, score, assigner, loss_scale
        self.classification, self.num_queries_test, self.eps = classification, num_queries_test, eps
        self.project = nn.Linear(embed_dim, embed_dim)
        self.project_norm = nn.LayerNorm(embed_dim)
        self.class_head = (ObjectnessHead if score == "binary" else ClassHead)(embed_dim, num_classes)
        self.box_head = build_box_head(embed_dim)
        self.position = nn.Linear(2 * embed_dim, 2 * embed_dim)
        self.position_norm = nn.LayerNorm(2 * embed_dim)
        self.content = content
        for linear in (self.project, self.position):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, memory: Memory) -> QuerySet:
        proposals = self.propose(memory)
        queries = self.select(proposals, self.num_queries if self.training else self.num_queries_test)
        if self.content is not None:
            queries.content = self.content(memory)[:, : queries.reference.shape[1]]
        if self.training:
            binary, own = self.score == "binary", self.classification
            queries.predictions.append(
                Prediction("encoder", proposals, self.assigner, self.loss_scale, binary, classification=own)
            )
            queries.losses = self.content.losses() if self.content is not None else {}
        return queries

    def propose(self, memory: Memory) -> LayerOutput:
        """Class logits and boxes of all S tokens."""
        priors, usable = token_priors(memory)
        tokens = memory.tokens * usable[..., None]
        state = self.project_norm(self.project(tokens))
        boxes = (self.box_head(state).float() + inverse_sigmoid(priors, self.eps)).sigmoid()
        return LayerOutput(self.class_head(state), boxes, valid=usable)

    def select(self, proposals: LayerOutput, num_queries: int, skip: int = 0) -> QuerySet:
        """The ``num_queries`` best proposals behind the ``skip`` best, or as many as there are (at least one)."""
        scores = proposals.logits[..., 0] if self.score == "binary" else proposals.logits.amax(-1)
        scores = scores.detach().float()
        scores = scores.masked_fill(~proposals.valid | scores.isnan(), -torch.inf)
        count = scores.shape[1]
        scores, index = scores.topk(min(skip + num_queries, count), dim=1)
        scores, index = scores[:, min(skip, count - 1) :], index[:, min(skip, count - 1) :]
        reference = proposals.boxes.detach().gather(1, index[..., None].expand(-1, -1, 4))
        code = sine_box_code(reference, self.project.out_features // 2).to(proposals.logits.dtype)
        position, content = self.position_norm(self.position(code)).chunk(2, -1)
        return QuerySet(content, reference, position, valid=scores > -torch.inf)


def token_priors(memory: Memory) -> tuple[Tensor, Tensor]:
    """(B, S, 4) prior box of every token, and (B, S) whether it may be used."""
    centers = memory.token_centers()
    sides = [0.05 * 2**level for level, (h, w) in enumerate(memory.shapes) for _ in range(h * w)]
    size = centers.new_tensor(sides)[None, :, None].expand(len(centers), -1, 2)
    priors = torch.cat([centers, size], -1)
    usable = ((priors > 0.01) & (priors < 0.99)).all(-1)
    if memory.padding is not None:
        usable = usable & ~memory.padding
    return priors, usable


class SinePosition(nn.Module):
    """Position code of the current boxes, made anew in every layer: MLP of their sine code (DAB-DETR, DINO)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.mlp = MLP(2 * embed_dim, embed_dim, embed_dim, 2)

    def forward(self, reference: Tensor) -> Tensor:
        if reference.shape[-1] != 4:
            raise ValueError("DECODER.QUERY_POSITION sine_mlp needs queries with boxes, not points (QUERIES.NAME)")
        return self.mlp(sine_box_code(reference, self.mlp[0].in_features // 4))
