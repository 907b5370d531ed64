# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""Another number of queries or patterns than the weights have (rows are kept, further ones are new, and it is said), or
at inference than in training."""

import pytest
import torch

from paq_detr.detector import QueryDetector
from paq_detr.engine import DetrCheckpointer, UserError

from .assemblies import (
    ADAMIXER,
    ANCHORS,
    ASAG_D,
    ASSEMBLIES,
    DAB,
    DDQ,
    DEHOMO,
    DINO,
    HYBRID,
    MR,
    PATTERNS,
    PLUSPLUS,
    SPARSE_RCNN,
    TWO_STAGE,
    decode,
    make_cfg,
    make_model,
    memory_of,
    wake_up,
)

NUM, AT_INFERENCE, PAQ_NUM = "MODEL.DETR.QUERIES.NUM", "MODEL.DETR.QUERIES.NUM_TEST", "MODEL.DETR.PATTERNS.NUM"
DN_TWO_STAGE = ASSEMBLIES["dab_deformable_two_stage"]
FACTORED = {**PLUSPLUS, **PATTERNS, "MODEL.DETR.PATTERNS.HEAD": "factored"}
PATTERNED = {**DAB, "MODEL.DETR.QUERIES.NAME": "PatternedAnchors", "MODEL.DETR.QUERIES.CONTENT": "learned"}


def moved(options, before, after, folder):
    """A model with the options ``before`` is saved and loaded into one with ``after``.

    Returns the tensors of the first, of the second, of the second before, and the report.
    """
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
    numbers = (number, number + 9)
    with torch.device("meta"):
        both = [make_cfg(options, **{NUM: count, "MODEL.DETR.HYBRID.NUM_QUERIES": 2 * count}) for count in numbers]
        models = [QueryDetector(cfg) for cfg in both]
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in models]
    declared = {
        f"{prefix}.{parameter}"
        for prefix, module in models[0].named_modules()
        for parameter in (*getattr(module, "query_axes", ()), *getattr(module, "query_blocks", ()))
    }
    depends = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
    assert depends <= declared


def test_another_width_is_no_row(tmp_path):
    before, after = {"MODEL.DETR.HIDDEN_DIM": 32, NUM: 9}, {"MODEL.DETR.CLASS_NAMES": ["cat"]}
    _, _, _, report = moved(PLUSPLUS, before, after, tmp_path)
    assert {"sources.main.content.table", "sources.main.class_head.weight"} <= set(report.reshaped)
    assert [rows.name for rows in report.fitted] == ["sources.main.class_head.bias"]


TABLES = [{}, ANCHORS, PATTERNED, SPARSE_RCNN, ADAMIXER, {**ANCHORS, **PATTERNS}]
FROM_THE_IMAGE = [TWO_STAGE, PLUSPLUS, DINO, {**PLUSPLUS, **PATTERNS}, FACTORED, DDQ, DEHOMO, DN_TWO_STAGE, MR]


@pytest.mark.parametrize(
    "options, number", [*((table, 7) for table in TABLES), *((source, n) for source in FROM_THE_IMAGE for n in (7, 30))]
)
def test_another_number_of_queries_at_inference(two_images, options, number):
    model = wake_up(make_model(options, **{AT_INFERENCE: number}))
    plain = wake_up(make_model(options))
    plain.load_state_dict(model.state_dict())  # the same parameters
    few = min(number, 12)
    for mode in (True, False):
        memory = memory_of(model.train(mode), two_images)
        queries, others = (m.sources["main"](memory) for m in (model, plain.train(mode)))
        assert queries.content.shape[1] == queries.reference.shape[1] == (12 if mode else number)
        count = 12 if mode else few
        assert torch.equal(queries.content[:, :count], others.content[:, :count])  # the best proposals are the same
        assert torch.equal(queries.reference[:, :count], others.reference[:, :count])
    assert decode(model, two_images)[-1].logits.shape[1] == number


def test_further_queries_share_the_last_learned_content(two_images):
    model = make_model(PLUSPLUS, **{AT_INFERENCE: 30}).eval()
    queries, table = model.sources["main"](memory_of(model, two_images)), model.sources["main"].content.table
    assert torch.equal(queries.content[1], torch.cat([table, table[-1:].expand(18, -1)]))
    assert len(queries.reference[1].unique(dim=0)) == 30


@pytest.mark.parametrize("options", TABLES)
def test_a_learned_table_has_no_further_queries_at_inference(options):
    with pytest.raises(UserError, match="NUM_TEST is 13, but .* is a table of 12 learned queries.* a larger .*.NUM,"):
        make_model(options, **{AT_INFERENCE: 13})


def test_asag_takes_more_anchors_at_inference(two_images):
    few, many = (make_model(ASAG_D, **{NUM: 6, AT_INFERENCE: n}).eval() for n in (0, 60))
    counts = [model.sources["main"](memory_of(model, two_images)).content.shape[1] for model in (few, many)]
    assert counts[0] == 6 < counts[1] <= 60
