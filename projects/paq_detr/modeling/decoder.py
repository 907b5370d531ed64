# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from ..layers import DeformableAttention, FeedForward, LogitCodec, SelfAttention
from ..structures import LayerOutput, Memory, QuerySet


class CrossAttention(nn.Module):
    """Queries read the memory through deformable attention; residual and post-norm."""

    def __init__(self, embed_dim: int, num_heads: int, num_levels: int, num_points: int, dropout: float = 0.0):
        super().__init__()
        self.attention = DeformableAttention(embed_dim, num_heads, num_levels, num_points)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, content: Tensor, position: Tensor, reference: Tensor, memory: Memory) -> Tensor:
        update = self.attention(content + position, reference, memory)
        return self.norm(content + self.dropout(update))


class DecoderLayer(nn.Module):
    """Query-to-query interaction, cross-attention, feed-forward block; each is a part that can be exchanged.

    Without an interaction the layer has the shape of an encoder's, and queries do not see each other.
    """

    def __init__(self, interaction: nn.Module | None, cross_attention: nn.Module, ffn: nn.Module):
        super().__init__()
        self.interaction, self.cross_attention, self.ffn = interaction, cross_attention, ffn

    def alive(self, queries: QuerySet, previous: LayerOutput | None) -> Tensor | None:
        """(B, N) the queries that go on from here; the others are out of matching, loss and output. None: all do."""
        return queries.valid

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        queries: QuerySet,
        memory: Memory,
        previous: LayerOutput | None,
    ) -> Tensor:
        """(B, N, C) new content. ``queries.valid`` is already this layer's ``alive``."""
        if self.interaction is not None:
            content = self.interaction(content, position, queries, previous)
        content = self.cross_attention(content, position, reference, memory)
        return self.ffn(content)


def build_decoder_layer(
    *,
    embed_dim: int,
    ffn_dim: int,
    num_heads: int,
    num_levels: int,
    num_points: int,
    dropout: float = 0.0,
    self_attention: bool = True,
) -> DecoderLayer:
    """The decoder layer of the Deformable DETR family."""
    return DecoderLayer(
        SelfAttention(embed_dim, num_heads, dropout) if self_attention else None,
        CrossAttention(embed_dim, num_heads, num_levels, num_points, dropout),
        FeedForward(embed_dim, ffn_dim, dropout),
    )


class Decoder(nn.Module):
    """A cascade of layers, each with heads, that refines the queries' boxes step by step.

    Detached, as published: the reference that the next layer's attention reads. With ``look_forward_twice`` (DINO,
    3.5) the next layer's *prediction* starts at the undetached box, so that layer l also learns from the loss of l + 1.
    Layers without a box head of their own hand the boxes on as they are, undetached, and only score them anew.
    """

    def __init__(
        self,
        *,
        layers: Sequence[DecoderLayer],
        class_heads: Sequence[nn.Module],
        box_heads: Sequence[nn.Module],
        codec: LogitCodec,
        position: nn.Module | None = None,
        refine_boxes: bool = True,
        look_forward_twice: bool = False,
        box_layers: int | None = None,
        test_layers: int | None = None,
    ):
        """
        Args:
            class_heads, box_heads: one per layer (that predicts boxes), or a single one that all layers share.
            codec: decodes a box head's output against a reference.
            position: makes the position code from the current boxes in every layer; None keeps the queries' own.
            refine_boxes: False predicts every layer's boxes from the queries' first reference.
            box_layers: only so many first layers predict boxes (DH-DETR: 1); None: all.
            test_layers: only so many first layers run at inference (DH-DETR's "6-3(2)"); None: all.
        """
        super().__init__()
        self.box_layers, self.test_layers = box_layers or len(layers), test_layers or len(layers)
        for key, count in (("BOX_LAYERS", self.box_layers), ("TEST_LAYERS", self.test_layers)):
            if not 1 <= count <= len(layers):
                raise ValueError(f"DECODER.{key} is {count}, must be in 0..{len(layers)} (0: all layers)")
        wanted = (("class_heads", class_heads, len(layers)), ("box_heads", box_heads, self.box_layers))
        for name, heads, count in wanted:
            if len(heads) not in (1, count):
                raise ValueError(f"{name} has {len(heads)} entries for {count} layers, needs 1 or as many")
        self.layers = nn.ModuleList(layers)
        self.class_heads, self.box_heads = nn.ModuleList(class_heads), nn.ModuleList(box_heads)
        self.position, self.codec = position, codec
        self.refine_boxes, self.look_forward_twice = refine_boxes, look_forward_twice

    def forward(self, queries: QuerySet, memory: Memory) -> list[LayerOutput]:
        """One ``LayerOutput`` per layer, the final prediction last."""
        content, position = queries.content, queries.position
        reference = start = queries.reference  # read by the attention; what the box head's output is relative to
        outputs: list[LayerOutput] = []
        for index, layer in enumerate(self.layers):
            if index == self.test_layers and not self.training:
                break
            if self.position is not None:
                position = self.position(reference)
            previous = outputs[-1] if outputs else None
            queries = replace(queries, valid=layer.alive(queries, previous))
            content = layer(content, position, reference, queries, memory, previous)
            if index < self.box_layers:
                boxes = self.codec.decode(self.box_heads[index % len(self.box_heads)](content), start)
            logits = self.class_heads[index % len(self.class_heads)](content)
            outputs.append(LayerOutput(logits, boxes, content, queries.valid))
            if self.refine_boxes:
                reference = boxes.detach()
                start = boxes if self.look_forward_twice else reference
        return outputs

    def drop_training_layers(self) -> None:
        """Delete the layers that do not run at inference, with their heads."""
        for modules in (self.layers, self.class_heads, self.box_heads):
            del modules[self.test_layers :]
