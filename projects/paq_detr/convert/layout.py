# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""What a layout is: how another project names its tensors, and how its names become ours.

A layout renames by rules, tensor by tensor, and then finishes what no rule can do: fused or split projections, tables
with two meanings, heads that are stored more than once. Only names and shapes of tensors decide.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import UserError

Weights = dict[str, Tensor]
# A pattern of a whole module name, and what it becomes: a template for the match, or a function of it.
Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]

NECK, SOURCE, DECODER = "neck", "sources.main", "routes.main.decoder"
LABELS = "augmenters.main.labels"
PARAMETERS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True)
class Layout:
    """One project's naming.

    Args:
        title: how messages call it.
        markers: tensors that every such file has; the first one is a name that no model of ours has.
        rules: from its names to ours; the first that matches counts.
        finish: does in place what rules cannot, with the renamed weights and the file's own names, and returns the
            variant in words ("" where there is only one).
        ignored: pattern of names that are known and that our model does not need; the default matches nothing.
        refusal: why such a file cannot be loaded; "" where it can.
    """

    title: str
    markers: tuple[str, ...]
    rules: Rules = ()
    finish: Callable[[Weights, Collection[str]], str] = lambda weights, names: ""
    ignored: str = r"(?!)"
    refusal: str = ""

    def recognises(self, names: Collection[str]) -> bool:
        return all(marker in names for marker in self.markers)


@dataclass
class Conversion:
    """Weights under this project's names, and how they came to be.

    Args:
        weights: named tensors.
        class_names: of the rows of class-sized tensors; None where they are not known.
        layout: of the file, with its variant; "" for this project's own, or an unknown one.
        dropped: names in the file that our model has no use for.
        aliases: how many further copies of tensors the file held.
    """

    weights: Weights
    class_names: list[str] | None = None
    layout: str = ""
    dropped: list[str] = field(default_factory=list)
    aliases: int = 0


def convert(state_dict: Mapping[str, Tensor], layout: Layout) -> Conversion:
    """Weights of a layout under our names, without class names.

    Raises:
        UserError: if the layout is one that cannot be loaded, or the weights hold names that are not understood, or
            contradict themselves.
    """
    if layout.refusal:
        raise UserError(f"Weights of {layout.title} cannot be loaded: {layout.refusal}.")
    conversion = rename(state_dict, layout)
    variant = layout.finish(conversion.weights, state_dict.keys())
    conversion.layout = layout.title + (f", {variant}" if variant else "")
    return conversion


def rename(state_dict: Mapping[str, Tensor], layout: Layout) -> Conversion:
    """Every tensor under the name that the layout's rules give it, copies once."""
    weights: Weights = {}
    conversion = Conversion(weights)
    unknown = []
    for name, tensor in state_dict.items():
        if name.endswith("num_batches_tracked"):
            continue
        if re.fullmatch(layout.ignored, name):
            conversion.dropped.append(name)
            continue
        new_name = apply_rules(name, layout.rules)
        if new_name is None:
            unknown.append(name)
        elif new_name not in weights:
            weights[new_name] = tensor
        elif torch.equal(weights[new_name], tensor):
            conversion.aliases += 1
        else:
            raise UserError(f"The weights hold two different tensors for {new_name}, one of them {name}.")
    if unknown:
        listed = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise UserError(
            f"The weights look like those of {layout.title}, but {len(unknown)} of {len(state_dict)} names are not "
            f"understood: {listed}."
        )
    return conversion


def apply_rules(name: str, rules: Rules) -> str | None:
    """The name that the first matching rule gives; None where none matches."""
    module, dot, parameter = name.rpartition(".")
    if parameter not in PARAMETERS:
        module, dot, parameter = name, "", ""
    for pattern, target in rules:
        match = re.fullmatch(pattern, module)
        if match:
            return (target(match) if callable(target) else match.expand(target)) + dot + parameter
    return None


def prefixed(prefix: str, rules: Rules) -> Rules:
    return tuple((prefix + pattern, target) for pattern, target in rules)


def needed(weights: Weights, name: str) -> Tensor:
    if name not in weights:
        raise UserError(f"The weights are incomplete: the one that becomes {name} is missing.")
    return weights[name]


def take_numbered(weights: Weights, prefix: str) -> dict[int, Weights]:
    """Remove the modules ``prefix`` 0, 1, ... from the weights and return the tensors of each."""
    modules: dict[int, Weights] = defaultdict(dict)
    for name in [name for name in weights if name.startswith(prefix)]:
        index, _, parameter = name[len(prefix) :].partition(".")
        modules[int(index)][parameter] = weights.pop(name)
    return dict(sorted(modules.items()))


def put(weights: Weights, prefix: str, module: Weights) -> None:
    weights.update({f"{prefix}.{parameter}": tensor for parameter, tensor in module.items()})


def same_tensors(*modules: Weights) -> bool:
    first = modules[0] if modules else {}
    return all(
        module.keys() == first.keys() and all(torch.equal(module[key], first[key]) for key in first)
        for module in modules[1:]
    )


def part_of(name: str) -> str:
    """The part of our model that a tensor belongs to: "backbone", "neck", "sources.main", ..."""
    parts = name.split(".")
    return ".".join(parts[: 2 if parts[0] in ("sources", "augmenters", "routes") else 1])


def number_of_layers(weights: Weights) -> int:
    """Decoder layers of renamed weights."""
    return len({name.split(".")[4] for name in weights if name.startswith(f"{DECODER}.layers.")})


def number_of_classes(weights: Weights) -> int:
    """Rows of the first class head of renamed weights, which may end a tower; 0 where there is none."""
    names = (f"{DECODER}.class_heads.0.weight", f"{DECODER}.class_heads.0.last.weight")
    return next((len(weights[name]) for name in names if name in weights), 0)


def place_heads(weights: Weights, *, shared: bool) -> str:
    """Give the heads the numbers that they have in our decoder, and the encoder its pair; returns the variant's name.

    Files number one pair of heads per decoder layer, also where all layers share a single one; in two-stage models one
    more pair follows, the encoder's. A file may hold heads that are tied only once.

    Args:
        shared: heads that are all equal are one head (there where boxes are not refined). A decoder with one head per
            layer also takes them, layer by layer.
    """
    layers = number_of_layers(weights)
    two_stage = f"{SOURCE}.project.weight" in weights
    heads = {kind: take_numbered(weights, f"{DECODER}.{kind}s.") for kind in ("class_head", "box_head")}
    if two_stage:
        for kind, numbered in heads.items():
            put(weights, f"{SOURCE}.{kind}", numbered.pop(layers, {}))
    per_layer = not shared or not all(same_tensors(*numbered.values()) for numbered in heads.values())
    for kind, numbered in heads.items():
        if not per_layer:
            numbered = dict(list(numbered.items())[:1])
        elif len(numbered) == 1:
            numbered = {layer: head for head in numbered.values() for layer in range(layers)}
        for index, head in numbered.items():
            put(weights, f"{DECODER}.{kind}s.{index}", head)
    return "two-stage" if two_stage else "single stage with box refinement" if per_layer else "single stage"
