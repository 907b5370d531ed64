// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Neighbour selection and neighbour difference (DH-DETR) on CUDA: the operators. Shapes, dtypes and devices are checked
// in Python.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "../../common/launch.cuh"
#include "../../common/tensors.h"
#include "../arguments.h"
#include "kernels.cuh"

namespace paq_detr::neighbors {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::tuple<Tensor, Tensor> neighbor_select(
    const Tensor& boxes_in, const Tensor& scores_in, int64_t k, double iou_threshold, double low_score) {
  check_candidates(boxes_in, scores_in, k);
  const Launch launch(boxes_in);
  const Tensor boxes = torch::stable::contiguous(boxes_in), scores = torch::stable::contiguous(scores_in);
  const int64_t batch = boxes.size(0), n = boxes.size(1), total = batch * n;
  Tensor index = torch::stable::new_empty(boxes, {batch, n, k}, ScalarType::Int);
  Tensor count = torch::stable::new_empty(boxes, {batch, n}, ScalarType::Int);
  if (total > 0) {
    dispatch_floating(boxes, [&](auto zero) {
      using T = decltype(zero);
      select_kernel<T><<<Launch::blocks(divide_up(total, kWarps)), kThreads, 0, launch.stream()>>>(
          boxes.const_data_ptr<T>(), scores.const_data_ptr<T>(), total, n, k, static_cast<T>(iou_threshold),
          static_cast<T>(low_score), index.mutable_data_ptr<int32_t>(), count.mutable_data_ptr<int32_t>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {index, count};
}

Graph graph_of(const Tensor& index, const Tensor& count) {
  return {
      index.const_data_ptr<int32_t>(), count.const_data_ptr<int32_t>(), index.size(0) * index.size(1), index.size(1),
      index.size(2)};
}

// Returns the maximum (B, N, D) and the winning slot (B, N, D) int16, -1 where zero won.
std::tuple<Tensor, Tensor> neighbor_difference(
    const Tensor& p_in, const Tensor& index_in, const Tensor& count_in, const Tensor& hidden_bias_in,
    const Tensor& weight_in, const Tensor& bias_in, bool zero_fill) {
  check_graph(p_in, index_in, count_in, hidden_bias_in, weight_in);
  STD_TORCH_CHECK(bias_in.numel() == weight_in.size(0), "bias does not fit weight");
  const Launch launch(p_in);
  const Tensor p = torch::stable::contiguous(p_in), weight = torch::stable::contiguous(weight_in);
  const Tensor index = torch::stable::contiguous(index_in), count = torch::stable::contiguous(count_in);
  const Tensor hidden_bias = torch::stable::contiguous(hidden_bias_in), bias = torch::stable::contiguous(bias_in);
  const int64_t width = weight.size(0);
  Tensor out = torch::stable::new_empty(p, {p.size(0), p.size(1), width});
  Tensor slot = torch::stable::new_empty(p, {p.size(0), p.size(1), width}, ScalarType::Short);
  if (out.numel() > 0) {
    const Graph g = graph_of(index, count);
    const dim3 grid(Launch::blocks(divide_up(g.total, kQueries)), Launch::blocks(divide_up(width, kColumns)));
    dispatch_floating(p, [&](auto zero) {
      using T = decltype(zero);
      const Hidden<T> hidden{p.const_data_ptr<T>(), hidden_bias.const_data_ptr<T>(), p.size(2)};
      forward_kernel<T><<<grid, kThreads, 0, launch.stream()>>>(
          g, hidden, weight.const_data_ptr<T>(), bias.const_data_ptr<T>(), width, zero_fill, out.mutable_data_ptr<T>(),
          slot.mutable_data_ptr<int16_t>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {out, slot};
}

// Gradients of p, hidden_bias and weight; that of bias needs no pairs and is taken in Python.
std::tuple<Tensor, Tensor, Tensor> neighbor_difference_backward(
    const Tensor& grad_in, const Tensor& slot_in, const Tensor& p_in, const Tensor& index_in, const Tensor& count_in,
    const Tensor& hidden_bias_in, const Tensor& weight_in) {
  check_graph(p_in, index_in, count_in, hidden_bias_in, weight_in);
  check_code_gradient(grad_in, slot_in, p_in, weight_in);
  const Launch launch(p_in);
  const Tensor p = torch::stable::contiguous(p_in), weight = torch::stable::contiguous(weight_in);
  const Tensor index = torch::stable::contiguous(index_in), count = torch::stable::contiguous(count_in);
  const Tensor hidden_bias = torch::stable::contiguous(hidden_bias_in);
  const Tensor grad = torch::stable::contiguous(grad_in), slot = torch::stable::contiguous(slot_in);
  const Graph g = graph_of(index, count);
  const int64_t width = weight.size(0), hidden_width = p.size(2);
  const int64_t splits = std::clamp<int64_t>(divide_up(g.total, 4 * kQueries), 1, 32);
  Tensor grad_p = torch::stable::new_empty(p, {p.size(0), p.size(1), hidden_width});
  Tensor own_sum = torch::stable::new_empty(p, {g.total, hidden_width});
  Tensor partial = torch::stable::new_empty(p, {splits, width, hidden_width});
  dispatch_floating(p, [&](auto zero) {
    using T = decltype(zero);
    const Hidden<T> hidden{p.const_data_ptr<T>(), hidden_bias.const_data_ptr<T>(), hidden_width};
    const CodeGradient<T> code{grad.const_data_ptr<T>(), slot.const_data_ptr<int16_t>(), width};
    const unsigned column_blocks = Launch::blocks(divide_up(hidden_width, kColumns));
    if (grad_p.numel() > 0) {
      Tensor flow = torch::stable::new_empty(p, {g.total, g.k, hidden_width});
      const dim3 grid(Launch::blocks(divide_up(g.total, kQueries)), column_blocks);
      flow_kernel<T><<<grid, kThreads, 0, launch.stream()>>>(
          g, hidden, code, weight.const_data_ptr<T>(), flow.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      const dim3 gather_grid(Launch::blocks(g.total), Launch::blocks(divide_up(hidden_width, kThreads)));
      gather_kernel<T><<<gather_grid, kThreads, 0, launch.stream()>>>(
          g, flow.const_data_ptr<T>(), hidden_width, grad_p.mutable_data_ptr<T>(), own_sum.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (partial.numel() > 0) {
      const int64_t queries_per_split = divide_up(divide_up(g.total, splits), kQueries) * kQueries;
      const dim3 grid(Launch::blocks(divide_up(width, kColumns)), column_blocks, Launch::blocks(splits));
      weight_kernel<T>
          <<<grid, kThreads, 0, launch.stream()>>>(g, hidden, code, queries_per_split, partial.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  const int64_t first_dim = 0;
  const torch::headeronly::IntHeaderOnlyArrayRef dims(&first_dim, 1);
  return {grad_p, torch::stable::sum(own_sum, dims), torch::stable::sum(partial, dims)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(paq_detr, CUDA, m) {
  m.impl("neighbor_select", TORCH_BOX(&neighbor_select));
  m.impl("neighbor_difference", TORCH_BOX(&neighbor_difference));
  m.impl("neighbor_difference_backward", TORCH_BOX(&neighbor_difference_backward));
}

}  // namespace paq_detr::neighbors
