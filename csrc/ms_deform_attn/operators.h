// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The four operators of the schema over one device's forward and backward.

#pragma once

#include <tuple>

#include "problem.h"

namespace paq_detr::msda {

using Shapes = std::vector<int64_t>;
using OptionalTensor = std::optional<Tensor>;

template <Tensor (*run_forward)(const Problem&), Gradients (*run_backward)(const Problem&, const Tensor&, bool)>
struct Operators {
  static Tensor classical(const Tensor& value, Shapes shapes, const Tensor& locations, const Tensor& weights) {
    return run_forward(Problem::classical(value, std::move(shapes), locations, weights));
  }

  static std::tuple<Tensor, Tensor, Tensor> classical_backward(
      const Tensor& grad_out, const Tensor& value, Shapes shapes, const Tensor& locations, const Tensor& weights,
      bool deterministic) {
    const Problem problem = Problem::classical(value, std::move(shapes), locations, weights);
    Gradients g = run_backward(problem, grad_out, deterministic);
    return {to_storage(g.value, value), g.xy, g.scores};
  }

  static Tensor fused(
      const Tensor& value, Shapes shapes, const Tensor& reference, const Tensor& offsets, const Tensor& logits,
      const OptionalTensor& valid_ratios, const OptionalTensor& padding_mask) {
    return run_forward(
        Problem::fused(value, std::move(shapes), reference, offsets, logits, valid_ratios, padding_mask));
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> fused_backward(
      const Tensor& grad_out, const Tensor& value, Shapes shapes, const Tensor& reference, const Tensor& offsets,
      const Tensor& logits, const OptionalTensor& valid_ratios, const OptionalTensor& padding_mask,
      bool deterministic) {
    const Problem problem =
        Problem::fused(value, std::move(shapes), reference, offsets, logits, valid_ratios, padding_mask);
    Gradients g = run_backward(problem, grad_out, deterministic);
    return {to_storage(g.value, value), g.reference, g.xy, g.scores};
  }

  static void register_all(torch::stable::detail::StableLibrary& m) {
    m.impl("ms_deform_attn", TORCH_BOX(&Operators::classical));
    m.impl("ms_deform_attn_backward", TORCH_BOX(&Operators::classical_backward));
    m.impl("fused_ms_deform_attn", TORCH_BOX(&Operators::fused));
    m.impl("fused_ms_deform_attn_backward", TORCH_BOX(&Operators::fused_backward));
  }

 private:
  // Sums of gradients are kept in float32; only the finished ones are rounded.
  static Tensor to_storage(const Tensor& grad_value, const Tensor& value) {
    if (grad_value.scalar_type() == value.scalar_type()) return grad_value;
    return torch::stable::to(grad_value, value.scalar_type());
  }
};

}  // namespace paq_detr::msda
