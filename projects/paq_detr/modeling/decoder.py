# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Decoders: layers with heads, one after the other (a cascade) or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..checks import check_choice
from ..errors import UserError
from ..layers import ACTIVATIONS, FeedForward
from ..registry import (
    CODECS,
    CROSS_ATTENTIONS,
    DECODERS,
    HEADS,
    INTERACTIONS,
    POSITIONS,
    SOURCES,
    Kit,
    needs_of,
    per_layer,
)
from ..structures import DecoderState, LayerOutput, Memory, QuerySet
from .interactions import build_cross_attention
from .route import Borrowed


class DecoderLayer(nn.Module):
    """Interactions between the queries, cross-attention to the memory, feed-forward block; each can be exchanged.

    Without an interaction the layer has the shape of an encoder's, and queries do not see each other.
    """

    def __init__(self, interactions: Sequence[nn.Module], cross_attention: nn.Module, ffn: nn.Module):
        super().__init__()
        self.interactions = nn.ModuleList(interactions)
        self.cross_attention, self.ffn = cross_attention, ffn

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        for interaction in self.interactions:
            state = interaction(state, memory)
        state = self.cross_attention(state, memory)
        return state.with_content(self.ffn(state.content))


class Decoder(nn.Module):
    """What a cascade and parallel layers have in common: layers, heads, a codec, position codes.

    ``layers[i]`` has ``class_heads[i]`` and ``box_heads[i]``, or all share the single one that there is.
    """

    def __init__(
        self,
        *,
        layers: Sequence[nn.Module],
        class_heads: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        codec,
        position: nn.Module,
        output_norm: nn.Module | None = None,
        box_layers: int | None = None,
        test_layers: int | None = None,
    ):
        """
        Args:
            codec: decodes a box head's output against a reference (codec.py).
            position: makes the position code of (state, memory), or none; or a pair, the code and ``spatial``.
            output_norm: between a layer's content and the heads, the same for all layers (DINO, DAB-DETR); None: the
                heads read the content. The next layer goes on with the content itself.
            box_layers: only so many first layers predict boxes (DH-DETR: 1); None: all.
            test_layers: only so many first layers run at inference (DH-DETR's "6-3(2)"); None: all.
        """
        super().__init__()
        self.box_layers, self.test_layers = box_layers or len(layers), test_layers or len(layers)
        for name, count in (("box_layers", self.box_layers), ("test_layers", self.test_layers)):
            if not 1 <= count <= len(layers):
                raise ValueError(f"{name} is {count} of {len(layers)} layers")
        wanted = (("class_heads", class_heads, len(layers)), ("box_heads", box_heads, self.box_layers))
        for name, heads, count in wanted:
            if len(heads) not in (1, count):
                raise ValueError(f"{name} has {len(heads)} entries for {count} layers, needs 1 or as many")
        self.layers = nn.ModuleList(layers)
        self.class_heads, self.box_heads = nn.ModuleList(class_heads), nn.ModuleList(box_heads)
        self.position, self.codec, self.output_norm = position, codec, output_norm
        for modules in (self.layers, self.class_heads, self.box_heads):
            for module in modules[self.test_layers :]:
                module.train_only = True

    def running(self) -> int:
        """How many layers run now."""
        return len(self.layers) if self.training else self.test_layers

    def step(self, layer: int, state: DecoderState, memory: Memory) -> DecoderState:
        """The state behind a layer."""
        position = self.position(state, memory)
        position, spatial = position if isinstance(position, tuple) else (position, None)
        return self.layers[layer](replace(state, position=position, spatial=spatial), memory)

    def normed(self, content: Tensor) -> Tensor:
        """What the heads read of a layer's content."""
        return content if self.output_norm is None else self.output_norm(content)

    def classify(self, layer: int, content: Tensor) -> Tensor:
        return self.class_heads[layer % len(self.class_heads)](content)

    def locate(self, layer: int, content: Tensor, start: Tensor, memory: Memory) -> Tensor:
        """(B, N, 4) boxes, relative to ``start``."""
        return self.codec.decode(self.box_heads[layer % len(self.box_heads)](content), start, memory.grid)


class CascadeDecoder(Decoder):
    """Each layer goes on where the one before stopped, and refines its boxes.

    Detached, as published: the reference that the next layer's attention reads. With ``look_forward_twice`` (DINO,
    3.5) the next layer's *prediction* starts at the undetached box, so that layer l also learns from the loss of l + 1.
    Layers without a box head of their own hand the boxes on as they are, undetached, and only score them anew.
    """

    def __init__(self, *, refine_boxes: bool = True, look_forward_twice: bool = False, **parts):
        """
        Args:
            refine_boxes: False predicts every layer's boxes from the queries' first reference.
            parts: as in ``Decoder``.
        """
        super().__init__(**parts)
        self.refine_boxes, self.look_forward_twice = refine_boxes, look_forward_twice

    def forward(self, queries: QuerySet, memory: Memory) -> list[LayerOutput]:
        """One ``LayerOutput`` per layer, the final prediction last."""
        state = DecoderState.of(queries)
        start = state.reference  # what the box head's output is relative to
        for layer in range(self.running()):
            state = self.step(layer, state, memory)
            content = self.normed(state.content)
            if layer < self.box_layers:
                boxes = self.locate(layer, content, start, memory)
            output = LayerOutput(self.classify(layer, content), boxes, state.content, state.alive)
            state = replace(state, history=(*state.history, output))
            if self.refine_boxes and layer < self.box_layers:
                refined = (
                    boxes if self.output_norm is None else self.locate(layer, state.content, state.reference, memory)
                )
                state = replace(state, reference=refined.detach())
                start = refined if self.look_forward_twice else state.reference
        return list(state.history)


def over_borrowed(
    main: CascadeDecoder,
    layers: Sequence[nn.Module],
    class_heads: Sequence[nn.Module] | None = None,
    box_heads: Sequence[nn.Module] | None = None,
) -> CascadeDecoder:
    """A decoder with other layers, for a training-only route; position code and norm are ``main``'s, and so are heads
    that are not given."""
    return CascadeDecoder(
        layers=layers,
        class_heads=[Borrowed(head) for head in main.class_heads] if class_heads is None else class_heads,
        box_heads=[Borrowed(head) for head in main.box_heads] if box_heads is None else box_heads,
        codec=main.codec,
        position=Borrowed(main.position),
        output_norm=None if main.output_norm is None else Borrowed(main.output_norm),
        box_layers=main.box_layers,
        refine_boxes=main.refine_boxes,
        look_forward_twice=main.look_forward_twice,
    )


class ParallelDecoder(Decoder):
    """Layers side by side, each on the source's own queries (ASAG has four, and READ_OUT.LAYER keeps one)."""

    def forward(self, queries: QuerySet, memory: Memory) -> list[LayerOutput]:
        """One ``LayerOutput`` per layer."""
        outputs = []
        for layer in range(self.running()):
            state = self.step(layer, DecoderState.of(queries), memory)
            content = self.normed(state.content)
            boxes = self.locate(layer, content, queries.reference.detach(), memory)
            outputs.append(LayerOutput(self.classify(layer, content), boxes, state.content, state.alive))
        return outputs


def build_layers(cfg, kit: Kit, cascade: bool = True) -> list[DecoderLayer]:
    """The layers that ``DECODER.INTERACTION`` and ``DECODER.CROSS_ATTENTION`` describe.

    An entry of INTERACTION is a name, several names in order ("dehomo + self_attention"), or "none".
    """
    D = cfg.MODEL.DETR
    activation = check_choice("MODEL.DETR.ACTIVATION", D.ACTIVATION, ACTIVATIONS)
    layers = []
    for number, entry in enumerate(per_layer(INTERACTIONS.key, D.DECODER.INTERACTION, D.DECODER.NUM_LAYERS), 1):
        kit.layer = number - 1
        names = [name.strip() for name in str(entry).split("+")]
        interactions = [INTERACTIONS.build(name, cfg, kit) for name in names]
        for name, interaction in zip(names, interactions):
            if "previous" in needs_of(interaction) and (number == 1 or not cascade):
                raise UserError(
                    f'{INTERACTIONS.key} is {list(D.DECODER.INTERACTION)}, but "{name}" reads what the layer before '
                    "predicted and cannot stand in the first one, nor in a parallel decoder"
                )
        cross_attention = build_cross_attention(cfg, kit)
        ffn = FeedForward(D.HIDDEN_DIM, D.DECODER.FFN_DIM, D.DROPOUT, activation)
        present = [interaction for interaction in interactions if interaction is not None]
        layers.append(DecoderLayer(present, cross_attention, ffn))
    return layers


def decoder_parts(cfg, kit: Kit, cascade: bool) -> dict:
    """The arguments of every ``Decoder``, whose parts fit each other and the main route's queries.

    ``cascade``: only the first layer reads the source's queries, the others go on from the layer before.
    """
    D = cfg.MODEL.DETR
    separate_heads = not (D.DECODER.SHARED_HEADS or cascade and not D.DECODER.BOX_REFINE)
    num_layers, source = D.DECODER.NUM_LAYERS, kit.sources["main"]
    for key in ("BOX_LAYERS", "TEST_LAYERS"):
        if not 0 <= D.DECODER[key] <= num_layers:
            raise UserError(f"MODEL.DETR.DECODER.{key} is {D.DECODER[key]}, must be in 0..{num_layers} (0: all layers)")
    layers, heads = build_layers(cfg, kit, cascade), HEADS.build(D.DECODER.HEADS, cfg, kit)
    class_heads, box_heads = (num_layers, D.DECODER.BOX_LAYERS or num_layers) if separate_heads else (1, 1)
    # Queries that start as points have no size yet: heads that read them begin at a small box.
    from_queries = 1 if cascade else box_heads
    sizes = [-2.0 if "boxes" not in source.provides and i < from_queries else 0.0 for i in range(box_heads)]
    parts = {
        "layers": layers,
        "class_heads": [heads.class_head() for _ in range(class_heads)],
        "box_heads": [heads.box_head(size) for size in sizes],
        "codec": CODECS.build(D.CODEC, cfg, kit),
        "position": POSITIONS.build(D.DECODER.QUERY_POSITION, cfg, kit),
        "output_norm": nn.LayerNorm(D.HIDDEN_DIM) if D.DECODER.OUTPUT_NORM else None,
        "box_layers": D.DECODER.BOX_LAYERS or None,
        "test_layers": D.DECODER.TEST_LAYERS or None,
    }
    for key, value, part in (
        (POSITIONS.key, D.DECODER.QUERY_POSITION, parts["position"]),
        (CODECS.key, D.CODEC, parts["codec"]),
        *((INTERACTIONS.key, list(D.DECODER.INTERACTION), i) for layer in layers for i in layer.interactions),
        *((CROSS_ATTENTIONS.key, list(D.DECODER.CROSS_ATTENTION), layer.cross_attention) for layer in layers),
    ):
        missing = needs_of(part) - source.provides - {"previous"}
        if missing:
            raise UserError(f"{key} {value} needs queries with {' and '.join(sorted(missing))}, which {SOURCES.key} "
                            f"{D.QUERIES.NAME} does not make")  # fmt: skip
    return parts


@DECODERS.register("cascade")
def build_cascade(cfg, kit: Kit) -> CascadeDecoder:
    D = cfg.MODEL.DETR.DECODER
    return CascadeDecoder(
        refine_boxes=D.BOX_REFINE,
        look_forward_twice=D.LOOK_FORWARD_TWICE,
        **decoder_parts(cfg, kit, cascade=True),
    )


@DECODERS.register("parallel")
def build_parallel(cfg, kit: Kit) -> ParallelDecoder:
    D = cfg.MODEL.DETR.DECODER
    if D.BOX_LAYERS:
        raise UserError(
            f"MODEL.DETR.DECODER.BOX_LAYERS is {D.BOX_LAYERS}, but in a parallel decoder every layer predicts boxes: 0"
        )
    return ParallelDecoder(**decoder_parts(cfg, kit, cascade=False))
