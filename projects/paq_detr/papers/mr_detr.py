# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Mr. DETR: Instructive Multi-Route Training for Detection Transformers (Zhang et al., CVPR 2025, arXiv 2412.10028).

| paper, official code | here | key |
|---|---|---|
| route 1: a feed-forward block of its own | ``build_sharing_route`` | ROUTES mr_ffn |
| sharing study: own self- or cross-attention, both, ... | same | ROUTES mr_sa, mr_ca, mr_sa_ca, ..., mr_shared |
| route 3: instruction tokens | ``InstructedSelfAttention`` | ROUTES mr_tokens, MR.TOKENS, MR.TOKEN_LAYERS |
| route 3: proposals of its own | ``OwnProposals`` | MR.OWN_PROPOSALS |
| encoder matched on priors, losses tripled | ``EncoderTopN`` | QUERIES.MATCH_ON_PRIORS, LOSS.ENCODER_SCALE |
| one-to-many assignment, Align variant's losses | ``mr_detr_assignment`` | MR.ALPHA, .TAU, .K, ... |
| layer-score fusion at inference | ``FusedLayers`` | READ_OUT.NAME fused_layers |

Route 2 is the main one, and the only one at inference. The others borrow every module that is not their own. They leave
out what parts twins by the layer before (DH-DETR's generator): they want several queries per object.

Shape legend: B images, N queries (P denoising ones in front), m tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from detectron2.config import CfgNode as CN
from torch import Tensor, nn

from ..checks import check_range
from ..errors import UserError
from ..layers import FeedForward, inverse_sigmoid
from ..modeling.decoder import CascadeDecoder, DecoderLayer, over_borrowed
from ..modeling.heads import build_box_head
from ..modeling.interactions import SelfAttention, build_cross_attention
from ..modeling.proposals import EncoderTopN
from ..modeling.read_out import ReadOut, build_layer_read_out
from ..modeling.route import Borrowed, Route
from ..registry import (
    ASSIGNERS,
    COSTS,
    DECODERS,
    FURTHER_SLOTS,
    INTERACTIONS,
    READ_OUTS,
    ROUTES,
    SOURCES,
    Kit,
    adds_config,
    needs_of,
    per_layer,
)
from ..structures import DecoderState, LayerOutput, Memory, Prediction, QuerySet, Targets
from .mr_detr_assignment import OneClassPerQuery

FURTHER_SLOTS["MODEL.DETR.MR.ASSIGNER"] = ASSIGNERS


@adds_config
def add_config(cfg: CN) -> None:
    cfg.MODEL.DETR.MR = M = CN()
    # Who finds the objects of the one-to-many routes' queries; "mr_quality" has the six numbers below.
    M.ASSIGNER = "mr_quality"
    M.ALPHA = 0.3  # share of the class score in the quality, IoU has the rest; 0.2 in the DINO and Align variants
    M.TAU = 0.4  # least quality of a positive
    M.K = 6  # most positives of an object
    # Positives of an image beyond floor(CAP_SHARE * CAP_QUERIES) are left out at random. The official code has 900 here
    # whatever the number of queries; 0: QUERIES.NUM.
    M.CAP_SHARE = 0.25
    M.CAP_QUERIES = 900
    # True mends two consequences of the published rule: a query can have two objects, and an object whose best query
    # prefers another can have none.
    M.ONE_OBJECT_PER_QUERY = False
    M.TOKENS = 10  # instruction tokens of a layer
    M.TOKEN_LAYERS = []  # numbers of the layers that have some, from 1; empty: all
    # Route 3 has class and box head of its own for the encoder's proposals, so queries of its own (official code; its
    # page says that routes share their queries). False: the main route's queries.
    M.OWN_PROPOSALS = True
    # Factor on the losses of the routes' one-to-many queries: 1 in the Deformable variant, 1/3 in the others (denoising
    # queries and proposals have 1 in both).
    M.LOSS_SCALE = 1.0


# ----------------------------------------------------------------------------------------------------------------------
# Route 3: instruction tokens


class InstructedSelfAttention(nn.Module):
    """The main route's self-attention, in which queries also see ``num_tokens`` learned tokens; a norm of its own.

    Tokens stand in front of the keys (content plus position) and of the values (content alone). They are keys only: in
    the official code they are queries too, whose output is thrown away, so that what they see is of no matter. No token
    sees the next layer.

    Where groups stand apart (denoising), their queries see no token; without groups all do.
    """

    needs: frozenset[str] = frozenset()

    def __init__(self, shared: SelfAttention, num_tokens: int = 10):
        super().__init__()
        embed_dim = shared.attention.embed_dim
        self.shared = Borrowed(shared)
        # U(+-0.150) for 10 x 256: the official tables are re-initialised with the rest of the transformer.
        self.content = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_tokens, embed_dim)))
        self.position = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_tokens, embed_dim)))
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        tokens = self.content.expand(len(state.content), -1, -1)
        query = state.query
        keys, values = torch.cat([tokens + self.position, query], 1), torch.cat([tokens, state.content], 1)
        update, _ = self.shared.attention(query, keys, values, attn_mask=self.blocked(state), need_weights=False)
        return state.with_content(self.norm(state.content + self.shared.dropout(update)))

    def blocked(self, state: DecoderState) -> Tensor | None:
        """True where a query (row) must not see a token or a query (column): (N, m + N), or (B heads, N, m + N)."""
        queries = self.shared.blocked(state)
        if queries is None:
            return None
        tokens = queries.new_zeros(*queries.shape[:-1], len(self.content))
        tokens[..., : state.first_matching, :] = True
        return torch.cat([tokens, queries], -1)


class OwnProposals(nn.Module):
    """Queries of route 3: the encoder's best tokens by heads of their own. Projected tokens, position map and the
    contents, slot by slot, are the main source's.

    Boxes start at about a seventh of their priors' sides: in the official code this box head alone is cloned while the
    bias of width and height is -2, which the others lose afterwards.
    """

    def __init__(self, main: EncoderTopN, num_classes: int):
        super().__init__()
        embed_dim = main.project.out_features
        self.main, self.provides = Borrowed(main), main.provides
        self.class_head = type(main.class_head)(embed_dim, num_classes)
        self.box_head = build_box_head(embed_dim, size_bias=-2.0)

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
        return self.main.choose(self.main.proposals_by(self.class_head, self.box_head, memory), memory)


# ----------------------------------------------------------------------------------------------------------------------
# Routes over borrowed layers


class OneToManyRoute(Route):
    """A training-only route whose matching queries have losses of another scale than its groups."""

    same_slots = True  # with proposals of its own the same contents, at other places

    def __init__(self, *, loss_scale: float = 1.0, **parts):
        super().__init__(**parts, train_only=True)
        self.loss_scale = loss_scale

    def predictions(self, queries: QuerySet, memory: Memory) -> list[Prediction]:
        return [
            p if p.pairs is not None else replace(p, scale=p.scale * self.loss_scale)
            for p in super().predictions(queries, memory)
        ]


def build_one_to_many(
    cfg: CN, kit: Kit, name: str, layer_of: Callable[[int, DecoderLayer], DecoderLayer], source: str = "main"
) -> OneToManyRoute:
    """The route ``name``, whose layers ``layer_of`` makes from the main route's (number from 1, layer)."""
    D, main = cfg.MODEL.DETR, kit.routes["main"]
    if type(main.decoder) is not CascadeDecoder:  # what a subclass does between layers would be left out
        raise UserError(
            f"{ROUTES.key} {name} goes through the main decoder's layers in order, which needs {DECODERS.key} cascade "
            f"in place of {D.DECODER.NAME}"
        )
    layers = [layer_of(number, layer) for number, layer in enumerate(main.decoder.layers, 1)]
    return OneToManyRoute(
        name=name,
        source=source,
        decoder=over_borrowed(main.decoder, layers),
        objectives=_objectives(cfg, kit),
        loss_scale=check_range("MODEL.DETR.MR.LOSS_SCALE", D.MR.LOSS_SCALE, "[0, inf)"),
    )


def _objectives(cfg: CN, kit: Kit) -> list:
    """The main route's losses with another assigner, which all routes share, so that one call measures for all."""
    for route in kit.routes.values():
        if isinstance(route, OneToManyRoute):
            return route.objectives
    D = cfg.MODEL.DETR
    cost = COSTS.build(per_layer(COSTS.key, D.MATCHER.COST, D.DECODER.NUM_LAYERS)[0], cfg, kit)
    assigner = ASSIGNERS.build(D.MR.ASSIGNER, cfg, kit, cost, key="MODEL.DETR.MR.ASSIGNER")
    main = kit.routes["main"].objectives
    return [replace(o, assigner=assigner, classification=OneClassPerQuery(o.classification)) for o in main]


def _taken_over(layer: DecoderLayer) -> list[nn.Module]:
    """Of a layer's interactions those that one-to-many routes run too: not what parts twins by the layer before."""
    return [interaction for interaction in layer.interactions if "previous" not in needs_of(interaction)]


def _check_interactions(cfg: CN, name: str, purpose: str, found: dict[int, bool]) -> None:
    """``found``: by the number of a layer, whether it has what the route needs."""
    lacking = [str(number) for number, there in found.items() if not there]
    if lacking:
        raise UserError(
            f"{ROUTES.key} {name} {purpose}, which {INTERACTIONS.key} "
            f"{list(cfg.MODEL.DETR.DECODER.INTERACTION)} lacks in layer {', '.join(lacking)}"
        )


#: What a route can have of its own in each layer: self-attention, cross-attention (both with the norm behind them), and
#: the linear maps of the feed-forward block, whose norm is shared (official code).
PARTS = ("sa", "ca", "ffn")


def build_sharing_route(cfg: CN, kit: Kit, own: Sequence[str]) -> OneToManyRoute:
    """A route with ``own`` of ``PARTS``; all else is borrowed."""
    D, name = cfg.MODEL.DETR, route_name(own)
    entries = per_layer(INTERACTIONS.key, D.DECODER.INTERACTION, D.DECODER.NUM_LAYERS)

    def own_interactions(number: int) -> list[nn.Module]:
        built = [INTERACTIONS.build(part.strip(), cfg, kit) for part in str(entries[number - 1]).split("+")]
        return _taken_over(DecoderLayer([i for i in built if i is not None], None, None))

    def own_feed_forward(shared: FeedForward) -> FeedForward:
        ffn = FeedForward(D.HIDDEN_DIM, D.DECODER.FFN_DIM, D.DROPOUT, D.ACTIVATION)
        ffn.norm = Borrowed(shared.norm)
        return ffn

    def layer_of(number: int, shared: DecoderLayer) -> DecoderLayer:
        kit.layer = number - 1
        interactions = own_interactions(number) if "sa" in own else map(Borrowed, _taken_over(shared))
        attention = build_cross_attention(cfg, kit) if "ca" in own else None
        ffn = own_feed_forward(shared.ffn) if "ffn" in own else None
        return DecoderLayer(
            list(interactions), attention or Borrowed(shared.cross_attention), ffn or Borrowed(shared.ffn)
        )

    if "sa" in own:
        layers = enumerate(kit.routes["main"].decoder.layers, 1)
        _check_interactions(
            cfg, name, "has its own self-attention", {number: bool(_taken_over(layer)) for number, layer in layers}
        )
    return build_one_to_many(cfg, kit, name, layer_of)


def route_name(own: Sequence[str]) -> str:
    return "_".join(["mr", *(own or ["shared"])])


def _register_sharing_routes() -> None:
    for count in range(len(PARTS) + 1):
        for own in combinations(PARTS, count):
            ROUTES.register(route_name(own))(lambda cfg, kit, own=own: build_sharing_route(cfg, kit, own))


_register_sharing_routes()


@ROUTES.register("mr_tokens")
def build_token_route(cfg: CN, kit: Kit) -> OneToManyRoute:
    """Route 3: shared layers, instructed by tokens; by default on proposals of its own."""
    D, name = cfg.MODEL.DETR, "mr_tokens"
    M, all_layers = D.MR, range(1, D.DECODER.NUM_LAYERS + 1)
    check_range("MODEL.DETR.MR.TOKENS", M.TOKENS, "[1, inf)")
    for number in M.TOKEN_LAYERS:
        check_range("MODEL.DETR.MR.TOKEN_LAYERS", number, f"[1, {len(all_layers)}]")
    instructed = list(M.TOKEN_LAYERS) or all_layers
    layers = kit.routes["main"].decoder.layers
    found = {n: any(isinstance(i, SelfAttention) for i in layers[n - 1].interactions) for n in instructed}
    _check_interactions(cfg, name, "puts its tokens into self_attention", found)

    def instruct(interaction: nn.Module, number: int) -> nn.Module:
        if number in instructed and isinstance(interaction, SelfAttention):
            return InstructedSelfAttention(interaction, M.TOKENS)
        return Borrowed(interaction)

    def layer_of(number: int, shared: DecoderLayer) -> DecoderLayer:
        interactions = [instruct(interaction, number) for interaction in _taken_over(shared)]
        return DecoderLayer(interactions, Borrowed(shared.cross_attention), Borrowed(shared.ffn))

    if not M.OWN_PROPOSALS:
        return build_one_to_many(cfg, kit, name, layer_of)
    main = kit.sources["main"]
    if not isinstance(main, EncoderTopN):
        raise UserError(
            f"MODEL.DETR.MR.OWN_PROPOSALS needs queries from the encoder ({SOURCES.key} EncoderTopN in place of "
            f"{D.QUERIES.NAME}); False shares the main route's"
        )
    kit.sources[name] = OwnProposals(main, kit.num_classes)
    if "main" in kit.augmenters:
        kit.augmenters[name] = Borrowed(kit.augmenters["main"])
    return build_one_to_many(cfg, kit, name, layer_of, source=name)


# ----------------------------------------------------------------------------------------------------------------------
# Read-out


class FusedLayers(ReadOut):
    """Scores mixed from the first layer to the one read out, whose boxes are taken (official code, at test time only).

    q_0 = p_0, q_l = sqrt((p_l^2.001 + q_{l-1}^1.853) / 2) with scores p; every q is kept 0.001 inside (0, 1).
    """

    def combine(self, outputs: Sequence[LayerOutput], memory: Memory) -> LayerOutput:
        chosen = super().combine(outputs, memory)
        first, *later = outputs[: self.layer]
        logits = first.logits.float()
        for output in later:
            mixed = (output.logits.float().sigmoid() ** 2.001 + logits.sigmoid() ** 1.853) / 2
            logits = inverse_sigmoid(mixed.sqrt(), 1e-3)
        return replace(chosen, logits=logits)


@READ_OUTS.register("fused_layers")
def build_fused_layers(cfg: CN, kit: Kit) -> FusedLayers:
    plain = build_layer_read_out(cfg, kit)
    return FusedLayers(plain.top_k, plain.layer, plain.nms_iou)
