# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Config files and KEY VALUE pairs into a config; what does not fit is one sentence with the key."""

from __future__ import annotations

import datetime
import difflib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..config_files import close_names, config_file
from ..errors import UserError
from ..registry import load_plugins
from .checks import flat, value_of


def merge_file(cfg: CfgNode, path: str) -> None:
    """Merge a yaml file, or the config of the package that is called ``path``; raises a UserError."""
    path = config_file(path)
    if os.path.isdir(path):
        raise UserError(f"The config file {path} is a folder.")
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "."
        close = difflib.get_close_matches(os.path.basename(path), os.listdir(folder)) if os.path.isdir(folder) else []
        hint = f" (did you mean {os.path.join(folder, close[0])}?)" if close else close_names(path)
        raise UserError(f"The config file {path} does not exist{hint}.")

    def load() -> dict:
        _check_file(path)
        return CfgNode.load_yaml_with_base(path, allow_unsafe=False)

    _merge(cfg, load, path)


def merge_text(cfg: CfgNode, text: str, where: str) -> None:
    """As ``merge_file``, of a whole config's yaml; ``where`` is what messages call it."""
    _merge(cfg, lambda: yaml.safe_load(text), where)


def _merge(cfg: CfgNode, load: Callable[[], dict], path: str) -> None:
    try:
        given = CfgNode(_dates_to_texts(load()))
        _load_plugins(cfg, _plugins_of(given))
        _fit_all(given, cfg)
        cfg.merge_from_other_cfg(given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except KeyError as error:
        key = re.search(r"(?:[Nn]on-existent config key: |Key )([\w.]+)", str(error))
        raise UserError(f"{path}: {unknown_key(cfg, key[1]) if key else error}.") from error
    except (ValueError, TypeError, AssertionError, OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UserError(f"{path} is no config file: its lists are nested too deeply.") from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that comes twice in a section, of which yaml takes the last alone."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key, _ in node.value:
            if key.value in seen and key.tag != _MERGE and isinstance(key.value, str):
                line = key.start_mark.line + 1
                raise UserError(f"the key {key.value} comes twice in a section, again in line {line}.")
            seen.add(key.value if isinstance(key.value, str) else id(key))
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"


def _check_file(path: str, above: tuple[str, ...] = ()) -> None:
    """See that a config file and those that it is based on hold keys, each once."""
    if os.path.realpath(path) in above:
        raise UserError(f"{path} is based on itself (_BASE_).")
    with open(path, encoding="utf-8") as file:
        try:
            content = yaml.load(file, _Loader)  # a SafeLoader
        except UserError as error:
            raise UserError(f"{path}: {error}" if above else str(error)) from error
    if not isinstance(content, dict):
        kind = "is empty" if content is None else f"holds a {type(content).__name__}"
        raise UserError(f"{path} {kind}, must hold sections and keys.")
    bases = content.get("_BASE_", [])
    for base in bases if isinstance(bases, list) else [bases]:
        if not isinstance(base, str):
            raise UserError(f"_BASE_ of {path} is {'null' if base is None else base}, must be a file's name.")
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        if os.path.isfile(base):
            _check_file(base, (*above, os.path.realpath(path)))


def _plugins_of(given: CfgNode) -> object:
    for name in ("MODEL", "DETR"):
        given = given.get(name)
        if not isinstance(given, CfgNode):
            return []
    return given.get("PLUGINS", [])


def _load_plugins(cfg: CfgNode, names: object) -> None:
    """Imports what MODEL.DETR.PLUGINS names, also from the working directory, before keys are merged."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise UserError(f"MODEL.DETR.PLUGINS is {names}, must be a list of module names.")
    try:
        load_plugins(names, cfg)
    except UserError as error:
        raise UserError(f"{error}.") from error


def _dates_to_texts(content: Any) -> Any:
    """A folder named 2024-01-01 is no date."""
    if isinstance(content, dict):
        return {key: _dates_to_texts(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_dates_to_texts(value) for value in content]
    return content.isoformat() if isinstance(content, datetime.date) else content


def _fit_all(given: CfgNode, cfg: CfgNode, prefix: str = "") -> None:
    """Each value of ``given`` as ``cfg`` takes it."""
    for name, value in list(given.items()):
        now = cfg.get(name)
        if isinstance(now, CfgNode) and value is None:
            # It would wipe out that section of the file's _BASE_.
            raise UserError(f"The section {prefix}{name} is empty: remove it, or put keys below it.")
        elif isinstance(value, CfgNode) and isinstance(now, CfgNode):
            _fit_all(value, now, f"{prefix}{name}.")
        elif name in cfg:
            given[name] = _fitted(f"{prefix}{name}", value, now)
            _refuse_other_type(f"{prefix}{name}", given[name], now)


def _fitted(key: str, value: Any, now: Any) -> Any:
    """``value`` as a key that holds ``now`` takes it: 1 as 1.0 where a float stands, 7 as "7" where a text does."""
    if value is None and now is not None:
        if key == "MODEL.WEIGHTS":
            return ""
        raise UserError(f"{key} is null, must be {_like(now)}.")
    if type(value) is int and isinstance(now, float):
        if abs(value) > sys.float_info.max:
            raise UserError(f"{key} is a number of {len(str(abs(value)))} digits, must be {_like(now)}.")
        return float(value)
    if isinstance(now, str) and type(value) in (int, str):
        text = str(value)
        return text if isinstance(CfgNode._decode_cfg_value(text), str) else repr(text)  # yacs decodes it again
    if (
        isinstance(now, (list, tuple))
        and isinstance(value, str)
        and not isinstance(CfgNode._decode_cfg_value(value), (list, tuple))
    ):
        names = _names(value)
        return [value] if names is None else names  # one name where a list of names is wanted
    return value


def _names(text: str) -> list | None:
    """What yaml reads in "[a, b]", whose names a shell has left without quotes; None where that is no list."""
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return loaded if isinstance(loaded, list) else None


def _refuse_other_type(key: str, value: Any, now: Any) -> None:
    """Before yacs does, in its own words, where ``value`` cannot replace ``now``."""
    decoded = CfgNode._decode_cfg_value(value)
    alike = type(decoded) is type(now) or {type(decoded), type(now)} <= {list, tuple}
    if now is not None and not alike:
        raise UserError(f"{key} cannot be {value!r}, must be {_like(now)}.")


def _like(value: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", CfgNode: "a section"}
    return names.get(type(value), "a list")


def merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    flag = next((key for key in opts[::2] if str(key).startswith("--")), None)
    if flag:
        raise UserError(f"{flag} stands behind KEY VALUE pairs: flags go before the first of them.")
    if len(opts) % 2:
        raise UserError(f"Options come as pairs KEY VALUE, but these are {len(opts)}: {' '.join(opts)}.")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key == "MODEL.DETR.PLUGINS":
            names = CfgNode._decode_cfg_value(value)
            _load_plugins(cfg, names if isinstance(names, (list, tuple)) else [value])
    known = set(keys(cfg))
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        if key not in known:
            raise UserError(f"{unknown_key(cfg, key)}.")
        try:
            now, given = value_of(cfg, key), CfgNode._decode_cfg_value(value)
            as_typed = isinstance(now, str) and given is not None  # 007 stays 007
            cfg.merge_from_list([key, _fitted(key, value if as_typed else given, now)])
        except UserError:
            raise
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"{key} cannot be {value!r}, must be {_like(now)}.") from error


def unknown_key(cfg: CfgNode, key: str) -> str:
    """That there is no such key, and which was probably meant, or how it is written now."""
    if cfg.key_is_renamed(key):
        _, how = cfg.__dict__[CfgNode.RENAMED_KEYS][key]
        return f"{key} is gone: {how}"
    known = keys(cfg)
    leaf = key.split(".")[-1].upper()
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
    near = near or [name for name in known if name.split(".")[-1] == leaf]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    hint = f" (did you mean {' or '.join(near[:3])}?)" if near else ""
    return f"There is no config key {key}{hint}"


def keys(cfg: CfgNode) -> list[str]:
    return [key for key, _ in flat(cfg)]
