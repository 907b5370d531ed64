# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Building, loading and choosing the native operators, and what is said where that is not possible."""

import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from paq_detr.ops import _extension, explain

ROOT = Path(__file__).resolve().parents[2]
ON_CUDA = SimpleNamespace(device=torch.device("cuda", 0))
GOOD_RECORD = {"torch": torch.__version__, "cuda": torch.version.cuda, "platform": _extension.sysconfig.get_platform()}


@pytest.fixture(autouse=True)
def forget_decisions():
    yield
    _extension._why_not.cache_clear()
    _extension._complain.cache_clear()


def without_library(monkeypatch, reason="the native library is not built"):
    monkeypatch.setattr(_extension, "library", lambda: _extension.Library(False, reason, {}))
    monkeypatch.setattr(_extension, "_kernels", set())
    _extension._why_not.cache_clear()


def test_a_library_built_here_fits():
    assert _extension.build_mismatch(GOOD_RECORD) is None
    assert _extension.build_mismatch({**GOOD_RECORD, "cuda": None}) is None


@pytest.mark.parametrize(
    ("wrong", "built", "here"),
    [
        ({"cuda": "11.8"}, "CUDA 11.8", f"you have CUDA {torch.version.cuda}"),
        ({"platform": "linux-sparc64"}, "linux-sparc64", f"you have {GOOD_RECORD['platform']}"),
    ],
)
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
def test_a_library_built_elsewhere_is_refused_with_both_sides_and_the_command(wrong, built, here):
    sentence = _extension.build_mismatch({**GOOD_RECORD, **wrong})
    assert f"built for {built}" in sentence and here in sentence and "pip install --no-build-isolation" in sentence


def test_a_torch_older_than_the_stable_abi_is_named(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert "runs on torch >= 2.10), you have torch 2.9.1" in _extension.build_mismatch(GOOD_RECORD)


def test_a_cuda_library_does_not_fit_a_torch_without_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built for CUDA 13.0, you have a torch without CUDA" in _extension.build_mismatch({"cuda": "13.0"})


def test_a_wrong_record_beside_the_library_keeps_it_from_loading(monkeypatch, tmp_path):
    (tmp_path / "_C.abi3.so").touch()
    (tmp_path / "_build_record.json").write_text(json.dumps({**GOOD_RECORD, "platform": "linux-sparc64"}))
    monkeypatch.setattr(_extension, "PACKAGE_DIR", tmp_path)
    monkeypatch.setattr(
        _extension, "read_build_record", lambda: json.loads((tmp_path / "_build_record.json").read_text())
    )
    library = _extension.library.__wrapped__()
    assert not library.loaded and "built for linux-sparc64" in library.reason


def test_a_library_that_was_cut_off_is_not_loaded(monkeypatch, tmp_path):
    (tmp_path / "_C.abi3.so").write_bytes(b"half")
    monkeypatch.setattr(_extension, "PACKAGE_DIR", tmp_path)
    monkeypatch.setattr(_extension, "read_build_record", lambda: {**GOOD_RECORD, "bytes": 8})
    library = _extension.library.__wrapped__()
    assert not library.loaded and "_C.abi3.so has 4 bytes, was built with 8; rebuild it: pip" in library.reason


@pytest.mark.parametrize("text", ['{"torch": ', "[]"])
def test_a_damaged_record_counts_as_none(tmp_path, text):
    (tmp_path / "_build_record.json").write_text(text)
    assert _extension.read_build_record(tmp_path) == {}


def test_a_folder_without_library_says_how_to_build_it(monkeypatch, tmp_path):
    monkeypatch.setattr(_extension, "PACKAGE_DIR", tmp_path)
    library = _extension.library.__wrapped__()
    assert not library.loaded and "not built; build it: pip install" in library.reason


@pytest.mark.parametrize(
    ("archs", "capability", "fits"),
    [
        ("8.0;9.0+PTX", (8, 0), True),
        ("8.0;9.0+PTX", (8, 9), True),
        ("8.0;9.0+PTX", (12, 0), True),
        ("8.0;9.0+PTX", (7, 5), False),
        ("9.0", (10, 0), False),
        ("8.6", (8, 0), False),
        ("9.0a", (9, 0), True),
        ("Hopper", (9, 0), True),
        ("", (8, 0), True),
    ],
)
def test_the_gpu_must_be_among_the_architectures_built_for(archs, capability, fits):
    reason = _extension._wrong_architecture({"archs": archs}, capability)
    assert (reason is None) == fits
    assert fits or f"you have {capability[0]}.{capability[1]}" in reason and "TORCH_CUDA_ARCH_LIST=" in reason


def test_a_cuda_tensor_without_cuda_kernel_warns_once_with_the_reason(monkeypatch, caplog):
    without_library(monkeypatch, "no nvcc when it was built")
    with caplog.at_level(logging.WARNING):
        assert not _extension.use_native("fused_ms_deform_attn", ON_CUDA)
        assert not _extension.use_native("fused_ms_deform_attn", ON_CUDA)
    assert [record.message for record in caplog.records] == [
        "fused_ms_deform_attn has no CUDA kernel here: no nvcc when it was built. The slower pure-torch form runs."
    ]


def test_a_cuda_tensor_without_cuda_kernel_is_an_error_if_the_extension_is_required(monkeypatch):
    without_library(monkeypatch)
    monkeypatch.setenv("PAQ_DETR_REQUIRE_EXT", "1")
    with pytest.raises(RuntimeError, match="no CUDA kernel here: the native library is not built.*REQUIRE_EXT"):
        _extension.use_native("fused_ms_deform_attn", ON_CUDA)


def test_a_cpu_tensor_without_library_runs_the_twin_silently(monkeypatch, caplog):
    without_library(monkeypatch)
    assert not _extension.use_native("fused_ms_deform_attn", torch.zeros(1))
    assert not caplog.records
    monkeypatch.setenv("PAQ_DETR_REQUIRE_EXT", "1")
    _extension._complain.cache_clear()
    with pytest.raises(RuntimeError, match="no CPU kernel here: the native library is not built.*REQUIRE_EXT"):
        _extension.use_native("fused_ms_deform_attn", torch.zeros(1))


def test_explain_names_one_backend_that_runs_and_why_not_the_others():
    backends = {backend.name: backend for backend in explain("fused_ms_deform_attn", torch.zeros(1))}
    assert list(backends) == ["cuda", "cpu", "torch"]
    assert [backend.runs for backend in backends.values()].count(True) == 1
    assert str(backends["cuda"]) == "cuda: does not run, the input is on cpu"


def test_explain_without_library_says_so_and_names_the_twin(monkeypatch):
    without_library(monkeypatch)
    cuda, cpu, twin = explain("ms_deform_attn", torch.zeros(1))
    assert not cuda.runs and not cpu.runs and twin.runs
    assert cpu.reason == "the native library is not built"


def test_explain_names_a_type_that_no_kernel_takes():
    backends = explain("fused_ms_deform_attn", torch.zeros(1, dtype=torch.complex64))
    assert "the input is torch.complex64, the kernel takes torch.float32" in backends[1].reason


def test_explain_names_the_operators_if_asked_for_another():
    with pytest.raises(ValueError, match="'deform' is none of .*fused_ms_deform_attn"):
        explain("deform", torch.zeros(1))


def test_the_operators_alone_import_torch_and_nothing_else_of_what_detectors_need(tmp_path):
    """Also outside of the repository: from a folder that holds them and the library alone, as a wheel brings them."""
    package, here = tmp_path / "paq_detr", _extension.PACKAGE_DIR
    shutil.copytree(here / "ops", package / "ops", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*here.glob("_*.py"), here / "_build_record.json", *here.glob("_C*.so")):
        if path.exists():
            shutil.copy2(path, package)
    heavy = "('detectron2', 'fvcore', 'torchvision', 'transformers', 'scipy', 'matplotlib')"
    code = f"import sys, paq_detr.ops as ops; print([name for name in {heavy} if name in sys.modules])"
    code += "; import torch; print(ops.__file__); print(ops.explain('fused_ms_deform_attn', torch.zeros(1))[1].runs)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment)
    expected = ["[]", str(package / "ops" / "__init__.py"), str(_extension.library().loaded)]
    assert done.stdout.split("\n")[:3] == expected, done.stdout + done.stderr


# ---------------------------------------------------------------------------------------------------------------
# setup.py, on machines that lack something


def run_setup(*arguments, folder=ROOT, **environment):
    environment = {name: value for name, value in {**os.environ, **environment}.items() if value is not None}
    command = [sys.executable, "setup.py", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PAQ_DETR_NO_EXT": "1"}, "no native operators, PAQ_DETR_NO_EXT is set"),
        ({"CXX": "no-such-compiler"}, "no native operators, there is no C++ compiler (no-such-compiler; see CXX)"),
        ({"PAQ_DETR_FORCE_CPU": "1"}, "CPU kernels only, PAQ_DETR_FORCE_CPU is set"),
    ],
)
def test_setup_goes_on_and_says_in_one_line_what_it_leaves_out(environment, sentence, monkeypatch, capfd):
    if "FORCE_CPU" in str(environment) and shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no C++ compiler")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["setup.py", "--name"])
    runpy.run_path("setup.py", run_name="__main__")
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("paq_detr:")]
    assert said[0].startswith(f"paq_detr: {sentence}")


def test_what_does_not_compile_fails_the_build(tmp_path):
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("there is no C++ compiler")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "projects" / "paq_detr").mkdir(parents=True)
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "ops.cpp").write_text("#error rot\n")
    done = run_setup("build_ext", folder=tmp_path, PAQ_DETR_FORCE_CPU="1")
    assert done.returncode != 0 and "#error rot" in done.stdout + done.stderr
