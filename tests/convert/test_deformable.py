# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
import torchvision
from detectron2.modeling import build_model

from paq_detr.convert import class_names_of, convert_if_foreign
from paq_detr.errors import UserError
from paq_detr.modeling.backbone import build_backbone

from .inverse import SMALL, config, deformable_names

VARIANTS = {
    "single_stage": ["DECODER.BOX_REFINE", False],
    "box_refinement": [],
    "two_stage": ["QUERIES.NAME", "EncoderTopN", "QUERIES.CONTENT", "proposal"],
}


@pytest.fixture(scope="module", params=VARIANTS)
def our_weights(request):
    """Of a small model of each variant; every tensor is different from every other."""
    weights = build_model(config(*SMALL, *VARIANTS[request.param])).state_dict()
    return {name: torch.randn_like(tensor) for name, tensor in weights.items()}


def test_original_repository_covers_every_parameter_exactly_once(our_weights):
    theirs = deformable_names(our_weights)
    assert not theirs.keys() & our_weights.keys()
    converted = convert_if_foreign(theirs).weights
    assert converted.keys() == our_weights.keys()
    assert all(torch.equal(converted[name], our_weights[name]) for name in converted)


def test_own_weights_stay_as_they_are(our_weights):
    conversion = convert_if_foreign(our_weights)
    converted = conversion.weights
    assert converted.keys() == our_weights.keys()
    assert all(converted[name] is our_weights[name] for name in converted)
    assert conversion.class_names is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_published_resnet50_models_fit_ours_completely(variant):
    """By names and shapes, as SenseTime published them for transformers: 91 classes, a backbone from timm."""
    cfg = config(*VARIANTS[variant], depth=50, class_names=map(str, range(91)))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        ours = {name: tensor.shape for name, tensor in build_model(cfg).state_dict().items()}
    published = published_shapes(with_box_refine=variant != "single_stage", two_stage=variant == "two_stage")
    conversion = convert_if_foreign(
        {name: torch.zeros(()).expand(shape) for name, shape in published.items()},
        {"id2label": {str(i): f"name {i}" for i in range(91)}},
    )
    assert {name: tensor.shape for name, tensor in conversion.weights.items()} == ours
    assert conversion.class_names == [f"name {i}" for i in range(91)]


def published_shapes(**options):
    """Of transformers' default model, under the names that its release 4 gave them, with a torchvision backbone."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (dev extra)")
    backbone = transformers.ResNetConfig(out_features=["stage2", "stage3", "stage4"])
    settings = transformers.DeformableDetrConfig(
        use_timm_backbone=False, backbone_config=backbone, num_labels=91, **options
    )
    with torch.device("meta"):
        model = transformers.DeformableDetrForObjectDetection(settings).state_dict()
        resnet = torchvision.models.resnet50().state_dict()
    shapes = {}
    for name, tensor in model.items():
        if ".backbone." not in name:
            name = name.replace("self_attn.o_proj", "self_attn.out_proj").replace(".mlp.fc", ".fc")
            shapes[name] = tensor.shape
    for name, tensor in resnet.items():
        if not name.startswith("fc."):
            shapes[f"model.backbone.conv_encoder.model.{name}"] = tensor.shape
    return shapes


@torch.no_grad()
def test_torchvision_resnet_computes_the_same_features():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 2)
    ours = build_backbone(config()).eval()
    weights = convert_if_foreign(theirs.state_dict()).weights
    ours.load_state_dict({name.removeprefix("backbone."): tensor for name, tensor in weights.items()}, strict=True)
    image = torch.randn(1, 3, 64, 80)
    x = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image)))))
    expected = theirs.layer4(theirs.layer3(theirs.layer2(x)))
    torch.testing.assert_close(ours(image)["res5"], expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def refined():
    """The heads and the first decoder layer of a model with box refinement, by the original names."""
    torch.manual_seed(0)
    weights = {
        "transformer.decoder.layers.0.cross_attn.sampling_offsets.weight": torch.randn(64, 8),
        "transformer.decoder.layers.1.cross_attn.sampling_offsets.weight": torch.randn(64, 8),
        "transformer.level_embed": torch.randn(4, 8),
    }
    for index in range(2):
        weights[f"class_embed.{index}.bias"] = torch.randn(3)
        weights[f"bbox_embed.{index}.layers.2.bias"] = torch.randn(4)
        weights[f"transformer.decoder.bbox_embed.{index}.layers.2.bias"] = weights[f"bbox_embed.{index}.layers.2.bias"]
    return weights


def test_names_that_are_not_understood_are_named(refined):
    extra = {f"transformer.tgt_embed.{i}": torch.zeros(1) for i in range(7)}
    with pytest.raises(UserError) as error:
        convert_if_foreign({**refined, **extra})
    assert str(error.value) == (
        "The weights look like those of the original Deformable-DETR repository, but 7 of 16 names are not understood: "
        "transformer.tgt_embed.0, transformer.tgt_embed.1, transformer.tgt_embed.2, transformer.tgt_embed.3, "
        "transformer.tgt_embed.4 and 2 more."
    )


def test_copies_of_a_head_that_differ_are_refused(refined):
    name = "transformer.decoder.bbox_embed.1.layers.2.bias"
    with pytest.raises(UserError, match=rf"two different tensors for .*box_heads\.1\.4\.bias, one of them {name}"):
        convert_if_foreign({**refined, name: torch.zeros(4)})


def test_query_table_of_another_width_is_refused(refined):
    with pytest.raises(UserError, match="query table has 8 columns, must have 16"):
        convert_if_foreign({**refined, "query_embed.weight": torch.zeros(5, 8)})


def test_head_that_is_tied_and_saved_once_is_given_to_every_layer(refined):
    tied = {name: tensor for name, tensor in refined.items() if name != "class_embed.1.bias"}
    converted = convert_if_foreign(tied).weights
    for layer in range(2):
        name = f"routes.main.decoder.class_heads.{layer}.bias"
        assert torch.equal(converted[name], refined["class_embed.0.bias"])


def test_separate_heads_are_kept_where_the_decoders_copies_were_not_saved(refined):
    saved = {name: tensor for name, tensor in refined.items() if "decoder.bbox_embed" not in name}
    converted = convert_if_foreign(saved).weights
    assert "routes.main.decoder.box_heads.1.4.bias" in converted


def test_class_names_come_in_the_order_of_their_ids():
    assert class_names_of({"id2label": {"10": "k", **{str(i): chr(97 + i) for i in range(10)}}}) == list("abcdefghijk")
    assert class_names_of({"id2label": {1: "b", 0: "a"}}) == ["a", "b"]
    assert class_names_of({}) is None


def test_class_ids_with_a_gap_are_refused():
    with pytest.raises(UserError, match=r"ids in id2label are \[0, 2\], they must run from 0 to 1"):
        class_names_of({"id2label": {"0": "a", "2": "b"}})
