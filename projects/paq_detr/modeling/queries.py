# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Query sources: where content, reference and position of a decoder pass come from.

A source is called once a step with the memory and, in training, the targets, and returns a ``QuerySet``; what it
predicts on the way (encoder proposals) it returns there as well, to be supervised. ``provides`` tells what its queries
have: "boxes" (else points) and "position" (a fixed code). The content is a part of its own, so that learned tables and
PaQ-DETR's patterns go with every source.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_range
from ..errors import UserError
from ..layers import MLP, inverse_sigmoid, sine_box_code
from ..registry import ASSIGNERS, AUGMENTERS, CLASS_LOSSES, CONTENTS, COSTS, POSITIONS, SOURCES, Kit, per_layer
from ..structures import DecoderState, LayerOutput, Memory, Prediction, QuerySet, Targets
from .heads import ClassHead, ObjectnessHead, build_box_head
from .objective import Objective, build_objective


class QuerySource(Protocol):
    provides: frozenset[str]

    def __call__(self, memory: Memory, targets: Targets | None = None) -> QuerySet: ...


class Augmenter(Protocol):
    """Puts groups of queries with known partners in front (denoising). Training-only."""

    def __call__(self, queries: QuerySet, targets: Targets) -> QuerySet: ...


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

    provides = frozenset({"position"})

    def __init__(self, *, num_queries: int, embed_dim: int, content: ContentSource):
        super().__init__()
        self.position = nn.Parameter(torch.randn(num_queries, embed_dim))
        self.reference_points = nn.Linear(embed_dim, 2)
        self.content = content
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
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

    provides = frozenset({"boxes"})

    def __init__(self, *, num_queries: int, content: ContentSource):
        super().__init__()
        centers = inverse_sigmoid(torch.rand(num_queries, 2), 1e-3)
        self.anchors = nn.Parameter(torch.cat([centers, torch.randn(num_queries, 2)], 1))
        self.content = content

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
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
        objective: Objective,
        supervise: str = "all",
        position: bool = True,
        num_queries_test: int | None = None,
        eps: float = 1e-5,
    ):
        """
        Args:
            content: None takes it from the proposal's box, as the two-stage Deformable DETR of the paper does.
            score: "binary" (channel 0 is objectness, every label counts as 0) or "max" (best class; DINO).
            objective: how the proposals are supervised.
            supervise: "all" proposals (Deformable DETR), or the "selected" ones (DINO, Align-DETR).
            position: make a fixed position code from the proposal's box.
            num_queries_test: another number of queries at inference; more than in training need content None.
        """
        super().__init__()
        num_queries_test = num_queries_test or num_queries
        if num_queries_test > num_queries and content is not None:
            raise ValueError("more queries at inference than in training need contents from the proposals")
        self.provides = frozenset({"boxes", "position"} if position else {"boxes"})
        self.num_queries, self.score, self.objective, self.supervise = num_queries, score, objective, supervise
        self.num_queries_test, self.eps = num_queries_test, eps
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
        proposals = self.propose(memory)
        index, usable = self.best(proposals, self.num_queries if self.training else self.num_queries_test)
        queries = self.queries(proposals, index, usable)
        if self.content is not None:
            queries.content = self.content(memory)[:, : index.shape[1]]
        if self.training:
            supervised = proposals if self.supervise == "all" else taken(proposals, index, usable)
            queries.predictions.append(Prediction("encoder", supervised, self.objective))
            queries.losses = self.content.losses() if self.content is not None else {}
        return queries

    def propose(self, memory: Memory) -> LayerOutput:
        """Class logits and boxes of all S tokens; computed once a step, whoever asks."""
        return memory.once(self, self._propose)

    def _propose(self, memory: Memory) -> LayerOutput:
        priors, usable = token_priors(memory)
        tokens = memory.tokens * usable[..., None]
        state = self.project_norm(self.project(tokens))
        boxes = (self.box_head(state).float() + inverse_sigmoid(priors, self.eps)).sigmoid()
        return LayerOutput(self.class_head(state), boxes, valid=usable)

    def best(self, proposals: LayerOutput, num_queries: int, skip: int = 0) -> tuple[Tensor, Tensor]:
        """(B, N) tokens of the ``num_queries`` best proposals behind the ``skip`` best, or as many as there are (at
        least one), and (B, N) whether each may be used."""
        scores = proposals.logits[..., 0] if self.score == "binary" else proposals.logits.amax(-1)
        scores = scores.detach().float()
        scores = scores.masked_fill(~proposals.valid | scores.isnan(), -torch.inf)
        count = scores.shape[1]
        scores, index = scores.topk(min(skip + num_queries, count), dim=1)
        scores, index = scores[:, min(skip, count - 1) :], index[:, min(skip, count - 1) :]
        return index, scores > -torch.inf

    def queries(self, proposals: LayerOutput, index: Tensor, usable: Tensor) -> QuerySet:
        """The queries of the chosen tokens, with content from their boxes where nothing else makes it."""
        reference = proposals.boxes.detach().gather(1, index[..., None].expand(-1, -1, 4))
        position = content = None
        if self.position is not None:
            code = sine_box_code(reference, self.project.out_features // 2).to(proposals.logits.dtype)
            position, content = self.position_norm(self.position(code)).chunk(2, -1)
        return QuerySet(content, reference, position if "position" in self.provides else None, valid=usable)


def taken(output: LayerOutput, index: Tensor, valid: Tensor) -> LayerOutput:
    """The rows (B, N) ``index`` of an output, undetached."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor.gather(1, index[..., None].expand(-1, -1, tensor.shape[-1]))

    return LayerOutput(rows(output.logits), rows(output.boxes), valid=valid)


def token_priors(memory: Memory) -> tuple[Tensor, Tensor]:
    """(B, S, 4) prior box of every token, and (B, S) whether it may be used."""
    centers = memory.grid.centers
    sizes = [
        centers.new_full((len(centers), tokens, 2), 0.05 * 2**level)
        for level, tokens in enumerate(memory.grid.level_sizes)
    ]
    priors = torch.cat([centers, torch.cat(sizes, 1)], -1)
    usable = ((priors > 0.01) & (priors < 0.99)).all(-1)
    if memory.grid.padding is not None:
        usable = usable & ~memory.grid.padding
    return priors, usable


# ----------------------------------------------------------------------------------------------------------------------
# Position codes of a decoder


class KeptPosition(nn.Module):
    """The query source's own position code, the same in every layer."""

    needs = frozenset({"position"})

    def forward(self, state: DecoderState, memory: Memory) -> Tensor:
        return state.position


class SinePosition(nn.Module):
    """Position code of the current boxes, made anew in every layer: MLP of their sine code (DAB-DETR, DINO)."""

    needs = frozenset({"boxes"})

    def __init__(self, embed_dim: int):
        super().__init__()
        self.mlp = MLP(2 * embed_dim, embed_dim, embed_dim, 2)

    def forward(self, state: DecoderState, memory: Memory) -> Tensor:
        return self.mlp(sine_box_code(state.reference, self.mlp[0].in_features // 4))


class NoPosition(nn.Module):
    """Queries without a position code (Sparse R-CNN, where a query sees its place in its RoI alone)."""

    needs: frozenset[str] = frozenset()

    def forward(self, state: DecoderState, memory: Memory) -> None:
        return None


@POSITIONS.register("fixed")
def build_kept_position(cfg, kit: Kit) -> KeptPosition:
    return KeptPosition()


@POSITIONS.register("sine_mlp")
def build_sine_position(cfg, kit: Kit) -> SinePosition:
    return SinePosition(cfg.MODEL.DETR.HIDDEN_DIM)


@POSITIONS.register("none")
def build_no_position(cfg, kit: Kit) -> NoPosition:
    return NoPosition()


# ----------------------------------------------------------------------------------------------------------------------
# From names to sources


@CONTENTS.register("learned")
def build_learned_content(cfg, kit: Kit) -> LearnedContent:
    return LearnedContent(cfg.MODEL.DETR.QUERIES.NUM, cfg.MODEL.DETR.HIDDEN_DIM)


@CONTENTS.register("proposal")
def build_proposal_content(cfg, kit: Kit) -> None:
    """None: the source takes it from its proposals."""


@AUGMENTERS.register("none")
def build_no_augmenter(cfg, kit: Kit) -> None:
    return None


def _content_without_proposals(cfg, kit: Kit) -> ContentSource:
    """The content of a source that has no proposals; what only proposals could use is refused."""
    D = cfg.MODEL.DETR
    content = CONTENTS.build(D.QUERIES.CONTENT, cfg, kit)
    idle = {
        "QUERIES.CONTENT": D.QUERIES.CONTENT if content is None else "",
        "QUERIES.NUM_TEST": D.QUERIES.NUM_TEST,
        "QUERIES.SUPERVISE": "" if D.QUERIES.SUPERVISE == "all" else D.QUERIES.SUPERVISE,
        "ASSIGNER.ENCODER": "" if D.ASSIGNER.ENCODER == "hungarian" else D.ASSIGNER.ENCODER,
        "LOSS.ENCODER_CLASSIFICATION": D.LOSS.ENCODER_CLASSIFICATION,
    }
    for key, value in idle.items():
        if value:
            raise UserError(f"MODEL.DETR.{key} {value} needs queries from the encoder ({SOURCES.key} EncoderTopN)")
    return content


@SOURCES.register("LearnedQueries")
def build_learned_queries(cfg, kit: Kit) -> LearnedQueries:
    D = cfg.MODEL.DETR
    content = _content_without_proposals(cfg, kit)
    return LearnedQueries(num_queries=D.QUERIES.NUM, embed_dim=D.HIDDEN_DIM, content=content)


@SOURCES.register("LearnedAnchors")
def build_learned_anchors(cfg, kit: Kit) -> LearnedAnchors:
    return LearnedAnchors(num_queries=cfg.MODEL.DETR.QUERIES.NUM, content=_content_without_proposals(cfg, kit))


@SOURCES.register("EncoderTopN")
def build_encoder_top_n(cfg, kit: Kit) -> EncoderTopN:
    D = cfg.MODEL.DETR
    Q = D.QUERIES
    content = CONTENTS.build(Q.CONTENT, cfg, kit)
    check_range("MODEL.DETR.QUERIES.NUM_TEST", Q.NUM_TEST, "[0, inf)")
    if Q.NUM_TEST > Q.NUM and content is not None:
        raise UserError(
            f"MODEL.DETR.QUERIES.NUM_TEST is {Q.NUM_TEST}, but content is learned for MODEL.DETR.QUERIES.NUM {Q.NUM}; "
            f"more queries at inference need {CONTENTS.key} proposal"
        )
    return EncoderTopN(
        num_queries=Q.NUM,
        num_classes=kit.num_classes,
        embed_dim=D.HIDDEN_DIM,
        content=content,
        score=check_choice("MODEL.DETR.QUERIES.SCORE", Q.SCORE, ("binary", "max")),
        objective=build_encoder_objective(cfg, kit),
        supervise=check_choice("MODEL.DETR.QUERIES.SUPERVISE", Q.SUPERVISE, ("all", "selected")),
        position=D.DECODER.QUERY_POSITION == "fixed",
        num_queries_test=Q.NUM_TEST or None,
        eps=D.INVERSE_SIGMOID_EPS,
    )


def build_encoder_objective(cfg, kit: Kit) -> Objective:
    """How the encoder's proposals are supervised: a class loss of their own where one is named."""
    D = cfg.MODEL.DETR
    cost = COSTS.build(per_layer(COSTS.key, D.MATCHER.COST, D.DECODER.NUM_LAYERS)[0], cfg, kit)
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
