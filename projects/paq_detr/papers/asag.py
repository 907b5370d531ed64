# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""ASAG: Building Strong One-Decoder-Layer Sparse Detectors via Adaptive Sparse Anchor Generation (Fu et al. 2023).

| paper, official code | here | key |
|---|---|---|
| fixed patches of P5 and P6 | ``fixed_anchors`` of ``AdaptiveSparseAnchors`` | ASAG.FIXED_ANCHORS |
| adaptive probing of P4 and P3 | its ``selected``, ``chosen_patches``, ``probe`` | ASAG.SCORE_RANGE, .PATCH_IOU, ... |
| correct and replace | its ``leaving`` | ASAG.MIN_SCORE, .MIN_ANCHORS, QUERIES.NUM |
| early stop, fast inference | its ``selected``, ``chosen_patches`` | ASAG.MIN_SELECTED, .MAX_PATCHES, .TEST_LEVELS |
| training patches | ``asag_patches.for_training`` | ASAG.TRAIN_PATCHES, .OBJECT_EPOCHS |
| targets and losses of anchors, query weighting | asag_targets.py | ASAG.*_WEIGHT, QUERY_WEIGHTING.* |
| content from the anchors | ``RoIContent`` | QUERIES.CONTENT roi |
| proposals, four parallel decoders | ``modeling.decoder.ParallelDecoder`` | DECODER.NAME parallel, .STEM_LAYERS |
| denoising | ``denoising.BoxDenoising`` | QUERIES.AUGMENT box_dn |

Anchors are an ordinary query source: any decoder and content goes with it. papers/README.md lists where paper, official
code and we differ.

Shape legend beside structures.py's: P patches, A anchors of a patch, T anchors of an image before the best are taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode as CN
from torch import Tensor, nn
from torch.nn import functional as F

from ..checks import check_numbers, check_range
from ..errors import UserError
from ..layers import MLP, places
from ..modeling.assignment import HungarianAssigner, cost_terms
from ..modeling.contents import ContentSource
from ..modeling.diagnostics import iteration, log_scalars
from ..modeling.objective import Objective, box_losses
from ..modeling.queries import content_for, queries_at_inference
from ..modeling.roi import MultiLevelRoIAlign
from ..registry import CONTENTS, NECKS, SOURCES, Kit, adds_config, needs_of
from ..structures import Grid, LayerOutput, Memory, Prediction, QuerySet, Targets
from .asag_anchors import Anchors, Compress, PatchCode, anchors_of, leading_anchors
from .asag_patches import Patches, Window, around, as_mask, cut_out, for_training, quadrants, resized, to_image
from .asag_targets import (
    AnchorQuality,
    build_area_weighted_cost,
    flipped_objects,
    objects_in,
    on_host,
    to_device,
    weighting_numbers,
)

#: Pixels per cell of the levels that have patches: the fixed ones, then those that are probed.
STRIDES = (32, 16, 8)
#: So many of an image and level an exported program probes where ASAG.MAX_PATCHES is 0 (CrowdHuman's number).
EXPORTED_PATCHES = 60
#: The summed loss of all probed patches counts as that of so many (official code).
PROBED_PATCHES_COUNT_AS = 4


@adds_config
def add_config(cfg: CN) -> None:
    cfg.MODEL.DETR.ASAG = A = CN()
    A.PATCH_SIZE = 15  # cells of a patch's side
    A.COMPRESS_DIM = 8  # channels of a patch
    A.MLP_DIM = 1000  # width of the perceptrons that read a patch
    A.FIXED_ANCHORS = 150  # of each of the five fixed patches; 50 in the paper's models of 100 queries
    A.PROBED_ANCHORS = 50  # of a probing patch; 20
    # Anchors that score above this become queries (eta_f), of the fixed ones MIN_ANCHORS at least, of all QUERIES.NUM
    # at most. 0.1, 5 and 200 in models of 100 queries; 0.05, 50 and 500 (CrowdHuman: 600) in those of 300.
    A.MIN_SCORE = 0.05
    A.MIN_ANCHORS = 50
    # Anchors that score in this open range (eta_l, eta_h) and are smaller than half a patch of the next level are
    # looked at there again, and replaced by what is found.
    A.SCORE_RANGE = [0.1, 0.7]
    A.PATCH_IOU = 0.25  # of two patches that overlap by more, the one of higher score stays
    A.MAX_PATCHES = 0  # of an image and level, those of highest score; 0: all. CrowdHuman 60, fast inference 15
    # At inference: an image with fewer selected anchors is done (fast inference 3), and so many levels are probed.
    A.MIN_SELECTED = 1
    A.TEST_LEVELS = 2  # 0: P5 and P6 alone; 1: and P4; 2: and P3
    # In training: fewer patches of an image and level are filled up to so many, by objects and at random (N_TP); for so
    # many first epochs patches stand on the objects instead, and nothing is replaced.
    A.TRAIN_PATCHES = 4
    A.OBJECT_EPOCHS = 1.0
    A.LEGACY_P6_FLIP = False  # True: the official code's targets of the flipped P6, three of four of them wrong
    A.CLASS_WEIGHT = 8.0  # of the anchors' losses
    A.L1_WEIGHT = 4.0
    A.GIOU_WEIGHT = 2.0


# ----------------------------------------------------------------------------------------------------------------------
# The source


class AdaptiveSparseAnchors(nn.Module):
    """As many anchors as an image needs, from few patches of its feature pyramid; no gradient leaves through them.

    Every image's patches are its own, so that its anchors depend neither on its batch nor on padding. The levels are
    found by their strides, and may be a neck's or an encoder's.

    In an exported program every image has as many patches and anchors as it may have, and masks tell which are there.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        content: ContentSource,
        objective: Objective,
        whole_objective: Objective,
        max_anchors: int,
        max_anchors_test: int | None = None,
        min_anchors: int = 50,
        fixed_anchors: int = 150,
        probed_anchors: int = 50,
        patch_size: int = 15,
        compress_dim: int = 8,
        mlp_dim: int = 1000,
        min_score: float = 0.05,
        score_range: tuple[float, float] = (0.1, 0.7),
        patch_iou: float = 0.25,
        max_patches: int = 0,
        min_selected: int = 1,
        test_levels: int = 2,
        train_patches: int = 4,
        object_iterations: int = 0,
        legacy_p6_flip: bool = False,
    ):
        """
        Args:
            objective: how the anchors of P5, P4 and P3 are supervised; ``whole_objective``: those of P6.
            object_iterations: in the first so many iterations patches stand on objects, and nothing is replaced.
            others: as the keys below ASAG say.
        """
        super().__init__()
        self.content, self.objective, self.whole_objective = content, objective, whole_objective
        from_boxes = {"contents from boxes"} if "boxes" in needs_of(content) else set()
        self.provides = frozenset({"boxes"} | from_boxes)
        self.max_anchors, self.max_anchors_test = max_anchors, max_anchors_test or max_anchors
        self.min_anchors, self.min_score = min_anchors, min_score
        self.score_range, self.patch_iou, self.max_patches = score_range, patch_iou, max_patches
        self.min_selected, self.test_levels = min_selected, test_levels
        self.train_patches, self.object_iterations = train_patches, object_iterations
        self.patch_size, self.legacy_p6_flip = patch_size, legacy_p6_flip
        cells = patch_size**2
        # Of P5, P4 and P3 each. P6 is made from P5 and shares its code.
        self.compress = nn.ModuleList(Compress(embed_dim, compress_dim) for _ in STRIDES)
        self.code = nn.ModuleList(PatchCode(cells, compress_dim) for _ in STRIDES)
        self.halve = nn.Conv2d(compress_dim, compress_dim, 3, stride=2, dilation=2, padding=2)
        self.fixed_head, self.probe_head = (
            MLP(cells * compress_dim, mlp_dim, 5 * anchors, 3, nn.GELU) for anchors in (fixed_anchors, probed_anchors)
        )
        for module in (*self.compress.modules(), self.halve, *self.fixed_head, *self.probe_head):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, memory: Memory, targets: Targets | None = None) -> QuerySet:
        predictions: list[Prediction] = []
        with torch.autocast(memory.tokens.device.type, enabled=False):  # boxes want fp32
            tokens = memory.tokens.to(self.halve.weight.dtype)  # fp32, but in a program that was exported as fp16
            anchors = self.generate(memory.with_tokens(tokens), targets, predictions)
            boxes, valid = anchors.best(self.max_anchors if self.training else self.max_anchors_test)
        log_scalars(lambda: {"anchors/an_image": boxes.shape[1] if valid is None else valid.sum(1).float().mean()})

        def content_at(boxes: Tensor, valid: Tensor | None = None) -> Tensor:
            return self.content.rows(boxes.shape[1], memory, LayerOutput(boxes[..., :0], boxes, valid=valid))

        return QuerySet(
            content=content_at(boxes, valid),
            reference=boxes,
            valid=valid,
            predictions=predictions,
            losses=self.content.losses() if self.training else {},
            codes=lambda others: (content_at(others), None),
        )

    @property
    def export_note(self) -> str | None:
        """What an exported program does otherwise."""
        if self.max_patches or not self.test_levels:
            return None
        return (
            f"of an image and level it probes the {EXPORTED_PATCHES} best patches at most, the model all of them "
            "(MODEL.DETR.ASAG.MAX_PATCHES 0)"
        )

    @property
    def by_objects(self) -> bool:
        """Whether training has just begun, and patches stand on the objects."""
        now = iteration()
        return self.training and now is not None and now < self.object_iterations

    def generate(self, memory: Memory, targets: Targets | None, predictions: list[Prediction]) -> Anchors:
        """The candidates that leave, of all stages; in training ``predictions`` get what is to be supervised."""
        grid, device = memory.grid, memory.tokens.device
        objects = on_host(targets) if self.training else None
        anchors = self.fixed_anchors(memory, objects, predictions)
        left: list[Anchors] = []
        probed: list[tuple[Patches, LayerOutput]] = []
        for number in range(1, 1 + (len(STRIDES[1:]) if self.training else self.test_levels)):
            selected = self.selected(anchors, STRIDES[number], grid)
            patches = self.chosen_patches(anchors, selected, STRIDES[number], grid, objects)
            if patches.image.shape[0] == 0:
                break
            left.append(self.leaving(anchors, selected, first=number == 1))
            there = patches.to(device)
            output = self.probe(number, there, memory)
            probed.append((patches, output))
            rows = patches.leading_rows(anchors.scores.shape[0]).to(device)
            anchors = leading_anchors(output, there.windows(grid.image_scale), rows, grid)
        left.append(self.leaving(anchors, torch.zeros_like(anchors.scores, dtype=torch.bool), first=not left))
        if objects is not None:
            predictions.append(self.of_probes(probed, objects, grid))
        return Anchors(torch.cat([a.boxes for a in left], 1), torch.cat([a.scores for a in left], 1))

    def fixed_anchors(self, memory: Memory, objects: Targets | None, predictions: list[Prediction]) -> Anchors:
        """The anchors of P5's quadrants and of the whole image, P6."""
        grid, size = memory.grid, self.patch_size
        level = grid.strides.index(STRIDES[0])
        x, inside = (F.pad(t, (1, 1, 1, 1)) for t in (memory.levels()[level], (~grid.masks[level])[:, None]))
        square = resized(self.compress[0](x, inside.to(x.dtype)), grid, level, 2 * size)  # (B, C, 2 s, 2 s)
        quarters = square.unflatten(3, (2, size)).unflatten(2, (2, size)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        whole = self.halve(F.relu(square))
        if self.training:
            whole = torch.stack([whole, whole.flip(3), whole.flip(2), whole.flip(2, 3)], 1).flatten(0, 1)
        found = anchors_of(self.fixed_head, self.code[0](torch.cat([quarters, whole])))
        count = quarters.shape[0]
        of_quarters, of_whole = (
            LayerOutput(found.logits[part], found.boxes[part]) for part in (slice(count), slice(count, None))
        )
        image, windows = quadrants(square.shape[0])
        if objects is not None:
            device = x.device
            seen = to_device(objects_in(windows, image, objects, whole=False), device)
            flipped = to_device(flipped_objects(objects, self.legacy_p6_flip), device)
            predictions.append(Prediction("anchors_p5", of_quarters, self.objective, targets=seen))
            predictions.append(Prediction("anchors_p6", of_whole, self.whole_objective, targets=flipped))
        unflipped = slice(None, None, 4 if self.training else 1)
        boxes = to_image(of_quarters.boxes.detach(), windows.to(x.device)[:, None]).unflatten(0, (-1, 4)).flatten(1, 2)
        scores = torch.cat([of_quarters.logits.unflatten(0, (-1, 4)).flatten(1, 2), of_whole.logits[unflipped]], 1)
        boxes = torch.cat([boxes, of_whole.boxes[unflipped].detach()], 1)
        return Anchors.measured(boxes, scores.detach()[..., 0].sigmoid(), grid)

    def selected(self, anchors: Anchors, stride: int, grid: Grid) -> Tensor:
        """(B, T) which anchors are neither surely right nor surely wrong, and small enough for the next level."""
        low, high = self.score_range
        small = ((anchors.boxes * grid.image_scale)[..., 2:] < stride * self.patch_size / 2).all(-1)
        selected = (anchors.scores > low) & (anchors.scores < high) & small
        if self.by_objects:
            return torch.zeros_like(selected)
        if not self.training:
            selected &= selected.sum(1, keepdim=True) >= self.min_selected
        return selected

    def chosen_patches(
        self, anchors: Anchors, selected: Tensor, stride: int, grid: Grid, objects: Targets | None
    ) -> Patches:
        """The patches of a level around the selected anchors, on the host; with ``objects`` those of training."""
        centers = (anchors.boxes * grid.image_scale)[..., :2]
        if torch.compiler.is_exporting():
            fixed = {"stride": stride, "size": self.patch_size, "max_iou": self.patch_iou}
            return as_mask(centers, anchors.scores, selected, grid, **fixed, most=self.max_patches or EXPORTED_PATCHES)
        windows = [Window(stride, self.patch_size, size) for size in grid.image_sizes]
        candidates = torch.cat([centers, anchors.scores[..., None], selected[..., None]], -1).cpu()  # the only copy
        candidates = [rows[rows[:, 3] > 0] for rows in candidates]
        corners = [
            around(window, rows[:, :2], rows[:, 2], self.patch_iou, self.max_patches)
            for window, rows in zip(windows, candidates)
        ]
        leading = [len(c) for c in corners]
        if objects is not None:
            boxes = (objects.boxes * host_scale(grid)[objects.image]).split(objects.counts)
            options = {"count": self.train_patches, "by_objects": self.by_objects, "max_iou": self.patch_iou}
            made = [for_training(*parts, **options) for parts in zip(windows, corners, boxes)]
            corners, leading = zip(*made)
        return Patches.of_images(stride, self.patch_size, corners, leading)

    def leaving(self, anchors: Anchors, selected: Tensor, first: bool) -> Anchors:
        """The anchors that score high enough and are not looked at again; of the first stage ``min_anchors`` at least,
        selected or not."""
        leaves = (anchors.scores > self.min_score) & ~selected
        if first:
            best = (places(anchors.scores) < self.min_anchors) & (anchors.scores >= 0)
            few = leaves.sum(1, keepdim=True) < self.min_anchors
            leaves = (best & few) | (leaves & ~few)  # onnxruntime has no Where of booleans
        return Anchors(anchors.boxes, anchors.scores.masked_fill(~leaves, -1.0))

    def probe(self, number: int, patches: Patches, memory: Memory) -> LayerOutput:
        """(P, A) anchors of the patches of level ``STRIDES[number]``, in shares of their patch."""
        x, inside = cut_out(memory, memory.grid.strides.index(STRIDES[number]), patches, margin=1)
        return anchors_of(self.probe_head, self.code[number](self.compress[number](x, inside)))

    def of_probes(self, probed: Sequence[tuple[Patches, LayerOutput]], objects: Targets, grid: Grid) -> Prediction:
        """How the anchors of all probed patches are supervised: their summed loss counts as that of four patches."""
        windows = torch.cat([patches.windows(host_scale(grid)[:, None]) for patches, _ in probed])
        image = torch.cat([patches.image for patches, _ in probed])
        logits, boxes = (torch.cat([getattr(o, name) for _, o in probed]) for name in ("logits", "boxes"))
        seen = to_device(objects_in(windows, image, objects, whole=True), boxes.device)
        scale = PROBED_PATCHES_COUNT_AS / len(image)
        log_scalars(lambda: {"anchors/patches_an_image": len(image) / len(grid.image_sizes)})
        return Prediction("anchors_probed", LayerOutput(logits, boxes), self.objective, targets=seen, scale=scale)


def host_scale(grid: Grid) -> Tensor:
    """(B, 4) un-padded width, height, width, height in pixels, on the host."""
    return torch.tensor([[w, h, w, h] for h, w in grid.image_sizes], dtype=torch.float32)


class RoIContent(ContentSource):
    """What the boxes of the queries hold of the feature pyramid: RoIAlign, one linear map, norm."""

    needs = frozenset({"boxes"})

    def __init__(self, embed_dim: int, size: int = 7):
        super().__init__()
        self.pool = MultiLevelRoIAlign(size, sampling_ratio=2, aligned=False, eps=1e-6)
        self.project, self.norm = nn.Linear(embed_dim * size**2, embed_dim), nn.LayerNorm(embed_dim)
        nn.init.xavier_uniform_(self.project.weight)

    def forward(self, memory: Memory, chosen: LayerOutput | None = None) -> Tensor:
        return self.norm(self.project(self.pool(memory, chosen.boxes).flatten(2)))


# ----------------------------------------------------------------------------------------------------------------------
# From names to parts


@CONTENTS.register("roi")
def build_roi_content(cfg: CN, kit: Kit) -> RoIContent:
    return RoIContent(cfg.MODEL.DETR.HIDDEN_DIM)


@SOURCES.register("AdaptiveSparseAnchors")
def build_adaptive_sparse_anchors(cfg: CN, kit: Kit) -> AdaptiveSparseAnchors:
    D = cfg.MODEL.DETR
    A, key = D.ASAG, "MODEL.DETR.ASAG"
    lacking = [stride for stride in STRIDES if stride not in kit.neck.strides]
    if lacking:
        raise UserError(
            f"{SOURCES.key} AdaptiveSparseAnchors reads levels of stride {', '.join(map(str, sorted(STRIDES)))}, but "
            f"those of {NECKS.key} {D.NECK.NAME} are {', '.join(map(str, kit.neck.strides))}"
        )
    ranges = {
        **dict.fromkeys(("PATCH_SIZE", "COMPRESS_DIM", "MLP_DIM", "FIXED_ANCHORS", "PROBED_ANCHORS"), "[1, inf)"),
        **dict.fromkeys(("MIN_ANCHORS", "MAX_PATCHES", "MIN_SELECTED", "OBJECT_EPOCHS"), "[0, inf)"),
        **dict.fromkeys(("MIN_SCORE", "PATCH_IOU"), "[0, 1]"),
        "TEST_LEVELS": "[0, 2]",
        "TRAIN_PATCHES": "[1, inf)",
    }
    numbers = {name.lower(): check_range(f"{key}.{name}", A[name], interval) for name, interval in ranges.items()}
    check_numbers(f"{key}.SCORE_RANGE", A.SCORE_RANGE, "[0, 1]", length=2)
    low, high = A.SCORE_RANGE
    if low > high:
        raise UserError(f"{key}.SCORE_RANGE is {list(A.SCORE_RANGE)}, must be in ascending order")
    return AdaptiveSparseAnchors(
        embed_dim=D.HIDDEN_DIM,
        content=content_for(cfg, kit, frozenset({"boxes"})),
        objective=anchor_objective(cfg, kit, large=False),
        whole_objective=anchor_objective(cfg, kit, large=True),
        max_anchors=check_range("MODEL.DETR.QUERIES.NUM", D.QUERIES.NUM, "[1, inf)"),
        max_anchors_test=queries_at_inference(cfg),
        score_range=(low, high),
        object_iterations=round(numbers.pop("object_epochs") * cfg.SOLVER.ITERS_PER_EPOCH),
        legacy_p6_flip=A.LEGACY_P6_FLIP,
        **numbers,
    )


def anchor_objective(cfg: CN, kit: Kit, large: bool) -> Objective:
    """How anchors are supervised; ``large``: those of P6, where large objects count more in place of small ones."""
    A = cfg.MODEL.DETR.ASAG
    return Objective(
        assigner=HungarianAssigner(build_area_weighted_cost(cfg, kit, large)),
        classification=AnchorQuality(**weighting_numbers(cfg), large=large),
        class_weight=A.CLASS_WEIGHT,
        pair_losses=box_losses(A.L1_WEIGHT, A.GIOU_WEIGHT, cost_terms(cfg)["corners"]),
        ignore_ioa=cfg.MODEL.DETR.LOSS.IGNORE_IOA,
    )
