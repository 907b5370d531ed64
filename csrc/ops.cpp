// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Every operator schema of paq_detr, one block per family; each family's own folder registers the kernels.

#include <Python.h>
#include <torch/csrc/stable/library.h>

// Importing the module loads the library, which registers the operators; it has no members of its own.
PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr};
  return PyModule_Create(&definition);
}

// Multi-scale deformable attention. shapes = (H_0, W_0, H_1, W_1, ...); grad_reference is per head (B, Q, H, 2|4).
STABLE_TORCH_LIBRARY_FRAGMENT(paq_detr, m) {
  m.def("ms_deform_attn(Tensor value, SymInt[] shapes, Tensor locations, Tensor weights) -> Tensor");
  m.def(
      "ms_deform_attn_backward(Tensor grad_out, Tensor value, SymInt[] shapes, Tensor locations, Tensor weights, "
      "bool deterministic) -> (Tensor grad_value, Tensor grad_locations, Tensor grad_weights)");
  m.def(
      "fused_ms_deform_attn(Tensor value, SymInt[] shapes, Tensor reference, Tensor offsets, Tensor logits, "
      "Tensor? valid_ratios, Tensor? padding_mask) -> Tensor");
  m.def(
      "fused_ms_deform_attn_backward(Tensor grad_out, Tensor value, SymInt[] shapes, Tensor reference, "
      "Tensor offsets, Tensor logits, Tensor? valid_ratios, Tensor? padding_mask, bool deterministic) "
      "-> (Tensor grad_value, Tensor grad_reference, Tensor grad_offsets, Tensor grad_logits)");
}

// Pair quality. boxes (L, B, N, 4), gt_* (M, ...), pair results (L, M, N).
STABLE_TORCH_LIBRARY_FRAGMENT(paq_detr, m) {
  m.def("pair_iou(Tensor boxes, Tensor gt_boxes, Tensor gt_image) -> (Tensor iou, Tensor giou)");
  m.def(
      "pair_iou_backward(Tensor grad_iou, Tensor grad_giou, Tensor boxes, Tensor gt_boxes, Tensor gt_image) "
      "-> (Tensor grad_boxes, Tensor grad_gt_boxes)");
  m.def(
      "pair_quality(Tensor logits, Tensor boxes, Tensor gt_labels, Tensor gt_boxes, Tensor gt_image, "
      "float score_weight, float iou_weight) -> Tensor");
  m.def(
      "quality_topk(Tensor logits, Tensor boxes, Tensor gt_labels, Tensor gt_boxes, Tensor gt_image, "
      "float score_weight, float iou_weight, int k, int min_count) -> (Tensor values, Tensor indices, Tensor count)");
  m.def(
      "match_cost(Tensor logits, Tensor boxes, Tensor gt_labels, Tensor gt_boxes, Tensor gt_image, "
      "float class_weight, float l1_weight, float giou_weight, float alpha, float gamma) -> Tensor");
}

// Neighbour difference. slot is the winning neighbour of each output, -1 where a zero won.
STABLE_TORCH_LIBRARY_FRAGMENT(paq_detr, m) {
  m.def(
      "neighbor_select(Tensor boxes, Tensor scores, int k, float iou_threshold, float low_score) "
      "-> (Tensor index, Tensor count)");
  m.def(
      "neighbor_difference(Tensor p, Tensor index, Tensor count, Tensor hidden_bias, Tensor weight, Tensor bias, "
      "bool zero_fill) -> (Tensor out, Tensor slot)");
  m.def(
      "neighbor_difference_backward(Tensor grad_out, Tensor slot, Tensor p, Tensor index, Tensor count, "
      "Tensor hidden_bias, Tensor weight) -> (Tensor grad_p, Tensor grad_hidden_bias, Tensor grad_weight)");
}
