# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Counts the machine instructions of the CUDA kernels, and holds them against an earlier count.

    python tools/sass.py [LIBRARY.so | csrc/ms_deform_attn/cuda/forward.cu ...] [--kernels msda::] [--json counts.json]
    python tools/sass.py --against counts.json      # exit code 1 where a count rose by more than --most percent

A library (by default the one that is built) is disassembled as it is; a source is compiled for --arch first, which
takes nvcc. cuobjdump is looked for on the PATH, then in the triton package. No GPU is needed.

A kernel's *gather loop* is the innermost loop with the most 16-byte loads; the other columns but the first and the last
count in it. Deformable attention loads four corners a point there, so that a quarter of the loads are its points, and
its length over them is what a sampling point costs a warp: most of what such a kernel does.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "projects" / "paq_detr"
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
COLUMNS = ("instructions", "gather loop", "loads", "additions", "shared", "shuffles", "spills")


class SassError(Exception):
    """One sentence for the user."""


def tool(name: str) -> str:
    if found := shutil.which(name):
        return found
    spec = importlib.util.find_spec("triton")
    beside = Path(spec.origin).parent / "backends/nvidia/bin" / name if spec else None
    if beside is None or not beside.exists():
        raise SassError(f"There is no {name}: put the CUDA toolkit on the PATH, or install triton.")
    return str(beside)


def compiled(source: Path, arch: str, folder: Path) -> Path:
    from torch.utils.cpp_extension import include_paths

    if shutil.which("nvcc") is None:
        raise SassError(f"{source} would have to be compiled and there is no nvcc: name a library that is built.")
    abi = re.search(r'^STABLE_ABI = "(\w+)"', (ROOT / "setup.py").read_text(), re.MULTILINE)[1]
    cubin = folder / f"{source.parents[1].name}_{source.stem}.cubin"
    flags = ["-O3", "-std=c++17", f"-DTORCH_TARGET_VERSION={abi}", "-DUSE_CUDA", *(f"-I{p}" for p in include_paths())]
    done = subprocess.run(["nvcc", "-cubin", f"-arch={arch}", *flags, "-o", cubin, source], text=True, stderr=-1)
    if done.returncode:
        raise SassError(f"{source} does not compile: {done.stderr.strip().splitlines()[-1]}")
    return cubin


def kernels(listing: str) -> Iterator[tuple[str, list[tuple[int, str, str]]]]:
    """Name and (address, opcode, operands) of each kernel in what ``cuobjdump -sass`` prints."""
    for part in re.split(r"^\s*Function : ", listing, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        found = [match.groups() for match in map(INSTRUCTION.match, lines[1:]) if match]
        yield lines[0].strip(), [(int(address, 16), opcode, rest) for address, opcode, rest in found]


def gather_loop(code: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """Of the loops that hold no other loop, the one with the most 16-byte loads; empty where none has any."""
    loops = []
    for address, opcode, rest in code:
        target = re.search(r"0x([0-9a-f]+)\s*$", rest)
        if opcode.split(".")[0] == "BRA" and target and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)]
    bodies = [[line for line in code if a <= line[0] <= b] for a, b in inner]
    return max((body for body in bodies if _wide_loads(body)), key=_wide_loads, default=[])


def _wide_loads(code: list[tuple[int, str, str]]) -> int:
    return sum(opcode.startswith("LDG") and ".128" in opcode for _, opcode, _ in code)


def _count(code: list[tuple[int, str, str]], *kinds: str) -> int:
    return sum(opcode.split(".")[0] in kinds for _, opcode, _ in code)


def counts(code: list[tuple[int, str, str]]) -> dict[str, int]:
    code = [line for line in code if line[1] != "NOP"]  # padding at the end
    loop = gather_loop(code)
    kinds = (("LDG",), ("RED", "REDG", "ATOMG"), ("LDS", "STS", "ATOMS"), ("SHFL",))
    row = (len(code), len(loop), *(_count(loop, *kind) for kind in kinds), _count(code, "LDL", "STL"))
    return dict(zip(COLUMNS, row, strict=True))


def readable(names: list[str]) -> list[str]:
    """Demangled where c++filt is there, without namespaces and arguments."""
    if shutil.which("c++filt"):
        names = subprocess.run(["c++filt"], input="\n".join(names), text=True, capture_output=True).stdout.splitlines()
    return [re.sub(r"\(.*|^void |paq_detr::|c10::", "", name.replace("(anonymous namespace)::", "").replace("(int)", "")
                   .replace("(bool)", "")) for name in names]  # fmt: skip


def measured(files: list[Path], arch: str, wanted: str) -> dict[str, dict[str, int]]:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            if not file.exists():
                raise SassError(f"{file} does not exist.")
            binary = compiled(file, arch, Path(folder)) if file.suffix == ".cu" else file
            command = [tool("cuobjdump"), "-sass", *([] if binary.suffix == ".cubin" else ["-arch", arch]), binary]
            beside = {**os.environ, "PATH": os.pathsep.join([str(Path(tool("nvdisasm")).parent), os.environ["PATH"]])}
            done = subprocess.run(command, text=True, capture_output=True, env=beside)
            codes = dict(kernels(done.stdout))
            if not codes:
                raise SassError(f"{file} holds no code for {arch}.")
            named = dict(zip(readable(list(codes)), codes.values(), strict=True))
            found |= {name: counts(code) for name, code in named.items() if wanted in name}
    return dict(sorted(found.items()))


def risen(now: dict, before: dict, most: float) -> list[str]:
    """One line for each count of a kernel in both that rose by more than ``most`` percent."""
    lines = []
    for name in now.keys() & before.keys():
        for column in ("instructions", "gather loop", "spills"):
            old, new = before[name][column], now[name][column]
            if new > old * (1 + most / 100):
                lines.append(f"{name}: {column} {old} -> {new}")
    return sorted(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--kernels", default="msda::", help="only those whose names hold this")
    parser.add_argument("--json", type=Path, help="write the counts there")
    parser.add_argument("--against", type=Path, help="counts that --json wrote before")
    parser.add_argument("--most", type=float, default=3, help="percent that a count may rise")
    args = parser.parse_args()
    try:
        files = args.files or sorted(PACKAGE.glob("_C*.so"))
        if not files:
            raise SassError("The native library is not built: name a library or a .cu file.")
        now = measured(files, args.arch, args.kernels)
        before = json.loads(args.against.read_text()) if args.against else {}
    except (SassError, OSError, ValueError) as error:
        print(f"sass: {error}", file=sys.stderr)
        return 2
    print(f"| kernel ({args.arch}) | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    for name, row in now.items():
        old = before.get(name, row)
        cells = (f"{old[c]} -> {row[c]}" if old[c] != row[c] else str(row[c]) for c in COLUMNS)
        print(f"| {name} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps(now, indent=1) + "\n")
    worse = risen(now, before, args.most)
    print("\n".join(worse), file=sys.stderr, end="\n" if worse else "")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
