# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Exported files: they run without this package's operators, find what the model finds, and say what they are."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from paq_detr.errors import UserError
from paq_detr.export import Shape, export_model, open_file
from paq_detr.export.check import Tolerance, compare
from paq_detr.ops.export_forms import PLUGIN, PLUGIN_DOMAIN

from ..modeling.assemblies import DAB, TWO_STAGE, make_model, wake_up
from .models import small_model

NEAR = Tolerance(5e-3, 1e-4)
HERE = str(Path(__file__).parents[2]).encode()
FEW_LAYERS = {"MODEL.DETR.DECODER.NUM_LAYERS": 1, "MODEL.DETR.NECK.NUM_LEVELS": 3}


def small(options, **more):
    return wake_up(make_model({**options, **more})).eval()


def arrays(height, width):
    return np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)


def of_records(path, record):
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith(record))
        return json.loads(archive.read(name)), b"".join(archive.read(n) for n in archive.namelist())


@pytest.mark.parametrize("format", ["torch_export", "torchscript"])
def test_files_for_torch(tmp_path, format):
    model, path = small(DAB), str(tmp_path / "model")
    metadata = export_model(model, path, format=format, shape=Shape((64, 96)))
    found = compare(model, open_file(path, format), [(arrays(64, 96),)], NEAR)
    assert found.total > 0 and found.alone == 0
    inside, content = of_records(path, "paq_detr.json")
    assert inside == metadata and inside["names"] == ["cat", "dog", "owl"] and inside["stride"] == 32
    assert HERE not in content and str(Path(torch.__file__).parent).encode() not in content
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


class TestOnnx:
    @pytest.fixture(autouse=True)
    def packages(self):
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name, reason="the extra export is not installed")

    @pytest.mark.parametrize(
        "name",
        [
            "dehomo",
            "ddq",
            "adamixer",
            *(pytest.param(name, marks=pytest.mark.slow) for name in ("asag_a", "parallel_xyzr")),
        ],
    )
    def test_a_file_of_one_size(self, tmp_path, name):
        import onnx

        model, path = small_model(name), str(tmp_path / "model.onnx")
        metadata = export_model(model, path, shape=Shape((64, 96)))
        found = compare(model, open_file(path, "onnx"), [(arrays(64, 96),)], NEAR)
        # Of DH-DETR one query, of three classes, may stand at a threshold, as in test_capture.py; of AdaMixer's, whose
        # sizes are exponentials of what random weights say, one may round further. A wrong graph loses most of them.
        assert found.total > 3 >= found.alone and (found.alone == 0 or name in ("dehomo", "adamixer"))
        proto = onnx.load(path)
        assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 18
        props = {entry.key: entry.value for entry in proto.metadata_props}
        assert json.loads(props["paq_detr"]) == metadata and json.loads(props["names"])["1"] == "dog"
        content = Path(path).read_bytes()
        assert HERE not in content and str(Path(torch.__file__).parent).encode() not in content

    def test_a_dynamic_file(self, tmp_path):
        model, path = small(TWO_STAGE, **FEW_LAYERS), str(tmp_path / "model.onnx")
        export_model(model, path, shape=Shape((64, 96), dynamic=True))
        run = open_file(path, "onnx")
        assert run.names == ["images", "valid_sizes"]
        images = np.concatenate([arrays(96, 128), arrays(96, 128)[..., ::-1]])
        sizes = np.array([[96, 128], [70, 51]])
        assert run(images, sizes)[1].shape == (2, 36, 4)
        for i in range(2):
            found = compare(model, run, [(images[i : i + 1], sizes[i : i + 1])], NEAR)
            assert found.total > 0 and found.alone == 0

    def test_the_plugin_has_tensorrts_contract(self, tmp_path):
        import onnx

        model, path = small(TWO_STAGE, **FEW_LAYERS), str(tmp_path / "model.onnx")
        export_model(model, path, shape=Shape((64, 96)), msda="plugin")
        proto = onnx.load(path)
        nodes = [node for node in proto.graph.node if node.op_type == PLUGIN]
        assert len(nodes) == 2 and not any(node.op_type == "GridSample" for node in proto.graph.node)
        for node in nodes:
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            assert (node.domain, attributes) == (PLUGIN_DOMAIN, {"plugin_version": b"2", "plugin_namespace": b""})
        assert not proto.functions  # TensorRT would take a function in place of its plugin
        types = {entry.name: entry.type.tensor_type for entry in proto.graph.value_info}
        types |= {entry.name: onnx.helper.make_tensor_type_proto(entry.data_type, entry.dims).tensor_type
                  for entry in proto.graph.initializer}  # fmt: skip
        tokens = 8 * 12 + 4 * 6 + 2 * 3
        expected = [(1, [1, tokens, 4, 16]), (6, [3, 2]), (6, [3]), (1, [1, 12, 4, 3, 4, 2]), (1, [1, 12, 4, 3, 4])]
        decoder = nodes[-1]
        found = [(types[n].elem_type, [d.dim_value for d in types[n].shape.dim]) for n in decoder.input]
        assert found == expected
        found = compare(model, open_file(path, "onnx"), [(arrays(64, 96),)], NEAR)  # by GridSample in its place
        assert found.total > 0 and found.alone == 0


def test_openvino(tmp_path):
    for name in ("openvino", "onnx", "onnxscript"):
        pytest.importorskip(name, reason="openvino is not installed")
    model, path = small(DAB, **{"MODEL.DETR.DECODER.NUM_LAYERS": 1}), str(tmp_path / "model.xml")
    export_model(model, path, format="openvino", shape=Shape((64, 96)))
    found = compare(model, open_file(path, "openvino"), [(arrays(64, 96),)], NEAR)
    assert found.total > 0 and found.alone == 0
    assert b"owl" in Path(path).read_bytes()


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"format": "tensorflow"}, "--format"),
        ({"msda": "plugin", "format": "torch_export"}, "--msda plugin is for TensorRT"),
        ({"shape": Shape((64, 90)), "format": "torch_export"}, "the width 90 is no multiple of 64"),
        ({"shape": Shape((64, 8192), dynamic=True), "format": "torch_export"}, "more than 4096"),
        ({"shape": Shape((64, 128), dynamic=True), "format": "torchscript"}, "takes one size"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_written(tmp_path, options, sentence):
    path = str(tmp_path / "model")
    with pytest.raises(UserError, match=sentence):
        export_model(make_model().eval(), path, **{"shape": Shape((64, 128)), **options})
    assert not list(tmp_path.iterdir())
