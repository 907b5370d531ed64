# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The hybrid branch of H-DETR (Jia et al. 2023), as PaQ-DETR uses it (Table 3): more queries in training, one-to-many.

| paper | here | key |
|---|---|---|
| 1500 more queries, the next best proposals | ``HybridQueries`` | ROUTES [hybrid], HYBRID.NUM_QUERIES |
| each object repeated 6 times | ``HungarianAssigner`` | HYBRID.COPIES |
| Relation-DETR, from whose code PaQ-DETR grew: the best of heads of their own | ``OwnHybridQueries`` | .OWN_PROPOSALS |
"""

from __future__ import annotations

from dataclasses import replace

from detectron2.config import CfgNode as CN
from torch import nn

from ..checks import check_range
from ..errors import UserError
from ..modeling.assignment import HungarianAssigner
from ..modeling.contents import ContentSource, LearnedContent, Unmarked
from ..modeling.heads import build_box_head
from ..modeling.objective import Objective
from ..modeling.proposals import EncoderTopN, taken
from ..modeling.queries import LearnedAnchors, LearnedQueries
from ..modeling.route import Borrowed, Route
from ..registry import COSTS, ROUTES, SOURCES, Kit, adds_config
from ..structures import Memory, QuerySet, Targets


@adds_config
def add_config(cfg: CN) -> None:
    cfg.MODEL.DETR.HYBRID = H = CN()
    H.NUM_QUERIES = 1500
    H.COPIES = 6
    H.LOSS_SCALE = 1.0
    # Two-stage models only. True: the queries are the best proposals of a class and a box head of their own, which are
    # supervised too (Relation-DETR). False: the next best of the main ones (H-DETR).
    H.OWN_PROPOSALS = False


class HybridQueries(nn.Module):
    """More queries for a training-only route: the main source's next best proposals with contents of their own."""

    provides = frozenset({"boxes", "position"})

    def __init__(self, main: EncoderTopN, content: ContentSource, num_queries: int):
        super().__init__()
        self.main, self.content, self.num_queries = Borrowed(main), content, num_queries

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
        proposals = self.main.propose(memory)
        index, usable = self.main.best(proposals, self.num_queries, skip=self.main.num_queries)
        queries = self.main.queries(taken(proposals, index, usable))
        queries.content = self.content(memory)[:, : index.shape[1]]
        return queries


class OwnHybridQueries(nn.Module):
    """More queries for a training-only route: the best proposals of heads of their own, each object repeated in their
    matching as in the route's, with contents of their own. The projected tokens are the main source's."""

    def __init__(self, main: EncoderTopN, content: ContentSource, num_queries: int, num_classes: int, copies: int):
        super().__init__()
        embed_dim = main.project.out_features
        self.main, self.provides = Borrowed(main), main.provides
        self.content, self.num_queries = content, num_queries
        self.class_head, self.box_head = type(main.class_head)(embed_dim, num_classes), build_box_head(embed_dim)
        self.objective = repeated(main.objective, HungarianAssigner(main.objective.assigner.cost, copies))

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
        proposals = self.main.proposals_by(self.class_head, self.box_head, memory)
        return self.main.choose(proposals, memory, self.num_queries, self.content, self.objective)


def repeated(objective: Objective, assigner: HungarianAssigner) -> Objective:
    """An objective for objects that are repeated; what it is divided by still counts each object once."""
    return replace(objective, assigner=assigner, normalizer=None)


def build_hybrid_queries(cfg: CN, kit: Kit) -> nn.Module:
    """The next best proposals of a two-stage model; more learned anchors, or positions, beside those of others."""
    D, main, number = cfg.MODEL.DETR, kit.sources["main"], cfg.MODEL.DETR.HYBRID.NUM_QUERIES
    content = LearnedContent(number, D.HIDDEN_DIM, D.QUERIES.CONTENT_INIT)
    content = Unmarked(content) if D.QUERIES.INDICATOR else content
    if D.HYBRID.OWN_PROPOSALS:
        if not isinstance(main, EncoderTopN):
            raise UserError(
                f"MODEL.DETR.HYBRID.OWN_PROPOSALS is True, but {SOURCES.key} {D.QUERIES.NAME} has no proposals"
            )
        return OwnHybridQueries(main, content, number, kit.num_classes, D.HYBRID.COPIES)
    if isinstance(main, EncoderTopN):
        return HybridQueries(main, content, number)
    if isinstance(main, LearnedAnchors):
        return LearnedAnchors(num_queries=number, content=content, init=D.QUERIES.ANCHOR_INIT)
    if isinstance(main, LearnedQueries):
        return LearnedQueries(num_queries=number, embed_dim=D.HIDDEN_DIM, content=content)
    raise UserError(
        f"{ROUTES.key} hybrid does not know how to make more of the queries of {SOURCES.key} {D.QUERIES.NAME}"
    )


@ROUTES.register("hybrid")
def build_hybrid_route(cfg: CN, kit: Kit) -> Route:
    """1500 more queries, each object repeated 6 times, through the same decoder, in training only (Table 3).

    H-DETR runs both sets in one pass behind an attention mask, which keeps them apart as two passes do. It divides the
    one-to-many losses by the number of repeated objects; hence ``LOSS_SCALE / COPIES``.
    """
    D, main = cfg.MODEL.DETR, kit.routes["main"]
    H, key = D.HYBRID, "MODEL.DETR.HYBRID"
    check_range(f"{key}.NUM_QUERIES", H.NUM_QUERIES, "[1, inf)")
    check_range(f"{key}.COPIES", H.COPIES, "[1, inf)")
    kit.sources["hybrid"] = build_hybrid_queries(cfg, kit)
    assigner = HungarianAssigner(COSTS.build("focal_l1_giou", cfg, kit), H.COPIES)
    return Route(
        name="hybrid",
        source="hybrid",
        decoder=Borrowed(main.decoder),
        objectives=[repeated(objective, assigner) for objective in main.objectives],
        scale=H.LOSS_SCALE / H.COPIES,
        train_only=True,
    )
