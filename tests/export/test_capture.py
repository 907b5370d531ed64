# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Every kind of detector as a graph of torch's own operators, which finds what the detector finds."""

import numpy as np
import pytest
import torch

from paq_detr.errors import UserError
from paq_detr.export.check import Tolerance, compare
from paq_detr.export.wrapper import DetectionProgram, Shape, capture, stride_of
from paq_detr.modeling.neck import measure_grid
from paq_detr.modeling.read_out import ReadOut
from paq_detr.ops.export_forms import FORMS
from paq_detr.structures import LayerOutput, Memory

from ..modeling.assemblies import ASSEMBLIES, make_model, wake_up
from .models import small_model

# Keys that inference does not read: assemblies that differ in them alone are captured once.
OF_TRAINING = (
    "ASSIGNER", "DDQ.DENSE", "DENOISING", "HYBRID", "LOSS", "MASK", "MATCHER", "MR.", "QUALITY_ASSIGNMENT",
    "QUERIES.ANCHOR_INIT", "QUERIES.AUGMENT", "QUERIES.CONTENT_INIT", "QUERIES.MATCH_ON_PRIORS", "QUERIES.SUPERVISE",
    "ROUTES", "SOFT_TARGET", "DECODER.LOOK_FORWARD_TWICE",
)  # fmt: skip
NEAR = Tolerance(5e-3, 1e-4)  # weights are random, and multiply what fp32 rounds off
EVERY_TIME = {
    "single_stage", "two_stage", "plusplus_patterns", "dehomo", "dab", "dab_deformable", "dino", "ddq",
    "no_positions_rcnn_delta", "sparse_rcnn", "adamixer", "asag_a",
}  # fmt: skip


def different_at_inference():
    """Assemblies, one of each kind: one of each system every time, the others with the slow tests."""
    kinds = {}
    for name, options in ASSEMBLIES.items():
        read = [
            item for item in sorted(options.items()) if not item[0].removeprefix("MODEL.DETR.").startswith(OF_TRAINING)
        ]
        kinds.setdefault(repr(read), name)
    assert EVERY_TIME <= set(kinds.values())
    return [name if name in EVERY_TIME else pytest.param(name, marks=pytest.mark.slow) for name in kinds.values()]


def arrays(batch, height, width, seed=0):
    return np.random.default_rng(seed).random((batch, 3, height, width), dtype=np.float32)


def runner(module):
    def run(*inputs):
        with torch.no_grad():
            return [tensor.numpy() for tensor in module(*map(torch.from_numpy, inputs))]

    return run


def captured(model, shape):
    return capture(DetectionProgram(model, half=shape.half), shape, FORMS["gridsample"])


@pytest.mark.parametrize("name", different_at_inference())
def test_every_kind_of_detector_is_captured_and_finds_the_same(name):
    model = small_model(name)
    program = captured(model, Shape((64, 96)))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("paq_detr" in target for target in targets)
    found = compare(model, runner(program.module()), [(arrays(1, 64, 96),)], NEAR)
    assert found.total > 0 and found.alone <= 3  # the classes of one query, which may stand at a threshold


@pytest.mark.parametrize(
    "name", ["dab", *(pytest.param(n, marks=pytest.mark.slow) for n in ("two_stage", "dehomo_paq", "asag_a"))]
)
def test_a_dynamic_program_takes_other_sizes_batches_and_padding(name):
    model = small_model(name)
    stride = stride_of(model)
    run = runner(captured(model, Shape((2 * stride, 3 * stride), dynamic=True)).module(check_guards=False))
    height, width = 3 * stride, 4 * stride
    images, sizes = arrays(3, height, width), np.array([[height, width], [height - 5, width // 2], [stride + 3, width]])
    together = run(images, sizes)
    for i in range(3):  # an image of a padded batch, on its own, and in the model itself
        alone = images[i : i + 1], sizes[i : i + 1]
        assert all(np.allclose(a[i], b[0], atol=2e-3) for a, b in zip(together[1:], run(*alone)[1:]))
        found = compare(model, run, [alone], NEAR)
        assert found.total > 0 and found.alone == 0


@pytest.mark.parametrize("by_stride", [True, False])
def test_image_sizes_as_data_give_the_same_geometry(by_stride):
    shapes, strides, sizes = [(8, 12), (4, 6), (2, 3)], [8, 16, 32], [(64, 96), (41, 70), (8, 9)]
    numbers, data = (
        measure_grid(shapes, strides, given, (64, 96), torch.device("cpu"), by_stride)
        for given in (sizes, torch.tensor(sizes))
    )
    for name in ("valid_shapes", "valid_ratios", "padding", "centers", "image_scale"):
        assert torch.equal(getattr(numbers, name), getattr(data, name))
    assert numbers.valid_shapes[1].tolist() == [[6, 9], [3, 5], [2, 3]]


def test_half_keeps_boxes_in_fp32_and_near():
    model = small_model("dab")
    program = captured(model, Shape((64, 96), half=True))
    weights = [tensor for name, tensor in program.state_dict.items() if name.endswith("weight")]
    assert weights and all(tensor.dtype == torch.float16 for tensor in weights)
    run = runner(program.module())
    assert run(arrays(1, 64, 96))[1].dtype == np.float32
    found = compare(model, run, [(arrays(1, 64, 96),)], Tolerance(5.0, 0.05))
    assert found.within() and found.box > 0


def test_suppression_leaves_what_the_models_own_leaves():
    model = small_model("parallel_xyzr")
    random = torch.Generator().manual_seed(0)
    boxes = torch.cat([0.3 + 0.4 * torch.rand(2, 40, 2, generator=random), torch.full((2, 40, 2), 0.5)], -1)
    valid = torch.arange(40) < torch.tensor([[40], [30]])
    output = LayerOutput(torch.randn(2, 40, 3, generator=random), boxes, valid=valid)
    memory = Memory(None, None, measure_grid([(4, 6)], [16], [(64, 96), (50, 80)], (64, 96), torch.device("cpu"), True))
    read_out = ReadOut(top_k=90, layer=1, nms_iou=0.7)
    model.routes["main"].read_out = read_out
    labels, boxes, scores = DetectionProgram(model).detections(output, memory)
    for image, expected in enumerate(read_out([output], memory)):
        found = scores[image] > 0
        assert 0 < found.sum() == len(expected) < 60 and (scores[image].diff() <= 0).all()
        expected.pred_boxes.clip(expected.image_size)
        assert torch.equal(labels[image][found], expected.pred_classes)
        torch.testing.assert_close(boxes[image][found], expected.pred_boxes.tensor)


def test_anchors_of_patches_in_half_are_near():
    model = small_model("asag_a")
    run = runner(DetectionProgram(model, half=True))
    found = compare(model, run, [(arrays(1, 64, 96),)], Tolerance(5.0, 0.05))
    assert found.total > 0 and found.alone == 0


def test_what_stands_in_the_padding_and_the_order_of_channels_are_seen_to():
    model = make_model(**{"INPUT.FORMAT": "BGR", "MODEL.PIXEL_MEAN": [10.0, 20.0, 30.0]}).eval()
    program = DetectionProgram(wake_up(model))
    images, sizes = torch.from_numpy(arrays(1, 64, 96)), torch.tensor([[40, 64]])
    other = images.clone()
    other[..., 40:, :] = 0.7
    other[..., 64:] = 0.3
    with torch.no_grad():
        first, second = program(images, sizes), program(other, sizes)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    found = compare(model, runner(program), [(images.numpy(),)], NEAR)
    assert found.total > 0 and found.alone == 0


def test_capturing_leaves_the_model_as_it_was():
    model = make_model(ASSEMBLIES["mr"]).eval()
    before = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    DetectionProgram(model, half=True)
    assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == before


class OtherReadOut(ReadOut):
    def __call__(self, outputs, memory, lowest_scores=None):
        return []


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda model: setattr(model.routes["main"], "read_out", OtherReadOut(5)), "the read-out OtherReadOut"),
        (lambda model: setattr(model.neck, "not_exported", "its neck counts by hand"), "its neck counts by hand"),
    ],
)
def test_a_model_that_cannot_be_exported_is_refused_in_one_sentence(change, sentence):
    model = make_model().eval()
    change(model)
    with pytest.raises(UserError, match=sentence):
        DetectionProgram(model)
