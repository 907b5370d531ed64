# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""ONNX files, at opset 18: TensorRT misreads GridSample from 20 on, and torch's exporter writes nothing lower."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from ..ops.export_forms import PLUGIN, PLUGIN_DOMAIN, PLUGIN_VERSION
from ..whole_file import whole_file
from .metadata import plain_keys
from .wrapper import INPUTS, OUTPUTS

OPSET = 18


def write_onnx(program: torch.export.ExportedProgram, path: str, metadata: dict[str, Any]) -> None:
    """Write ``program`` whole or not at all; without the traces of the source files that torch puts into every node.

    Raises:
        UserError: an operator has no ONNX form; one sentence with the reason.
    """
    import onnx

    names = INPUTS[: len(program.graph_signature.user_inputs)]
    try:
        made = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=names, output_names=OUTPUTS, verbose=False
        )
    except Exception as error:  # whatever the exporter raises; the cause stays attached
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise UserError(f"This model cannot be written as ONNX: {reason}") from error
    proto = made.model_proto
    written = {entry.domain: entry.version for entry in proto.opset_import}.get("", 0)
    if written != OPSET:
        raise UserError(
            f"torch wrote the ONNX file at opset {written} in place of {OPSET}; torch 2.11 is known to do it."
        )
    _strip(proto)
    onnx.helper.set_model_props(proto, {"paq_detr": json.dumps(metadata), **plain_keys(metadata)})
    onnx.checker.check_model(proto)
    with whole_file(path) as part:
        onnx.save(proto, part)


def _strip(proto: Any) -> None:
    """Leave out what tells of the machine: paths of source files in every node, and names of the exporter's objects."""
    graph = proto.graph
    for item in (proto, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""


class OnnxRunner:
    """An ONNX file in onnxruntime, on the CPU; a file with the plugin's nodes by GridSample in their place."""

    def __init__(self, path: str):
        import onnx
        import onnxruntime

        proto = onnx.load(path)
        for node in proto.graph.node:
            if node.op_type == PLUGIN:
                proto.functions.append(plugin_by_grid_sample(levels_of(proto, node)))
                break
        onnxruntime.set_default_logger_severity(3)
        self.session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        self.names = [entry.name for entry in self.session.get_inputs()]

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        return self.session.run(list(OUTPUTS), dict(zip(self.names, inputs, strict=True)))


def levels_of(proto: Any, node: Any) -> int:
    """How many levels a plugin's node samples: the rows of its second input, which is a constant in a static file."""
    import onnx

    for initializer in proto.graph.initializer:
        if initializer.name == node.input[1]:
            return onnx.numpy_helper.to_array(initializer).shape[0]
    for entry in proto.graph.value_info:
        if entry.name == node.input[1]:
            return entry.type.tensor_type.shape.dim[0].dim_value
    raise UserError(f"The node {node.name} does not tell how many levels it samples.")


def plugin_by_grid_sample(levels: int) -> Any:
    """An ONNX function with the plugin's name and contract, for runtimes that do not have the plugin."""
    import onnx

    lines = [
        "two = Constant <value = float {2.0}> ()",
        "one = Constant <value = float {1.0}> ()",
        "last = Constant <value_ints = [-1]> ()",
        "counts = ReduceProd <keepdims = 0> (shapes64, axis1)",
        "values = Transpose <perm = [0, 2, 3, 1]> (value)",  # (N, M, D, S)
        "doubled = Mul (locations, two)",
        "grids = Sub (doubled, one)",
        "value_shape = Shape (values)",
        "batch = Gather (value_shape, zero)",
        "heads = Gather (value_shape, axis1)",
        "channels = Gather (value_shape, axis2)",
        "rows = Mul (batch, heads)",
        "location_shape = Shape (locations)",
        "queries = Gather (location_shape, axis1)",
        "points = Gather (location_shape, axis4)",
        "grid_shape = Concat <axis = 0> (rows, queries, points, axis2)",
        "weight_shape = Concat <axis = 0> (rows, axis1, queries, points)",
    ]
    head = [
        "shapes64 = Cast <to = 7> (shapes)",
        "starts64 = Cast <to = 7> (starts)",
        *(f"{name} = Constant <value_ints = [{number}]> ()"
          for name, number in (("zero", 0), ("axis1", 1), ("axis2", 2), ("axis3", 3), ("axis4", 4))),
    ]  # fmt: skip
    sums = []
    for level in range(levels):
        i = f"_{level}"
        lines += [
            f"at{i} = Constant <value_ints = [{level}]> ()",
            f"size{i} = Gather <axis = 0> (shapes64, at{i})",
            f"side{i} = Squeeze (size{i}, zero)",
            f"from{i} = Gather (starts64, at{i})",
            f"count{i} = Gather (counts, at{i})",
            f"to{i} = Add (from{i}, count{i})",
            f"tokens{i} = Slice (values, from{i}, to{i}, axis3)",
            f"map_shape{i} = Concat <axis = 0> (rows, channels, side{i})",
            f"map{i} = Reshape (tokens{i}, map_shape{i})",
            f"grid_of{i} = Gather <axis = 3> (grids, at{i})",  # (N, Q, M, 1, P, 2)
            f"flat{i} = Squeeze (grid_of{i}, axis3)",
            f"heads_first{i} = Transpose <perm = [0, 2, 1, 3, 4]> (flat{i})",
            f"grid{i} = Reshape (heads_first{i}, grid_shape)",
            f'sampled{i} = GridSample <mode = "bilinear", padding_mode = "zeros"> (map{i}, grid{i})',  # (N M, D, Q, P)
            f"weight_of{i} = Gather <axis = 3> (weights, at{i})",
            f"weight_flat{i} = Squeeze (weight_of{i}, axis3)",
            f"weight_heads{i} = Transpose <perm = [0, 2, 1, 3]> (weight_flat{i})",
            f"weight{i} = Reshape (weight_heads{i}, weight_shape)",
            f"weighted{i} = Mul (sampled{i}, weight{i})",
            f"sum{i} = ReduceSum <keepdims = 0> (weighted{i}, last)",  # (N M, D, Q)
        ]
        sums.append(f"sum{i}")
    lines += [
        f"total = Sum ({', '.join(sums)})",
        "out_shape = Concat <axis = 0> (batch, heads, channels, queries)",
        "apart = Reshape (total, out_shape)",
        "out = Transpose <perm = [0, 3, 1, 2]> (apart)",
    ]
    body = "\n".join(head + lines)
    return onnx.parser.parse_function(
        f'<domain: "{PLUGIN_DOMAIN}", opset_import: ["" : {OPSET}]>\n'
        f"{PLUGIN} <plugin_version, plugin_namespace> (value, shapes, starts, locations, weights) => (out)\n"
        f"{{\n{body}\n}}"
    )


def check_plugin(path: str) -> int:
    """How many nodes of the plugin a file has, each of the version and with the inputs that TensorRT wants.

    Raises:
        UserError: it has none, or one that TensorRT would not take.
    """
    import onnx

    nodes = [node for node in onnx.load(path).graph.node if node.op_type == PLUGIN]
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        version = attributes.get("plugin_version", b"1").decode()
        if len(node.input) != 5 or version != PLUGIN_VERSION:
            raise UserError(f"{path}: node {node.name} has {len(node.input)} inputs and plugin version {version}, "
                            f"must have 5 and {PLUGIN_VERSION}.")  # fmt: skip
    if not nodes:
        raise UserError(f"{path} holds no node {PLUGIN}: the model has no deformable attention, leave --msda out.")
    return len(nodes)
