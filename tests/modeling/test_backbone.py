# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch
from detectron2.config import get_cfg
from torch import nn

from paq_detr import add_paq_detr_config
from paq_detr.errors import UserError
from paq_detr.modeling.backbone import build_backbone
from paq_detr.modeling.neck import in_features
from paq_detr.modeling.simple_feature_pyramid import SimpleFeaturePyramid

from .assemblies import make_image, make_model

timm = pytest.importorskip("timm")


def timm_cfg(name, *options):
    cfg = get_cfg()
    add_paq_detr_config(cfg)
    cfg.merge_from_list(["MODEL.BACKBONE.NAME", "timm", "MODEL.TIMM.NAME", name, *options])
    return cfg


def make(name, *options):
    torch.manual_seed(0)
    return build_backbone(timm_cfg(name, *options))


def make_meta(name, *options):
    """Shapes without numbers, so that networks of any size cost no memory."""
    with torch.device("meta"):
        return build_backbone(timm_cfg(name, *options))


# The maps of a timm network by name: width and stride.
MAPS = {
    "resnet18": {"stride8": (128, 8), "stride16": (256, 16), "stride32": (512, 32)},
    "tf_efficientnet_lite0": {"stride8": (40, 8), "stride16": (112, 16), "stride32": (320, 32)},
    "convnext_atto": {"stride8": (80, 8), "stride16": (160, 16), "stride32": (320, 32)},
    "vgg11": {"stride8": (512, 8), "stride16": (512, 16), "stride32": (512, 32)},
    "swin_tiny_patch4_window7_224": {"stride8": (192, 8), "stride16": (384, 16), "stride32": (768, 32)},
    "vit_tiny_patch16_224": {"stride8": (256, 8), "stride16": (256, 16), "stride32": (256, 32)},
    "vit_small_patch14_dinov2": {"stride7": (256, 7), "stride14": (256, 14), "stride28": (256, 28)},
    "vit_small_patch16_dinov3": {"stride8": (256, 8), "stride16": (256, 16), "stride32": (256, 32)},
}


@pytest.mark.parametrize("name", MAPS)
def test_maps_have_the_told_width_and_cover_an_image_of_any_size(name):
    backbone = make_meta(name)
    assert {key: (spec.channels, spec.stride) for key, spec in backbone.output_shape().items()} == MAPS[name]
    maps = backbone(torch.zeros(2, 3, 97, 130, device="meta"))
    for key, (channels, stride) in MAPS[name].items():
        assert maps[key].shape == (2, channels, -(-97 // stride), -(-130 // stride))


def test_same_padding_does_not_depend_on_the_images_size():
    """The features of a picture's upper left stay where they are when columns are added."""
    backbone = make("tf_efficientnet_lite0").eval()
    image = torch.randn(1, 3, 128, 128)
    narrow, wide = backbone(image), backbone(nn.functional.pad(image, (0, 3)))
    torch.testing.assert_close(narrow["stride8"][..., :5, :5], wide["stride8"][..., :5, :5])


def test_swin_l_has_the_size_and_the_norms_of_the_detectors_that_use_it():
    """DINO's Swin-L backbone in its releases of four and of five scales."""
    backbone = make_meta("swin_large_patch4_window12_384", "MODEL.TIMM.OUT_INDICES", [0, 1, 2, 3])
    five_scales = sum(p.numel() for p in backbone.parameters())
    assert list(backbone.output_norms) == ["0", "1", "2", "3"]
    assert (five_scales, five_scales - 2 * 192) == (195_201_204, 195_200_820)
    assert list(make_meta("swin_tiny_patch4_window7_224").output_norms) == ["1", "2", "3"]


def test_swins_next_stage_reads_the_map_without_its_norm():
    backbone = make("swin_tiny_patch4_window7_224", "MODEL.TIMM.OUT_INDICES", [0, 1])
    image = torch.randn(1, 3, 32, 32)
    before = backbone(image)
    with torch.no_grad():
        backbone.output_norms["0"].weight.mul_(2)
    after = backbone(image)
    torch.testing.assert_close(after["stride4"], 2 * before["stride4"])
    assert torch.equal(after["stride8"], before["stride8"])


def frozen_parts(backbone):
    return {".".join(name.split(".")[1:3]) for name, p in backbone.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("name", "freeze_at", "frozen"),
    [
        ("resnet18", 0, set()),
        ("resnet18", 1, {"conv1.weight"}),
        ("resnet18", 2, {"conv1.weight", "layer1.0", "layer1.1"}),
        ("tf_efficientnet_lite0", 3, {"conv_stem.weight", "blocks.0", "blocks.1"}),
        ("vit_tiny_patch16_224", 2, {"cls_token", "pos_embed", "patch_embed.proj", "blocks.0"}),
        ("swin_tiny_patch4_window7_224", 2, {"patch_embed.proj", "patch_embed.norm", "layers.0"}),
    ],
)
def test_freezing_begins_at_the_stem(name, freeze_at, frozen):
    backbone = make_meta(name, "MODEL.TIMM.FREEZE_AT", freeze_at)
    assert frozen_parts(backbone) == frozen


def test_batch_norms_of_frozen_stages_keep_their_statistics():
    backbone = make("resnet18", "MODEL.TIMM.FREEZE_AT", 2).train()
    before = {name: b.clone() for name, b in backbone.named_buffers() if "running" in name}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {name for name, b in backbone.named_buffers() if "running" in name and not torch.equal(b, before[name])}
    assert {name.split(".")[1] for name in changed} == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])  # plain batch norms, and those with activation
@pytest.mark.parametrize(("norm", "affine"), [("FrozenBN", False), ("FrozenStatsBN", True)])
def test_frozen_statistics_compute_as_the_batch_norm_at_inference(name, norm, affine):
    image = torch.randn(2, 3, 64, 64)
    plain, frozen = make(name).eval(), make(name, "MODEL.TIMM.NORM", norm).train()
    generator = torch.Generator().manual_seed(1)
    weights = {
        key: torch.rand(value.shape, generator=generator) + 0.5 if "running" in key else value
        for key, value in plain.state_dict().items()
    }
    plain.load_state_dict(weights)
    frozen.load_state_dict({key: weights[key] for key in frozen.state_dict()})
    for _ in range(2):
        for expected, found in zip(plain(image).values(), frozen(image).values()):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    trained = dict(frozen.named_parameters())
    assert ("body.bn1.weight" in trained) == affine


def test_a_pyramid_has_the_maps_of_its_scales():
    pyramid = SimpleFeaturePyramid(32, 8, (4.0, 2.0, 1.0, 0.5))
    assert [tuple(x.shape) for x in pyramid(torch.randn(1, 32, 4, 6))] == [
        *((1, 8, 16, 24), (1, 8, 8, 12), (1, 8, 4, 6), (1, 8, 2, 3)),
    ]


def test_group_norm_replaces_every_batch_norm_and_keeps_the_activation():
    backbone = make("tf_efficientnet_lite0", "MODEL.TIMM.NORM", "GN")
    assert not [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert isinstance(backbone.body.bn1, nn.GroupNorm) and isinstance(backbone.body.bn1.act, nn.ReLU6)


def test_drop_path_reaches_the_last_block_and_no_other_key_sets_it():
    def rates(*options):
        backbone = make_meta("swin_tiny_patch4_window7_224", *options)
        return [
            m.drop_prob
            for name, m in backbone.named_modules()
            if name.endswith("drop_path1") and hasattr(m, "drop_prob")
        ]

    assert max(rates("MODEL.TIMM.DROP_PATH", 0.2)) == pytest.approx(0.2)
    assert not any(rates())


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("resnet18", "layer1.0"),
        ("tf_efficientnet_lite0", "blocks.0.0"),
        ("vit_tiny_patch16_224", "blocks.0"),
        ("convnext_atto", "stages.0.blocks.0"),
        ("swin_tiny_patch4_window7_224", "layers.0.blocks.0"),
    ],
)
def test_checkpointing_runs_the_blocks_again_in_the_backward_pass(name, block):
    backbone = make(name, "MODEL.TIMM.CHECKPOINT", True)
    calls = []
    backbone.body.get_submodule(block).register_forward_pre_hook(lambda *_: calls.append(1))
    sum(x.sum() for x in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt18", (), '"resnt18", which timm .* does not have; perhaps resnet18'),
        ("hiera_tiny_224", (), "hiera_tiny_224 cannot take images of any size: "),
        (
            "resnet18",
            ("MODEL.TIMM.OUT_INDICES", [7]),
            r"OUT_INDICES is \[7\]; the network's maps are 0 \(stride 2\), 1",
        ),
        ("resnet18", ("MODEL.TIMM.OUT_INDICES", [3, 2]), r"OUT_INDICES is \[3, 2\], must have ascending strides"),
        ("vit_tiny_patch16_224", ("MODEL.TIMM.OUT_INDICES", [1, 2]), "all its maps have stride 16: name one"),
        ("vit_tiny_patch16_224", ("MODEL.TIMM.PYRAMID_SCALES", [1.0, 2.0]), r"PYRAMID_SCALES is \[1.0, 2.0\], must be"),
        ("vit_small_patch14_dinov2", ("MODEL.TIMM.PYRAMID_SCALES", [4.0]), "no whole stride of the ViT's 14"),
        ("resnet18", ("MODEL.TIMM.NORM", "XX"), 'MODEL.TIMM.NORM is "XX", must be one of'),
        ("convnext_atto", ("MODEL.TIMM.NORM", "FrozenBN"), "convnext_atto has no batch norms; leave it empty"),
        ("vgg11", ("MODEL.TIMM.DROP_PATH", 0.1), "vgg11 has no drop path"),
        ("resnet18", ("MODEL.TIMM.FREEZE_AT", -1), "MODEL.TIMM.FREEZE_AT is -1, must be at least 0"),
    ],
)
def test_what_does_not_fit_is_said_with_its_key(name, options, message):
    with pytest.raises(UserError, match=message):
        make_meta(name, *options)


@pytest.fixture
def hub(monkeypatch):
    """The names that timm's hub was asked for; it has all but resnet34."""
    asked, create = [], timm.create_model

    def create_model(name, pretrained, **options):
        if pretrained:
            asked.append(name)
            if name == "resnet34":
                raise ConnectionError("no route to the hub")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    return asked


def test_the_hub_is_asked_only_where_no_weights_are_named(hub):
    make_meta("resnet18", "MODEL.TIMM.PRETRAINED", True, "MODEL.WEIGHTS", "model_final.pth")
    assert not hub
    make_meta("resnet18", "MODEL.TIMM.PRETRAINED", True)
    assert set(hub) == {"resnet18"}


def test_a_hub_out_of_reach_is_one_sentence(hub):
    with pytest.raises(UserError, match=r"weights of resnet34 could not be fetched \(ConnectionError: no route"):
        make_meta("resnet34", "MODEL.TIMM.PRETRAINED", True)


def test_other_pixel_statistics_than_the_hubs_are_said(hub, caplog):
    make_meta("resnet18", "MODEL.TIMM.PRETRAINED", True)
    assert "MODEL.PIXEL" not in caplog.text
    make_meta("tf_efficientnet_lite0", "MODEL.TIMM.PRETRAINED", True)
    assert "MODEL.PIXEL_MEAN is [123.675, 116.28, 103.53], but timm trained tf_efficientnet_lite0 with" in caplog.text


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_a_detector_trains_on_it_with_images_of_two_odd_sizes(name):
    model = make_model({"MODEL.BACKBONE.NAME": "timm", "MODEL.TIMM.NAME": name})
    images = [make_image(61, 93, [[5, 5, 40, 40]], [1]), make_image(50, 101, [[9, 9, 30, 45]], [2])]
    losses = model(images)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad)
    assert model.neck.strides == [8, 16, 32, 64]


def test_without_timm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "paq_detr.modeling.timm_backbone", raising=False)
    with pytest.raises(UserError, match="needs the package timm: pip install timm"):
        make_meta("resnet18")


def test_the_neck_reads_all_maps_finest_first_or_those_that_are_named():
    shapes = make_meta("resnet18", "MODEL.TIMM.OUT_INDICES", [1, 2, 3]).output_shape()
    assert in_features([], dict(reversed(shapes.items()))) == ["stride4", "stride8", "stride16"]
    assert in_features(["stride16", "stride8"], shapes) == ["stride8", "stride16"]
    with pytest.raises(
        UserError, match="IN_FEATURES names res3, but the backbone's maps are stride4, stride8, stride16"
    ):
        in_features(["res3"], shapes)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("vit_tiny_patch16_224", {"pos_embed": 0, "blocks.0.attn.qkv.weight": 1, "blocks.11.mlp.fc2.bias": 12}),
        (
            "swin_tiny_patch4_window7_224",
            {
                "patch_embed.proj.weight": 0,
                "layers.0.blocks.1.norm1.weight": 2,
                "layers.1.downsample.reduction.weight": 3,
                "layers.1.blocks.0.attn.relative_position_bias_table": 3,
                "layers.3.blocks.1.mlp.fc2.bias": 12,
            },
        ),
    ],
)
def test_layers_are_numbered_by_block_from_the_patch_embedding(name, numbers):
    ids, last = make_meta(name).layer_ids()
    assert last == 12
    assert {key: ids[f"body.{key}"] for key in numbers} == numbers


def test_keys_of_a_resnet_that_do_not_fit_each_other_are_one_sentence():
    cfg = timm_cfg("", "MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", "18")
    with pytest.raises(UserError, match="build_resnet_backbone cannot be built: Must set MODEL.RESNETS.RES2_OUT_CH"):
        build_backbone(cfg)
