// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The arguments of multi-scale deformable attention, checked and laid out, for the CPU and the CUDA kernels.

#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "types.h"

namespace paq_detr::msda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Keeps a tensor whose trailing dimensions (from `lead` on) are dense, so that slices of one projection need no copy.
inline Tensor dense_from(const Tensor& tensor, int64_t lead) {
  int64_t expected = 1;
  for (int64_t dim = tensor.dim() - 1; dim >= lead; --dim) {
    if (tensor.size(dim) != 1 && tensor.stride(dim) != expected) return torch::stable::contiguous(tensor);
    expected *= tensor.size(dim);
  }
  return tensor;
}

struct Problem {
  Form form;
  int64_t batch, tokens, queries, heads, channels, levels, points;
  std::vector<int64_t> shapes;  // H_0, W_0, H_1, W_1, ...
  Tensor value, xy, scores;     // (B, S, H, D), (B, Q, H, L, P, 2), (B, Q, H, L * P) or (B, Q, H, L, P)
  std::optional<Tensor> reference, valid_ratios, padding_mask;

  int64_t points_per_head() const { return levels * points; }
  int64_t coordinates() const { return form == Form::boxes ? 4 : 2; }
  int64_t level_start(int64_t level) const {
    int64_t start = 0;
    for (int64_t l = 0; l < level; ++l) start += shapes[2 * l] * shapes[2 * l + 1];
    return start;
  }

  static Problem classical(
      const Tensor& value, std::vector<int64_t> shapes, const Tensor& locations, const Tensor& weights) {
    return Problem(Form::locations, value, std::move(shapes), locations, weights);
  }

  static Problem fused(
      const Tensor& value, std::vector<int64_t> shapes, const Tensor& reference, const Tensor& offsets,
      const Tensor& logits, const std::optional<Tensor>& valid_ratios, const std::optional<Tensor>& padding_mask) {
    Form form = reference.size(reference.dim() - 1) == 4 ? Form::boxes : Form::points;
    Problem p(form, value, std::move(shapes), offsets, logits);
    STD_TORCH_CHECK(
        reference.dim() == 3 && reference.size(0) == p.batch && reference.size(1) == p.queries &&
            reference.size(2) == p.coordinates(),
        "reference does not fit offsets");
    p.reference = p.coordinate_tensor(reference, "reference", 2);
    if (valid_ratios) {
      STD_TORCH_CHECK(valid_ratios->numel() == p.batch * p.levels * 2, "valid_ratios does not fit value");
      p.valid_ratios = p.coordinate_tensor(*valid_ratios, "valid_ratios", 0);
    }
    if (padding_mask) {
      STD_TORCH_CHECK(
          padding_mask->numel() == p.batch * p.tokens && padding_mask->scalar_type() == ScalarType::Bool,
          "padding_mask does not fit value");
      p.padding_mask = dense_from(*padding_mask, 0);
    }
    return p;
  }

 private:
  Problem(Form form_, const Tensor& value_, std::vector<int64_t> shapes_, const Tensor& xy_, const Tensor& scores_)
      : form(form_), shapes(std::move(shapes_)), value(dense_from(value_, 2)) {
    STD_TORCH_CHECK(value.dim() == 4 && xy_.dim() == 6 && scores_.dim() >= 4, "wrong number of dimensions");
    batch = value.size(0), tokens = value.size(1), heads = value.size(2), channels = value.size(3);
    queries = xy_.size(1), levels = static_cast<int64_t>(shapes.size() / 2), points = xy_.size(4);
    STD_TORCH_CHECK(shapes.size() % 2 == 0, "the level sizes are no pairs of height and width");
    for (const int64_t size : shapes) STD_TORCH_CHECK(size >= 1, "a level has the size ", size);
    const int64_t total = level_start(levels);
    STD_TORCH_CHECK(total == tokens, "level sizes sum to ", total, ", value has ", tokens);
    STD_TORCH_CHECK(
        xy_.size(0) == batch && xy_.size(2) == heads && xy_.size(3) == levels && xy_.size(5) == 2,
        "locations or offsets do not fit value");
    STD_TORCH_CHECK(
        scores_.size(0) == batch && scores_.size(1) == queries && scores_.numel() * 2 == xy_.numel(),
        "weights or logits do not fit the locations or offsets");
    xy = coordinate_tensor(xy_, "locations or offsets", 2);
    scores = coordinate_tensor(scores_, "weights or logits", 2);
  }

  Tensor coordinate_tensor(const Tensor& tensor, const char* name, int64_t lead) const {
    ScalarType expected = value.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(tensor.scalar_type() == expected, name, " must be float32 (float64 with a float64 value)");
    STD_TORCH_CHECK(tensor.device() == value.device(), name, " is on another device than value");
    return dense_from(tensor, lead);
  }
};

struct Gradients {
  Tensor value, reference, xy, scores;  // reference: per head, (B, Q, H, 2 or 4); empty in the classical form
  bool done = false;
};

// Room for the gradients of the points, and a check of grad_out; the kernels choose where they sum grad_value.
// Without queries, points or values every gradient is zero or empty.
inline Gradients empty_gradients(const Problem& p, const Tensor& grad_out) {
  STD_TORCH_CHECK(
      grad_out.numel() == p.batch * p.queries * p.heads * p.channels && grad_out.scalar_type() == p.value.scalar_type(),
      "grad_out does not fit value");
  const int64_t coordinates = p.form == Form::locations ? 0 : p.coordinates();
  Gradients g{
      Tensor(), torch::stable::new_empty(p.xy, {p.batch, p.queries, p.heads, coordinates}),
      torch::stable::new_empty(p.xy, {p.batch, p.queries, p.heads, p.levels, p.points, 2}),
      torch::stable::new_empty(p.scores, p.scores.sizes())};
  if (grad_out.numel() == 0 || p.xy.numel() == 0) {
    g.value = torch::stable::new_zeros(p.value, {p.batch, p.tokens, p.heads, p.channels});
    torch::stable::zero_(g.reference), torch::stable::zero_(g.xy), torch::stable::zero_(g.scores);
    g.done = true;
  }
  return g;
}

// Calls f with a null pointer of the storage type of `tensor`.
template <class F>
void dispatch_storage(const Tensor& tensor, const F& f) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(static_cast<float*>(nullptr));
    case ScalarType::Double: return f(static_cast<double*>(nullptr));
    case ScalarType::Half: return f(static_cast<torch::headeronly::Half*>(nullptr));
    case ScalarType::BFloat16: return f(static_cast<torch::headeronly::BFloat16*>(nullptr));
    default: STD_TORCH_CHECK(false, "value must be float32, float64, float16 or bfloat16");
  }
}

}  // namespace paq_detr::msda
