# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import argparse
import io
import pathlib
import tarfile
import zipfile

import pytest
import torch
import torchvision
from torch import nn

from paq_detr.convert import LAYOUTS
from paq_detr.convert.files import read_weights, strip_wrappers
from paq_detr.engine import DetrCheckpointer, UserError


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), nn.Linear(3, 2)


PREFIXES = [
    "",
    "module.",
    "model.",
    "_orig_mod.",
    "module.module.",
    "module.model.",
    "model.module.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model._orig_mod.module.",
    "module.model.module.",
    "model.model.",
    "net.",
    "model.net.",
]


@pytest.mark.parametrize("container", ["model", "state_dict", "model_state_dict", None])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_wrappers_names_are_stripped(tmp_path, prefix, container):
    trained, fresh = Net(), Net()
    weights = {prefix + name: tensor for name, tensor in trained.state_dict().items()}
    torch.save({container: weights, "epoch": 3} if container else weights, tmp_path / "w.pth")
    checkpointer = DetrCheckpointer(fresh)
    checkpointer.load(str(tmp_path / "w.pth"))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in fresh.state_dict().items())
    assert len(checkpointer.report.loaded) == len(weights) and not checkpointer.report.unexpected


@pytest.mark.parametrize(
    "contain",
    [
        lambda weights: {"ema": {"module": weights, "updates": 3}, "last_epoch": 3},
        lambda weights: {"model_ema": weights, "epoch": 3},
        lambda weights: {"ema_state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}},
        lambda weights: {"model": {"module": weights}},
        lambda weights: {"model": weights, "ema": {"module": {name: 0 * tensor for name, tensor in weights.items()}}},
    ],
    ids=["ema.module", "model_ema", "ema_state_dict", "model.module", "model beside ema"],
)
def test_weights_are_found_in_the_containers_of_other_code(tmp_path, contain):
    trained, fresh = Net(), Net()
    torch.save(contain(trained.state_dict()), tmp_path / "w.pth")
    DetrCheckpointer(fresh).load(str(tmp_path / "w.pth"))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in fresh.state_dict().items())


@pytest.mark.parametrize("change", [lambda t: t.to("meta"), lambda t: t.to(torch.complex64)], ids=["meta", "complex"])
def test_tensors_without_numbers_of_their_own_are_refused(tmp_path, change):
    torch.save({name: change(tensor) for name, tensor in Net().state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="w.pth is no dict of named tensors: its 'body.0.weight' is none"):
        DetrCheckpointer(Net()).load(str(tmp_path / "w.pth"))


def test_real_wrappers_are_stripped(tmp_path):
    class Lightning(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.loss = nn.DataParallel(torch.compile(Net())), nn.BatchNorm1d(1)

    wrapped, fresh = Lightning(), Net()
    torch.save({"state_dict": wrapped.state_dict()}, tmp_path / "w.pth")
    checkpointer = DetrCheckpointer(fresh)
    checkpointer.load(str(tmp_path / "w.pth"))
    assert torch.equal(fresh.head.weight, wrapped.model.module.head.weight)
    assert not checkpointer.report.missing and all("loss" in name for name in checkpointer.report.unexpected)


def test_a_compiled_part_and_an_average_are_stripped(tmp_path):
    net, fresh = Net(), Net()
    expected = net.head.weight.detach().clone()
    net.body = torch.compile(net.body)
    average = torch.optim.swa_utils.AveragedModel(net)
    torch.save(average.state_dict(), tmp_path / "w.pth")
    checkpointer = DetrCheckpointer(fresh)
    checkpointer.load(str(tmp_path / "w.pth"))
    assert torch.equal(fresh.head.weight, expected)
    assert not checkpointer.report.missing and checkpointer.report.unexpected == ["n_averaged"]


def test_names_of_the_model_itself_stay():
    own = {"module.weight", "model.weight", "model.body.weight"}
    assert strip_wrappers(dict.fromkeys(own), own, ()).keys() == own


@pytest.mark.parametrize("prefix", ["module.", "model.", "_orig_mod.", "module.model."])
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.title)
def test_layouts_are_recognised_behind_wrappers(layout, prefix):
    names = {layout.markers[0]: 0, layout.markers[0].replace("weight", "bias"): 0}
    wrapped = {prefix + name: value for name, value in names.items()}
    assert strip_wrappers(wrapped, {"backbone.stem.conv1.weight"}, {layout.markers[0]}) == names


def test_a_wrapped_torchvision_resnet_becomes_the_backbone(tmp_path, make_cfg):
    from detectron2.modeling import build_model

    torch.save({f"module.{k}": v for k, v in torchvision.models.resnet18().state_dict().items()}, tmp_path / "r.pth")
    opts = ("MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64)
    checkpointer = DetrCheckpointer(build_model(make_cfg(*opts)))
    checkpointer.load(str(tmp_path / "r.pth"))
    assert not any(name.startswith("backbone") for name in checkpointer.report.missing)
    assert not checkpointer.report.unexpected


@pytest.mark.parametrize(
    "beside",
    [
        {"args": argparse.Namespace(lr=1e-4, device="cuda", sizes=[1, 2], path=pathlib.Path("a/b"))},
        {"args": argparse.Namespace(inner=argparse.Namespace(x={"y": torch.zeros(2)}))},
        {"output": pathlib.PosixPath("a/b"), "pure": pathlib.PureWindowsPath("c:/x")},
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_command_line_beside_the_weights_is_skipped(tmp_path, beside, legacy):
    trained, fresh = Net(), Net()
    content = {"model": trained.state_dict(), **beside}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
    DetrCheckpointer(fresh).load(str(tmp_path / "w.pth"))
    assert torch.equal(fresh.head.weight, trained.head.weight)


def zipped(*names):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return file.getvalue()


def truncated():
    file = io.BytesIO()
    torch.save(Net().state_dict(), file)
    return file.getvalue()[:-300]


def scripted():
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), file)
    return file.getvalue()


def tarred():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz"):
        pass
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
NATURES = {
    "a web page": (b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>", "it is a web page"),
    "a page in small letters": (b"\n\n  <html lang='en'>" + b"x" * 9000, "it is a web page"),
    "a page with a mark": (b"\xef\xbb\xbf<!doctype HTML>", "it is a web page"),
    "an xml error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "it is a web page"),
    "an lfs pointer": (LFS, "it is a Git LFS pointer in place of the file: fetch it by `git lfs pull`"),
    "nothing": (b"", "it is empty"),
    "zeros": (b"\0" * 10_000, "it is nothing but zeros"),
    "a text": (b"everything else\n", "it is a text file"),
    "a json": (b'{"model": {"weight": [1, 2]}}', "it is a text file"),
    "a text of other letters": (("Gewichte für große Modelle\n" * 400).encode(), "it is a text file"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 50, "it is a picture"),
    "a zip of other files": (zipped("readme.txt"), "it is a zip archive of other files"),
    "a tar.gz": (tarred(), "it is compressed by gzip: unpack it first"),
    "torchscript": (scripted(), "it is a TorchScript archive"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"\0" * 50, "it is an HDF5 file"),
    "half a file": (truncated(), "it is damaged or holds more than plain arrays"),
    "noise": (bytes(range(256)) * 20, "it is damaged or holds more than plain arrays"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", [".pth", ".pkl"])
@pytest.mark.parametrize("content, message", NATURES.values(), ids=NATURES)
def test_what_is_no_weight_file_is_named_for_what_it_is(tmp_path, content, message, ending):
    path = tmp_path / f"w{ending}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"Weight file {path} was not loaded: {message}") as caught:
        read_weights(str(path))
    text = str(caught.value)
    assert "\n" not in text and "weights_only" not in text and "arbitrary code" not in text


def test_a_folder_is_named_with_a_file_in_it(tmp_path, make_cfg):
    with pytest.raises(UserError, match=f"Weight file {tmp_path} is a folder; name a file in it; it holds none"):
        make_cfg("MODEL.WEIGHTS", tmp_path)
    (tmp_path / "model_final.pth").write_text("w")
    with pytest.raises(UserError, match=f"is a folder; name a file in it, such as {tmp_path}/model_final.pth"):
        make_cfg("MODEL.WEIGHTS", tmp_path)
