# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Position codes made from boxes, and the decoder rules of DAB-DETR and DINO that go with them.

Numbers were computed by hand from the published formulas.
"""

import pytest
import torch
from torch import nn

from paq_detr.layers import inverse_sigmoid
from paq_detr.modeling.codec import LogitCodec
from paq_detr.modeling.positions import SinePosition, sine_yxwh_code
from paq_detr.modeling.proposals import taken
from paq_detr.modeling.queries import LearnedAnchors
from paq_detr.structures import DecoderState, Grid, LayerOutput, Memory, stack_instances

from .assemblies import DAB_DEFORMABLE, DINO, make_image, make_model, memory_of, predictions_of, wake_up

IMAGES = [
    make_image(64, 96, [[4, 4, 30, 40], [20, 10, 60, 60]], [0, 2]),
    make_image(48, 64, [[10, 10, 30, 30]], [1], seed=1),
]
BOX = torch.tensor([[[0.25, 0.5, 0.1, 0.2]]])


def test_the_code_of_a_box_is_y_x_width_height():
    code = sine_yxwh_code(BOX, 128)[0, 0]
    assert code[0:4].tolist() == pytest.approx([0, -1, 0.408751, -0.912646], abs=1e-5)
    assert code[128:132].tolist() == pytest.approx([1, 0, 0.977918, 0.208991], abs=1e-5)
    assert code[256:260].tolist() == pytest.approx([0.587785, 0.809017, 0.517650, 0.855593], abs=1e-5)
    assert code[384:388].tolist() == pytest.approx([0.951057, 0.309017, 0.885794, 0.464078], abs=1e-5)
    assert code.sum().item() == pytest.approx(271.3591, abs=1e-3)


def identity_position(**options):
    """A position whose MLP hands the code through."""
    position = SinePosition(256, **options)
    position.mlp = nn.Sequential(nn.Identity())
    position.mlp[0].in_features = 512
    return position


def half_padded_memory():
    """A batch whose image fills half the width and 0.8 of the height of the finest level."""
    grid = Grid([(10, 10), (5, 5)], [8, 16], [(64, 40)], (80, 80), [[(8, 5), (4, 3)]])
    return Memory(torch.zeros(1, 125, 256), torch.zeros(1, 125, 256), grid)


def state_of(content, reference, layers=0):
    nothing = LayerOutput(torch.zeros(1, 1, 1), reference)
    return DecoderState(content, reference, None, None, None, history=(nothing,) * layers)


@pytest.mark.parametrize("scaled, first, second", [(True, 0.587785, 0.707107), (False, 0.0, 1.0)])
def test_boxes_are_coded_as_shares_of_the_padded_batch_where_asked(scaled, first, second):
    position = identity_position(scale_by_valid_ratio=scaled)
    code = position(state_of(torch.zeros(1, 1, 256), BOX), half_padded_memory())[0, 0]
    assert code[0].item() == pytest.approx(first, abs=1e-5) and code[128].item() == pytest.approx(second, abs=1e-5)


def test_the_content_scales_the_position_from_the_second_layer_on():
    torch.manual_seed(0)
    position, content, memory = SinePosition(256, content_scale=True), torch.randn(1, 1, 256), half_padded_memory()
    first = position(state_of(content, BOX), memory)
    second = position(state_of(content, BOX, layers=1), memory)
    torch.testing.assert_close(first, position.mlp(sine_yxwh_code(BOX, 128)))
    torch.testing.assert_close(second, first * position.content_scale(content))


@pytest.mark.parametrize(
    "value, eps, logit, back",
    [
        (0.0, 1e-3, -6.907755, 0.000999001),
        (0.0005, 1e-3, -6.907255, 0.000999500),
        (1.0, 1e-3, 6.907755, 0.999000999),
        (0.0, 1e-5, -11.512925, 9.9999e-6),
        (0.0005, 1e-5, -7.600402, 0.0005),
    ],
)
def test_the_published_logit_keeps_argument_and_complement_above_its_eps(value, eps, logit, back):
    found = inverse_sigmoid(torch.tensor(value, dtype=torch.float64), eps)
    assert found.item() == pytest.approx(logit, abs=1e-5) and found.sigmoid().item() == pytest.approx(back, rel=1e-4)


def test_no_reference_smaller_than_the_eps_survives_a_layer():
    delta, reference = torch.tensor([[[0.2, -0.1, 0.3, 0.0]]]), torch.tensor([[[0.5, 0.25, 0.1, 0.0004]]])
    once = LogitCodec(1e-3).decode(delta, reference)
    torch.testing.assert_close(once, torch.tensor([[[0.549834, 0.231722, 0.130423, 0.0009994]]]), atol=1e-6, rtol=1e-5)
    twice = LogitCodec(1e-3).decode(delta, once)
    torch.testing.assert_close(twice, torch.tensor([[[0.598688, 0.214399, 0.168370, 0.001]]]), atol=1e-6, rtol=1e-5)
    kept = LogitCodec(1e-5).decode(delta, reference)
    assert kept[0, 0, 3].item() == pytest.approx(0.0004, rel=1e-4)


@pytest.mark.parametrize("init", LearnedAnchors.INITS)
def test_how_anchors_start(init):
    torch.manual_seed(0)
    logits = LearnedAnchors.INITS[init](20_000)
    boxes = logits.sigmoid()
    if init == "normal":
        assert logits.std(0).tolist() == pytest.approx([1.0] * 4, abs=0.03)
        assert ((boxes > 0.25) & (boxes < 0.75)).float().mean() == pytest.approx(0.73, abs=0.01)
    elif init == "uniform":
        assert boxes.std(0).tolist() == pytest.approx([0.286] * 4, abs=0.01)  # of U(0, 1), clipped
        assert boxes.min() == pytest.approx(0.0474, abs=1e-4) and boxes.max() == pytest.approx(0.9526, abs=1e-4)
    else:
        assert boxes[:, :2].std(0).tolist() == pytest.approx([0.289] * 2, abs=0.01)
        assert logits[:, 2:].std(0).tolist() == pytest.approx([1.0] * 2, abs=0.03)


def awake_dino(**options):
    """A DINO whose output norm is no identity on normed contents: at the start, nothing could tell the two rules."""
    model = wake_up(make_model({**DINO, **options}))
    norm = model.routes["main"].decoder.output_norm
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, 0.5)
    return model


def test_dinos_decoder_is_the_published_loop():
    """Prediction: from the normed state, relative to the undetached box before; next reference: from the raw state."""
    model = awake_dino()
    memory, decoder = memory_of(model, IMAGES), model.routes["main"].decoder
    queries = model.sources["main"](memory)
    outputs = decoder(queries, memory)
    content, anchor, start = queries.content, queries.reference, queries.reference
    heads = decoder.class_heads[0], decoder.box_heads[0]
    for number, (layer, output) in enumerate(zip(decoder.layers, outputs)):
        position = decoder.position.mlp(sine_yxwh_code(anchor, 32))
        content = layer(DecoderState(content, anchor, position, queries.valid, queries.valid), memory).content
        normed = decoder.output_norm(content)
        box = (heads[1](normed) + inverse_sigmoid(start, 1e-3)).sigmoid()
        torch.testing.assert_close(output.boxes, box)
        torch.testing.assert_close(output.logits, heads[0](normed))
        start = (heads[1](content) + inverse_sigmoid(anchor, 1e-3)).sigmoid()
        assert number == len(outputs) - 1 or not torch.allclose(start, box, atol=1e-4)
        anchor = start.detach()


@pytest.mark.parametrize("shared", [True, False])
def test_which_head_learns_from_which_layers_boxes(shared):
    """With look-forward-twice, layer l's loss reaches the heads of l and of l - 1, and no earlier ones."""
    model = awake_dino(**{"MODEL.DETR.DECODER.SHARED_HEADS": shared})
    memory, decoder = memory_of(model, IMAGES), model.routes["main"].decoder
    outputs = decoder(model.sources["main"](memory), memory)
    outputs[2].boxes.sum().backward()
    learns = [head.last.weight.grad is not None for head in decoder.box_heads]
    assert learns == ([True] if shared else [False, True, True])
    assert all(head.weight.grad is None for head in decoder.class_heads)
    assert decoder.output_norm.weight.grad is not None


def test_only_the_selected_proposals_are_supervised_with_their_real_classes():
    model = awake_dino()
    targets = None
    memory, source = memory_of(model, IMAGES), model.sources["main"]
    proposals = source.propose(memory)
    best = proposals.logits.amax(-1).masked_fill(~proposals.valid, -torch.inf).topk(12, dim=1)
    torch.manual_seed(0)
    queries = source(memory, targets)
    (encoder,) = queries.predictions
    wanted = taken(proposals, best.indices, best.values > -torch.inf)
    torch.testing.assert_close(encoder.output.logits, wanted.logits)
    torch.testing.assert_close(encoder.output.boxes, wanted.boxes)
    assert encoder.output.boxes.requires_grad and not queries.reference.requires_grad
    assert encoder.objective.view is None  # labels are seen as they are


def test_dinos_losses_are_thirty_nine():
    """At six layers: three for each layer's queries, as many for its denoising ones, three for the proposals."""
    losses = make_model({**DINO, "MODEL.DETR.DECODER.NUM_LAYERS": 6})(IMAGES)
    assert len(losses) == 39


def test_dabs_predictions_start_at_the_detached_box():
    model = wake_up(make_model(DAB_DEFORMABLE))
    memory, decoder = memory_of(model, IMAGES), model.routes["main"].decoder
    outputs = decoder(model.sources["main"](memory), memory)
    outputs[1].boxes.sum().backward()
    assert [head.last.weight.grad is not None for head in decoder.box_heads] == [False, True, False]


def test_contents_from_tokens_are_the_chosen_ones_detached():
    model = wake_up(make_model({**DINO, "MODEL.DETR.QUERIES.CONTENT": "token", "MODEL.DETR.QUERIES.AUGMENT": "none"}))
    memory, source = memory_of(model, IMAGES), model.sources["main"]
    proposals = source.propose(memory)
    index, usable = source.best(proposals, 12)
    content = source(memory).content
    torch.testing.assert_close(content, source.project_norm(source.project(memory.tokens)).gather(
        1, index[..., None].expand(-1, -1, 64)
    ))  # fmt: skip
    assert not content.requires_grad


def test_denoising_is_supervised_like_its_layer_and_never_reassigned():
    assignment = {"MODEL.DETR.ASSIGNER.INTERMEDIATE": "quality_count", "MODEL.DETR.LOSS.CLASSIFICATION": "varifocal"}
    model = awake_dino(**assignment)
    targets = stack_instances([x["instances"] for x in IMAGES], [(64, 96), (48, 64)], torch.device("cpu"))
    predictions = predictions_of(model, IMAGES, targets)
    for layer in ("layer1", "layer2", "final"):
        denoised, matched = predictions[f"dn_{layer}"], predictions[layer]
        assert denoised.pairs is not None and matched.pairs is None
        assert denoised.objective.classification is matched.objective.classification
