# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import errno
import multiprocessing
import os
import pickle
import resource
import signal
import sys

import numpy as np
import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from paq_detr.convert.classes import coco_names
from paq_detr.engine import DetrCheckpointer, UserError, run_cli
from paq_detr.engine.checkpoint import LoadReport, cut
from paq_detr.engine.rows import match_rows


class Classifier(nn.Module):
    """A class head as the detector has them, and a table with one row beyond the classes."""

    class Head(nn.Linear):
        class_axes = {"weight": 0, "bias": 0}

    class Table(nn.Embedding):
        class_axes = {"weight": 0}

    def __init__(self, class_names):
        super().__init__()
        self.class_names = tuple(class_names)
        self.body = nn.Linear(3, 3)
        self.head = self.Head(3, len(class_names))
        self.heads = nn.ModuleList([self.head, self.head])
        self.labels = self.Table(len(class_names) + 1, 3)


def saved(model, folder, name="model"):
    DetrCheckpointer(model, str(folder)).save(name)
    return str(folder / f"{name}.pth")


def test_rows_follow_their_class_names(tmp_path):
    old, new = Classifier(["cat", "dog", "cow"]), Classifier(["dog", "emu", "cat", "ape"])
    fresh = new.head.weight.detach().clone()
    checkpointer = DetrCheckpointer(new)
    checkpointer.load(saved(old, tmp_path))
    assert torch.equal(new.head.weight[[0, 2]], old.head.weight[[1, 0]])
    assert torch.equal(new.head.bias[[0, 2]], old.head.bias[[1, 0]])
    assert torch.equal(new.head.weight[[1, 3]], fresh[[1, 3]])
    assert torch.equal(new.labels.weight[[0, 2, 4]], old.labels.weight[[1, 0, 3]])  # the last row is no class
    assert torch.equal(new.body.weight, old.body.weight)
    assert checkpointer.report.shared_classes == ["dog", "cat"]
    assert "labels.weight" in checkpointer.report.by_class
    assert not checkpointer.report.missing
    assert str(checkpointer.report).endswith(
        "Rows of classes: 2 kept (dog, cat), 2 initialised (emu, ape), 1 dropped (cow)."
    )


def test_what_fits_badly_is_a_warning_above_the_table(tmp_path, caplog):
    old, new = Classifier(["cat", "dog"]), Classifier(["emu"])
    new.tail = nn.Linear(1, 1)
    path = saved(old, tmp_path)
    caplog.clear()
    DetrCheckpointer(new).load(path)
    levels = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "paq_detr.engine.checkpoint"]
    assert levels[0] == (
        "WARNING",
        "the weight file gives only a part of the model: none of its 2 classes is one of the model's, all of which "
        "begin anew; 2 tensors of tail begin anew",
    )
    assert "loaded for 0 shared classes" in levels[1][1]


def test_91_rows_without_names_are_cocos_numbers(tmp_path):
    def model(names):
        made = Classifier(names)
        made.routes = nn.ModuleDict({"main": nn.Module()})
        made.routes["main"].decoder = nn.Module()
        made.routes["main"].decoder.class_heads = nn.ModuleList([made.head])
        return made

    old, new = model([str(row) for row in range(91)]), model(coco_names(80))
    torch.save({"model": old.state_dict()}, tmp_path / "official.pth")
    checkpointer = DetrCheckpointer(new)
    checkpointer.load(str(tmp_path / "official.pth"))
    assert torch.equal(new.head.weight[[0, 11, 79]], old.head.weight[[1, 13, 90]])  # person, stop sign, toothbrush
    assert not checkpointer.report.of_classes()  # none is new, and rows without a class are none


def test_classes_are_renamed_before_they_are_matched(tmp_path):
    old, new = Classifier(["cat", "dog", "cow"]), Classifier(["hound", "cow", "dog"])
    new.class_renames = {"dog": "hound", "cat": "dog"}
    checkpointer = DetrCheckpointer(new)
    checkpointer.load(saved(old, tmp_path))
    assert torch.equal(new.head.weight, old.head.weight[[1, 2, 0]])
    trained = Classifier(["hound", "cow", "dog"])
    trained.class_renames = new.class_renames
    DetrCheckpointer(trained).load(saved(new, tmp_path, "renamed"))  # not once more
    assert torch.equal(trained.head.weight, new.head.weight)


@pytest.mark.parametrize(
    "renames, message",
    [
        ({"horse": "emu"}, r"CLASS_RENAMES \[horse, emu\]: .*model.pth has no class horse, but cat, dog"),
        ({"cat": "ape"}, r"CLASS_RENAMES \[cat, ape\]: ape is no class of this model, which has dog, emu"),
        ({"cat": "dog"}, "CLASS_RENAMES gives .*model.pth two classes dog: rename the other one, too"),
    ],
)
def test_renames_that_cannot_be_meant_are_refused(tmp_path, renames, message):
    new = Classifier(["dog", "emu"])
    new.class_renames = renames
    with pytest.raises(UserError, match=message):
        DetrCheckpointer(new).load(saved(Classifier(["cat", "dog"]), tmp_path))


def test_the_same_number_of_other_classes_is_no_match(tmp_path):
    old, new = Classifier(["cat", "dog"]), Classifier(["dog", "emu"])
    fresh = new.head.weight.detach().clone()
    DetrCheckpointer(new).load(saved(old, tmp_path))
    assert torch.equal(new.head.weight[0], old.head.weight[1])
    assert torch.equal(new.head.weight[1], fresh[1])


def test_without_class_names_only_the_shape_decides_and_the_report_says_so(tmp_path):
    old, new = Classifier(["cat", "dog", "cow"]), Classifier(["dog", "emu"])
    torch.save({"model": old.state_dict()}, tmp_path / "plain.pth")
    checkpointer = DetrCheckpointer(new)
    checkpointer.load(str(tmp_path / "plain.pth"))
    assert "head.weight" in checkpointer.report.reshaped
    assert "body.weight" in checkpointer.report.loaded


def test_rows_of_another_width_do_not_match():
    assert match_rows(torch.zeros(2, 3), torch.zeros(2, 4), 0, ["a", "b"], ["b", "a"]) is None


def test_the_report_names_what_is_missing_and_what_is_not_expected(tmp_path):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.tail = nn.Linear(3, 3), nn.Linear(1, 1)

    checkpointer = DetrCheckpointer(Other())
    checkpointer.load(saved(Classifier(["cat"]), tmp_path))
    assert checkpointer.report.missing == ["tail.weight", "tail.bias"]
    assert "labels.weight" in checkpointer.report.unexpected
    assert "tail.weight" in checkpointer.report.table()


def test_the_report_names_what_a_known_layout_has_that_is_not_needed():
    report = LoadReport(layout="another project", dropped=["label_enc.weight"], loaded=["neck.convs.0.weight"])
    text = str(report)
    assert text.startswith("Weights, from the layout of another project:\n")
    assert "left out: not needed here          1  label_enc.weight" in text


@pytest.mark.parametrize(
    ("unexpected", "sentence"),
    [
        ((), ""),
        (("routes.main.decoder.extra", "head.weight"), ""),  # of a part that is there, or of no such part
        (
            ("routes.mr_ffn.a", "routes.mr_ffn.b", "sources.mr_tokens.c", "augmenters.main.labels.weight"),
            "Of the file's training, 4 tensors of augmenters.main, routes.mr_ffn, sources.mr_tokens are left out, "
            "parts that this model was built without (below MODEL.DETR: ROUTES [mr_ffn] and QUERIES.AUGMENT).",
        ),
    ],
)
def test_training_parts_that_the_model_was_built_without_are_named_in_a_sentence(unexpected, sentence):
    report = LoadReport(unexpected=list(unexpected), sizes={"routes.main.decoder.weight": 4, "head.bias": 1})
    assert report.absent() == sentence
    assert str(report).endswith(sentence or report.table())


def test_long_lists_are_cut():
    text = cut([f"part{i}.layer.{j}" for i in range(20) for j in range(3)], 4)
    assert text.splitlines() == [*(f"part{i}.layer.* (3)" for i in range(4)), "... and 16 more"]


@pytest.mark.parametrize(
    "opts",
    [
        "",
        "MODEL.DETR.DECODER.BOX_REFINE False",
        "MODEL.DETR.QUERIES.NAME EncoderTopN MODEL.DETR.QUERIES.SCORE max",
        "MODEL.DETR.QUERIES.NAME EncoderTopN MODEL.DETR.ROUTES ['hybrid'] MODEL.DETR.HYBRID.NUM_QUERIES 12",
    ],
)
def test_every_tensor_that_depends_on_the_classes_is_declared(make_cfg, opts):
    cfg = make_cfg(*opts.split()).clone()
    cfg.defrost()
    shapes = []
    for count in (3, 5):
        cfg.MODEL.DETR.CLASS_NAMES = [f"class{i}" for i in range(count)]
        model = build_model(cfg)
        shapes.append({key: value.shape for key, value in model.state_dict().items()})
    declared = {
        f"{prefix}.{name}"
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name in {**getattr(module, "class_axes", {}), **getattr(module, "leading_axes", {})}
    }
    assert {key for key in shapes[0] if shapes[0][key] != shapes[1][key]} == declared


def test_plain_detectron2_reads_our_checkpoints(tmp_path):
    old, new = Classifier(["cat", "dog"]), Classifier(["cat", "dog"])
    DetectionCheckpointer(new).load(saved(old, tmp_path))
    assert torch.equal(new.head.weight, old.head.weight)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_leaves_the_last_checkpoint_whole_and_no_part(tmp_path, monkeypatch, error):
    model = Classifier(["cat"])
    path = saved(model, tmp_path)

    def broken(content, file):
        with open(file, "w") as stream:
            stream.write("half")
        raise error

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(
        UserError, match="next.pth could not be written: .* free on .*; the last whole one is model.pth"
    ):
        saved(model, tmp_path, "next")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model.pth"]
    DetrCheckpointer(model).load(path)


def test_a_limit_of_the_system_is_a_full_disk(tmp_path, capfd):
    """With a real writer: in a process of its own, where a file may not grow beyond a megabyte."""

    def save():
        checkpointer = DetrCheckpointer(nn.Linear(10, 10), str(tmp_path))
        checkpointer.save("small")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        checkpointer.model = nn.Linear(1000, 1000)
        sys.exit(run_cli(lambda: checkpointer.save("large"), "program"))

    process = multiprocessing.get_context("fork").Process(target=save)
    process.start()
    process.join()
    said = capfd.readouterr().err
    assert process.exitcode == 2 and "Traceback" not in said
    assert "large.pth could not be written" in said and "the last whole one is small.pth" in said
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "small.pth"]


def torchvision_pair(cfg):
    """A torchvision ResNet-18 with random statistics, and a model whose backbone is one."""
    cfg = cfg.clone()
    cfg.defrost()
    resnets = cfg.MODEL.RESNETS
    resnets.DEPTH, resnets.RES2_OUT_CHANNELS, resnets.STEM_OUT_CHANNELS, resnets.NUM_GROUPS = 18, 64, 64, 1
    resnet = torchvision.models.resnet18().eval()
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return resnet, build_model(cfg).eval()


def assert_same_features(resnet, model):
    images = torch.rand(1, 3, 64, 96)
    x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(images))))
    expected = resnet.layer4(resnet.layer3(resnet.layer2(resnet.layer1(x))))
    torch.testing.assert_close(model.backbone(images)["res5"], expected, rtol=1e-4, atol=1e-4)


def test_a_torchvision_resnet_becomes_the_backbone(make_cfg, tmp_path):
    resnet, model = torchvision_pair(make_cfg())
    torch.save(resnet.state_dict(), tmp_path / "resnet18.pth")
    checkpointer = DetrCheckpointer(model)
    checkpointer.load(str(tmp_path / "resnet18.pth"))
    assert not any(name.startswith("backbone") for name in checkpointer.report.missing)
    assert not checkpointer.report.unexpected
    assert_same_features(resnet, model)


def test_a_pickled_imagenet_backbone_of_detectron2_loads(make_cfg, tmp_path):
    resnet, model = torchvision_pair(make_cfg())
    names = {"conv1": "stem.conv1", "bn1": "stem.conv1.norm"}
    weights = {}
    for key, value in resnet.state_dict().items():  # the names that Detectron2's conversion tool gives
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        module, leaf = key.rsplit(".", 1)
        if module in names:
            module = names[module]
        else:
            layer, block, rest = module.split(".", 2)
            rest = rest.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
            rest = rest.replace("bn1", "conv1.norm").replace("bn2", "conv2.norm")
            module = f"res{int(layer[-1]) + 1}.{block}.{rest}"
        weights[f"{module}.{leaf}"] = value.numpy()
    content = {"model": weights, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(content))
    DetrCheckpointer(model).load(str(tmp_path / "R-18.pkl"))
    assert_same_features(resnet, model)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["bad.pkl", "bad.pth"])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path, name):
    content = {"model": {"x": Bomb(str(tmp_path / "ran"))}, "__author__": "nobody"}
    if name.endswith(".pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / name)
    with pytest.raises(UserError, match=f"{name} was not loaded.*asks for .*open"):
        DetrCheckpointer(Classifier(["cat"])).load(str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"no weights", "was not loaded"),
        (pickle.dumps({"model": {"x": "text"}}), "'x' is none"),
        (pickle.dumps({"model": {"x": np.array([{}])}}), "'x' is none"),
        (pickle.dumps([1]), "holds a list"),
        (pickle.dumps({"model": {"other": np.zeros(3)}, "__author__": ""}), "fits no part of the model"),
    ],
)
def test_a_file_of_another_kind_gives_one_sentence(tmp_path, content, message):
    path = tmp_path / "weights.pkl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"weights.pkl.*{message}") as caught:
        DetrCheckpointer(Classifier(["cat"])).load(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_and_where_to_get_it():
    with pytest.raises(UserError, match=r"nowhere/R-50.pkl does not exist; it can be had from detectron2://"):
        DetrCheckpointer(Classifier(["cat"])).load("nowhere/R-50.pkl")


def test_weights_of_another_model_are_refused_also_where_batch_norms_count(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    torch.save({"other.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="fits no part of the model"):
        DetrCheckpointer(model).load(str(tmp_path / "other.pth"))


def test_a_text_file_is_no_weight_file(tmp_path):
    (tmp_path / "notes.pth").write_text("everything else\n")
    with pytest.raises(UserError, match="notes.pth was not loaded"):
        DetrCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "notes.pth"))
