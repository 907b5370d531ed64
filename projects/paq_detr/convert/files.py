# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Reading weight files without running any code that they may hold, and saying what a file is that holds no weights."""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..output_paths import check_output_file
from ..whole_file import whole_file

# Where the usual ImageNet backbones come from, by a part of their file names.
SOURCES = {
    "R-50": "detectron2://ImageNetPretrained/torchvision/R-50.pkl (as MODEL.WEIGHTS, Detectron2 downloads it)",
    "R-101": "detectron2://ImageNetPretrained/torchvision/R-101.pkl (as MODEL.WEIGHTS, Detectron2 downloads it)",
    "resnet50": "torchvision.models.resnet50(weights='IMAGENET1K_V1'), whose state_dict saved by torch.save fits",
    "resnet101": "torchvision.models.resnet101(weights='IMAGENET1K_V1'), whose state_dict saved by torch.save fits",
}

# Keys that other code keeps the named tensors under; those of an average count where there are no others.
CONTAINERS = ("model", "state_dict", "model_state_dict", "blobs", "module", "ema", "model_ema", "ema_state_dict")

# Wrappers put these before the names: DistributedDataParallel and DataParallel, torch.compile, Lightning and others.
_ALWAYS_WRAPPERS = ("module.", "_orig_mod.")
_PERHAPS_WRAPPERS = ("model.", "net.", "network.", "detector.", "ema_model.")

# First bytes of files that are taken for weights.
_MAGIC = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file: fetch it by `git lfs pull`"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed by xz: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"Rar!", "a rar archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file (Keras?), not one of PyTorch"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"%PDF", "a PDF document"),
    (b"\x08\x07\x12\x07pytorch", "an ONNX model, not a PyTorch file"),
)

# What a file may hold beside its tensors, and is read as an empty object.
_BESIDE = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.WindowsPath",
    "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)


def missing_file(path: str) -> UserError:
    """The sentence for a weight file that is not there, or is a folder."""
    if os.path.isdir(path):
        inside = sorted(name for name in os.listdir(path) if name.endswith((".pth", ".pt", ".pkl", ".safetensors")))
        hint = f", such as {os.path.join(path, inside[-1])}" if inside else "; it holds none"
        return UserError(f"Weight file {path} is a folder; name a file in it{hint}.")
    name = os.path.basename(path).lower()
    hints = [f"; it can be had from {source}" for part, source in SOURCES.items() if part.lower() in name]
    return UserError(f"Weight file {path} does not exist{''.join(hints[:1])}.")


def read_weights(path: str) -> dict[str, Any]:
    """The content of a .pth (tensors, plain containers), a .safetensors, or a Detectron2 .pkl (numpy arrays) file.

    A command line (``argparse.Namespace``) or paths beside the tensors are read as empty objects.

    Raises:
        UserError: if the file is damaged or holds anything else; the sentence says what it is.
    """
    readers = {".pkl": _read_pickle, ".safetensors": _read_safetensors}
    try:
        content = readers.get(os.path.splitext(path)[1], _read_torch)(path)
    except UserError:
        raise
    except Exception as error:  # a file that is none of these fails in any way
        nature = _nature(path)
        if nature:
            raise UserError(f"Weight file {path} was not loaded: it is {nature}.") from error
        reason = _reason(error)
        raise UserError(
            f"Weight file {path} was not loaded: it is damaged or holds more than plain arrays{reason}."
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"Weight file {path} holds a {type(content).__name__}, not a dict of named tensors.")
    return content


def read_checkpoint(path: str) -> dict[str, Any]:
    """The content of a weight file, with named tensors or arrays as "model", and a transformers model's "config".

    Raises:
        UserError: if it is missing, damaged, or holds no named tensors.
    """
    if not os.path.isfile(path):
        raise missing_file(path)
    content = read_weights(path)
    weights = _unwrapped(content)
    if weights is not content.get("model"):
        content = {"model": weights, "matching_heuristics": path.endswith(".pkl"), "__author__": "Caffe2"}
    content["model"] = {k: v for k, v in content["model"].items() if not str(k).endswith("_momentum")}  # Caffe2's
    odd = [key for key, value in content["model"].items() if not isinstance(key, str) or not _is_numeric(value)]
    if odd:
        raise UserError(f"Weight file {path} is no dict of named tensors: its {odd[0]!r} is none.")
    content["config"] = content["config"] if isinstance(content.get("config"), dict) else _config_beside(path)
    return content


def _unwrapped(content: dict[str, Any]) -> dict[str, Any]:
    """The named tensors, out of as many containers as they are in."""
    inner = next((content[key] for key in CONTAINERS if isinstance(content.get(key), dict)), None)
    return content if inner is None else _unwrapped(inner)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_meta and not value.is_complex()  # a meta tensor has no values
    return isinstance(value, np.ndarray) and not value.dtype.hasobject


def _config_beside(path: str) -> dict[str, Any] | None:
    """The config.json that transformers puts beside its weights; None where there is none."""
    folder, name = os.path.split(path)
    config = os.path.join(folder, "config.json")
    if name not in ("model.safetensors", "pytorch_model.bin") or not os.path.isfile(config):
        return None
    try:
        with open(config, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{config}, which tells the class names of {path}, cannot be read: {error}.") from error
    return content if isinstance(content, dict) else None


def strip_wrappers(weights: Mapping[str, Tensor], own: Container[str], markers: Container[str]) -> dict[str, Tensor]:
    """The tensors without what wrappers put before their names, in whatever order they were wrapped.

    Args:
        weights: named tensors.
        own: names of the model; a name that is one of them is left as it is.
        markers: names by which known layouts are recognised; some of these begin with "model." themselves.
    """
    stripped = {_without(name.replace("._orig_mod.", "."), own): tensor for name, tensor in weights.items()}
    while not any(name in own or name in markers for name in stripped):
        counts = {prefix: sum(name.startswith(prefix) for name in stripped) for prefix in _PERHAPS_WRAPPERS}
        prefix = max(counts, key=counts.get)
        if counts[prefix] * 2 <= len(stripped):
            break
        stripped = {_without(name.removeprefix(prefix), own): tensor for name, tensor in stripped.items()}
    return stripped


def _without(name: str, own: Container[str]) -> str:
    while name not in own and name.startswith(_ALWAYS_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _reason(error: Exception) -> str:
    """What torch or pickle say, without torch's advice to load unsafely."""
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted:
        return f" (it asks for {wanted[1]})"
    line = " ".join(text.split("\n")[0].split()).split(". ")[0].removesuffix(".")
    return "" if not line or "weights_only" in text else f" ({line[:200]})"


def _nature(path: str) -> str:
    """What a file is that is no weight file, in words; empty where that cannot be told."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head.strip(b"\0"):
        return "empty" if not head else "nothing but zeros: its download or copy did not end"
    for magic, what in _MAGIC:
        if head.startswith(magic):
            return what
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("constants.pkl") for name in names):
            return "a TorchScript archive, not a file of torch.save(model.state_dict(), ...)"
        return "" if any(name.endswith("data.pkl") for name in names) else "a zip archive of other files"
    text = head.decode("utf-8", errors="replace").lstrip("\ufeff \t\r\n").lower()
    if text.startswith(("<!doctype", "<html", "<?xml", "<head")):
        return "a web page: the download gave a page, perhaps of a login, in place of the file"
    odd = sum(not (character.isprintable() or character in "\r\n\t") or character == "\ufffd" for character in text)
    return "a text file" if odd <= 1 else ""  # a character may be cut in two at the end of the head


class _Empty:
    """Stands for an object beside the tensors; takes any arguments and state and keeps nothing."""

    def __new__(cls, *args: Any) -> _Empty:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_torch(path: str) -> Any:
    beside = [(type(name, (_Empty,), {}), name) for name in _BESIDE]
    with torch.serialization.safe_globals(beside):
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: str) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise UserError(f"Weight file {path} needs the package safetensors: pip install safetensors.") from error
    return load_file(path)


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what numpy arrays are rebuilt from, and nothing else."""

    ALLOWED = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
        ("numpy._core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.empty(0))[0],
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.ALLOWED[module, name]


def write_checkpoint(content: dict[str, Any], path: str, overwrite: bool | None = None) -> None:
    """Write a checkpoint, whole or not at all.

    Raises:
        UserError: as ``check_checkpoint_path``, or the disk is full.
    """
    check_checkpoint_path(path, overwrite)
    try:
        with whole_file(path) as part, open(part, "wb") as file:
            torch.save(content, file)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError where the disk is full
        raise UserError(f"{path} could not be written: {getattr(error, 'strerror', None) or error}.") from error


def check_checkpoint_path(path: str, overwrite: bool | None = None) -> None:
    """See, before its content is computed, that a checkpoint can be written; ``overwrite`` None: the command has no
    such option.

    Raises:
        UserError: if it is there and is not to be overwritten, cannot be written, or would not be read as one of torch.
    """
    if not path.endswith((".pth", ".pt")):
        raise UserError(f"OUT is {path}, must end with .pth.")
    if os.path.exists(path) and not overwrite:
        hint = "name a new file, or remove it first" if overwrite is None else "--overwrite replaces it"
        raise UserError(f"{path} exists; {hint}.")
    check_output_file("OUT", path)
