# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The source whose queries are the encoder's best tokens (two-stage), and the priors of all tokens."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from ..checks import Choice
from ..layers import inverse_sigmoid, sine_box_code
from ..registry import ASSIGNERS, CLASS_LOSSES, COSTS, SOURCES, Kit, per_layer
from ..structures import LayerOutput, Memory, Prediction, QuerySet, Targets
from .assignment import MatchCost, cost_terms
from .contents import ContentSource, build_content
from .heads import ClassHead, ObjectnessHead, build_box_head
from .objective import Objective, build_objective
from .queries import queries_at_inference
from .query_count import KeptQueries, build_kept_queries


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

    def choose(
        self,
        proposals: LayerOutput,
        memory: Memory,
        num_queries: int | None = None,
        content: ContentSource | None = None,
        objective: Objective | None = None,
    ) -> QuerySet:
        """The queries of the best proposals; in training with the proposals to be supervised. How many, their content
        and their objective are the source's own, where none are given."""
        number = num_queries or (self.num_queries if self.training else self.num_queries_test)
        content, objective = content or self.content, objective or self.objective
        index, usable = self.best(proposals, number)
        chosen = taken(proposals, index, usable)
        keep = self.keep if self.training else self.keep_test
        kept = chosen if keep is None else keep(chosen, self.scores(chosen).sigmoid())
        queries = self.queries(kept)
        if content is not None:
            queries.content = content.rows(kept.logits.shape[1], memory, kept)
        if self.training:
            selected = self.supervise == "selected"
            priors = replace(proposals, boxes=self._read(memory)[0]) if self.match_on_priors else None
            match = taken(priors, index, usable) if selected and priors is not None else priors
            supervised = chosen if selected else proposals
            queries.predictions.append(Prediction("encoder", supervised, objective, match=match))
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
