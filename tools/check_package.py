# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Build the sdist, a wheel from it, and try the wheel from another folder: ``make package``.

    python tools/check_package.py [--operators]

The wheel goes into an environment of its own, whose other packages are those of the interpreter that runs this. The
native operators take minutes to compile and are left out unless --operators asks for them: what they are made of must
be in the sdist all the same.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt",
           "requirements.txt", "train_net.py", "projects", "csrc", "configs")  # fmt: skip
LEFT_OUT = shutil.ignore_patterns("*.so", "_build_record.json", "__pycache__")
TINY = "DATASETS.SYNTHETIC_CROWD.NUM_TRAIN 4 DATASETS.SYNTHETIC_CROWD.NUM_VAL 2 SOLVER.MAX_ITER 2 MODEL.DEVICE cpu"
TRY = """
import pathlib, sys, paq_detr
from PIL import Image
assert pathlib.Path(paq_detr.__file__).is_relative_to(sys.prefix), paq_detr.__file__
assert pathlib.Path(paq_detr.configs("crowd/paq_dh")).is_relative_to(sys.prefix), paq_detr.configs()
Image.new("RGB", (96, 64), "grey").save("grey.png")
result = paq_detr.Detector("output/demo", device="cpu").predict("grey.png", threshold=0.0)
print(result, "with operators of", sys.modules["paq_detr.ops"]._extension.library().reason)
"""


class Fault(Exception):
    """What is wrong with the package, in one sentence."""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """The standard output of a command that must succeed."""
    environment = {**os.environ, **environment}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run([*map(str, command)], check=False, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise Fault(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def build(kind: str, source: Path, folder: Path, **environment: str) -> Path:
    """The file that setuptools, as pip calls it, makes of ``source``; kind is "sdist" or "wheel"."""
    hook = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    run(sys.executable, "-c", hook, folder, cwd=source, **environment)
    return next(folder.glob("*.tar.gz" if kind == "sdist" else "*.whl"))


def check_holds(archive: str, names: Iterable[str], wanted: Iterable[str]) -> None:
    missing = sorted(set(wanted) - set(names))
    if missing:
        raise Fault(f"the {archive} lacks {len(missing)} files, such as {', '.join(missing[:5])}")


def files(folder: str, beginning: str) -> list[str]:
    """Of a folder of the project, below ``beginning``."""
    return [f"{beginning}{path.relative_to(ROOT / folder).as_posix()}"
            for path in (ROOT / folder).rglob("*") if path.is_file()]  # fmt: skip


def build_both(folder: Path, operators: bool) -> Path:
    """Build in ``folder``; returns the wheel, which is made of the sdist as a user's pip does."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=LEFT_OUT)
        else:
            shutil.copy(ROOT / name, source)
    sdist = build("sdist", source, folder, PAQ_DETR_NO_EXT="1")
    with tarfile.open(sdist) as archive:
        top = sdist.name.removesuffix(".tar.gz")
        names = archive.getnames()
        check_holds("sdist", names, files("csrc", f"{top}/csrc/") + files("configs", f"{top}/configs/"))
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    wheel = build("wheel", folder / top, folder, **({} if operators else {"PAQ_DETR_NO_EXT": "1"}))
    with zipfile.ZipFile(wheel) as archive:
        check_holds("wheel", archive.namelist(), files("configs", "paq_detr/_configs/"))
    print(f"{sdist.name} {sdist.stat().st_size:,} bytes, {wheel.name} {wheel.stat().st_size:,} bytes")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """Install into an environment of its own; returns the folder of its programs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    programs = folder / "env" / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder / "env")})
    # Its path files are not read, so that a checkout which is installed there stays out of sight.
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (Path(packages) / "others.pth").write_text("\n".join(others))
    return programs


def try_out(programs: Path, folder: Path) -> None:
    """What a user does first, from a folder that is not the project's."""
    folder.mkdir()
    print(run(programs / "paq-detr", "--version", cwd=folder), end="")
    print(run(programs / "paq-detr", "install-detectron2", cwd=folder), end="")
    run(programs / "paq-detr", "demo", *TINY.split(), cwd=folder)
    print(run(programs / "python", "-c", TRY, cwd=folder), end="")
    print(run(programs / "paq-detr", "predict", "output/demo", "grey.png", cwd=folder), end="")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operators", action="store_true", help="compile the native operators from the sdist, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        try:
            wheel = build_both(Path(name), options.operators)
            try_out(install(wheel, Path(name)), Path(name) / "elsewhere")
        except Fault as fault:
            print(f"check_package: {fault}", file=sys.stderr)
            return 1
    print("the package works from another folder")
    return 0


if __name__ == "__main__":
    sys.exit(main())
