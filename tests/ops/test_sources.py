# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What must hold of the native sources: every header compiles alone, no family knows another, none is left out."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
STABLE_ABI = re.search(r'^STABLE_ABI = "(\w+)"', (ROOT / "setup.py").read_text(), re.MULTILINE)[1]
FLAGS = ["-std=c++17", f"-DTORCH_TARGET_VERSION={STABLE_ABI}", *(f"-I{path}" for path in include_paths())]


def names(*patterns):
    return sorted(str(path.relative_to(CSRC)) for pattern in patterns for path in CSRC.rglob(pattern))


def compile_alone(header, folder, suffix, command):
    if shutil.which(command[0]) is None:
        pytest.skip(f"there is no {command[0]}")
    source = folder / f"alone{suffix}"
    source.write_text(f'#include "{CSRC / header}"\n')
    done = subprocess.run([*command, *FLAGS, str(source)], text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


# Each of them reads torch's headers again: by hand, but for the common ones.
@pytest.mark.parametrize(
    "header",
    [name if name.startswith("common/") else pytest.param(name, marks=pytest.mark.slow) for name in names("*.h")],
)
def test_header_compiles_alone(header, tmp_path):
    compile_alone(header, tmp_path, ".cpp", [*os.environ.get("CXX", "c++").split(), "-fsyntax-only"])


@pytest.mark.slow
@pytest.mark.parametrize("header", names("*.cuh"))
def test_device_header_compiles_alone(header, tmp_path):
    compile_alone(header, tmp_path, ".cu", ["nvcc", "-DUSE_CUDA", "-arch=sm_90", "-cuda", "-o", os.devnull])


def test_families_include_only_their_own_headers_and_common_ones():
    for name in names("*.h", "*.cuh", "*.cpp", "*.cu"):
        family = name.split("/")[0]
        included = re.findall(r'^#include "(.*)"', (CSRC / name).read_text(), re.MULTILINE)
        for path in ((CSRC / name).parent / header for header in included):
            assert path.exists(), f"{name} includes {path}"
            assert str(path.resolve().relative_to(CSRC)).split("/")[0] in (family, "common"), f"{name} includes {path}"


def test_sources_stand_where_setup_looks_for_them():
    for name in names("*.cpp", "*.cu"):
        folder = name.split("/")[1:-1]
        assert folder == ([] if "/" not in name else ["cpu" if name.endswith(".cpp") else "cuda"]), name
