// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Python checks the arguments and explains what is wrong with them. These checks only keep a direct call of an operator
// from reading outside its tensors.
#pragma once

#include "../common/tensors.h"

namespace paq_detr::pairs {

inline void check_pairs(
    const torch::stable::Tensor& boxes, const torch::stable::Tensor& gt_boxes, const torch::stable::Tensor& gt_image) {
  check_devices(boxes, {gt_boxes, gt_image});
  STD_TORCH_CHECK(boxes.dim() == 4 && boxes.size(3) == 4, "boxes must have shape (L, B, N, 4)");
  STD_TORCH_CHECK(gt_boxes.dim() == 2 && gt_boxes.size(1) == 4, "gt_boxes must have shape (M, 4)");
  STD_TORCH_CHECK(gt_image.dim() == 1 && gt_image.size(0) == gt_boxes.size(0), "gt_image does not fit gt_boxes");
}

inline void check_predictions(
    const torch::stable::Tensor& logits, const torch::stable::Tensor& boxes, const torch::stable::Tensor& gt_labels,
    const torch::stable::Tensor& gt_boxes, const torch::stable::Tensor& gt_image) {
  check_pairs(boxes, gt_boxes, gt_image);
  check_devices(boxes, {logits, gt_labels});
  STD_TORCH_CHECK(logits.dim() == 4 && logits.numel() == boxes.numel() / 4 * logits.size(3), "logits do not fit boxes");
  STD_TORCH_CHECK(gt_labels.dim() == 1 && gt_labels.size(0) == gt_boxes.size(0), "gt_labels does not fit gt_boxes");
}

inline void check_pair_gradients(
    const torch::stable::Tensor& grad_iou, const torch::stable::Tensor& grad_giou, const torch::stable::Tensor& boxes,
    const torch::stable::Tensor& gt_boxes, const torch::stable::Tensor& gt_image) {
  check_pairs(boxes, gt_boxes, gt_image);
  check_devices(boxes, {grad_iou, grad_giou});
  const int64_t pairs = boxes.size(0) * gt_boxes.size(0) * boxes.size(2);
  STD_TORCH_CHECK(grad_iou.numel() == pairs && grad_giou.numel() == pairs, "the gradients do not fit boxes");
}

}  // namespace paq_detr::pairs
