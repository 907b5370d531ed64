# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Our deformable attention in place of other libraries': transformers' models, whole and by layer, and mmcv's call."""

import copy

import pytest
import torch

from paq_detr import ops
from paq_detr.ops import drop_in

LEVELS = [(6, 8), (3, 4), (2, 2)]
TOKENS = sum(height * width for height, width in LEVELS)


@pytest.fixture
def calls(monkeypatch):
    """How often ours ran in place of the other one."""
    seen = []
    real = drop_in.ms_deform_attn
    monkeypatch.setattr(drop_in, "ms_deform_attn", lambda *inputs: seen.append(1) or real(*inputs))
    return seen


def inputs_of(points=(2, 2, 2), batch=2, queries=5, heads=2):
    """Value, (B, Q, H, sum of points, 2) locations, some of them outside of the maps, and weights."""
    torch.manual_seed(0)
    value = torch.randn(batch, TOKENS, heads, 4, requires_grad=True)
    locations = torch.rand(batch, queries, heads, sum(points), 2) * 1.4 - 0.2
    weights = torch.rand(batch, queries, heads, sum(points)).softmax(-1)
    return value, locations.requires_grad_(), weights.requires_grad_()


# ---------------------------------------------------------------------------------------------------------------
# transformers


def resnet(*stages):
    return {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 24], "depths": [1] * 4, "layer_type": "basic",
            "out_features": [f"stage{stage}" for stage in stages]}  # fmt: skip


def sizes():
    """What nearly all configs share, at their least."""
    return {"d_model": 32, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "decoder_layers": 2, "num_queries": 10,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2}  # fmt: skip


def deformable_detr(t):
    backbone = t.ResNetConfig(**resnet(2, 3, 4))
    own = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "encoder_layers": 1}
    own |= {"two_stage": True, "with_box_refine": True, "two_stage_num_proposals": 10}
    config = t.DeformableDetrConfig(backbone_config=backbone, **own, **sizes())
    return t.DeformableDetrForObjectDetection(config)


def grounding_dino(t):
    text = t.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=99)
    config = t.GroundingDinoConfig(backbone_config=t.ResNetConfig(**resnet(2, 3, 4)), text_config=text, **sizes())
    return t.GroundingDinoForObjectDetection(config)


def rt_detr(t, name="RTDetr", **own):
    backbone = t.RTDetrResNetConfig(**resnet(2, 3, 4))
    own |= {"encoder_hidden_dim": 32, "encoder_in_channels": [16, 16, 24], "decoder_in_channels": [32] * 3}
    config = getattr(t, f"{name}Config")(backbone_config=backbone, num_denoising=0, **own, **sizes())
    return getattr(t, f"{name}ForObjectDetection")(config)


def mask2former(t):
    own = {name: 32 for name in ("hidden_dim", "feature_size", "mask_feature_size", "dim_feedforward")}
    own |= {"encoder_feedforward_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2}
    config = t.Mask2FormerConfig(backbone_config=t.ResNetConfig(**resnet(1, 2, 3, 4)), num_queries=10, **own)
    return t.Mask2FormerForUniversalSegmentation(config)


def oneformer(t):
    own = {name: 32 for name in ("conv_dim", "mask_dim", "hidden_dim", "dim_feedforward", "encoder_feedforward_dim")}
    own |= {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 10, "is_training": False}
    own |= {"text_encoder_width": 32, "text_encoder_num_layers": 1, "task_seq_len": 4}
    swin = t.SwinConfig(embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=4,
                        out_features=["stage1", "stage2", "stage3", "stage4"])  # fmt: skip
    return t.OneFormerForUniversalSegmentation(t.OneFormerConfig(backbone_config=swin, **own))


MODELS = {
    "deformable_detr": deformable_detr,
    "grounding_dino": grounding_dino,
    "rt_detr": rt_detr,
    "rt_detr_v2": lambda t: rt_detr(t, "RTDetrV2"),
    "d_fine": lambda t: rt_detr(t, "DFine", decoder_n_points=[3, 6, 3]),
    "mask2former": mask2former,
    "oneformer": oneformer,
}
MORE_INPUTS = {
    "grounding_dino": {"input_ids": torch.tensor([[98, 5, 6, 97]]), "attention_mask": torch.ones(1, 4).long()},
    "oneformer": {"task_inputs": torch.tensor([[1, 2, 3, 4]])},
}


def random_model(name):
    """As initialised, offsets and weights do not depend on the image, and points lie at kinks between tokens."""
    torch.manual_seed(0)
    model = MODELS[name](pytest.importorskip("transformers")).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_patched_model_of_transformers_gives_the_same(name, calls):
    model, pixels = random_model(name), torch.rand(1, 3, 96, 128)
    with torch.no_grad():
        expected = model(pixel_values=pixels, **MORE_INPUTS.get(name, {}))
        with ops.patch_transformers() as patch:
            assert name in patch.models
            found = model(pixel_values=pixels, **MORE_INPUTS.get(name, {}))
        patched = len(calls)
        model(pixel_values=pixels, **MORE_INPUTS.get(name, {}))
    assert patched and len(calls) == patched, "patched it runs ours, afterwards no more"
    for key, tensor in expected.items():
        if isinstance(tensor, torch.Tensor):
            torch.testing.assert_close(
                found[key], tensor, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_gradients_of_a_patched_model_are_the_same():
    model, pixels = random_model("deformable_detr"), torch.rand(1, 3, 96, 128)

    def gradients():
        model.zero_grad()
        model(pixel_values=pixels).pred_boxes.square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    with ops.patch_transformers():
        found = gradients()
    assert any("sampling_offsets" in name for name in expected)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


def test_every_form_of_sampling_in_transformers_gives_the_same_patched(calls):
    pytest.importorskip("transformers")
    modules = drop_in._transformers_modules()
    assert len(modules) >= 5

    def samples(module):
        out = []
        if layer := getattr(module, drop_in._LAYER, None):
            value, locations, weights = inputs_of()
            shapes = torch.tensor(LEVELS)
            starts = torch.tensor([0, 48, 60])
            parted = locations.unflatten(3, (3, 2)), weights.unflatten(3, (3, 2))
            out.append(layer()(value, shapes, LEVELS, starts, *parted, 64))
        if function := getattr(module, drop_in._FUNCTION, None):
            value, locations, weights = inputs_of()
            parted = locations.unflatten(3, (3, 2)), weights.unflatten(3, (3, 2))
            out += [function(value, shapes, *parted) for shapes in (LEVELS, torch.tensor(LEVELS))]
        if function := getattr(module, drop_in._RAGGED, None):
            for points in ([2, 2, 2], [1, 3, 2]):
                value, locations, weights = inputs_of(points)
                out.append(function(value, LEVELS, locations, weights, points))
        return out

    for module in modules:
        expected = samples(module)
        assert expected and not calls, module.__name__
        with ops.patch_transformers():
            found = samples(module)
        assert len(calls) >= len(found), module.__name__
        calls.clear()
        torch.testing.assert_close(found, expected, msg=lambda text, module=module: f"{module.__name__}: {text}")


def test_the_discrete_form_stays_theirs(calls):
    rt_detr_v2 = pytest.importorskip("transformers.models.rt_detr_v2.modeling_rt_detr_v2")
    value, locations, weights = inputs_of()
    arguments = (value, LEVELS, locations.clamp(0, 1), weights, [2, 2, 2], "discrete")
    expected = rt_detr_v2.multi_scale_deformable_attention_v2(*arguments)
    with ops.patch_transformers():
        found = rt_detr_v2.multi_scale_deformable_attention_v2(*arguments)
    assert not calls
    torch.testing.assert_close(found, expected)


def test_layers_that_keep_the_function_are_theirs_after_the_undo_however_old_they_are():
    transformers = pytest.importorskip("transformers")
    from transformers.models.d_fine import modeling_d_fine as module

    config, theirs = transformers.DFineConfig(), module.multi_scale_deformable_attention_v2
    before = module.DFineMultiscaleDeformableAttention(config)
    with ops.patch_transformers():
        within = module.DFineMultiscaleDeformableAttention(config)
        for layer in (before, within, copy.deepcopy(before)):
            assert layer.ms_deformable_attn_core is not theirs
    for layer in (before, within):
        assert layer.ms_deformable_attn_core is theirs
    assert module.multi_scale_deformable_attention_v2 is theirs


def test_patching_twice_gives_the_same_handle_and_undoing_twice_does_no_harm():
    pytest.importorskip("transformers")
    first = ops.patch_transformers()
    try:
        assert ops.patch_transformers() is first and "deformable_detr" in repr(first)
    finally:
        first.undo()
    with ops.patch_transformers() as second:
        first.undo()
        assert ops.patch_transformers() is second is not first


# ---------------------------------------------------------------------------------------------------------------
# mmcv's call


@pytest.mark.parametrize("shapes", [torch.tensor(LEVELS), LEVELS])
def test_the_call_of_mmcv_is_the_classical_operator(shapes):
    value, locations, weights = inputs_of()
    locations, weights = locations.unflatten(3, (3, 2)), weights.unflatten(3, (3, 2))
    out = ops.MultiScaleDeformableAttnFunction.apply(value, shapes, torch.tensor([0, 48, 60]), locations, weights, 64)
    torch.testing.assert_close(out, ops.ms_deform_attn(value, LEVELS, locations, weights))
    assert len(torch.autograd.grad(out.sum(), (value, locations, weights))) == 3


def test_first_tokens_that_do_not_follow_from_the_sizes_are_refused():
    value, locations, weights = inputs_of()
    wrong = torch.tensor([0, 60, 48])
    with pytest.raises(ValueError, match=r"value_level_start_index is \[0, 60, 48\], expected \[0, 48, 60\]"):
        ops.MultiScaleDeformableAttnFunction.apply(value, torch.tensor(LEVELS), wrong, locations, weights, 64)


@pytest.mark.gpu
def test_sizes_on_a_gpu_are_read_once_and_again_when_they_change():
    sizes = torch.tensor(LEVELS, device="cuda")
    numbers = drop_in._numbers(sizes)
    assert drop_in._numbers(sizes) is numbers
    sizes += 1
    assert drop_in._numbers(sizes) == [[height + 1, width + 1] for height, width in LEVELS]
