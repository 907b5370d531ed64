// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include "../common/tensors.h"

namespace paq_detr::neighbors {

inline void check_candidates(const torch::stable::Tensor& boxes, const torch::stable::Tensor& scores, int64_t k) {
  check_devices(boxes, {scores});
  STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(2) == 4, "boxes must have shape (B, N, 4)");
  STD_TORCH_CHECK(scores.dim() == 2 && scores.numel() * 4 == boxes.numel(), "scores do not fit boxes");
  STD_TORCH_CHECK(k >= 1 && k <= INT16_MAX, "k must be in [1, ", INT16_MAX, "], got ", k);
}

inline void check_graph(
    const torch::stable::Tensor& p, const torch::stable::Tensor& index, const torch::stable::Tensor& count,
    const torch::stable::Tensor& hidden_bias, const torch::stable::Tensor& weight) {
  check_devices(p, {index, count, hidden_bias, weight});
  STD_TORCH_CHECK(p.dim() == 3, "p must have shape (B, N, C)");
  STD_TORCH_CHECK(
      index.dim() == 3 && index.size(0) == p.size(0) && index.size(1) == p.size(1) && index.size(2) <= INT16_MAX,
      "index does not fit p");
  STD_TORCH_CHECK(count.dim() == 2 && count.size(0) == p.size(0) && count.size(1) == p.size(1), "count does not fit p");
  STD_TORCH_CHECK(hidden_bias.numel() == p.size(2), "hidden_bias does not fit p");
  STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == p.size(2), "weight does not fit p");
}

inline void check_code_gradient(
    const torch::stable::Tensor& grad_out, const torch::stable::Tensor& slot, const torch::stable::Tensor& p,
    const torch::stable::Tensor& weight) {
  check_devices(p, {grad_out, slot});
  const int64_t outputs = p.size(0) * p.size(1) * weight.size(0);
  STD_TORCH_CHECK(grad_out.numel() == outputs && slot.numel() == outputs, "grad_out or slot does not fit p and weight");
}

}  // namespace paq_detr::neighbors
