# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Weights go into a model of another number of queries or patterns: rows are kept, further ones are new, and it is said."""

import pytest
import torch

from paq_detr.engine import DetrCheckpointer

from .assemblies import ADAMIXER, ANCHORS, ASSEMBLIES, DAB, DINO, HYBRID, PATTERNS, PLUSPLUS, SPARSE_RCNN, make_model

NUM, PAQ_NUM = "MODEL.DETR.QUERIES.NUM", "MODEL.DETR.PATTERNS.NUM"
FACTORED = {**PLUSPLUS, **PATTERNS, "MODEL.DETR.PATTERNS.HEAD": "factored"}
PATTERNED = {**DAB, "MODEL.DETR.QUERIES.NAME": "PatternedAnchors", "MODEL.DETR.QUERIES.CONTENT": "learned"}


def moved(options, before, after, folder):
    """A model with the options ``before`` saved and loaded into one with ``after``; their tensors, the fresh ones of the
    latter, and the report."""
    old, new = make_model({**options, **before}, seed=0), make_model({**options, **after}, seed=1)
    fresh = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    DetrCheckpointer(old, str(folder)).save("model")
    checkpointer = DetrCheckpointer(new)
    checkpointer.load(str(folder / "model.pth"))
    return old.state_dict(), new.state_dict(), fresh, checkpointer.report


@pytest.mark.parametrize("before, after", [(12, 21), (21, 12)])
@pytest.mark.parametrize(
    "options",
    [{}, PLUSPLUS, ANCHORS, SPARSE_RCNN, ADAMIXER, DINO, PATTERNED, FACTORED, {**PLUSPLUS, **PATTERNS, **HYBRID}],
    ids=["learned", "plusplus", "anchors", "sparse_rcnn", "adamixer", "dino", "patterned", "factored", "paq_hybrid"],
)
def test_rows_of_queries_are_kept_and_the_others_are_new(tmp_path, options, before, after):
    old, new, fresh, report = moved(options, {NUM: before}, {NUM: after}, tmp_path)
    differing = {name for name in old if old[name].shape != new[name].shape}
    assert {rows.name for rows in report.fitted} == differing and differing
    assert not report.reshaped and not report.missing
    for rows in report.fitted:
        name, kept = rows.name, min(len(old[rows.name]), len(new[rows.name]))
        assert torch.equal(new[name][:kept], old[name][:kept]) and torch.equal(new[name][kept:], fresh[name][kept:])
        assert (rows.kept, rows.new, rows.dropped) == (kept, len(new[name]) - kept, len(old[name]) - kept)
        fate = f"{rows.new} initialised" if after > before else f"{rows.dropped} dropped"
        assert f"{name}: {kept} rows kept, {fate}" in str(report)


@pytest.mark.parametrize(
    "before, after", [((12, 10), (20, 10)), ((12, 10), (12, 15)), ((12, 10), (10, 12)), ((20, 6), (7, 9))]
)
def test_weights_of_queries_over_patterns_stay_with_their_query_and_pattern(tmp_path, before, after):
    sides = [{NUM: queries, PAQ_NUM: patterns} for queries, patterns in (before, after)]
    old, new, fresh, report = moved({**PLUSPLUS, **PATTERNS}, *sides, tmp_path)
    queries, patterns = map(min, zip(before, after))
    for parameter in ("weight", "bias"):
        name = f"sources.main.content.generator.head.mlp.3.{parameter}"
        theirs, ours, unset = (
            state[name].unflatten(0, size) for state, size in ((old, before), (new, after), (fresh, after))
        )
        assert torch.equal(ours[:queries, :patterns], theirs[:queries, :patterns])
        assert torch.equal(ours[queries:], unset[queries:]) and torch.equal(ours[:, patterns:], unset[:, patterns:])
        assert name in {rows.name for rows in report.fitted} and name not in report.loaded
    assert not report.reshaped


@pytest.mark.parametrize("name", ASSEMBLIES)
def test_every_tensor_that_depends_on_the_queries_is_declared(name):
    options = ASSEMBLIES[name]
    number = options.get(NUM, 12)
    models = [
        make_model({**options, NUM: count, "MODEL.DETR.HYBRID.NUM_QUERIES": 2 * count})
        for count in (number, number + 9)
    ]
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in models]
    declared = {
        f"{prefix}.{parameter}"
        for prefix, module in models[0].named_modules()
        for parameter in (*getattr(module, "query_axes", ()), *getattr(module, "query_blocks", ()))
    }
    depends = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert depends <= declared


def test_another_width_is_no_row(tmp_path):
    _, _, _, report = moved(
        PLUSPLUS, {"MODEL.DETR.HIDDEN_DIM": 32, NUM: 9}, {"MODEL.DETR.CLASS_NAMES": ["cat"]}, tmp_path
    )
    assert {"sources.main.content.table", "sources.main.class_head.weight"} <= set(report.reshaped)
    assert [rows.name for rows in report.fitted] == ["sources.main.class_head.bias"]
