# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Decoders: layers with heads, one after the other (a cascade) or side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..checks import check_range
from ..errors import UserError
from ..layers import ACTIVATION, FeedForward
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
from .recompute import recomputed
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
        checkpoint_layers: bool = False,
    ):
        """
        Args:
            codec: decodes a box head's output against a reference (codec.py).
            position: makes the position code of (state, memory), or none; or a pair, the code and ``spatial``.
            output_norm: between a layer's content and the heads, the same for all layers (DINO, DAB-DETR); None: the
                heads read the content. The next layer goes on with the content itself.
            box_layers: only so many first layers predict boxes (DH-DETR: 1); None: all.
            test_layers: only so many first layers run at inference (DH-DETR's "6-3(2)"); None: all.
            checkpoint_layers: recompute the layers' activations in the backward pass.
        """
        super().__init__()
        self.checkpoint_layers = checkpoint_layers
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

    def at_inference(self) -> list[int]:
        """Which layers, counted from 0, predict at inference, in the order of their outputs."""
        return list(range(self.test_layers))

    def step(self, layer: int, state: DecoderState, memory: Memory) -> DecoderState:
        """The state behind a layer."""
        position = self.position(state, memory)
        position, spatial = position if isinstance(position, tuple) else (position, None)
        state = replace(state, position=position, spatial=spatial)
        again = self.checkpoint_layers and self.training and torch.is_grad_enabled()
        return recomputed(self.layers[layer], state, memory) if again else self.layers[layer](state, memory)

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
        for layer in range(len(self.layers) if self.training else self.test_layers):
            state = self.step(layer, state, memory)
            content = self.normed(state.content)
            if layer < self.box_layers:
                boxes = self.locate(layer, content, start, memory)
            output = LayerOutput(self.classify(layer, content), boxes, state.content, state.alive)
            state = replace(state, history=(*state.history, output))
            if self.refine_boxes and layer < self.box_layers:
                # From the detached reference, so that a layer's loss reaches the layer before it and no earlier ones.
                known = self.output_norm is None and start is state.reference
                refined = boxes if known else self.locate(layer, state.content, state.reference, memory)
                state = replace(state, reference=refined.detach())
                learns = self.look_forward_twice and refined.requires_grad  # else both are the same
                start = refined if learns else state.reference
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
        checkpoint_layers=main.checkpoint_layers,
    )


class CopyVector(nn.Module):
    """The interaction that tells copies of a decoder apart: a learned vector, N(0, 1), added to the content."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.vector = nn.Parameter(torch.randn(embed_dim))

    def forward(self, state: DecoderState, memory: Memory) -> DecoderState:
        return state.with_content(state.content + self.vector)


class ParallelDecoder(Decoder):
    """A few layers that propose, and behind them copies of a decoder side by side (ASAG: one layer, four copies).

    Every copy starts where the first layers stop, with the content as it is and the boxes detached, and is a cascade
    in itself. At inference only the copy runs whose layer is read out; the others go with ``drop_training_parts``.
    """

    def __init__(self, *, stem: int = 0, depth: int = 1, read: int | None = None, stem_codec=None, **parts):
        """
        Args:
            stem: so many first layers are common to all copies; 0: copies start at the source's queries.
            depth: layers of a copy.
            read: the layer, counted from 0, whose prediction is read out; None: the last.
            stem_codec: of the first layers, where it is another one.
            parts: as in ``Decoder``; all layers predict boxes.
        """
        super().__init__(**parts)
        if stem > len(self.layers) or (len(self.layers) - stem) % depth:
            raise ValueError(f"{len(self.layers)} layers are not {stem} and copies of {depth}")
        self.stem, self.depth, self.stem_codec = stem, depth, stem_codec or self.codec
        last = len(self.layers) - 1 if read is None else read
        before = (last - stem) % depth if last >= stem else 0  # layers of its copy before it
        kept = {*range(min(stem, last + 1)), *range(last - before, last + 1)}
        for modules in (self.layers, self.class_heads, self.box_heads):
            for number, module in enumerate(modules):
                module.train_only = len(modules) > 1 and number not in kept

    def at_inference(self) -> list[int]:
        return [number for number, layer in enumerate(self.layers) if not layer.train_only]

    def locate(self, layer: int, content: Tensor, start: Tensor, memory: Memory) -> Tensor:
        codec = self.stem_codec if layer < self.stem else self.codec
        return codec.decode(self.box_heads[layer % len(self.box_heads)](content), start, memory.grid)

    def forward(self, queries: QuerySet, memory: Memory) -> list[LayerOutput]:
        """One ``LayerOutput`` for every layer that runs."""
        outputs = []
        state = trunk = DecoderState.of(queries)
        for layer in range(len(self.layers)) if self.training else self.at_inference():
            if layer >= self.stem and (layer - self.stem) % self.depth == 0:
                state = trunk
            state = self.advance(layer, state, memory)
            trunk = state if layer < self.stem else trunk
            outputs.append(state.history[-1])
        return outputs

    def advance(self, layer: int, state: DecoderState, memory: Memory) -> DecoderState:
        """The state behind a layer, at the boxes that it predicts, and with its output."""
        start = state.reference.detach()
        state = self.step(layer, state, memory)
        content = self.normed(state.content)
        boxes = self.locate(layer, content, start, memory)
        output = LayerOutput(self.classify(layer, content), boxes, state.content, state.alive)
        return replace(state, reference=boxes.detach(), history=(*state.history, output))


def build_layers(cfg, kit: Kit, first: Collection[int] = (0,)) -> list[DecoderLayer]:
    """The layers that ``DECODER.INTERACTION`` and ``DECODER.CROSS_ATTENTION`` describe.

    An entry of INTERACTION is a name, several names in order ("dehomo + self_attention"), or "none". ``first``: the
    layers, counted from 0, that read the source's queries.
    """
    D = cfg.MODEL.DETR
    activation = ACTIVATION(D.ACTIVATION)
    layers = []
    for number, entry in enumerate(per_layer(INTERACTIONS.key, D.DECODER.INTERACTION, D.DECODER.NUM_LAYERS), 1):
        kit.layer = number - 1
        names = [name.strip() for name in str(entry).split("+")]
        interactions = [INTERACTIONS.build(name, cfg, kit) for name in names]
        for name, interaction in zip(names, interactions):
            if "previous" in needs_of(interaction) and number - 1 in first:
                raise UserError(
                    f'{INTERACTIONS.key} is {list(D.DECODER.INTERACTION)}, but "{name}" reads what the layer before '
                    f"predicted, and layer {number} has none before it"
                )
        cross_attention = build_cross_attention(cfg, kit)
        ffn = FeedForward(D.HIDDEN_DIM, D.DECODER.FFN_DIM, D.DROPOUT, activation)
        present = [interaction for interaction in interactions if interaction is not None]
        layers.append(DecoderLayer(present, cross_attention, ffn))
    if all(name == "none" for name in D.DECODER.CROSS_ATTENTION):
        raise UserError(f"{CROSS_ATTENTIONS.key} is none in every layer, so that no query would see the image")
    return layers


def decoder_parts(cfg, kit: Kit, first: Collection[int] = (0,), cascade: bool = True) -> dict:
    """The arguments of every ``Decoder``, whose parts fit each other and the main route's queries.

    Args:
        first: the layers, counted from 0, that read the source's queries; the others go on from the layer before.
        cascade: whether ``DECODER.BOX_REFINE`` counts.
    """
    D = cfg.MODEL.DETR
    separate_heads = not (D.DECODER.SHARED_HEADS or cascade and not D.DECODER.BOX_REFINE)
    num_layers, source = D.DECODER.NUM_LAYERS, kit.sources["main"]
    for key in ("BOX_LAYERS", "TEST_LAYERS"):
        if not 0 <= D.DECODER[key] <= num_layers:
            raise UserError(f"MODEL.DETR.DECODER.{key} is {D.DECODER[key]}, must be in 0..{num_layers} (0: all layers)")
    layers, heads = build_layers(cfg, kit, first), HEADS.build(D.DECODER.HEADS, cfg, kit)
    class_heads, box_heads = (num_layers, D.DECODER.BOX_LAYERS or num_layers) if separate_heads else (1, 1)
    # Queries that start as points have no size yet: heads that read them begin at a small box.
    sizes = [-2.0 if "boxes" not in source.provides and i in first else 0.0 for i in range(box_heads)]
    parts = {
        "layers": layers,
        "class_heads": [heads.class_head() for _ in range(class_heads)],
        "box_heads": [heads.box_head(size) for size in sizes],
        "codec": CODECS.build(D.CODEC, cfg, kit),
        "position": POSITIONS.build(D.DECODER.QUERY_POSITION, cfg, kit),
        "output_norm": nn.LayerNorm(D.HIDDEN_DIM) if D.DECODER.OUTPUT_NORM else None,
        "box_layers": D.DECODER.BOX_LAYERS or None,
        "test_layers": D.DECODER.TEST_LAYERS or None,
        "checkpoint_layers": D.DECODER.CHECKPOINT,
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
        **decoder_parts(cfg, kit),
    )


@DECODERS.register("parallel")
def build_parallel(cfg, kit: Kit) -> ParallelDecoder:
    D, key = cfg.MODEL.DETR, "MODEL.DETR.DECODER"
    number, stem, depth = D.DECODER.NUM_LAYERS, D.DECODER.STEM_LAYERS, D.DECODER.COPY_LAYERS
    of_cascades = {"BOX_LAYERS": 0, "TEST_LAYERS": 0, "BOX_REFINE": True, "LOOK_FORWARD_TWICE": False}
    for name, neutral in of_cascades.items():
        if D.DECODER[name] != neutral:
            raise UserError(
                f"{key}.{name} is {D.DECODER[name]}, but in a parallel decoder every layer refines the boxes of the "
                f"one before, and which of them run at inference follows from MODEL.DETR.READ_OUT.LAYER: {neutral}"
            )
    check_range(f"{key}.COPY_LAYERS", depth, "[1, inf)")
    if not 0 <= stem < number or (number - stem) % depth:
        raise UserError(
            f"{key}.NUM_LAYERS is {number}, must be that of the first layers, STEM_LAYERS {stem}, and a multiple of "
            f"COPY_LAYERS {depth}"
        )
    read = check_range("MODEL.DETR.READ_OUT.LAYER", D.READ_OUT.LAYER, f"[0, {number}]")
    copies = range(stem, number, depth)
    decoder = ParallelDecoder(
        stem=stem,
        depth=depth,
        read=read - 1 if read else None,
        stem_codec=CODECS.build(D.DECODER.STEM_CODEC or D.CODEC, cfg, kit, key=f"{key}.STEM_CODEC"),
        **decoder_parts(cfg, kit, first=[0] if stem else copies, cascade=False),
    )
    for layer in copies:
        decoder.layers[layer].interactions.insert(0, CopyVector(D.HIDDEN_DIM))
    return decoder
