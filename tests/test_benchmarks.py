# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What of benchmarks/ can go wrong unseen where there is no GPU: the adapters to other kernels, and ncu's table."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from paq_detr.ops import fused_ms_deform_attn, ms_deform_attn_torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
LEVELS = [(4, 5), (2, 3)]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_ms_deform_attn
    import bench_pair_quality
    import peers
    import profile_gpu

    return SimpleNamespace(msda=bench_ms_deform_attn, pairs=bench_pair_quality, peers=peers, profile=profile_gpu)


class OriginalKernel:
    """The two calls of the original extension, by the twin."""

    @staticmethod
    def ms_deform_attn_forward(value, shapes, starts, locations, weights, im2col_step):
        assert starts.tolist() == [0, 20]
        return ms_deform_attn_torch(value, shapes.tolist(), locations, weights)

    @classmethod
    def ms_deform_attn_backward(cls, value, shapes, starts, locations, weights, grad_out, im2col_step):
        leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        with torch.enable_grad():
            out = cls.ms_deform_attn_forward(leaves[0], shapes, starts, *leaves[1:], im2col_step)
        return torch.autograd.grad(out, leaves, grad_out)


def test_adapter_of_original_kernel_computes_what_ours_does(benchmarks):
    torch.manual_seed(0)
    value, reference, offsets, logits = (
        torch.randn(shape).requires_grad_() for shape in ((2, 26, 8, 4), (2, 3, 2), (2, 3, 8, 2, 4, 2), (2, 3, 8, 8))
    )
    leaves = (value, reference, offsets, logits)
    theirs = benchmarks.peers._run_kernel(OriginalKernel, value, LEVELS, reference, offsets, logits)
    ours = fused_ms_deform_attn(value, LEVELS, reference, offsets, logits)
    torch.testing.assert_close(theirs, ours)
    grad_out = torch.randn_like(ours)
    for their_grad, our_grad in zip(
        torch.autograd.grad(theirs, leaves, grad_out), torch.autograd.grad(ours, leaves, grad_out), strict=True
    ):
        torch.testing.assert_close(their_grad, our_grad, atol=1e-4, rtol=1e-4)


def test_peers_are_told_and_left_out_without_gpu(benchmarks):
    assert benchmarks.peers.msda_peers("cpu") == {}


def test_failing_peer_is_told_and_left_out(benchmarks, capsys):
    def broken(*inputs):
        raise RuntimeError("no kernel image is available")

    inputs = benchmarks.msda.make_inputs((1, LEVELS, 3), "init", torch.float32, "cpu")
    rivals = {"grid_sample": benchmarks.msda.grid_sample_form(), "broken": broken, "ours": fused_ms_deform_attn}
    errors = benchmarks.msda.errors_of(rivals, inputs)
    assert errors.keys() == {"grid_sample", "ours"}
    assert "broken is left out: RuntimeError: no kernel image is available" in capsys.readouterr().err


def test_assignment_rivals_find_the_same_pairs(benchmarks):
    def solve_on_device(costs):  # as torch-linear-assignment answers: the column of every row
        return [torch.from_numpy(linear_sum_assignment(cost.numpy())[1]) for cost in costs]

    inputs = benchmarks.pairs.scene(2, 2, 50, 3, 6, "cpu")
    found = {name: rival() for name, rival in benchmarks.pairs.assignments(inputs, solve_on_device).items()}
    for layer in range(2):
        query, *_ = found["ours"][layer]
        per_image = [found["per image"][2 * layer + image] for image in range(2)]
        expected = [queries[objects.argsort()].tolist() for queries, objects in per_image]
        assert query.tolist() == sum(expected, [])
        on_device = [images[layer].tolist() for images in found["torch-linear-assignment"]]
        assert query.tolist() == sum(on_device, [])


def test_ncu_table_is_read(benchmarks):
    kernel = "void paq_detr::msda::(anonymous namespace)::backward_kernel<c10::BFloat16, (int)4>(Arguments<T1>, T1 *)"
    values = {"gpu__time_duration.sum": "200,000", "smsp__inst_executed.sum": "17778400"}
    values |= {"dram__bytes.sum": "400000000", "lts__t_bytes.sum": "900000000"}
    lines = ["==PROF== Connected", '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    lines += [f'"0","{kernel}","{metric}","unit","{value}"' for metric, value in values.items()]
    (row,) = benchmarks.profile.kernels_of("\n".join(lines))
    described = benchmarks.profile.described(row, {"forward": 20.0, "backward": 40.0})
    assert described == {
        "kernel": "backward_kernel<c10::BFloat16, (int)4>",
        "us": 200.0,
        "floor of float32, us": 40.0,
        "instructions per query and head": pytest.approx(100),
        "DRAM MB": 400.0,
        "L2 MB": 900.0,
        "DRAM GB/s": pytest.approx(2000),
    }


def test_a_step_out_of_time_takes_its_children_along(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run_gpu

    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(tmp_path / 'late')!r}).touch()"
    parent = f"import subprocess, sys; print('begun', flush=True); subprocess.run([sys.executable, '-c', {child!r}])"
    step = run_gpu.Step("slow", [sys.executable, "-c", parent], 1)
    result = run_gpu.run(step, 1.0, run_gpu.PACKAGE.parent, tmp_path / "log")
    assert result["exit_code"] == 124 and "begun" in result["output_end"]
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_every_config_whose_cost_a_gpu_run_measures_exists(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import run_gpu

    names = (*run_gpu.COSTED, *run_gpu.COSTED_DRY)
    assert [name for name in names if not (run_gpu.ROOT / "configs" / f"{name}.yaml").exists()] == []
    for system in ("mask", "mr_detr", "sparse_rcnn", "adamixer", "asag", "dino", "dh_detr", "ddq", "align"):
        assert any(system in name for name in run_gpu.COSTED), system


def test_rows_are_written_as_they_are_made(benchmarks, tmp_path):
    import json

    from measure import report

    args = SimpleNamespace(device="cpu", clock="wall", cold=False, json=tmp_path / "out.json")

    def rows():
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report(rows(), args)
    assert json.loads(args.json.read_text())["rows"] == [{"a": 1}]


def make_kit(monkeypatch, *arguments):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu_kit

    monkeypatch.setattr(sys, "argv", ["gpu_kit.py", *map(str, arguments)])
    return gpu_kit.main()


@pytest.fixture
def build(tmp_path):
    """A folder like one with a built library."""
    folder = tmp_path / "fast"
    folder.mkdir()
    (folder / "_C.abi3.so").write_bytes(bytes(1 << 20))
    (folder / "_build_record.json").write_text('{"torch": "2.11.0", "cuda": "13.0", "archs": "9.0"}')
    return folder


def test_a_kit_holds_builds_data_and_training_and_says_its_size(monkeypatch, tmp_path, build, capsys):
    (tmp_path / "t.yaml").write_text("SOLVER: {}\n")
    data = tmp_path / "images"
    data.mkdir()
    (data / "1.jpg").touch()
    kit = tmp_path / "kit"
    assert not make_kit(
        monkeypatch, kit, "--no-wheels", "--library", build, "--train", tmp_path / "t.yaml", "--data", data
    )
    files = {str(path.relative_to(kit)) for path in kit.rglob("*") if path.is_file()}
    assert files == {"lib/fast/_C.abi3.so", "lib/fast/_build_record.json", "train.yaml", "data/images/1.jpg"}
    assert "kit: 1.0 MiB" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("spoil", "arguments", "sentence"),
    [
        ("", ["--limit", "0.5"], "has more than 0.5 MiB: take fewer builds or less data"),
        ("kit", [], "is not empty: name a new folder"),
        ("fast/_C.abi3.so", [], "holds no build"),
        ("cpu", [], "has no CUDA kernels: build it where nvcc is, or give --cpu"),
        ("", ["--data", "/nowhere"], "/nowhere does not exist"),
    ],
)
def test_a_kit_that_would_not_do_is_refused(monkeypatch, tmp_path, build, capsys, spoil, arguments, sentence):
    if spoil == "kit":
        (tmp_path / "kit" / "old").mkdir(parents=True)
    elif spoil == "cpu":
        (build / "_build_record.json").write_text('{"cuda": null}')
    elif spoil:
        (tmp_path / spoil).unlink()
    assert make_kit(monkeypatch, tmp_path / "kit", "--no-wheels", "--library", build, *arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="would start the whole run")
def test_gpu_run_says_that_there_is_no_gpu(tmp_path):
    command = [sys.executable, BENCHMARKS / "run_gpu.py", "--json", tmp_path / "out.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.strip().endswith("run_gpu: torch finds no CUDA device here")


def test_one_cross_attention_for_all_routes_computes_what_one_for_each_does(monkeypatch):
    """The rivals of bench_routes.py, of which none wins by doing less."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bench_routes

    options = ("HIDDEN_DIM", 32, "DECODER.FFN_DIM", 48, "DECODER.NUM_LAYERS", 3)
    routes = bench_routes.routes_of(12, "cpu", *options)
    memory, queries = bench_routes.inputs_of(2, 12, (64, 96), 32, "cpu")
    parameters = [p for route in routes for p in route.parameters()]
    for parameter in parameters:
        torch.nn.init.normal_(parameter, std=0.2)
    found = []
    for rival in (bench_routes.ours, bench_routes.naive, bench_routes.joined):
        loss = bench_routes.loss_of(rival(routes, queries, memory()))
        found.append([loss, *torch.autograd.grad(loss, parameters)])
    for others in found[1:]:
        torch.testing.assert_close(others, found[0], atol=1e-5, rtol=1e-4)
