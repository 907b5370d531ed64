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
from torch import Tensor, nn

from ..checks import Choice, check_range
from ..errors import UserError
from ..layers import inverse_sigmoid, sine_box_code
from ..registry import ASSIGNERS, AUGMENTERS, CLASS_LOSSES, COSTS, SOURCES, Kit, needs_of, per_layer
from ..structures import LayerOutput, Memory, Prediction, QuerySet, Targets
from .assignment import MatchCost, cost_terms
from .contents import ContentSource, build_content
from .heads import ClassHead, ObjectnessHead, build_box_head
from .objective import Objective, build_objective
from .query_count import KeptQueries, build_kept_queries


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
        objective: Objective,
        supervise: str = "all",
        position: bool = True,
        num_queries_test: int | None = None,
        match_on_priors: bool = False,
        keep: KeptQueries | None = None,
        keep_test: KeptQueries | None = None,
        eps: float = 1e-5,
    ):
        """
        Args:
            content: None takes it from the proposal's box, as the two-stage Deformable DETR of the paper does.
            score: "binary" (channel 0 is objectness, every label counts as 0) or "max" (best class; DINO).
            objective: how the proposals are supervised.
            supervise: "all" proposals (Deformable DETR), or the "selected" ones (DINO, Align-DETR).
            position: make a fixed position code from the proposal's box.
            num_queries_test: another number of queries at inference; further ones share the last learned content.
            match_on_priors: proposals find their objects by their priors in place of their boxes (MS-DETR).
            keep, keep_test: how many of the N best become queries, in training and at inference; None: all.
        """
        super().__init__()
        has = {"boxes": True, "position": position, "contents from boxes": content is None}
        self.provides = frozenset(name for name, there in has.items() if there)
        self.num_queries, self.score, self.objective, self.supervise = num_queries, score, objective, supervise
        self.num_queries_test = num_queries_test or num_queries
        self.match_on_priors, self.eps = match_on_priors, eps
        self.keep, self.keep_test = keep, keep_test
        self.project = nn.Linear(embed_dim, embed_dim)
        self.project_norm = nn.LayerNorm(embed_dim)
        self.class_head = (ObjectnessHead if score == "binary" else ClassHead)(embed_dim, num_classes)
        self.box_head = build_box_head(embed_dim)
        self.position = nn.Linear(2 * embed_dim, 2 * embed_dim) if position or content is None else None
        self.position_norm = nn.LayerNorm(2 * embed_dim) if self.position is not None else None
        self.content = content
        for linear in (self.project, self.position):
            if linear is not None:
                nn.init.xavier_uniform_(linear.weight)

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
        queries = self.choose(self.propose(memory), memory)
        if self.training and self.content is not None:
            queries.losses = self.content.losses()
        return queries

    def choose(self, proposals: LayerOutput, memory: Memory) -> QuerySet:
        """The queries of the best proposals; in training with the proposals to be supervised."""
        index, usable = self.best(proposals, self.num_queries if self.training else self.num_queries_test)
        chosen = taken(proposals, index, usable)
        keep = self.keep if self.training else self.keep_test
        kept = chosen if keep is None else keep(chosen, self.scores(chosen).sigmoid())
        queries = self.queries(kept)
        if self.content is not None:
            queries.content = self.content.rows(kept.logits.shape[1], memory, kept)
        if self.training:
            selected = self.supervise == "selected"
            priors = replace(proposals, boxes=self._read(memory)[0]) if self.match_on_priors else None
            match = taken(priors, index, usable) if selected and priors is not None else priors
            supervised = chosen if selected else proposals
            queries.predictions.append(Prediction("encoder", supervised, self.objective, match=match))
        return queries

    def propose(self, memory: Memory) -> LayerOutput:
        """Class logits and boxes of all S tokens; computed once a step, whoever asks."""
        return memory.once(self, lambda memory: self.proposals_by(self.class_head, self.box_head, memory))

    def proposals_by(self, class_head: nn.Module, box_head: nn.Module, memory: Memory) -> LayerOutput:
        """What these heads propose at the projected tokens, which all heads of a step share."""
        priors, usable, state = self._read(memory)
        boxes = (box_head(state).float() + inverse_sigmoid(priors, self.eps)).sigmoid()
        return LayerOutput(class_head(state), boxes, state, usable)

    def _read(self, memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
        """(B, S, 4) priors, (B, S) whether they may be used, and (B, S, C) projected tokens; computed once a step."""

        def read(memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
            priors, usable = token_priors(memory)
            return priors, usable, self.project_norm(self.project(memory.tokens * usable[..., None]))

        return memory.once(self.project, read)

    def best(self, proposals: LayerOutput, num_queries: int, skip: int = 0) -> tuple[Tensor, Tensor]:
        """(B, N) tokens of the ``num_queries`` best proposals behind the ``skip`` best, or as many as there are (at
        least one), and (B, N) whether each may be used."""
        scores = self.scores(proposals)
        scores = scores.masked_fill(~proposals.valid | scores.isnan(), -torch.inf)
        wanted, count = skip + num_queries, scores.shape[1]
        if isinstance(count, torch.SymInt):  # a program for all sizes that hold as many tokens
            torch._check(count >= wanted)
        scores, index = scores.topk(wanted if count >= wanted else count, dim=1)
        scores, index = scores[:, min(skip, count - 1) :], index[:, min(skip, count - 1) :]
        return index, scores > -torch.inf

    def scores(self, proposals: LayerOutput) -> Tensor:
        """(B, N) what proposals are chosen by, as logits, detached."""
        scores = proposals.logits[..., 0] if self.score == "binary" else proposals.logits.amax(-1)
        return scores.detach().float()

    def queries(self, chosen: LayerOutput) -> QuerySet:
        """The queries of the chosen proposals, with content from their boxes where nothing else makes it."""
        reference = chosen.boxes.detach()
        content, position = self.codes(reference)
        return QuerySet(content, reference, position, valid=chosen.valid, codes=self.codes)

    def codes(self, boxes: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Content and fixed position, (B, N, C) each, that boxes (B, N, 4) give a query; None for what they do not."""
        if self.position is None:
            return None, None
        code = sine_box_code(boxes, self.project.out_features // 2).to(self.position.weight.dtype)
        position, content = self.position_norm(self.position(code)).chunk(2, -1)
        return content, position if "position" in self.provides else None


def taken(output: LayerOutput, index: Tensor, valid: Tensor) -> LayerOutput:
    """The rows (B, N) ``index`` of an output, undetached."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[-1]))

    return LayerOutput(rows(output.logits), rows(output.boxes), rows(output.content), valid)


def token_priors(memory: Memory) -> tuple[Tensor, Tensor]:
    """(B, S, 4) prior box of every token, and (B, S) whether it may be used."""
    centers = memory.grid.centers
    sizes = [
        centers.new_full((centers.shape[0], tokens, 2), 0.05 * 2**level)
        for level, tokens in enumerate(memory.grid.level_sizes)
    ]
    priors = torch.cat([centers, torch.cat(sizes, 1)], -1)
    usable = ((priors > 0.01) & (priors < 0.99)).all(-1)
    if memory.grid.padding is not None:
        usable = usable & ~memory.grid.padding
    return priors, usable


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


@SOURCES.register("EncoderTopN")
def build_encoder_top_n(cfg, kit: Kit) -> EncoderTopN:
    return EncoderTopN(**top_n_parts(cfg, kit))


_SCORE = Choice("MODEL.DETR.QUERIES.SCORE", ("binary", "max"))
_SUPERVISE = Choice("MODEL.DETR.QUERIES.SUPERVISE", ("all", "selected"))


def top_n_parts(cfg, kit: Kit) -> dict:
    """The arguments of ``EncoderTopN``, and of what derives from it."""
    D = cfg.MODEL.DETR
    Q = D.QUERIES
    content = build_content(cfg, kit)
    return {
        "num_queries": Q.NUM,
        "num_classes": kit.num_classes,
        "embed_dim": D.HIDDEN_DIM,
        "content": content,
        "score": _SCORE(Q.SCORE),
        "objective": build_encoder_objective(cfg, kit),
        "supervise": _SUPERVISE(Q.SUPERVISE),
        "position": D.DECODER.QUERY_POSITION == "fixed",
        "num_queries_test": queries_at_inference(cfg),
        "match_on_priors": Q.MATCH_ON_PRIORS,
        **build_kept_queries(cfg),
        "eps": D.INVERSE_SIGMOID_EPS,
    }


def build_encoder_objective(cfg, kit: Kit) -> Objective:
    """How the encoder's proposals are supervised: a class loss of their own where one is named."""
    D = cfg.MODEL.DETR
    cost = COSTS.build(per_layer(COSTS.key, D.MATCHER.COST, D.DECODER.NUM_LAYERS)[0], cfg, kit)
    if D.QUERIES.MATCH_ON_PRIORS:  # a prior has no class
        cost = MatchCost(**{**cost_terms(cfg), "class_weight": 0.0})
    key, classification = CLASS_LOSSES.key, D.LOSS.CLASSIFICATION
    if D.LOSS.ENCODER_CLASSIFICATION:
        key, classification = "MODEL.DETR.LOSS.ENCODER_CLASSIFICATION", D.LOSS.ENCODER_CLASSIFICATION
    return build_objective(
        cfg,
        assigner=ASSIGNERS.build(D.ASSIGNER.ENCODER, cfg, kit, cost, key=f"{ASSIGNERS.key}.ENCODER"),
        classification=CLASS_LOSSES.build(classification, cfg, kit, key=key),
        view=Targets.binary if D.QUERIES.SCORE == "binary" else None,
        scale=D.LOSS.ENCODER_SCALE,
    )
