# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Where the content of the queries comes from; a part of its own, so that each goes with every source."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import Choice
from ..errors import UserError
from ..registry import CONTENTS, Kit
from ..structures import LayerOutput, Memory


class ContentSource(nn.Module):
    """Makes the content of N queries. ``needs`` may hold "proposals", or "boxes" where these are all it reads."""

    needs: frozenset[str] = frozenset()

    def forward(self, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        """(B, N, C). ``chosen`` are the proposals that become the queries, from sources that have some."""
        raise NotImplementedError

    def rows(self, count: int, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        """(B, count, C): the first contents; where there are fewer, the last one for all further queries, which are the
        worst proposals, and differ by their boxes."""
        contents = self(memory, chosen)
        lacking = count - contents.shape[1]
        if lacking > 0:
            contents = torch.cat([contents, contents[:, -1:].expand(-1, lacking, -1)], 1)
        return contents[:, :count]

    def losses(self) -> dict[str, Tensor]:
        """Its own losses, already weighted."""
        return {}


class LearnedContent(ContentSource):
    """A table of contents, the same for every image."""

    query_axes = {"table": 0}

    def __init__(self, num_queries: int, embed_dim: int, init: str = "normal"):
        """
        Args:
            init: "normal", N(0, 1) (Deformable DETR, H-DETR, Mr. DETR); "xavier", U(+-sqrt(6 / (N + C))) (DINO, whose
                table is re-initialised with the rest of the transformer); "zeros" (detrex's DAB-Deformable-DETR).
        """
        super().__init__()
        self.table = nn.Parameter(torch.zeros(num_queries, embed_dim))
        if init == "normal":
            nn.init.normal_(self.table)
        elif init == "xavier":
            nn.init.xavier_uniform_(self.table)

    def forward(self, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        return self.table.expand(memory.tokens.shape[0], -1, -1)


class SharedContent(ContentSource):
    """One vector for all queries: learned, from N(0, 1) (DN-DETR's "no object" label), or zeros (DAB-DETR)."""

    def __init__(self, num_queries: int, embed_dim: int, learned: bool):
        super().__init__()
        self.num_queries = num_queries
        if learned:
            self.table = nn.Parameter(torch.randn(1, embed_dim))
        else:
            self.register_buffer("table", torch.zeros(1, embed_dim), persistent=False)

    def forward(self, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        return self.table.expand(memory.tokens.shape[0], self.num_queries, -1)


class TokenContent(ContentSource):
    """The chosen proposals' own tokens, projected and normed, detached (detrex's two-stage DAB-Deformable-DETR)."""

    needs = frozenset({"proposals"})

    def forward(self, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        return chosen.content.detach()


class ChangedContent(ContentSource):
    """Contents of another source, changed."""

    def __init__(self, content: ContentSource):
        super().__init__()
        self.content = content
        self.needs = content.needs

    def forward(self, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        return self.change(self.content(memory, chosen))

    def change(self, content: Tensor) -> Tensor:
        raise NotImplementedError

    def losses(self) -> dict[str, Tensor]:
        return self.content.losses()


class Normed(ChangedContent):
    """Each content with mean 0 and variance 1 (AdaMixer's LayerNorm without parameters)."""

    def change(self, content: Tensor) -> Tensor:
        return F.layer_norm(content, content.shape[-1:])


class Unmarked(ChangedContent):
    """Contents whose last channel is 0; denoising queries have a 1 there (DN-DETR's indicator)."""

    def change(self, content: Tensor) -> Tensor:
        return F.pad(content[..., :-1], (0, 1))


def build_content(cfg, kit: Kit) -> ContentSource | None:
    """The content that ``QUERIES.CONTENT`` names; None where the proposals' position map makes it."""
    Q = cfg.MODEL.DETR.QUERIES
    content = CONTENTS.build(Q.CONTENT, cfg, kit)
    if Q.CONTENT_NORM:
        if content is None:
            raise UserError(
                f"MODEL.DETR.QUERIES.CONTENT_NORM is True, but {CONTENTS.key} {Q.CONTENT} is normed as it is"
            )
        content = Normed(content)
    if Q.INDICATOR and content is not None:
        content = Unmarked(content)
    return content


_CONTENT_INIT = Choice("MODEL.DETR.QUERIES.CONTENT_INIT", ("normal", "xavier", "zeros"))


@CONTENTS.register("learned")
def build_learned_content(cfg, kit: Kit) -> LearnedContent:
    Q = cfg.MODEL.DETR.QUERIES
    init = _CONTENT_INIT(Q.CONTENT_INIT)
    return LearnedContent(Q.NUM, cfg.MODEL.DETR.HIDDEN_DIM, init)


@CONTENTS.register("shared")
def build_shared_content(cfg, kit: Kit) -> SharedContent:
    return SharedContent(cfg.MODEL.DETR.QUERIES.NUM, cfg.MODEL.DETR.HIDDEN_DIM, learned=True)


@CONTENTS.register("zeros")
def build_zero_content(cfg, kit: Kit) -> SharedContent:
    return SharedContent(cfg.MODEL.DETR.QUERIES.NUM, cfg.MODEL.DETR.HIDDEN_DIM, learned=False)


@CONTENTS.register("token")
def build_token_content(cfg, kit: Kit) -> TokenContent:
    return TokenContent()


@CONTENTS.register("proposal")
def build_proposal_content(cfg, kit: Kit) -> None:
    """None: the source takes it from its proposals' boxes."""
