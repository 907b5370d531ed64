# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Sequence

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
    """Query-to-query interaction, cross-attention, feed-forward block; each is a part that can be exchanged."""

    def __init__(self, interaction: nn.Module, cross_attention: nn.Module, ffn: nn.Module):
        super().__init__()
        self.interaction, self.cross_attention, self.ffn = interaction, cross_attention, ffn

    def forward(
        self,
        content: Tensor,
        position: Tensor,
        reference: Tensor,
        queries: QuerySet,
        memory: Memory,
        previous: LayerOutput | None,
    ) -> Tensor:
        content = self.interaction(content, position, queries, previous)
        content = self.cross_attention(content, position, reference, memory)
        return self.ffn(content)


def build_decoder_layer(
    *, embed_dim: int, ffn_dim: int, num_heads: int, num_levels: int, num_points: int, dropout: float = 0.0
) -> DecoderLayer:
    """The decoder layer of the Deformable DETR family."""
    return DecoderLayer(
        SelfAttention(embed_dim, num_heads, dropout),
        CrossAttention(embed_dim, num_heads, num_levels, num_points, dropout),
        FeedForward(embed_dim, ffn_dim, dropout),
    )


class Decoder(nn.Module):
    """A cascade of layers, each with heads, that refines the queries' boxes step by step.

    Detached, as published: the reference that the next layer's attention reads. With ``look_forward_twice`` (DINO,
    3.5) the next layer's *prediction* starts at the undetached box, so that layer l also learns from the loss of l + 1.
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
    ):
        """
        Args:
            class_heads, box_heads: one per layer, or a single one that all layers share.
            codec: decodes a box head's output against a reference.
            position: makes the position code from the current boxes in every layer; None keeps the queries' own.
            refine_boxes: False predicts every layer's boxes from the queries' first reference.
        """
        super().__init__()
        for name, heads in (("class_heads", class_heads), ("box_heads", box_heads)):
            if len(heads) not in (1, len(layers)):
                raise ValueError(f"{name} has {len(heads)} entries for {len(layers)} layers, needs 1 or as many")
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
            if self.position is not None:
                position = self.position(reference)
            previous = outputs[-1] if outputs else None
            content = layer(content, position, reference, queries, memory, previous)
            boxes = self.codec.decode(self.box_heads[index % len(self.box_heads)](content), start)
            logits = self.class_heads[index % len(self.class_heads)](content)
            outputs.append(LayerOutput(logits, boxes, content, queries.valid))
            if self.refine_boxes:
                reference = boxes.detach()
                start = boxes if self.look_forward_twice else reference
        return outputs
