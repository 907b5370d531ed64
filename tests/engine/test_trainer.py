# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import io
import json
import logging
import os
from argparse import Namespace

import numpy as np
import pytest
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from PIL import Image

from paq_detr.engine import NonFiniteLossError, Trainer, UserError, start_run
from paq_detr.engine.checkpoint import DetrCheckpointer
from paq_detr.engine.hooks import MetricsWriter, ProgressWriter
from paq_detr.modeling.heads import ClassHead

from .conftest import tiny_configs


def train(cfg, resume=False, seed=0):
    torch.manual_seed(seed)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def weights(trainer):
    return trainer.checkpointer.model.state_dict()


def assert_equal_states(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


# With evaluation in between, which must not disturb the random numbers of training; dropout is on.
TEN_STEPS = ("SOLVER.MAX_ITER", 10, "SOLVER.STEPS", "[7]", "SOLVER.CHECKPOINT_PERIOD", 5, "TEST.EVAL_PERIOD", 5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return train(tiny_configs(tmp_path_factory.mktemp("whole"))(*TEN_STEPS))


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_steps_equal_five_and_a_resume_and_five_bit_for_bit(make_cfg, tmp_path, whole, workers):
    common = (*TEN_STEPS, "OUTPUT_DIR", tmp_path / "parts", "DATALOADER.NUM_WORKERS", workers)
    killed = "SOLVER.MAX_ITER", 6, "SOLVER.STEPS", "[]", "DATASETS.TEST", "[]"
    train(make_cfg(*common, *killed))
    (tmp_path / "parts" / "last_checkpoint").write_text("model_0000004.pth")
    resumed = train(make_cfg(*common), resume=True, seed=1)
    assert resumed.start_iter == 5
    assert_equal_states(weights(whole), weights(resumed))
    rates = [[group["lr"] for group in t.optimizer.param_groups] for t in (whole, resumed)]
    assert rates[0] == rates[1]


def test_two_runs_with_one_seed_are_equal(make_cfg, tmp_path):
    a, b = (train(make_cfg("OUTPUT_DIR", tmp_path / name)) for name in "ab")
    assert_equal_states(weights(a), weights(b))


def test_a_step_reaches_every_trainable_parameter(make_cfg):
    trainer = train(make_cfg("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "[]"))
    unused = [n for n, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_steps_and_keeps_float32_weights(make_cfg, dtype, device):
    amp = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype)
    cfg = make_cfg(*amp, "MODEL.DEVICE", device, "DATASETS.TEST", "[]")
    trainer = train(cfg)
    assert trainer.scaler.is_enabled() == (dtype == "float16")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in trainer.model.parameters())


def test_gradients_are_clipped_after_they_are_unscaled(make_cfg):
    norms = {}
    for enabled in (False, True):
        cfg = make_cfg(
            *("SOLVER.AMP.ENABLED", enabled, "SOLVER.AMP.DTYPE", "float16", "DATASETS.TEST", "[]"),
            *("SOLVER.MAX_ITER", 1, "MODEL.DETR.DROPOUT", 0.0),
        )
        torch.manual_seed(0)
        trainer = Trainer(cfg)
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=enabled)  # the default overflows at first
        trainer.train()
        gradients = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
        assert gradients.norm().item() == pytest.approx(0.1, rel=1e-3)
        norms[enabled] = trainer.storage.history("grad_norm").latest()
    assert norms[True] == pytest.approx(norms[False], rel=0.05)


def test_an_unknown_precision_is_named(make_cfg):
    with pytest.raises(UserError, match="bf16.*bfloat16"):
        Trainer(make_cfg("SOLVER.AMP.DTYPE", "bf16"))


def test_parts_that_do_not_fit_together_give_one_sentence(make_cfg):
    with pytest.raises(UserError, match="cannot be built: MODEL.DETR.QUERIES.AUGMENT cdn needs queries with boxes"):
        Trainer(make_cfg("MODEL.DETR.QUERIES.AUGMENT", "cdn"))
    with pytest.raises(UserError, match="MODEL.DETR.DECODER.INTERACTION is .a., must be one of") as caught:
        Trainer(make_cfg("MODEL.DETR.DECODER.INTERACTION", "['a']"))
    assert "\n" not in str(caught.value)


def test_an_infinite_loss_stops_with_iteration_terms_and_images(make_cfg, monkeypatch):
    trainer = Trainer(make_cfg("DATASETS.TEST", "[]"))
    model = trainer.checkpointer.model
    forward = model.forward

    def broken(batch):
        losses = forward(batch)
        if trainer.iter == 2:
            losses["loss_class/final"] = losses["loss_class/final"] * float("nan")
        return losses

    monkeypatch.setattr(model, "forward", broken)
    with pytest.raises(NonFiniteLossError, match="iteration 2: loss_class/final = nan") as caught:
        trainer.train()
    assert str(caught.value).count("synthetic") == 2  # both images of the batch
    assert "\n" not in str(caught.value)


def test_an_infinite_loss_names_the_module_where_it_begins(make_cfg, monkeypatch):
    trainer = Trainer(make_cfg("DATASETS.TEST", "[]"))
    name, head = next((n, m) for n, m in trainer.model.named_modules() if isinstance(m, ClassHead))
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda x: forward(x) * float("inf"))
    with pytest.raises(NonFiniteLossError, match=rf"first module .* is {name}\)"):
        trainer.train()


def test_an_infinite_parameter_is_named(make_cfg):
    trainer = Trainer(make_cfg("DATASETS.TEST", "[]"))
    with torch.no_grad():
        next(trainer.model.encoder.parameters()).fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"the parameter encoder\..* itself is not finite"):
        trainer.train()


def test_the_best_weights_are_kept_and_a_resumed_run_still_knows_their_value(make_cfg, monkeypatch):
    values = iter([0.2, 0.5, 0.4, 0.45, 0.3])

    def evaluate(cls, cfg, model, **options):
        value = next(values)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", "val")
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "f1_threshold.json"), "w") as file:
            json.dump({"threshold": value / 2, "metric": "F1", "value": value}, file)
        return {"bbox": {"AP": value}}

    monkeypatch.setattr(Trainer, "test", classmethod(evaluate))
    opts = ("TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.STEPS", "[]")
    cfg = make_cfg(*opts, "SOLVER.MAX_ITER", 3)
    best = os.path.join(cfg.OUTPUT_DIR, "model_best.json")
    train(cfg)
    with open(best) as file:
        record = json.load(file)
    assert record["score_thresholds"] == {"val": {"threshold": 0.25, "metric": "F1", "value": 0.5}}
    assert [record[key] for key in ("metric", "value", "iteration")] == ["bbox/AP", 0.5, 1]
    train(make_cfg(*opts, "SOLVER.MAX_ITER", 5), resume=True)
    with open(best) as file:
        assert json.load(file)["value"] == 0.5


def test_training_ends_without_gain_and_a_resumed_one_still_counts(make_cfg, monkeypatch, caplog):
    values = iter([0.2, 0.5, 0.4, 0.45, 0.3, 0.6, 0.1])
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, cfg, model, **options: {"bbox": {"AP": next(values)}}))
    opts = ("TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.STEPS", "[]", "SOLVER.MAX_ITER", 9)
    cfg = make_cfg(*opts, "TEST.PATIENCE", 2)
    monkeypatch.setattr(logging.getLogger("paq_detr"), "propagate", True)  # which setting up loggers takes away
    with caplog.at_level("INFO", logger="paq_detr.engine.trainer"):
        trainer = train(cfg)
    (said,) = [r.getMessage() for r in caplog.records if "TEST.PATIENCE" in r.getMessage()]
    assert said == (
        "bbox/AP has not been better than 0.5 (iteration 2) in the last 2 evaluations (TEST.PATIENCE): training ends "
        f"after iteration 4 of 9, saved as {trainer.cfg.OUTPUT_DIR}/model_final.pth"
    )
    assert trainer.iter == 3 and trainer.checkpointer.last_checkpoint().endswith("model_final.pth")
    resumed = train(make_cfg(*opts, "TEST.PATIENCE", 3), resume=True)
    assert resumed.start_iter == 4 and resumed.iter == 4  # the third one without gain


def test_patience_needs_something_to_wait_for(make_cfg):
    for key in ("DATASETS.TEST", "TEST.BEST_METRIC"):
        with pytest.raises(UserError, match=f"TEST.PATIENCE is 2, but there is nothing to wait for: {key} is empty"):
            make_cfg("TEST.PATIENCE", 2, key, "[]" if key == "DATASETS.TEST" else "")


def test_only_the_latest_periodic_checkpoints_stay(make_cfg):
    cfg = make_cfg("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINT_KEEP", 2, "DATASETS.TEST", "[]")
    train(cfg)
    found = sorted(name for name in os.listdir(cfg.OUTPUT_DIR) if name.endswith(".pth"))
    assert found == ["model_0000001.pth", "model_0000002.pth", "model_final.pth"]


def test_training_on_a_checkpoint_of_other_classes_starts(make_cfg, tmp_path):
    trainer = train(make_cfg("DATASETS.TEST", "[]"))
    path = os.path.join(trainer.cfg.OUTPUT_DIR, "model_final.pth")
    content = torch.load(path, weights_only=True)
    assert content["class_names"] == ["person", "balloon", "crate", "cone"]
    content["class_names"] = ["lamp", "person", "crate", "desk"]
    torch.save(content, path)
    cfg = make_cfg("DATASETS.TEST", "[]", "MODEL.WEIGHTS", path, "OUTPUT_DIR", tmp_path / "next")
    report = train(cfg).checkpointer.report
    assert report.shared_classes == ["person", "crate"]
    assert report.by_class and not report.reshaped


def two_processes(rank, folder, cfg, images):
    """One step on two processes; every process writes its weights and its loss."""
    from paq_detr.data import register_datasets

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    register_datasets(cfg)
    torch.manual_seed(rank)  # what rank 0 initialised is what both must train
    trainer = Trainer(cfg)
    trainer.data_loader.keys = lambda: iter([[(rank, images[rank])]])
    trainer.train()
    torch.save(weights(trainer), f"{folder}/weights{rank}.pth")
    if comm.is_main_process():
        torch.save(trainer.storage.history("total_loss").latest(), f"{folder}/loss.pth")
    torch.distributed.destroy_process_group()


def test_a_process_without_objects_trains_along(forked, make_cfg, tmp_path):
    opts = ("DATASETS.TEST", "[]", "SOLVER.MAX_ITER", 1, "DATASETS.SYNTHETIC_CROWD.DENSITY", 0.7)
    cfg = make_cfg(*opts, "DATASETS.SYNTHETIC_CROWD.IGNORE", 0.0)
    from detectron2.data import DatasetCatalog

    counts = [len(d["annotations"]) for d in DatasetCatalog.get("synthetic_crowd_train")]
    images = [counts.index(0), next(i for i, count in enumerate(counts) if count)]
    os.makedirs(cfg.OUTPUT_DIR)
    torch.multiprocessing.spawn(two_processes, (str(tmp_path), cfg, images), nprocs=2)
    a, b = (torch.load(tmp_path / f"weights{rank}.pth", weights_only=True) for rank in range(2))
    assert_equal_states(a, b)
    assert all(value.isfinite().all() for value in a.values())
    assert torch.load(tmp_path / "loss.pth", weights_only=True) > 0


def test_the_final_checkpoint_evaluates_as_the_trained_model(make_cfg):
    trainer = train(make_cfg())
    fresh = Trainer(trainer.cfg)
    DetrCheckpointer(fresh.model).load(os.path.join(trainer.cfg.OUTPUT_DIR, "model_final.pth"))
    assert Trainer.test(trainer.cfg, fresh.model)["bbox"]["AP"] == trainer.results["bbox"]["AP"]


def test_progress_is_one_short_line_whatever_the_number_of_losses(make_cfg, caplog, monkeypatch):
    cfg = make_cfg("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "[]", "DATASETS.TEST", "[]")
    # Detectron2's set-up of loggers takes it away, for which pytest makes up, unless it ran within this test.
    monkeypatch.setattr(logging.getLogger("paq_detr"), "propagate", True)
    with caplog.at_level("INFO", logger="paq_detr.engine.hooks"):
        train(cfg)
    first, line = dict.fromkeys(r.getMessage() for r in caplog.records if r.name == "paq_detr.engine.hooks")
    assert first.startswith("The first iteration took ")
    assert line.startswith("iteration 2/2; loss ") and "last layer: class " in line
    assert "layer1" not in line


def test_the_progress_line_tells_how_many_queries_dh_detr_keeps(make_cfg, caplog):
    interaction = ("MODEL.DETR.DECODER.INTERACTION", "['self_attention', 'dehomo']")
    dehomo = ("MODEL.DETR.QUERIES.NAME", "EncoderTopN", *interaction, "MODEL.DETR.DEHOMO.FLOOR_SCORE", 0.9)
    for options in (dehomo, ()):
        with caplog.at_level("INFO", logger="paq_detr.engine.hooks"):
            train(make_cfg("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", "[]", "DATASETS.TEST", "[]", *options))
    dh, without = [record.getMessage() for record in caplog.records if "iteration 1/1" in record.getMessage()]
    assert "; 0.0% of the queries alive in the last layer; " in dh and "alive" not in without


@pytest.mark.parametrize(("share", "threads", "said"), [
    (0.4, 2, "the cores are shared: of a step's time, this program computed 40%; OMP_NUM_THREADS=1 may be faster"),
    (0.4, 1, "the cores are shared: of a step's time, this program computed 40%"),
    (0.9, 2, ""),
])  # fmt: skip
def test_the_progress_line_tells_that_others_use_the_cores(monkeypatch, caplog, share, threads, said):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(logging.getLogger("paq_detr"), "propagate", True)
    with EventStorage() as storage, caplog.at_level("INFO", logger="paq_detr.engine.hooks"):
        storage.put_scalar("core_share", share)
        ProgressWriter(5).write()
    (line,) = caplog.messages
    assert (said in line) if said else "shared" not in line
    assert ("OMP_NUM_THREADS" in line) == ("OMP" in said)


def test_metrics_json_has_null_for_what_is_not_finite(tmp_path):
    writer = MetricsWriter(str(tmp_path / "metrics.json"))
    with EventStorage() as storage:
        storage.put_scalars(loss=2.0)
        writer.write()
        storage.step()
        storage.put_scalars(**{"crowd/AP": 50.0, "crowd/MR": float("nan"), "grad_norm": float("inf")})
        writer.write()
        writer.write()  # nothing new
    writer.close()
    assert [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()] == [
        {"iteration": 0, "loss": 2.0},
        {"iteration": 1, "crowd/AP": 50.0, "crowd/MR": None, "grad_norm": None},
    ]


def test_a_resumed_metrics_json_holds_every_iteration_once(tmp_path):
    path = tmp_path / "metrics.json"
    lines = [f'{{"iteration": {i}, "loss": 1.0}}\n' for i in (3, 7, 11)]
    path.write_text("".join(lines) + '{"iteration": 15, "lo')  # killed in the midst of a line
    writer = MetricsWriter(str(path))
    writer.go_on_from(8)
    with EventStorage(8) as storage:
        storage.put_scalars(loss=2.0)
        writer.write()
    writer.close()
    assert path.read_text() == lines[0] + lines[1] + '{"iteration": 8, "loss": 2.0}\n'
    assert not list(tmp_path.glob("*.part"))


def test_tf32_is_switched_on_and_else_left_as_it_is(make_cfg):
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for wanted in (False, True):
            torch.backends.cuda.matmul.allow_tf32 = False
            start_run(make_cfg("SOLVER.TF32", wanted), Namespace(eval_only=True))
            assert torch.backends.cuda.matmul.allow_tf32 == wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.gpu
def test_adamw_in_one_kernel_learns_the_same(make_cfg, tmp_path):
    opts = ("MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", "[]", "DATASETS.TEST", "[]")
    one, many = (train(make_cfg(*opts, "SOLVER.FUSED", on, "OUTPUT_DIR", tmp_path / str(on))) for on in (True, False))
    assert one.optimizer.defaults["fused"] and not many.optimizer.defaults["fused"]
    for name, value in weights(many).items():
        torch.testing.assert_close(weights(one)[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.gpu
def test_a_run_on_a_gpu_resumes_where_it_was(make_cfg):
    opts = ("MODEL.DEVICE", "cuda", "SOLVER.STEPS", "[]", "DATASETS.TEST", "[]")
    first = train(make_cfg(*opts, "SOLVER.MAX_ITER", 2))
    resumed = Trainer(make_cfg(*opts, "SOLVER.MAX_ITER", 4))
    resumed.resume_or_load(resume=True)
    assert_equal_states(weights(first), weights(resumed))
    content = torch.load(os.path.join(first.cfg.OUTPUT_DIR, "model_final.pth"), weights_only=True)
    torch.cuda.manual_seed(123)
    resumed.before_train()
    assert torch.equal(torch.cuda.get_rng_state(), content["trainer"]["rng"][0]["device"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_gives_one_sentence_with_its_name(make_cfg, tmp_path, workers):
    """Its header, which is read before a training starts, is whole."""
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(whole, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    content = {
        "images": [{"id": 1, "file_name": "cut.jpg", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 20, 20], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "cut.json").write_text(json.dumps(content))
    name = f"cut_short_{workers}"
    entry = str([[name, str(tmp_path / "cut.json"), str(tmp_path)]])
    options = ["DATASETS.COCO_JSON", entry, "DATASETS.TRAIN", f"['{name}']", "DATASETS.TEST", "[]"]
    trainer = Trainer(make_cfg(*options, "DATALOADER.NUM_WORKERS", workers))
    with pytest.raises(UserError, match="the image .*cut.jpg cannot be read.*; paq-detr check-data") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
