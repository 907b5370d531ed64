# Copyright (c) 2026 The paq_detr authors.
# SPDX-License-Identifier: Apache-2.0
"""The same tensors under the authors' names, detrex's and Mr. DETR's become the same weights."""

import pytest
import torch

from paq_detr.convert import convert_if_foreign

from . import published
from .inverse import DETREX, MR_DETR, substituted


def without_backbone(shapes):
    return {name: tensor for name, tensor in published.stored(shapes).items() if not name.startswith("backbone.")}


@pytest.mark.parametrize(
    "shapes, substitutions, layout",
    [
        (published.official_dab_deformable(), (DETREX,), "detrex's DAB-Deformable-DETR"),
        (published.official_deformable(two_stage=True), (DETREX,), "detrex's Deformable DETR, two-stage"),
        (published.official_deformable(), (DETREX,), "detrex's Deformable DETR, single stage with box refinement"),
        (published.official_deformable(two_stage=True), (DETREX, MR_DETR), "Mr. DETR, two-stage"),
    ],
    ids=["dab_deformable", "two_stage", "refine", "mr_detr"],
)
def test_names_that_tell_the_order_of_modules_are_the_authors_modules(shapes, substitutions, layout):
    weights = without_backbone(shapes)
    expected = convert_if_foreign(weights).weights
    for names in substitutions:
        weights = substituted(weights, names)
    weights = {name.replace("query_embed.", "query_embedding."): tensor for name, tensor in weights.items()}
    conversion = convert_if_foreign(weights)
    assert conversion.layout == layout and conversion.dropped == []
    assert conversion.weights.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in conversion.weights.items())


def test_contents_of_detrexs_two_stage_models_are_one_table():
    """H-DETR's and Mr. DETR's ``query_embedding`` is as wide as the queries, not twice."""
    stored = published.stored(published.mr_detr())
    weights = convert_if_foreign(stored).weights
    assert torch.equal(weights["sources.main.content.table"], stored["query_embedding.weight"])


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("attentions.0.norm_o2m.weight", "routes.mr_tokens.decoder.layers.4.interactions.0.norm.weight"),
        ("attentions.0.instruction_o2m.weight", "routes.mr_tokens.decoder.layers.4.interactions.0.content"),
        ("attentions.0.instruction_o2m_pos.weight", "routes.mr_tokens.decoder.layers.4.interactions.0.position"),
        ("ffns.0.layers.0.linear.linear_sep.weight", "routes.mr_ffn.decoder.layers.4.ffn.linear1.weight"),
        ("ffns.0.layers.0.linear.linear.weight", "routes.main.decoder.layers.4.ffn.linear1.weight"),
        ("ffns.0.layers.1.linear_sep.bias", "routes.mr_ffn.decoder.layers.4.ffn.linear2.bias"),
    ],
)
def test_what_mr_detrs_layers_own_for_training_goes_to_its_route(theirs, ours):
    stored = published.stored(published.mr_detr())
    weights = convert_if_foreign(stored).weights
    assert torch.equal(weights[ours], stored[f"transformer.decoder.layers.4.{theirs}"])


def test_mr_detrs_second_proposal_heads_and_labels_have_their_places():
    stored = published.stored(published.mr_detr(denoising=True))
    weights = convert_if_foreign(stored).weights
    decoder = "transformer.decoder"
    for theirs, ours in (
        (f"{decoder}.class_embed_o2m_encoder.bias", "sources.mr_tokens.class_head.bias"),
        (f"{decoder}.bbox_embed_enc_o2m.layers.2.weight", "sources.mr_tokens.box_head.4.weight"),
        ("class_embed.6.bias", "sources.main.class_head.bias"),
        ("label_enc.weight", "augmenters.main.labels.weight"),
    ):
        assert torch.equal(weights[ours], stored[theirs])
