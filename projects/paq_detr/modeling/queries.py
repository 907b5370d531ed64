# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Query sources: where content, reference and position of a decoder pass come from.

A source is called once a step with the memory and, in training, the targets, and returns a ``QuerySet``; what it
predicts on the way (encoder proposals) it returns there as well, to be supervised. ``provides`` tells what its queries
have: "boxes" (else points), "position" (a fixed code) and "contents from boxes" (its ``codes`` make some). The content
is a part of its own, so that learned tables and PaQ-DETR's patterns go with every source.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import nn

from ..checks import Choice, check_range
from ..errors import UserError
from ..layers import inverse_sigmoid
from ..registry import AUGMENTERS, SOURCES, Kit, needs_of
from ..structures import Memory, QuerySet, Targets
from .contents import ContentSource, build_content


class QuerySource(Protocol):
    provides: frozenset[str]

    def __call__(self, memory: Memory, targets: Targets | None = None) -> QuerySet: ...


class Augmenter(Protocol):
    """Puts groups of queries with known partners in front (denoising). Training-only.

    It may stand before several sources; what it draws for one it keeps with the memory for the others.
    """

    def __call__(self, queries: QuerySet, targets: Targets, memory: Memory) -> QuerySet: ...


class LearnedTable(nn.Module):
    """Queries that are the same for every image, as learned tables say."""

    content: ContentSource

    def __init__(self, num_queries_test: int | None = None):
        """
        Args:
            num_queries_test: only so many first queries at inference; None: all.
        """
        super().__init__()
        self.num_queries_test = num_queries_test

    def queries(self, memory: Memory) -> QuerySet:
        """All of them, without losses."""
        raise NotImplementedError

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
        queries = self.queries(memory)
        if self.training:
            return replace(queries, losses=self.content.losses())
        return queries if self.num_queries_test is None else queries.first(self.num_queries_test)


class LearnedQueries(LearnedTable):
    """Deformable DETR's single-stage queries: learned positions, whose linear map gives the reference points."""

    provides = frozenset({"position"})
    query_axes = {"position": 0}

    def __init__(
        self, *, num_queries: int, embed_dim: int, content: ContentSource, num_queries_test: int | None = None
    ):
        super().__init__(num_queries_test)
        self.position = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.reference_points = nn.Linear(embed_dim, 2)
        self.content = content
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def queries(self, memory: Memory) -> QuerySet:
        batch = memory.tokens.shape[0]
        return QuerySet(
            content=self.content(memory),
            reference=self.reference_points(self.position).sigmoid().expand(batch, -1, -1),
            position=self.position.expand(batch, -1, -1),
        )


class LearnedAnchors(LearnedTable):
    """DAB-DETR's queries: a table of boxes, as logits.

    The position code comes from the boxes, in every layer (``DECODER.QUERY_POSITION: sine_mlp``).
    """

    provides = frozenset({"boxes"})
    query_axes = {"anchors": 0}
    #: What the table can start as: (N,) to (N, 4) logits of cxcywh.
    INITS = {
        "normal": lambda count: torch.randn(count, 4),  # DAB-DETR, DN-DETR
        "uniform_center": lambda count: torch.cat(  # detrex's DAB-DETR
            [inverse_sigmoid(torch.rand(count, 2), 1e-3), torch.randn(count, 2)], 1
        ),
        "uniform": lambda count: torch.rand(count, 4).logit().clamp(-3, 3),  # detrex's deformable models
    }

    def __init__(
        self,
        *,
        num_queries: int,
        content: ContentSource,
        init: str = "uniform_center",
        num_queries_test: int | None = None,
    ):
        super().__init__(num_queries_test)
        self.anchors = nn.Parameter(self.INITS[init](num_queries))
        self.content = content

    def queries(self, memory: Memory) -> QuerySet:
        return QuerySet(self.content(memory), self.anchors.sigmoid().expand(memory.tokens.shape[0], -1, -1))


class LearnedBoxes(LearnedTable):
    """A table of boxes that start as the whole image, each; learned (Sparse R-CNN) or not (AdaMixer).

    In contrast to anchors they are no logits: nothing keeps them in the image.
    """

    provides = frozenset({"boxes"})

    def __init__(
        self, *, num_queries: int, content: ContentSource, learned: bool = True, num_queries_test: int | None = None
    ):
        super().__init__(num_queries_test)
        boxes = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(num_queries, 1)
        if learned:
            self.boxes = nn.Parameter(boxes)
            self.query_axes = {"boxes": 0}
        else:
            self.register_buffer("boxes", boxes, persistent=False)
        self.content = content

    def queries(self, memory: Memory) -> QuerySet:
        return QuerySet(self.content(memory), self.boxes.expand(memory.tokens.shape[0], -1, -1))


# ----------------------------------------------------------------------------------------------------------------------
# From names to sources


@AUGMENTERS.register("none")
def build_no_augmenter(cfg, kit: Kit) -> None:
    return None


def content_for(cfg, kit: Kit, offered: frozenset[str] = frozenset()) -> ContentSource:
    """The content of a source without proposals, which needs no more than is ``offered``; what only proposals could use
    is refused."""
    D = cfg.MODEL.DETR
    content = build_content(cfg, kit)
    idle = {
        "QUERIES.CONTENT": D.QUERIES.CONTENT if content is None or needs_of(content) - offered else "",
        "QUERIES.SUPERVISE": "" if D.QUERIES.SUPERVISE == "all" else D.QUERIES.SUPERVISE,
        "QUERIES.MATCH_ON_PRIORS": D.QUERIES.MATCH_ON_PRIORS,
        "QUERIES.KEEP.WHEN": "" if D.QUERIES.KEEP.WHEN == "never" else D.QUERIES.KEEP.WHEN,
        "ASSIGNER.ENCODER": "" if D.ASSIGNER.ENCODER == "hungarian" else D.ASSIGNER.ENCODER,
        "LOSS.ENCODER_CLASSIFICATION": D.LOSS.ENCODER_CLASSIFICATION,
    }
    for key, value in idle.items():
        if value:
            raise UserError(f"MODEL.DETR.{key} {value} needs queries from the encoder ({SOURCES.key} EncoderTopN)")
    return content


def queries_at_inference(cfg, learned: bool = False) -> int | None:
    """``QUERIES.NUM_TEST``; None: as many as in training. ``learned``: as many as there are at most."""
    Q, key = cfg.MODEL.DETR.QUERIES, "MODEL.DETR.QUERIES"
    number = check_range(f"{key}.NUM_TEST", Q.NUM_TEST, "[0, inf)")
    if learned and number > Q.NUM:
        raise UserError(
            f"{key}.NUM_TEST is {number}, but {SOURCES.key} {Q.NAME} is a table of {Q.NUM} learned queries, and "
            f"further ones would be nowhere: train with a larger {key}.NUM, which takes the present ones over"
        )
    return number or None


@SOURCES.register("LearnedQueries")
def build_learned_queries(cfg, kit: Kit) -> LearnedQueries:
    D = cfg.MODEL.DETR
    return LearnedQueries(
        num_queries=D.QUERIES.NUM,
        embed_dim=D.HIDDEN_DIM,
        content=content_for(cfg, kit),
        num_queries_test=queries_at_inference(cfg, learned=True),
    )


ANCHOR_INIT = Choice("MODEL.DETR.QUERIES.ANCHOR_INIT", LearnedAnchors.INITS)


@SOURCES.register("LearnedAnchors")
def build_learned_anchors(cfg, kit: Kit) -> LearnedAnchors:
    Q = cfg.MODEL.DETR.QUERIES
    init = ANCHOR_INIT(Q.ANCHOR_INIT)
    content, at_inference = content_for(cfg, kit), queries_at_inference(cfg, learned=True)
    return LearnedAnchors(num_queries=Q.NUM, content=content, init=init, num_queries_test=at_inference)


@SOURCES.register("LearnedBoxes")
def build_learned_boxes(cfg, kit: Kit) -> LearnedBoxes:
    Q = cfg.MODEL.DETR.QUERIES
    content, at_inference = content_for(cfg, kit), queries_at_inference(cfg, learned=True)
    return LearnedBoxes(num_queries=Q.NUM, content=content, learned=Q.LEARN_BOXES, num_queries_test=at_inference)
