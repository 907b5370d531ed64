# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Makes the folder that gpu_session.sh takes along to a machine with a GPU and no network, and says its size.

    python benchmarks/gpu_kit.py gpu_kit [--python 3.12] [--library FOLDER ...] [--wheels NAME ...] [--take FILE ...]
                                         [--train config.yaml --data FOLDER]

--library names folders with a build (_C*.so and _build_record.json), by default the package's own; it must hold CUDA
kernels unless --cpu says that the kit is for a dry run. Detectron2 is taken as it is installed here, if it is Python
alone; what it needs comes as wheels, by pip, for that Python on Linux. torch, torchvision, NumPy, SciPy and Pillow are
expected there. --wheels adds packages, --take files (peers). What has no fitting wheel is left out with one line. Ends
with exit code 2 above --limit MiB.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects" / "paq_detr"
# Detectron2's needs and the needs of those, without what every machine with torch has.
WHEELS = (
    *(
        "cloudpickle",
        "fvcore",
        "hydra-core",
        "iopath",
        "omegaconf",
        "packaging",
        "portalocker",
        "pycocotools",
        "pyyaml",
    ),
    *("tabulate", "termcolor", "tqdm", "yacs", "antlr4-python3-runtime==4.9.3", "pytest", "pluggy", "iniconfig"),
    *("matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing", "python-dateutil", "six"),
    *("tensorboard", "tensorboard-data-server", "absl-py", "grpcio", "markdown", "protobuf", "werkzeug", "markupsafe"),
)
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")


class KitError(Exception):
    """One sentence for the user."""


def copy_library(source: Path, target: Path, cpu: bool) -> None:
    libraries, record = list(source.glob("_C*.so")), source / "_build_record.json"
    if len(libraries) != 1 or not record.is_file():
        raise KitError(f"{source} holds no build: one _C*.so and _build_record.json are expected there.")
    built = json.loads(record.read_text())
    if not built.get("cuda") and not cpu:
        raise KitError(f"The library in {source} has no CUDA kernels: build it where nvcc is, or give --cpu.")
    target.mkdir(parents=True)
    for file in (*libraries, record):
        shutil.copy2(file, target)
    print(f"lib/{target.name}: torch {built.get('torch')}, CUDA {built.get('cuda')}, {built.get('archs')}")


def fetch_wheel(name: str, folder: Path, python: str) -> bool:
    """Downloads the wheel of one package, or builds it where there is none, if the result is for every Python."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    fitting = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--python-version", python, *fitting]
    if subprocess.run([*command, "-d", folder, name], capture_output=True).returncode == 0:
        return True
    with tempfile.TemporaryDirectory() as built:
        subprocess.run([*pip, "wheel", "--no-deps", "-w", built, name], capture_output=True)
        wheels = list(Path(built).glob("*-none-any.whl"))
        for wheel in wheels:
            shutil.copy2(wheel, folder)
    return bool(wheels)


def take_detectron2(target: Path) -> None:
    spec = importlib.util.find_spec("detectron2")
    source = Path(spec.submodule_search_locations[0]) if spec else None
    if source is None or any(source.rglob("*.so")):
        reason = f"that in {source} is built for this machine" if source else "it is not installed here"
        print(f"detectron2 is left out: {reason}", file=sys.stderr)
        return
    shutil.copytree(source, target / "detectron2", ignore=shutil.ignore_patterns("__pycache__"))


def make(args: argparse.Namespace) -> int:
    """Fills the folder; returns its size in bytes."""
    if args.kit.exists() and any(args.kit.iterdir()):
        raise KitError(f"{args.kit} is not empty: name a new folder.")
    for path in (*args.take, *filter(None, (args.train, args.data))):
        if not path.exists():
            raise KitError(f"{path} does not exist.")
    for library in args.library or [PACKAGE]:
        copy_library(library, args.kit / "lib" / ("built" if library == PACKAGE else library.name), args.cpu)
    wheels = args.kit / "wheels"
    wheels.mkdir()
    for name in (*([] if args.no_wheels else WHEELS), *args.wheels):
        if not fetch_wheel(name, wheels, args.python):
            print(f"{name} is left out: no wheel for Python {args.python} on Linux", file=sys.stderr)
    if not args.no_wheels:
        take_detectron2(args.kit / "peers")
    for file in args.take:
        shutil.copy2(file, wheels if file.suffix == ".whl" else args.kit)
    if args.train:
        shutil.copy2(args.train, args.kit / "train.yaml")
    if args.data:
        shutil.copytree(args.data, args.kit / "data" / args.data.name)
    return sum(file.stat().st_size for file in args.kit.rglob("*") if file.is_file())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kit", type=Path, help="a new folder")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--library", nargs="+", type=Path, default=[], help="folders with a build each")
    parser.add_argument("--wheels", nargs="+", default=[], help="more packages")
    parser.add_argument("--no-wheels", action="store_true", help="neither Detectron2 nor what it needs")
    parser.add_argument("--take", nargs="+", type=Path, default=[], help="more files; wheels go to wheels/")
    parser.add_argument("--train", type=Path, help="config of a training; REPO/ and KIT/ in it are replaced there")
    parser.add_argument("--data", type=Path, help="the training's images and annotations")
    parser.add_argument("--limit", type=float, default=60, help="MiB")
    parser.add_argument("--cpu", action="store_true", help="for a dry run: a library without CUDA kernels will do")
    args = parser.parse_args()
    try:
        size = make(args) / 2**20
        print(
            f"{args.kit}: {size:.1f} MiB. It is tried by KIT={args.kit} OUT=results benchmarks/gpu_session.sh --dry-run"
        )
        if size > args.limit:
            raise KitError(f"{args.kit} has more than {args.limit:g} MiB: take fewer builds or less data.")
    except KitError as error:
        print(f"gpu_kit: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
