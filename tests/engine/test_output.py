# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
import json
import multiprocessing
from argparse import Namespace

import pytest
import torch

from paq_detr.engine import Trainer, UserError, start_run
from paq_detr.engine.output import claim, set_aside


def fill(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_an_earlier_runs_files_go_into_a_numbered_folder_and_others_stay(tmp_path):
    fill(tmp_path, metrics__json="1", model_final__pth="w", last_checkpoint="model_final.pth", notes__txt="mine")
    fill(tmp_path / "inference", results__json="r")
    assert set_aside(str(tmp_path)) == f"{tmp_path}/earlier_1"
    fill(tmp_path, metrics__json="2")
    assert set_aside(str(tmp_path)) == f"{tmp_path}/earlier_2"
    assert set_aside(str(tmp_path)) == ""
    moved = ["inference/results.json", "last_checkpoint", "metrics.json", "model_final.pth"]
    assert tree(tmp_path) == [*(f"earlier_1/{name}" for name in moved), "earlier_2/metrics.json", "notes.txt"]


def test_the_weights_that_the_new_run_starts_from_are_there_twice(tmp_path):
    fill(tmp_path, model_final__pth="w", model_best__pth="b")
    set_aside(str(tmp_path), keep=f"{tmp_path}/../{tmp_path.name}/model_final.pth")
    assert tree(tmp_path) == ["earlier_1/model_best.pth", "earlier_1/model_final.pth", "model_final.pth"]


def run(cfg, resume=False):
    start_run(cfg, Namespace(resume=resume, eval_only=False))
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def iterations(folder):
    return [json.loads(line)["iteration"] for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_second_run_in_a_folder_begins_anew_and_resume_continues_it(make_cfg, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("paq_detr.engine.cli.logger.warning", lambda text, *values: said.append(text % values))
    opts = ("DATASETS.TEST", "[]", "SOLVER.STEPS", "[]", "SOLVER.MAX_ITER")
    out = tmp_path / "output"
    run(make_cfg(*opts, 2))
    first = (out / "model_final.pth").read_bytes()
    run(make_cfg(*opts, 3))
    assert said == [f"{out} held an earlier run, whose files are now in {out}/earlier_1"]
    assert (out / "earlier_1" / "model_final.pth").read_bytes() == first
    # As if it had been killed after it, and a disk had failed.
    (out / "metrics.json").write_bytes(b'\xff\xfe{{\n{"iteration": "x"}\n[1]\n{"iteration": 2}\n{"iteration": 9}\n')
    run(make_cfg(*opts, 4), resume=True)
    assert not (out / "earlier_2").exists()
    assert iterations(out) == [2, 3] and iterations(out / "earlier_1")[-1] == 1


def test_a_run_that_died_before_its_first_checkpoint_does_not_resume_an_earlier_one(make_cfg, tmp_path):
    opts = ("DATASETS.TEST", "[]", "SOLVER.STEPS", "[]", "SOLVER.MAX_ITER")
    run(make_cfg(*opts, 2))
    start_run(make_cfg(*opts, 3), Namespace(resume=False, eval_only=False))  # and dies
    assert run(make_cfg(*opts, 3), resume=True).start_iter == 0


def write_weights(path):
    torch.save({"model": {"other.weight": torch.zeros(3)}}, path)


@pytest.mark.parametrize(
    "write, opts, message",
    [
        (write_weights, (), "w.pth fits no part of the model .its first tensor: other.weight."),
        (lambda path: path.write_text("no weights"), (), "w.pth was not loaded: it is a text file"),
        (None, ("MODEL.DETR.NECK.IN_FEATURES", "['res9']"), "MODEL.DETR.NECK.IN_FEATURES names res9"),
    ],
    ids=["of another model", "no weights", "no such model"],
)
def test_what_a_new_run_cannot_begin_with_is_said_before_an_earlier_one_is_moved(
    make_cfg, tmp_path, write, opts, message
):
    out, weights = tmp_path / "output", tmp_path / "w.pth"
    fill(out, metrics__json="1", model_final__pth="w", last_checkpoint="model_final.pth")
    before = tree(out)
    if write:
        write(weights)
        opts = ("MODEL.WEIGHTS", str(weights))
    with pytest.raises(UserError, match=message):
        start_run(make_cfg(*opts), Namespace(resume=False, eval_only=False))
    assert tree(out) == sorted([*before, ".lock"])


def test_evaluation_leaves_the_folder_as_it_is(make_cfg, tmp_path):
    run(make_cfg("DATASETS.TEST", "[]", "SOLVER.STEPS", "[]", "SOLVER.MAX_ITER", 1))
    start_run(make_cfg(), Namespace(resume=False, eval_only=True))
    assert (tmp_path / "output" / "model_final.pth").is_file()


def hold(folder, held, end):
    claim(folder)
    held.set()
    end.wait()


def test_a_folder_that_another_training_writes_to_is_refused_until_that_ends(make_cfg, tmp_path):
    fork = multiprocessing.get_context("fork")
    held, end = fork.Event(), fork.Event()
    fill(tmp_path / "output", metrics__json="of the other")
    other = fork.Process(target=hold, args=(str(tmp_path / "output"), held, end))
    other.start()
    assert held.wait(60)
    with pytest.raises(UserError, match=f"OUTPUT_DIR {tmp_path}/output is of a training that is still running"):
        start_run(make_cfg(), Namespace(resume=False, eval_only=False))
    assert (tmp_path / "output" / "metrics.json").read_text() == "of the other"
    start_run(make_cfg(), Namespace(resume=False, eval_only=True))  # to evaluate is no harm
    other.kill()
    other.join()
    for _ in range(2):  # a process may train twice
        start_run(make_cfg(), Namespace(resume=False, eval_only=False))
    assert claimed_elsewhere(str(tmp_path / "output"))


def claimed_elsewhere(folder):
    """Whether another process finds the folder claimed by this one, also after that process has ended others."""

    def attempt(answer):
        try:
            claim(folder)
        except UserError:
            answer.set()

    fork = multiprocessing.get_context("fork")
    answers = [fork.Event(), fork.Event()]
    for answer in answers:
        process = fork.Process(target=attempt, args=(answer,))
        process.start()
        process.join()
    return all(answer.is_set() for answer in answers)


def test_what_a_killed_run_left_half_written_is_removed(make_cfg, tmp_path):
    fill(tmp_path / "output", model_final__pth__part="half")
    start_run(make_cfg(), Namespace(resume=False, eval_only=False))
    assert not list((tmp_path / "output").glob("*.part"))
