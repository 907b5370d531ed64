# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""A checkpoint continued or evaluated under another config: every differing key is named with what becomes of it."""

import os
import re
import shutil
from argparse import Namespace

import pytest
import torch

from paq_detr.engine import DetrCheckpointer, Trainer, UserError, build_detector, load_trained, setup_config
from paq_detr.engine.hooks import BestCheckpoint
from paq_detr.engine.resume import changes

from .conftest import tiny_configs

BASE = ("DATASETS.TEST", "[]", "SOLVER.STEPS", "[]", "SOLVER.CHECKPOINT_PERIOD", 100)


def build(cfg, resume=False):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    return trainer


def train(cfg, resume=False):
    trainer = build(cfg, resume)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def two_iterations(tmp_path_factory):
    """Output folder of a training of 2 iterations."""
    make_cfg = tiny_configs(tmp_path_factory.mktemp("trained"))
    return train(make_cfg(*BASE, "SOLVER.MAX_ITER", 2)).cfg.OUTPUT_DIR


@pytest.fixture
def trained(two_iterations, make_cfg):
    """A function that is about to continue a training of 2 iterations to 4 with other options."""

    def go_on(*opts):
        return build(make_cfg(*BASE, "SOLVER.MAX_ITER", 4, *opts), resume=True)

    go_on.folder = make_cfg().OUTPUT_DIR
    shutil.copytree(two_iterations, go_on.folder)
    return go_on


def warning(caplog):
    return next((m for m in caplog.messages if m.startswith("--resume goes on with other settings")), "")


APPLIED = {
    "learning rate": ("SOLVER.BASE_LR", "1e-05", "SOLVER.BASE_LR 0.0002 -> 1e-05 (applied)"),
    "weight decay": ("SOLVER.WEIGHT_DECAY", "0.05", "SOLVER.WEIGHT_DECAY 0.0001 -> 0.05 (applied)"),
    "the backbone's rate": ("SOLVER.BACKBONE_MULTIPLIER", "1.0", "SOLVER.BACKBONE_MULTIPLIER 0.1 -> 1.0 (applied)"),
    "the offsets' rate": ("SOLVER.OFFSET_MULTIPLIER", "1.0", "SOLVER.OFFSET_MULTIPLIER 0.1 -> 1.0 (applied)"),
    "warmup": ("SOLVER.WARMUP_ITERS", "1", "SOLVER.WARMUP_ITERS 0 -> 1 (applied)"),
    "a loss weight": ("MODEL.DETR.LOSS.CLASS_WEIGHT", "3.0", "MODEL.DETR.LOSS.CLASS_WEIGHT 2.0 -> 3.0 (applied)"),
    "dropout": ("MODEL.DETR.DROPOUT", "0.0", "MODEL.DETR.DROPOUT 0.1 -> 0.0 (applied)"),
    "half precision on": ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.ENABLED False -> True (applied)"),
    "clipping": ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1.0", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE 0.1 -> 1.0 (applied)"),
    "the batch": ("SOLVER.IMS_PER_BATCH", "4", "SOLVER.IMS_PER_BATCH 2 -> 4 (applied)"),
    "image sizes": ("INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TRAIN [64, 72, 80] -> [64] (applied)"),
    "the seed": ("SEED", "7", "SEED 42 -> 7 (not applied: order and augmentation of the data go on as they began)"),
}


@pytest.mark.parametrize("key, value, message", APPLIED.values(), ids=APPLIED)
def test_what_can_be_applied_is_and_is_named(trained, caplog, key, value, message):
    caplog.set_level("WARNING")
    resumed = trained(key, value)
    assert message in warning(caplog) and resumed.start_iter == 2
    assert "OUTPUT_DIR" not in warning(caplog) and "\n" not in warning(caplog)


def test_float16_begins_with_a_fresh_scale(trained, caplog):
    resumed = trained("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16")
    resumed.train()
    assert resumed.scaler.is_enabled() and resumed.start_iter == 2


@pytest.mark.parametrize(
    "opts, rates",
    [
        (("SOLVER.BASE_LR", "1e-5"), {1e-5, 1e-6}),
        (("SOLVER.BACKBONE_MULTIPLIER", "1.0", "SOLVER.OFFSET_MULTIPLIER", "1.0"), {2e-4}),
        (("SOLVER.STEPS", "(3,)"), {2e-5, 2e-6}),
    ],
)
def test_a_new_learning_rate_is_really_used(trained, opts, rates):
    resumed = trained(*opts)
    resumed.train()
    assert {round(group["lr"], 12) for group in resumed.optimizer.param_groups} == {round(rate, 12) for rate in rates}


def test_a_new_weight_decay_keeps_each_parameters_state(trained):
    resumed = trained("SOLVER.WEIGHT_DECAY", "0.05")
    before = torch.load(f"{trained.folder}/model_final.pth", weights_only=True)["trainer"]["optimizer"]
    indices = {n: i for group in before["param_groups"] for n, i in zip(group["param_names"], group["params"])}
    named = dict(resumed.checkpointer.model.named_parameters())
    assert len(before["param_groups"]) != len(resumed.optimizer.param_groups)
    for name, index in indices.items():
        assert torch.equal(resumed.optimizer.state[named[name]]["exp_avg"], before["state"][index]["exp_avg"])


def test_a_run_that_is_done_already_says_so(trained, caplog):
    assert trained("SOLVER.MAX_ITER", 2).start_iter == 2
    assert "The training is done: SOLVER.MAX_ITER 2 leaves nothing to do but to evaluate" in caplog.messages


def test_an_end_before_the_checkpoint_is_refused(trained):
    text = "model_final.pth was trained for 2 iterations, and SOLVER.MAX_ITER 1 ends before: raise it to go on"
    with pytest.raises(UserError, match=text):
        trained("SOLVER.MAX_ITER", 1)


REFUSED = {
    "frozen layers": (("MODEL.BACKBONE.FREEZE_AT", 2), "tensors, this run .*MODEL.BACKBONE.FREEZE_AT 0 -> 2"),
    "queries": (("MODEL.DETR.QUERIES.NUM", 30), "MODEL.DETR.QUERIES.NUM 20 -> 30"),
    "fewer layers": (("MODEL.DETR.DECODER.NUM_LAYERS", 1), "MODEL.DETR.DECODER.NUM_LAYERS 2 -> 1"),
    "more layers": (("MODEL.DETR.ENCODER.NUM_LAYERS", 2), "MODEL.DETR.ENCODER.NUM_LAYERS 1 -> 2"),
    "width": (("MODEL.DETR.HIDDEN_DIM", 32), "MODEL.DETR.HIDDEN_DIM 64 -> 32"),
    "query source": (("MODEL.DETR.QUERIES.NAME", "EncoderTopN"), "MODEL.DETR.QUERIES.NAME LearnedQueries -> Enc"),
    "optimiser": (("SOLVER.OPTIMIZER", "SGD"), "its optimiser is another one .SOLVER.OPTIMIZER AdamW -> SGD"),
    "backbone": (("MODEL.RESNETS.DEPTH", 101), "MODEL.RESNETS.DEPTH 50 -> 101"),
}


@pytest.mark.parametrize("opts, message", REFUSED.values(), ids=REFUSED)
def test_what_cannot_go_on_is_refused_with_its_keys(trained, opts, message):
    with pytest.raises(UserError, match=f"--resume cannot continue .*model_final.pth, refused: .*{message}") as caught:
        trained(*opts)
    assert "\n" not in str(caught.value) and "leave --resume out" in str(caught.value)


def change_checkpoint(folder, change):
    path = f"{folder}/model_final.pth"
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def test_other_classes_are_refused(trained):
    change_checkpoint(trained.folder, lambda content: content.update(class_names=["lamp", "person", "crate", "desk"]))
    with pytest.raises(UserError, match="refused: it was trained for the classes lamp, .*, this run has .*balloon"):
        trained()


NO_STATE = {
    "no trainer": lambda content: content.pop("trainer"),
    "a trainer of another kind": lambda content: content.update(trainer=[1]),
    "no optimiser": lambda content: content["trainer"].pop("optimizer"),
    "no data": lambda content: content["trainer"].pop("data"),
    "data without its place": lambda content: content["trainer"].update(data={}),
    "data at no number": lambda content: content["trainer"]["data"].update(start="0"),
    "an iteration that is a text": lambda content: content["trainer"].update(iteration="1"),
    "random states of another kind": lambda content: content["trainer"].update(rng=3),
}


@pytest.mark.parametrize("change", NO_STATE.values(), ids=NO_STATE)
def test_a_file_without_training_state_is_not_resumed(trained, change):
    path = change_checkpoint(trained.folder, change)
    with pytest.raises(UserError, match=f"{path} holds weights, but no state of a training .*MODEL.WEIGHTS {path}"):
        trained()


def test_a_checkpoint_of_an_earlier_version_without_names_and_config_goes_on(trained, make_cfg, tmp_path):
    def change(content):
        content.pop("run_config")
        for group in content["trainer"]["optimizer"]["param_groups"]:
            group.pop("param_names")

    straight = train(make_cfg(*BASE, "SOLVER.MAX_ITER", 4, "OUTPUT_DIR", tmp_path / "straight"))
    change_checkpoint(trained.folder, change)
    resumed = trained()
    resumed.train()
    a, b = (t.checkpointer.model.state_dict() for t in (straight, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "holds no checkpoint"),
        ("model_0000009.pth", "names .*model_0000009.pth, which does not exist; write"),
        ("/gone/model_final.pth", "names /gone/model_final.pth, which does not exist; write"),
        (".", r"names .*/\., which does not exist; write"),
        ("a\nb\0c", r"names .*'a.nb.x00c', which does not exist; write"),
    ],
)
def test_a_broken_note_of_the_last_checkpoint_is_named(trained, text, message):
    with open(f"{trained.folder}/last_checkpoint", "w") as file:
        file.write(text)
    with pytest.raises(UserError, match=f"--resume: .*{message}") as caught:
        trained()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size, message", [(0, "it is empty"), (3000, "it is damaged or holds more")])
def test_a_broken_last_checkpoint_is_named_with_the_others(trained, size, message):
    shutil.copy(f"{trained.folder}/model_final.pth", f"{trained.folder}/model_0000000.pth")
    os.truncate(f"{trained.folder}/model_final.pth", size)
    hint = f"write its name into {trained.folder}/last_checkpoint: model_0000000.pth"
    with pytest.raises(UserError, match=f"model_final.pth was not loaded: {message}.* {hint}") as caught:
        trained()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("run_config", ["a: [", "[1]", 7, ["a"]], ids=str)
def test_what_stands_in_place_of_the_config_is_not_compared(trained, caplog, run_config):
    change_checkpoint(trained.folder, lambda content: content.update(run_config=run_config))
    assert trained().start_iter == 2 and not warning(caplog)


def test_an_optimiser_that_begins_anew_is_said(trained, caplog):
    change_checkpoint(trained.folder, lambda content: content["trainer"]["optimizer"].update(state={}))
    trained()
    assert any("holds no state of the optimiser, which begins anew" in message for message in caplog.messages)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"metric": "bbox/AP", "value": "x", "iteration": 1}'])
def test_a_broken_note_of_the_best_weights_is_said_and_begins_anew(trained, caplog, text):
    with open(f"{trained.folder}/model_best.json", "w") as file:
        file.write(text)
    hook, resumed = BestCheckpoint("bbox/AP"), trained()
    hook.trainer = resumed
    hook.before_train()
    assert hook._best == -float("inf") and "model_best.json cannot be read: the next evaluation" in caplog.text


def evaluate(make_cfg, *opts):
    return load_trained(make_cfg("DATASETS.TRAIN", "[]", *opts))


def test_evaluation_takes_the_weights_and_says_nothing_of_the_same_model(trained, make_cfg, caplog):
    model = evaluate(make_cfg, "MODEL.WEIGHTS", f"{trained.folder}/model_final.pth")
    weights = torch.load(f"{trained.folder}/model_final.pth", weights_only=True)["model"]
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not [r for r in caplog.records if r.levelname == "WARNING" and "evaluated with" in r.getMessage()]


EVALUATED = {
    "channel order": (("INPUT.FORMAT", "BGR"), "INPUT.FORMAT RGB -> BGR"),
    "pixel mean": (("MODEL.PIXEL_MEAN", "[0.0, 0.0, 0.0]"), "MODEL.PIXEL_MEAN .* -> .0.0, 0.0, 0.0."),
}


@pytest.mark.parametrize("opts, message", EVALUATED.values(), ids=EVALUATED)
def test_other_settings_of_an_evaluation_are_named(trained, make_cfg, caplog, opts, message):
    caplog.set_level("WARNING")
    evaluate(make_cfg, "MODEL.WEIGHTS", f"{trained.folder}/model_final.pth", *opts)
    assert any(re.search(f"evaluated with other settings .*: {message} .applied", m) for m in caplog.messages)


UNFIT = {
    "more layers": (("MODEL.DETR.DECODER.NUM_LAYERS", 3), "MODEL.DETR.DECODER.NUM_LAYERS 2 -> 3"),
    "more queries": (("MODEL.DETR.QUERIES.NUM", 30), "MODEL.DETR.QUERIES.NUM 20 -> 30"),
    "another width": (("MODEL.DETR.HIDDEN_DIM", 32), "MODEL.DETR.HIDDEN_DIM 64 -> 32"),
    "another mechanism": (("MODEL.DETR.QUERIES.CONTENT", "patterns"), "MODEL.DETR.QUERIES.CONTENT .* -> patterns"),
}


@pytest.mark.parametrize("opts, message", UNFIT.values(), ids=UNFIT)
def test_a_model_with_parts_that_nobody_trained_is_not_evaluated(trained, make_cfg, opts, message):
    with pytest.raises(UserError, match=f"model_final.pth does not fit the model: .* tensors .*{message}"):
        evaluate(make_cfg, "MODEL.WEIGHTS", f"{trained.folder}/model_final.pth", *opts)


@pytest.mark.parametrize(
    "names, said",
    [
        (["PERSON", "BALLOON", "CRATE", "CONE"], "refused"),
        (["person", "balloon", "crate", "lamp"], "partial"),
        (["person", "balloon"], "fine"),
        (["cone", "crate", "balloon", "person"], "fine"),
    ],
    ids=["none of them", "one more", "fewer", "in another order"],
)
def test_classes_that_the_weights_do_not_know_are_refused_or_warned_of(trained, make_cfg, caplog, names, said):
    cfg = make_cfg("DATASETS.TRAIN", "[]", "MODEL.WEIGHTS", f"{trained.folder}/model_final.pth").clone()
    cfg.defrost()
    cfg.MODEL.DETR.CLASS_NAMES = names  # as from the json of a test set
    if said == "refused":
        text = (
            "was trained for the classes person, balloon, crate, cone, and the evaluation is for none of them, but for"
        )
        with pytest.raises(UserError, match=f"model_final.pth {text} the classes PERSON, BALLOON, CRATE, CONE"):
            load_trained(cfg)
        return
    if said == "partial":
        text = "model_final.pth was not trained for the classes lamp; paq-detr eval --allow-partial evaluates"
        with pytest.raises(UserError, match=text):
            load_trained(cfg)
    load_trained(cfg, allow_partial=True)
    assert ("was not trained for the classes lamp: its predictions" in caplog.text) == (said == "partial")


def test_parts_for_training_alone_need_no_weights(trained, make_cfg):
    hybrid = ("MODEL.DETR.QUERIES.NAME", "EncoderTopN", "OUTPUT_DIR", os.path.join(trained.folder, "two"))
    cfg = make_cfg(*BASE, *hybrid, "SOLVER.MAX_ITER", 1)
    train(cfg)
    extra = ("MODEL.DETR.ROUTES", "['hybrid']", "MODEL.DETR.HYBRID.NUM_QUERIES", 12)
    path = f"{cfg.OUTPUT_DIR}/model_final.pth"
    fresh = build_detector(make_cfg(*hybrid, *extra)).state_dict().keys()
    stored = torch.load(path, weights_only=True)["model"]
    assert fresh - stored.keys()  # the branch has tensors of its own, which the file does not give
    loaded = evaluate(make_cfg, *hybrid, *extra, "MODEL.WEIGHTS", path).state_dict()
    assert loaded.keys() == stored.keys() and all(torch.equal(loaded[name], stored[name]) for name in stored)


def test_evaluation_without_weights_is_refused(make_cfg):
    with pytest.raises(UserError, match="An evaluation needs MODEL.WEIGHTS, or --resume"):
        load_trained(make_cfg())
    with pytest.raises(UserError, match="--resume: OUTPUT_DIR .* holds no checkpoint"):
        load_trained(make_cfg(), resume=True)


def test_resume_and_weights_together_are_refused_in_evaluation(trained, config_file):
    opts = ["MODEL.WEIGHTS", f"{trained.folder}/model_final.pth"]
    args = Namespace(config_file=config_file, opts=opts, eval_only=True, resume=True, num_gpus=1)
    with pytest.raises(UserError, match="MODEL.WEIGHTS .*model_final.pth would be ignored: leave one of them out"):
        setup_config(args)


def test_weights_alone_carry_the_config_too(make_cfg):
    trainer = Trainer(make_cfg(*BASE))
    trainer.checkpointer.save_weights("model_best")
    path = f"{trainer.cfg.OUTPUT_DIR}/model_best.pth"
    assert "BASE_LR: 0.0002" in torch.load(path, weights_only=True)["run_config"]
    assert DetrCheckpointer(trainer.checkpointer.model).load(path)["run_config"]


def test_one_name_is_no_change_where_a_list_is_now(make_cfg):
    cfg = make_cfg()
    run_config = cfg.dump()
    earlier = run_config.replace("CROSS_ATTENTION:\n      - deformable", "CROSS_ATTENTION: deformable")
    assert earlier != run_config and changes(earlier, cfg) == []
    assert [key for key, *_ in changes(earlier.replace(": deformable", ": conditional"), cfg)] != []


def test_epochs_go_on_where_they_were_with_a_batch_of_another_size(make_cfg, caplog):
    """12 images: 2 of 4 epochs in 12 batches of 2, the others in 6 of 4; and once more."""
    epochs = ("DATASETS.TEST", "[]", "SOLVER.EPOCHS", 4, "SOLVER.EPOCH_STEPS", "[3]", "SOLVER.CHECKPOINT_EPOCHS", 1)
    caplog.set_level("INFO", logger="paq_detr.engine.trainer")
    first = build(make_cfg(*epochs))
    first.iter, first.data_loader.batches = 11, 12
    first.save("model_0000011")
    second = build(make_cfg(*epochs, "SOLVER.IMS_PER_BATCH", 4), resume=True)
    assert (second.start_iter, second.max_iter, second.cfg.SOLVER.STEPS) == (12, 18, (15,))
    assert second.cfg.SOLVER.CHECKPOINT_PERIOD == 3 and second.data_loader.start == 24
    assert sum("those that are left take 6 iterations of 4 images" in m for m in caplog.messages) == 1
    rates = []
    for iteration in (12, 14, 15):
        second.scheduler.last_epoch = iteration
        rates.append(max(second.scheduler.get_lr()))
    assert rates == pytest.approx([2e-4, 2e-4, 2e-5])
    second.iter, second.data_loader.batches = 14, 3
    second.save("model_0000014")
    third = build(make_cfg(*epochs, "SOLVER.IMS_PER_BATCH", 4), resume=True)
    assert (third.start_iter, third.max_iter, third.data_loader.start, third.data_loader.batches) == (15, 18, 24, 3)
