# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The names that yaml may put into the slots of a detector, and how papers add to them.

A slot is a ``Registry``. A builder is registered beside its class and called as ``builder(cfg, kit)``::

    @CONTENTS.register("patterns")
    def build_patterns(cfg, kit):
        return PatternContent(num_patterns=cfg.MODEL.DETR.PATTERNS.NUM, ...)

The config keys of a paper are added by a function that ``adds_config`` marks. A module that does both is a plug-in:
those of ``papers/`` are found by themselves, others by ``MODEL.DETR.PLUGINS`` or by an import before the config is
made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, TypeVar

from .checks import check_choice
from .errors import UserError

F = TypeVar("F", bound=Callable)


@dataclass
class Kit:
    """What is built already, for the builders of later parts; they add to it what has a name."""

    num_classes: int
    feature_shapes: dict[str, Any] = field(default_factory=dict)  # the backbone's ``output_shape()``
    neck: Any = None  # its ``strides`` are those of the levels
    sources: dict[str, Any] = field(default_factory=dict)  # query sources by name; the main route's is "main"
    routes: dict[str, Any] = field(default_factory=dict)  # routes by name, "main" first
    augmenters: dict[str, Any] = field(default_factory=dict)  # by the name of the source that they stand before
    map_positions: bool = True  # whether the neck gives its tokens position codes
    layer: int = 0  # the decoder layer, counted from 0, whose parts are being built
    decoder: Any = None  # the main route's


class Registry:
    """The parts that a slot of the config can hold, by name."""

    def __init__(self, key: str):
        """
        Args:
            key: the config key of the slot, for messages.
        """
        self.key = key
        self._builders: dict[str, Callable] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._builders

    def names(self) -> list[str]:
        return sorted(self._builders)

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator of a builder ``(cfg, kit, ...) -> part``; two of one name are an error."""

        def add(builder: F) -> F:
            if name in self and self._builders[name].__module__ != builder.__module__:
                raise ValueError(f"{self.key}: {self._builders[name].__module__} has already registered {name!r}")
            self._builders[name] = builder
            return builder

        return add

    def build(self, name: str, *args: Any, key: str | None = None) -> Any:
        """What the builder of ``name`` makes of ``args``; ``key`` is the slot's key, where there are several.

        Raises:
            UserError: no such name; the message lists the known ones.
        """
        return self._builders[check_choice(key or self.key, name, self.names())](*args)


NECKS = Registry("MODEL.DETR.NECK.NAME")
ENCODERS = Registry("MODEL.DETR.ENCODER.NAME")
CODECS = Registry("MODEL.DETR.CODEC")
SOURCES = Registry("MODEL.DETR.QUERIES.NAME")
CONTENTS = Registry("MODEL.DETR.QUERIES.CONTENT")
AUGMENTERS = Registry("MODEL.DETR.QUERIES.AUGMENT")
POSITIONS = Registry("MODEL.DETR.DECODER.QUERY_POSITION")
INTERACTIONS = Registry("MODEL.DETR.DECODER.INTERACTION")
CROSS_ATTENTIONS = Registry("MODEL.DETR.DECODER.CROSS_ATTENTION")
HEADS = Registry("MODEL.DETR.DECODER.HEADS")
DECODERS = Registry("MODEL.DETR.DECODER.NAME")
COSTS = Registry("MODEL.DETR.MATCHER.COST")
ASSIGNERS = Registry("MODEL.DETR.ASSIGNER")
CLASS_LOSSES = Registry("MODEL.DETR.LOSS.CLASSIFICATION")
ROUTES = Registry("MODEL.DETR.ROUTES")
READ_OUTS = Registry("MODEL.DETR.READ_OUT.NAME")

# Further keys that name a part of one of these, also of papers. Empty: as the key of the slot itself says.
FURTHER_SLOTS = {
    "MODEL.DETR.LOSS.ENCODER_CLASSIFICATION": CLASS_LOSSES,
    "MODEL.DETR.DECODER.STEM_CODEC": CODECS,
}

_adders: list[Callable] = []


def adds_config(function: F) -> F:
    """Decorator of a plug-in's ``add_config(cfg)``, which adds its keys in place."""
    _adders.append(function)
    return function


def add_plugin_keys(cfg: Any, since: int = 0) -> None:
    """The keys of every plug-in imported so far, leaving out the first ``since``."""
    for add in _adders[since:]:
        add(cfg)


def load_plugins(modules: Iterable[str], cfg: Any = None) -> None:
    """Import the modules that ``MODEL.DETR.PLUGINS`` names; to ``cfg``, where given, their keys are added.

    Raises:
        UserError: a module that cannot be imported.
    """
    for name in modules:
        known = len(_adders)
        try:
            import_module(name)
        except Exception as error:  # whatever its code raises; the cause stays attached
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, ImportError) else error
            raise UserError(
                f"MODEL.DETR.PLUGINS names {name}, which cannot be imported from the working directory or from what is "
                f"installed: {reason}"
            ) from error
        if cfg is not None:
            add_plugin_keys(cfg, since=known)


def check_map_positions(kit: Kit, key: str, name: str) -> None:
    """Called by builders of parts that read the position codes of the maps.

    Raises:
        UserError: the neck makes none.
    """
    if not kit.map_positions:
        raise UserError(f"{key} {name} reads position codes of the maps, which the neck ({NECKS.key}) does not make")


def needs_of(part: object) -> frozenset[str]:
    """What a part asks of the queries or of its place; nothing, if it does not say."""
    return getattr(part, "needs", frozenset())


def per_layer(key: str, names: Any, num_layers: int) -> list[Any]:
    """The entries of a list that holds one for all layers, or one per layer.

    Raises:
        UserError: another number of entries.
    """
    names = list(names)
    if len(names) not in (1, num_layers):
        raise UserError(f"{key} has {len(names)} entries {names}, must have 1, or one for each of {num_layers} layers")
    return names * num_layers if len(names) == 1 else names
