# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Builds the native operators with the package, as far as this machine can.

    pip install --no-build-isolation -e .     (or without -e)

Environment variables:
    PAQ_DETR_NO_EXT=1         build no extension; every operator runs its pure-torch twin
    PAQ_DETR_FORCE_CPU=1      build the CPU kernels only, even if nvcc is there
    TORCH_CUDA_ARCH_LIST      compute capabilities; default: those of the GPUs in sight and PTX of the last,
                              else 8.0;9.0+PTX
    CUDA_HOME                 the CUDA toolkit; default: the one of the nvcc on the PATH, else under /usr/local
    CXX, MAX_JOBS             the C++ compiler, and how many compile at once

What is missing (torch, a compiler, CUDA) leaves its kernels out, and one line says so. What is present must compile.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
DEFAULT_ARCHS = "8.0;9.0+PTX"
OLDEST_TORCH = (2, 10)
STABLE_ABI = "0x020a000000000000"  # of OLDEST_TORCH: the library runs on this release of torch and all later ones
LIMITED_API = "cp310"


def flag(name):
    return os.environ.get(name, "0") not in ("", "0")


def say(sentence):
    print(f"paq_detr: {sentence}", file=sys.stderr, flush=True)


def compiler():
    return os.environ.get("CXX", "c++").split()


def find_cuda_home():
    """The toolkit folder that can compile and link: nvcc on the PATH may be a script that stands elsewhere."""
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parents[1])
        plan = subprocess.run([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True)
        candidates += re.findall(r"^#\$ _HERE_=(.*)/bin$", plan.stderr, re.MULTILINE)
    candidates += sorted(Path("/usr/local").glob("cuda*"), reverse=True)
    for home in filter(None, map(str, candidates)):
        complete = (Path(home) / "bin/nvcc").exists() and (Path(home) / "include/cuda_runtime.h").exists()
        if complete and any(Path(home).glob("lib*/libcudart.so")):
            return home
    return None


def why_no_extension():
    if flag("PAQ_DETR_NO_EXT"):
        return "PAQ_DETR_NO_EXT is set"
    if sys.platform == "win32":
        return "the kernels need GCC or Clang, which a Windows torch is not built with"
    try:
        import torch
    except ImportError:
        return "torch cannot be imported here (install it first, and use pip's --no-build-isolation)"
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        return f"torch {torch.__version__} is older than {'.'.join(map(str, OLDEST_TORCH))}"
    if shutil.which(compiler()[0]) is None:
        return f"there is no C++ compiler ({compiler()[0]}; see CXX)"
    return None


def why_no_cuda():
    """None if the CUDA kernels can be compiled; then CUDA_HOME and TORCH_CUDA_ARCH_LIST are set."""
    import torch

    if flag("PAQ_DETR_FORCE_CPU"):
        return "PAQ_DETR_FORCE_CPU is set"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    home = find_cuda_home()
    if home is None:
        return "there is no CUDA toolkit (nvcc, cuda_runtime.h and libcudart.so in one folder; see CUDA_HOME)"
    version = subprocess.run([f"{home}/bin/nvcc", "--version"], capture_output=True, text=True).stdout
    toolkit = re.search(r"release (\d+)\.(\d+)", version)
    if toolkit is None or toolkit[1] != torch.version.cuda.split(".")[0]:
        found = toolkit[0] if toolkit else "of unknown release"
        return f"nvcc in {home} is {found}, torch is built for CUDA {torch.version.cuda}"
    os.environ["CUDA_HOME"] = home
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
        archs = ";".join(f"{major}.{minor}" for major, minor in sorted(found))
        os.environ["TORCH_CUDA_ARCH_LIST"] = f"{archs}+PTX" if found else DEFAULT_ARCHS
    return None


def sources(*patterns):
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in (ROOT / "csrc").glob(pattern))


def extension(with_cuda):
    from torch.utils.cpp_extension import CppExtension, CUDAExtension

    macros = [("TORCH_TARGET_VERSION", STABLE_ABI), ("Py_LIMITED_API", "0x030A0000")]
    cxx = ["-O3", "-std=c++17", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math", "-g0"]
    cxx += ["-fno-wrapv"]  # Python's own flags bring -fwrapv, which costs the attention kernel a third of its speed
    cxx += ["-Wno-psabi", "-Wno-maybe-uninitialized"]  # of GCC 12's own AVX-512 header
    common = {"depends": sources("**/*.h", "**/*.cuh"), "py_limited_api": True}  # a changed header is compiled anew
    files = sources("*.cpp", "*/cpu/*.cpp")
    if not with_cuda:
        return CppExtension("paq_detr._C", files, define_macros=macros, extra_compile_args={"cxx": cxx}, **common)
    return CUDAExtension(
        "paq_detr._C",
        files + sources("*/cuda/*.cu"),
        define_macros=[*macros, ("USE_CUDA", None)],
        extra_compile_args={"cxx": cxx, "nvcc": ["-O3", "-std=c++17", "--compress-mode=size"]},
        **common,
    )


def build_record(with_cuda):
    import torch

    banner = subprocess.run([*compiler(), "--version"], capture_output=True, text=True).stdout
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda if with_cuda else None,
        "archs": os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else None,
        "compiler": banner.splitlines()[0] if banner else compiler()[0],
        "python": f"{LIMITED_API}-abi3",
        "platform": sysconfig.get_platform(),
    }


def extension_arguments():
    if reason := why_no_extension():
        say(f"no native operators, {reason}; the pure-torch forms run everywhere, slower")
        return {}
    if reason := why_no_cuda():
        say(f"CPU kernels only, {reason}; on a GPU the pure-torch forms run")
    with_cuda = reason is None
    from torch.utils.cpp_extension import BuildExtension

    class BuildWithRecord(BuildExtension):
        def run(self):
            super().run()
            folder = Path(self.get_ext_fullpath("paq_detr._C")).parent
            record = build_record(with_cuda) | {"bytes": Path(self.get_ext_fullpath("paq_detr._C")).stat().st_size}
            (folder / "_build_record.json").write_text(json.dumps(record, indent=2) + "\n")

    return {
        "ext_modules": [extension(with_cuda)],
        "cmdclass": {"build_ext": BuildWithRecord.with_options(use_ninja=shutil.which("ninja") is not None)},
        "options": {"bdist_wheel": {"py_limited_api": LIMITED_API}},
    }


subpackages = find_packages(ROOT / "projects" / "paq_detr")
setup(
    # The configs that people edit in the checkout are a folder of the package where it is installed (config_files.py).
    package_dir={"paq_detr": "projects/paq_detr", "paq_detr._configs": "configs"},
    packages=["paq_detr", *(f"paq_detr.{name}" for name in subpackages), "paq_detr._configs"],
    package_data={"paq_detr._configs": ["**/*.yaml"]},
    **extension_arguments(),
)
