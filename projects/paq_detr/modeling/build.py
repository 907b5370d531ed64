# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""From a config to the routes: the one place that knows which mechanisms there are."""

from __future__ import annotations

from torch import nn

from ..checks import check_choice, check_range
from ..layers import LogitCodec
from ..papers import dh_detr, paq
from .decoder import Decoder, DecoderLayer, build_decoder_layer
from .heads import ClassHead, build_box_head
from .matcher import Assigner, HungarianAssigner, MatchCost
from .queries import ContentSource, EncoderTopN, LearnedAnchors, LearnedContent, LearnedQueries, SinePosition
from .route import Route


def build_routes(cfg, num_classes: int) -> list[Route]:
    """The main route, and the training-only ones that the config switches on."""
    D = cfg.MODEL.DETR
    cost = MatchCost(D.MATCHER.CLASS_COST, D.MATCHER.L1_COST, D.MATCHER.GIOU_COST)
    one_to_many, one_to_one = build_assigner_pair(cfg, cost)
    source = build_query_source(cfg, num_classes, one_to_many if D.QUALITY_ASSIGNMENT.ENCODER else one_to_one)
    decoder = build_decoder(cfg, num_classes)
    assigners = [one_to_many] * (D.DECODER.NUM_LAYERS - 1) + [one_to_one]
    if D.DEHOMO.CENTER_INSIDE:
        pair = build_assigner_pair(cfg, dh_detr.AdmissibleCost(cost.class_weight, cost.l1_weight, cost.giou_weight))
        for number in D.DEHOMO.LAYERS:
            assigners[number - 1] = pair[number == D.DECODER.NUM_LAYERS]
    box_losses = None if D.LOSS.REPEAT_BOX_LOSSES else decoder.box_layers
    routes = [Route(name="", source=source, decoder=decoder, assigners=assigners, box_losses=box_losses)]
    if D.HYBRID.ENABLED:
        routes.append(
            paq.build_hybrid_route(
                source,
                decoder,
                cost,
                num_queries=D.HYBRID.NUM_QUERIES,
                copies=D.HYBRID.COPIES,
                scale=D.HYBRID.LOSS_SCALE,
                embed_dim=D.HIDDEN_DIM,
                box_losses=box_losses,
            )
        )
    return routes


def build_assigner_pair(cfg, cost: MatchCost) -> tuple[Assigner, Assigner]:
    """The assigners of an intermediate layer and of the last one, by the same cost."""
    Q = cfg.MODEL.DETR.QUALITY_ASSIGNMENT
    one_to_one = HungarianAssigner(cost)
    if not Q.ENABLED:
        return one_to_one, one_to_one
    one_to_many = paq.QualityCountAssigner(
        cost, gamma=Q.GAMMA, k=Q.K, min_count=Q.MIN_COUNT, select=Q.SELECT, max_share=Q.MAX_SHARE
    )
    return one_to_many, one_to_one


def build_content(cfg) -> ContentSource | None:
    """The queries' content: patterns, a learned table, or None to take it from the proposals."""
    D = cfg.MODEL.DETR
    P = D.PATTERNS
    if P.ENABLED:
        generator = paq.WeightGenerator(
            num_queries=D.QUERIES.NUM,
            num_patterns=P.NUM,
            embed_dim=D.HIDDEN_DIM,
            num_levels=D.NECK.NUM_LEVELS,
            fusion=P.FUSION,
            attention=P.ATTENTION,
            head=P.HEAD,
            rank=P.RANK,
            masked_pool=P.MASKED_POOL,
        )
        return paq.PatternContent(
            num_patterns=P.NUM,
            embed_dim=D.HIDDEN_DIM,
            generator=generator,
            diversity_weight=P.DIVERSITY_WEIGHT,
            diversity_scale=P.DIVERSITY_SCALE,
        )
    if check_choice("QUERIES.CONTENT", D.QUERIES.CONTENT, ("learned", "proposal")) == "proposal":
        return None
    return LearnedContent(D.QUERIES.NUM, D.HIDDEN_DIM)


def build_query_source(cfg, num_classes: int, encoder_assigner: Assigner) -> nn.Module:
    D = cfg.MODEL.DETR
    T = D.SOFT_TARGET
    check_choice("QUERIES.NAME", D.QUERIES.NAME, ("LearnedQueries", "LearnedAnchors", "EncoderTopN"))
    content = build_content(cfg)
    if D.QUERIES.NAME == "EncoderTopN":
        return EncoderTopN(
            num_queries=D.QUERIES.NUM,
            num_classes=num_classes,
            embed_dim=D.HIDDEN_DIM,
            content=content,
            score=D.QUERIES.SCORE,
            assigner=encoder_assigner,
            loss_scale=D.LOSS.ENCODER_SCALE,
            classification=dh_detr.SoftFocalLoss(T.MEASURE, T.GRADIENT, T.MIN) if T.ENABLED else None,
            num_queries_test=check_range("QUERIES.NUM_TEST", D.QUERIES.NUM_TEST, "[0, inf)") or None,
            eps=D.INVERSE_SIGMOID_EPS,
        )
    for key, value in (("SOFT_TARGET.ENABLED", T.ENABLED), ("QUERIES.NUM_TEST", D.QUERIES.NUM_TEST)):
        if value:
            raise ValueError(f"{key} {value} needs queries from the encoder (QUERIES.NAME EncoderTopN)")
    if content is None:
        raise ValueError('QUERIES.CONTENT "proposal" needs QUERIES.NAME EncoderTopN')
    if D.QUERIES.NAME == "LearnedQueries":
        return LearnedQueries(num_queries=D.QUERIES.NUM, embed_dim=D.HIDDEN_DIM, content=content)
    return LearnedAnchors(num_queries=D.QUERIES.NUM, content=content)


def build_decoder(cfg, num_classes: int) -> Decoder:
    D = cfg.MODEL.DETR
    position = check_choice("DECODER.QUERY_POSITION", D.DECODER.QUERY_POSITION, ("fixed", "sine_mlp"))
    if position == "fixed" and D.QUERIES.NAME == "LearnedAnchors":
        raise ValueError("QUERIES.NAME LearnedAnchors has no fixed position: set DECODER.QUERY_POSITION sine_mlp")
    num_layers, refine = D.DECODER.NUM_LAYERS, D.DECODER.BOX_REFINE
    class_heads, box_heads = (num_layers, D.DECODER.BOX_LAYERS or num_layers) if refine else (1, 1)
    # Queries that start as points have no size yet; the first head begins at a small box.
    first_size = -2.0 if D.QUERIES.NAME == "LearnedQueries" else 0.0
    return Decoder(
        layers=build_decoder_layers(cfg),
        class_heads=[ClassHead(D.HIDDEN_DIM, num_classes) for _ in range(class_heads)],
        box_heads=[build_box_head(D.HIDDEN_DIM, first_size if i == 0 else 0.0) for i in range(box_heads)],
        codec=LogitCodec(D.INVERSE_SIGMOID_EPS),
        position=SinePosition(D.HIDDEN_DIM) if D.DECODER.QUERY_POSITION == "sine_mlp" else None,
        refine_boxes=refine,
        look_forward_twice=D.DECODER.LOOK_FORWARD_TWICE,
        box_layers=D.DECODER.BOX_LAYERS or None,
        test_layers=D.DECODER.TEST_LAYERS or None,
    )


def build_decoder_layers(cfg) -> list[DecoderLayer]:
    """The layers, with a de-homo coding generator in front of those that the config names."""
    D = cfg.MODEL.DETR
    H = D.DEHOMO
    layers = [
        build_decoder_layer(
            embed_dim=D.HIDDEN_DIM,
            ffn_dim=D.DECODER.FFN_DIM,
            num_heads=D.NUM_HEADS,
            num_levels=D.NECK.NUM_LEVELS,
            num_points=D.DECODER.NUM_POINTS,
            dropout=D.DROPOUT,
            self_attention=D.DECODER.SELF_ATTENTION,
        )
        for _ in range(D.DECODER.NUM_LAYERS)
    ]
    allowed = all(isinstance(number, int) and 2 <= number <= len(layers) for number in H.LAYERS)
    if not allowed or len(set(H.LAYERS)) < len(H.LAYERS):
        raise ValueError(f"DEHOMO.LAYERS is {list(H.LAYERS)}, must be different whole numbers in 2..{len(layers)}")
    for number in H.LAYERS:
        generator = dh_detr.DehomoGenerator(
            D.HIDDEN_DIM,
            num_neighbors=H.NUM_NEIGHBORS,
            iou_threshold=H.IOU_THRESHOLD,
            low_score=H.LOW_SCORE,
            zero_fill=H.ZERO_FILL,
            break_ties=H.BREAK_TIES,
        )
        layers[number - 1] = dh_detr.DehomoLayer(layers[number - 1], generator, D.HIDDEN_DIM, H.FLOOR_SCORE)
    return layers
