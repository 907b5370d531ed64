# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Install Detectron2 0.6 where ``import detectron2`` fails; leave any Detectron2 that is there alone.

    python -m paq_detr.install_detectron2 [--sdist pb1-detectron2-0.6.tar.gz]

It needs torch, setuptools and wheel, and nothing else of this package: as a file it runs before that is installed.

Detectron2 is not on PyPI under its own name, and upstream's set-up compiles C++ that this project does not need. PyPI
has the sources of release 0.6 as ``pb1-detectron2``. They are fetched by pip (which checks the sha256 below before it
runs anything), mended for today's numpy, Pillow and torch, and installed as a pure-Python wheel without dependencies;
the real ones are this package's own.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

NAME, VERSION = "pb1-detectron2", "0.6"
SHA256 = "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29"
# Newer releases of pip refuse the sdist because one of its extras names a URL.
PIP = "pip==25.3"

# (file, pattern, replacement, why); every pattern must occur.
MENDS = [
    ("setup.py", r"ext_modules=get_extensions\(\)", "ext_modules=[]", "the sdist ships no C++ sources"),
    ("setup.py", r"install_requires=\[.*?\n    \],", "install_requires=[],", "it pins black==21.4b2 among others"),
    # _C.py below satisfies the import only; as upstream does, COCO's own evaluation replaces the compiled one.
    (
        "detectron2/evaluation/coco_evaluation.py",
        r"from detectron2\.evaluation\.fast_eval_api import COCOeval_opt\n",
        "COCOeval_opt = COCOeval\n",
        "the fast evaluation is compiled",
    ),
    ("detectron2/data/transforms/transform.py", r"Image\.LINEAR\b", "Image.BILINEAR", "Pillow 10 removed LINEAR"),
    *(
        (f"detectron2/{file}", r"\bnp\.(int|float|bool)\b", r"\1", "numpy 1.24 removed these names")
        for file in (
            "data/build.py",
            "evaluation/sem_seg_evaluation.py",
            "evaluation/pascal_voc_evaluation.py",
            "structures/masks.py",
            "utils/visualizer.py",
            "utils/video_visualizer.py",
        )
    ),
]

EMPTY_EXTENSION = '''"""Stands for the compiled operators, which this build of Detectron2 leaves out."""


def get_compiler_version():
    return "none (pure-Python build)"


def get_cuda_version():
    return "none (pure-Python build)"


def has_cuda():
    return False
'''


class InstallError(Exception):
    """One sentence for the user."""


def run(command: list[str], what: str, **kwargs) -> str:
    result = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)
    if result.returncode:
        lines = [line for line in result.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if "error" in line.lower()]
        raise InstallError(f"{what} failed: {(errors or lines or ['no output'])[-1].strip()} ({' '.join(command)})")
    return result.stdout


def installed() -> str | None:
    """'version at path' of the Detectron2 that can be imported, or None where there is none."""
    probe = "import detectron2, os; print(detectron2.__version__, 'at', os.path.dirname(detectron2.__file__))"
    result = subprocess.run([sys.executable, "-c", probe], check=False, capture_output=True, text=True)
    if result.returncode == 0:
        return result.stdout.strip().splitlines()[-1]
    spec = importlib.util.find_spec("detectron2")
    if spec is not None and spec.origin is not None:
        reason = result.stderr.strip().splitlines()[-1]
        raise InstallError(
            f"detectron2 is at {spec.origin} but cannot be imported ({reason}): mend that, or uninstall it and run "
            f"this again."
        )
    return None


def check_tools() -> None:
    missing = [name for name in ("pip", "torch", "setuptools", "wheel") if importlib.util.find_spec(name) is None]
    if missing:
        raise InstallError(
            f"{sys.executable} lacks {', '.join(missing)}: {sys.executable} -m pip install {' '.join(missing)}"
        )


def download(folder: Path) -> Path:
    run([sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(folder / "pip"), PIP], f"fetching {PIP}")
    (folder / "sdist.txt").write_text(f"{NAME}=={VERSION} --hash=sha256:{SHA256}\n")
    options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "--require-hashes"]
    run(
        [sys.executable, "-m", "pip", "download", *options, "-r", str(folder / "sdist.txt"), "-d", str(folder)],
        f"downloading {NAME}=={VERSION}",
        env={**os.environ, "PYTHONPATH": str(folder / "pip")},
    )
    return next(folder.glob("pb1*detectron2-*.tar.gz"))


def check_hash(sdist: Path) -> None:
    if not sdist.is_file():
        raise InstallError(f"{sdist} does not exist.")
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest()
    if digest != SHA256:
        raise InstallError(f"{sdist} has sha256 {digest}, but {NAME} {VERSION} has {SHA256}: it is another file.")


def mend(source: Path) -> None:
    """Apply MENDS in place. Raises InstallError where the expected text is absent."""
    for file, pattern, replacement, why in MENDS:
        path = source / file
        text, count = re.subn(pattern, replacement, path.read_text(), flags=re.DOTALL) if path.is_file() else ("", 0)
        if not count:
            raise InstallError(f"{file} of {NAME} does not hold the text {pattern!r} that had to be replaced ({why}).")
        path.write_text(text)
    (source / "detectron2" / "_C.py").write_text(EMPTY_EXTENSION)


def install(sdist: Path, folder: Path) -> None:
    with tarfile.open(sdist) as archive:
        # The hash is checked; the filter only keeps Python 3.12 from warning, and is not in every Python 3.10.
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    source = folder / f"{NAME}-{VERSION}"
    mend(source)
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    run(build, "building the wheel")
    wheel = next(folder.glob("pb1_detectron2-*-none-any.whl"))
    run([*pip, "install", "--no-deps", str(wheel)], "installing the wheel")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.split("\n")[0])
    parser.add_argument("--sdist", type=Path, help="the file pb1-detectron2-0.6.tar.gz, where pip cannot fetch it")
    args = parser.parse_args(arguments)
    try:
        found = installed()
        if found:
            print(f"detectron2 {found}: kept as it is.")
            return 0
        check_tools()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sdist = args.sdist or download(folder)
            check_hash(sdist)
            install(sdist, folder)
        print(f"detectron2 {installed()}: installed from {NAME} {VERSION}.")
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
