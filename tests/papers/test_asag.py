# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn import functional as F
from torchvision.ops import box_iou

from paq_detr.errors import UserError
from paq_detr.modeling.decoder import CopyVector, DecoderLayer, ParallelDecoder
from paq_detr.modeling.positions import NoPosition
from paq_detr.papers.asag import EXPORTED_PATCHES, AdaptiveSparseAnchors, RoIContent
from paq_detr.papers.asag_anchors import Anchors
from paq_detr.structures import QuerySet, stack_instances

from ..modeling.assemblies import ASAG_D, make_image, make_model, memory_of, predictions_of
from ..modeling.test_transfers import Transfers

HOST = {**ASAG_D, "MODEL.DETR.QUERIES.NUM": 60}
SIZES = [(200, 310), (150, 130), (40, 300)]


def images_of(sizes=SIZES):
    return [
        make_image(h, w, [[0.1 * w, 0.1 * h, 0.1 * w + 20, 0.1 * h + 15], [0, 0, 0.8 * w, 0.9 * h]], [0, 2], seed=i)
        for i, (h, w) in enumerate(sizes)
    ]


def source_of(seed=0, **options):
    """A detector whose anchors are small and score everything between 0 and 1, and its anchor source."""
    model = make_model({**HOST, **{f"MODEL.DETR.ASAG.{k}": v for k, v in options.items()}}, seed)
    source = model.sources["main"]
    with torch.no_grad():
        for head in (source.fixed_head, source.probe_head):
            head.last.weight.mul_(3)
            head.last.bias.view(-1, 5)[:, 2:4] -= 2
    return model.eval(), source


@torch.no_grad()
def anchors_of_image(source, memory, image):
    """The anchors of one image in a loop over levels, anchors and patches, as the paper and the official code say."""
    height, width = memory.grid.image_sizes[image]
    size = source.patch_size

    def compressed(stride):
        level = memory.grid.strides.index(stride)
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        alone = memory.levels()[level][image : image + 1, :, :rows, :columns]
        compress = source.compress[(32, 16, 8).index(stride)]
        hidden = F.gelu(compress.reduce(alone))
        return F.conv2d(hidden, compress.squeeze.weight, compress.squeeze.bias, padding=1)

    def found(patch, number, head):
        code = source.code[number]
        tokens = F.layer_norm(patch.flatten(1).T, code.norm.normalized_shape, code.norm.weight, code.norm.bias)
        out = head((tokens + code.position).flatten()).view(-1, 5).sigmoid()
        return out[:, :4], out[:, 4]

    def candidates(boxes, scores, origin, scale):
        made = []
        for (x, y, w, h), p in zip(boxes.tolist(), scores.tolist()):
            x, y, w, h = x * scale[0] + origin[0], y * scale[1] + origin[1], w * scale[0], h * scale[1]
            made.append([x, y, w, h, 0.0 if w < 3 or h < 3 or x >= width or y >= height else p])
        return made

    square = F.interpolate(compressed(32), size=(2 * size, 2 * size), mode="bilinear", align_corners=False)
    now = []
    for row in (0, 1):
        for column in (0, 1):
            part = square[0, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
            origin = (column * width / 2, row * height / 2)
            now += candidates(*found(part, 0, source.fixed_head), origin, (width / 2, height / 2))
    now += candidates(*found(source.halve(F.relu(square))[0], 0, source.fixed_head), (0, 0), (width, height))
    left = []
    for number, stride in enumerate((16, 8), 1):
        side, (low, high) = stride * size, source.score_range
        selected = [a for a in now if low < a[4] < high and a[2] < side / 2 and a[3] < side / 2]
        if len(selected) < source.min_selected or number > source.test_levels:
            break
        stays = [a for a in now if a[4] > source.min_score and a not in selected]
        if number == 1 and len(stays) < source.min_anchors:
            stays = sorted(now, key=lambda a: -a[4])[: source.min_anchors]
        left += stays
        selected.sort(key=lambda a: -a[4])
        squares = torch.tensor([[x - side / 2, y - side / 2, x + side / 2, y + side / 2] for x, y, *_ in selected])
        kept = []
        for i in range(len(selected)):
            if not kept or box_iou(squares[i : i + 1], squares[kept]).max() <= source.patch_iou:
                kept.append(i)
        maps, now = compressed(stride), []
        for i in kept[: source.max_patches or None]:
            corner = [
                max(min(math.floor(c / stride - size / 2), math.ceil(extent / stride) - size), 0)
                for c, extent in zip(selected[i][:2], (width, height))
            ]
            beyond = F.pad(maps, (0, size, 0, size))[0]
            patch = beyond[:, corner[1] : corner[1] + size, corner[0] : corner[0] + size]
            origin = (corner[0] * stride, corner[1] * stride)
            now += candidates(*found(patch, number, source.probe_head), origin, (side, side))
    stays = [a for a in now if a[4] > source.min_score]
    if not left and len(stays) < source.min_anchors:
        stays = sorted(now, key=lambda a: -a[4])[: source.min_anchors]
    left = sorted(left + stays, key=lambda a: -a[4])[: source.max_anchors]
    return torch.tensor(left)[:, :4] / torch.tensor([width, height, width, height])


def candidates_of(source):
    """Candidates of an image in an exported program: anchors of five fixed patches, and of so many as may be probed."""
    fixed, probed = (head.last.out_features // 5 for head in (source.fixed_head, source.probe_head))
    counts = [5 * fixed]
    for _ in range(source.test_levels):
        counts.append(min(source.max_patches or EXPORTED_PATCHES, counts[-1]) * probed)
    return sum(counts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"MIN_SELECTED": 3, "MAX_PATCHES": 2},
        {"TEST_LEVELS": 1},
        {"TEST_LEVELS": 0},
        {"MIN_SCORE": 0.95, "MIN_ANCHORS": 9},
        {"SCORE_RANGE": [0.0, 1.0], "MIN_SCORE": 0.0},
    ],
    ids=str,
)
@pytest.mark.parametrize("exporting", [False, True])
def test_the_anchors_of_a_batch_are_those_of_the_loop_over_its_images(options, exporting, monkeypatch):
    model, source = source_of(**options)
    memory = memory_of(model, images_of())
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: exporting)
    with torch.no_grad():
        queries = source(memory)
    counts = []
    for image in range(len(SIZES)):
        expected = anchors_of_image(source, memory, image)
        valid = torch.ones_like(queries.reference[image, :, 0]) > 0 if queries.valid is None else queries.valid[image]
        counts.append(len(expected))
        assert valid.sum() == len(expected) and valid[: len(expected)].all()
        torch.testing.assert_close(queries.reference[image][valid], expected, atol=1e-5, rtol=1e-4)
        assert (queries.reference[image][~valid] == torch.tensor([0.5, 0.5, 1, 1])).all()
    assert not exporting or queries.reference.shape[1] == min(source.max_anchors, candidates_of(source))
    assert len(set(counts)) > 1 or {"TEST_LEVELS": 0}.items() <= options.items() or "MIN_ANCHORS" in options


def test_without_a_range_nothing_is_selected_and_p5_and_p6_remain():
    """ASAG.SCORE_RANGE of no width, and no level at all, are the same."""
    references = []
    for options in ({"SCORE_RANGE": [0.5, 0.5]}, {"TEST_LEVELS": 0}):
        model, source = source_of(**options)
        with torch.no_grad():
            references.append(source(memory_of(model, images_of())).reference)
    assert torch.equal(*references)


def test_padding_enters_nobodys_anchors():
    """What lies beyond an image, in its batch's maps, is not read."""
    model, source = source_of()
    memory = memory_of(model, images_of())
    noisy = memory.tokens.clone()
    noisy[memory.grid.padding] = 7.0
    with torch.no_grad():
        clean, dirty = source(memory), source(memory.with_tokens(noisy))
    torch.testing.assert_close(clean.reference, dirty.reference)
    assert clean.valid is None or torch.equal(clean.valid, dirty.valid)


def test_no_more_anchors_than_queries_and_the_best_of_them():
    scores = torch.tensor([[0.3, -1.0, 0.9, 0.0, 0.5], [-1.0, -1.0, 0.2, -1.0, -1.0]])
    boxes = torch.arange(10.0).view(2, 5, 1).expand(-1, -1, 4)
    found, valid = Anchors(boxes, scores).best(3)
    assert found[0, :, 0].tolist() == [2, 4, 0] and found[1, 0, 0] == 7
    assert valid.tolist() == [[True] * 3, [True, False, False]]
    assert found[1, 1].tolist() == [0.5, 0.5, 1, 1]
    assert Anchors(boxes[:1], scores[:1]).best(3)[1] is None
    found, valid = Anchors(boxes[1:], torch.full((1, 5), -1.0)).best(3)  # none at all
    assert found.tolist() == [[[0.5, 0.5, 1, 1]]] and valid.tolist() == [[False]]


def targets_of(model, images):
    sizes = [tuple(x["image"].shape[1:]) for x in images]
    return stack_instances([x["instances"] for x in images], sizes, model.device)


def test_what_a_step_supervises():
    model, source = source_of()
    model.train()
    images = images_of()
    found = predictions_of(model, images, targets_of(model, images))
    p5, p6, probed = (found[f"anchors_{name}"] for name in ("p5", "p6", "probed"))
    assert len(p5.output.boxes) == len(p6.output.boxes) == 4 * len(images)
    assert p5.targets.counts[:4] == (2, 0, 0, 0)  # the large one's centre is in the first quadrant too
    assert p6.targets.counts == (2,) * 12
    assert len(probed.output.boxes) == len(probed.targets.counts) >= 2 * 4 * len(images)
    assert probed.scale == 4 / len(probed.output.boxes)
    assert p6.objective is not p5.objective is probed.objective
    assert p6.objective.classification.large and not p5.objective.classification.large
    flipped = p6.output.logits.view(3, 4, -1)
    assert not torch.allclose(flipped[:, 0], flipped[:, 1])


def test_anchors_learn_from_their_own_loss_alone():
    model, source = source_of()
    model.train()
    images = images_of()
    found = predictions_of(model, images, targets_of(model, images))
    own = {name for name, p in source.named_parameters() if not name.startswith("content.")}
    for name, prediction in found.items():
        model.zero_grad()
        (prediction.output.boxes.sum() + prediction.output.logits.sum()).backward(retain_graph=True)
        reached = {n for n, p in source.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        assert bool(reached & own) == name.startswith("anchors"), name
        assert ("content.project.weight" in reached) != name.startswith("anchors"), name


@pytest.mark.parametrize(("now", "by_objects"), [(0, True), (2, True), (3, False), (None, False)])
def test_the_first_epoch_stands_on_objects(now, by_objects):
    model, source = source_of()
    source.object_iterations = 3
    model.train()
    images = images_of()
    if now is None:
        assert source.by_objects == by_objects
        return
    with EventStorage(now):
        assert source.by_objects == by_objects
        memory = memory_of(model, images)
        anchors = source.fixed_anchors(memory, None, [])
        selected = source.selected(anchors, 16, memory.grid)
        assert selected.any() != by_objects
        found = predictions_of(model, images, targets_of(model, images))
        if by_objects:  # a patch upon the small object of each image and level, and three anywhere
            assert len(found["anchors_probed"].output.boxes) == 2 * 4 * len(images)
        model.eval()
        assert not source.by_objects


def test_a_step_that_selects_nothing_trains_on_patches_of_objects_and_anywhere():
    model, source = source_of(SCORE_RANGE=[0.5, 0.5])
    model.train()
    images = images_of()
    found = predictions_of(model, images, targets_of(model, images))
    counts = found["anchors_probed"].targets.counts
    assert len(counts) == 2 * 4 * len(images) and max(counts) >= 1


def test_the_host_is_asked_as_often_for_many_images_as_for_few():
    def transfers(count):
        images = images_of([(64, 96 + 16 * i) for i in range(count)])
        model = make_model(HOST)
        memory, targets = memory_of(model, images), targets_of(model, images)
        with Transfers() as seen:
            model.sources["main"](memory, targets)
        return seen

    few, many = transfers(2), transfers(5)
    few.reads.pop("__getitem__", None), many.reads.pop("__getitem__", None)  # masks of host tensors
    assert few.reads["cpu"] == many.reads["cpu"] == 3  # the objects, and the candidates of two levels


def test_denoising_queries_have_the_contents_of_their_boxes():
    options = {**HOST, "MODEL.DETR.QUERIES.AUGMENT": "box_dn", "MODEL.DETR.DENOISING.BOX_DN.QUERIES": 6}
    model, images = make_model(options), images_of()
    memory, targets = memory_of(model, images), targets_of(model, images)
    queries = model.augmenters["main"](model.sources["main"](memory, targets), targets, memory)
    assert queries.first_matching == 6  # three groups of two
    content, _ = queries.codes(queries.reference)
    torch.testing.assert_close(content, queries.content)


def test_contents_from_boxes_go_with_proposals_too():
    model = make_model({"MODEL.DETR.QUERIES.NAME": "EncoderTopN", "MODEL.DETR.QUERIES.CONTENT": "roi"})
    source, memory = model.sources["main"], memory_of(model, images_of())
    queries = source(memory)
    assert isinstance(source.content, RoIContent)
    pooled = source.content.pool(memory, queries.reference).flatten(2)
    torch.testing.assert_close(queries.content, source.content.norm(source.content.project(pooled)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MODEL.DETR.ASAG.TEST_LEVELS": 3}, r"ASAG.TEST_LEVELS is 3, must be in \[0, 2\]"),
        ({"MODEL.DETR.ASAG.SCORE_RANGE": [0.7, 0.1]}, r"SCORE_RANGE is \[0.7, 0.1\], must be in ascending order"),
        ({"MODEL.DETR.ASAG.SCORE_RANGE": ["a", "b"]}, r"SCORE_RANGE is \['a', 'b'\], must be a list of 2 numbers"),
        ({"MODEL.DETR.ASAG.SCORE_RANGE": [0.1]}, r"SCORE_RANGE is \[0.1\], must be a list of 2 numbers"),
        ({"MODEL.DETR.ASAG.TRAIN_PATCHES": 0}, "TRAIN_PATCHES is 0, must be at least 1"),
        ({"MODEL.DETR.QUERIES.CONTENT": "token"}, "CONTENT token needs queries from the encoder"),
        ({"MODEL.DETR.QUERIES.CONTENT": "proposal"}, "CONTENT proposal needs queries from the encoder"),
        ({"MODEL.DETR.QUERIES.CONTENT": "learned", "MODEL.DETR.QUERIES.AUGMENT": "box_dn"}, "contents from boxes"),
        ({"MODEL.DETR.QUERY_WEIGHTING.AREA_WEIGHT": 0.5}, "AREA_WEIGHT is 0.5, must be at least 1"),
        ({"MODEL.DETR.DECODER.QUERY_POSITION": "fixed"}, "QUERY_POSITION fixed needs queries with position"),
        (
            {"MODEL.RESNETS.OUT_FEATURES": ["res4", "res5"]},
            "reads levels of stride 8, 16, 32, but those of .*channel_mapper are 16, 32, 64, 128",
        ),
        (
            {"MODEL.DETR.DECODER.COPY_LAYERS": 3},
            "NUM_LAYERS is 3, must be that of the first layers, STEM_LAYERS 1, and",
        ),
        ({"MODEL.DETR.DECODER.TEST_LAYERS": 2}, "TEST_LAYERS is 2, but in a parallel decoder"),
        ({"MODEL.DETR.READ_OUT.LAYER": 4}, r"READ_OUT.LAYER is 4, must be in \[0, 3\]"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_model({**HOST, **options})


# ----------------------------------------------------------------------------------------------------------------------
# The decoder


class Shift(nn.Module):
    """A layer that adds its number to the content; also head and codec of the toy decoder below."""

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))

    def forward(self, state, memory):
        return state.with_content(state.content + self.number)


class Sum:
    """Boxes are their reference plus the content's first four channels."""

    def decode(self, delta, reference, grid):
        return reference + delta


def toy(stem, depth, count, read=None, training=True):
    decoder = ParallelDecoder(
        stem=stem,
        depth=depth,
        read=read,
        layers=[Shift(10**i) for i in range(count)],
        class_heads=[nn.Identity()],
        box_heads=[nn.Identity()],
        codec=Sum(),
        position=NoPosition(),
    ).train(training)
    memory = type("Memory", (), {"grid": None})
    return decoder, decoder(QuerySet(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)), memory)


def test_copies_stand_side_by_side_behind_the_first_layers():
    _, outputs = toy(stem=1, depth=2, count=5)
    # Layers add 1, 10, 100, 1000, 10000: the copies are (1, 2) and (3, 4), both behind layer 0.
    assert [o.content[0, 0, 0].item() for o in outputs] == [1, 11, 111, 1001, 11001]
    assert [o.boxes[0, 0, 0].item() for o in outputs] == [1, 12, 123, 1002, 12003]
    gradients = torch.autograd.grad(outputs[4].boxes.sum(), toy(1, 2, 5)[0].parameters(), allow_unused=True)
    assert all(g is None for g in gradients)  # another decoder's


def test_contents_carry_a_gradient_between_layers_and_boxes_none():
    decoder, outputs = toy(stem=1, depth=2, count=5)
    gradients = torch.autograd.grad(
        outputs[4].boxes.sum(), [layer.number for layer in decoder.layers], allow_unused=True
    )
    # Four channels of the content of layers 0, 3 and 4; through the boxes layer 0 would count three times.
    assert [None if g is None else g.item() for g in gradients] == [4, None, None, 4, 4]


@pytest.mark.parametrize(
    ("read", "kept"), [(None, [0, 3, 4]), (4, [0, 3, 4]), (3, [0, 3]), (2, [0, 1, 2]), (1, [0, 1]), (0, [0])]
)
def test_at_inference_only_the_copy_runs_that_is_read(read, kept):
    everything = toy(1, 2, 5)[1]
    decoder, outputs = toy(1, 2, 5, read, training=False)
    assert decoder.at_inference() == kept
    assert [o.content[0, 0, 0] for o in outputs] == [everything[i].content[0, 0, 0] for i in kept]


def test_every_copy_has_a_vector_of_its_own_and_the_first_layers_have_a_codec_of_theirs():
    model = make_model(HOST)
    decoder = model.routes["main"].decoder
    vectors = [i for layer in decoder.layers for i in layer.interactions if isinstance(i, CopyVector)]
    assert len(vectors) == 2 and all(isinstance(decoder.layers[i].interactions[0], CopyVector) for i in (1, 2))
    assert not torch.equal(vectors[0].vector, vectors[1].vector)
    assert type(decoder.stem_codec).__name__ == "XYZRCodec" and type(decoder.codec).__name__ == "LogitCodec"
    assert isinstance(decoder.layers[0], DecoderLayer)


def test_layers_that_are_not_copies_of_one_depth_are_refused():
    with pytest.raises(ValueError, match="4 layers are not 1 and copies of 2"):
        toy(1, 2, 4)


def test_the_source_is_built_from_its_keys():
    epochs = {"SOLVER.ITERS_PER_EPOCH": 2.0, "MODEL.DETR.ASAG.OBJECT_EPOCHS": 1.5}
    source = make_model({**HOST, **epochs}).sources["main"]
    assert isinstance(source, AdaptiveSparseAnchors)
    assert source.object_iterations == 3 and source.max_anchors == 60
    assert source.halve(torch.zeros(1, 4, 30, 30)).shape == (1, 4, 15, 15)
    assert source.fixed_head.last.out_features == 5 * 6 and source.probe_head.last.out_features == 5 * 5
    assert all((code.position == 0).all() for code in source.code)
