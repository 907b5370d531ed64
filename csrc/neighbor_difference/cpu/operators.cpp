// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Neighbour selection and neighbour difference (DH-DETR) on CPU.
//
// Selection sorts the confident queries of an image by score once: the candidates of a query are then a prefix, which
// one vectorised loop walks in blocks. Aggregation gathers only the real (query, neighbour) pairs, so one matrix
// product of that many rows does the arithmetic. Sums run in a fixed order on one thread each: the results do not
// depend on the number of threads.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=off")
#elif defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "../../common/boxes.h"
#include "../../common/clones.h"
#include "../../common/tensors.h"
#include "../arguments.h"

namespace paq_detr::neighbors {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBlock = 64;
constexpr int64_t kRowsPerTask = 16;

// ---------------------------------------------------------------------------------------------------------------------
// Selection.

// The queries of an image that may be somebody's neighbour, by descending score; one array per box field.
template <typename T>
struct Candidates {
  std::vector<int32_t> index;
  std::vector<T> score, cx, cy, w, h, area;

  Candidates(const T* boxes, const T* scores, int64_t n, T low_score) {
    for (int32_t j = 0; j < n; ++j) {
      if (scores[j] > low_score) {
        index.push_back(j);
      }
    }
    std::stable_sort(index.begin(), index.end(), [&](int32_t a, int32_t b) { return scores[a] > scores[b]; });
    for (int32_t j : index) {
      const Box<T> box = box_of(boxes + 4 * j);
      score.push_back(scores[j]);
      cx.push_back(box.cx), cy.push_back(box.cy), w.push_back(box.w), h.push_back(box.h), area.push_back(box.area);
    }
  }

  int64_t more_confident_than(T limit) const {
    return std::partition_point(score.begin(), score.end(), [&](T s) { return s > limit; }) - score.begin();
  }
};

// IoU of one box with n <= kBlock others; returns how many reach the threshold.
template <typename T>
PAQ_CLONES int64_t block_overlaps(
    Box<T> own, const T* __restrict__ cx, const T* __restrict__ cy, const T* __restrict__ w, const T* __restrict__ h,
    const T* __restrict__ area, int64_t n, T threshold, T* __restrict__ iou) {
  int64_t hits = 0;
  for (int64_t j = 0; j < n; ++j) {
    iou[j] = overlap(own, Box<T>{cx[j], cy[j], w[j], h[j], area[j]}).iou;
    hits += iou[j] >= threshold;
  }
  return hits;
}

// The best k so far, by descending IoU and ascending index.
template <typename T>
struct Best {
  std::vector<T> iou;
  int64_t kept = 0;

  void insert(T value, int32_t index, int64_t k, int32_t* indices) {
    const auto precedes = [&](int64_t slot) {
      return value > iou[slot] || (value == iou[slot] && index < indices[slot]);
    };
    if (kept == k && !precedes(k - 1)) {
      return;
    }
    int64_t slot = kept < k ? kept++ : k - 1;
    for (; slot > 0 && precedes(slot - 1); --slot) {
      iou[slot] = iou[slot - 1];
      indices[slot] = indices[slot - 1];
    }
    iou[slot] = value;
    indices[slot] = index;
  }
};

// Fills the k slots of one query and returns how many are real.
template <typename T>
int32_t select_row(const Candidates<T>& others, Box<T> own, T score, int64_t k, T threshold, int32_t* indices) {
  thread_local Best<T> best;
  best.iou.resize(k);
  best.kept = 0;
  std::fill_n(indices, k, -1);
  const int64_t candidates = others.more_confident_than(score);
  T iou[kBlock];
  for (int64_t first = 0; first < candidates; first += kBlock) {
    const int64_t n = std::min(kBlock, candidates - first);
    if (block_overlaps(
            own, &others.cx[first], &others.cy[first], &others.w[first], &others.h[first], &others.area[first], n,
            threshold, iou) == 0) {
      continue;
    }
    for (int64_t j = 0; j < n; ++j) {
      if (iou[j] >= threshold) {
        best.insert(iou[j], others.index[first + j], k, indices);
      }
    }
  }
  return static_cast<int32_t>(best.kept);
}

std::tuple<Tensor, Tensor> neighbor_select(
    const Tensor& boxes_in, const Tensor& scores_in, int64_t k, double iou_threshold, double low_score) {
  check_candidates(boxes_in, scores_in, k);
  const Tensor boxes = torch::stable::contiguous(boxes_in), scores = torch::stable::contiguous(scores_in);
  const int64_t batch = boxes.size(0), n = boxes.size(1);
  Tensor index = torch::stable::new_empty(boxes, {batch, n, k}, ScalarType::Int);
  Tensor count = torch::stable::new_empty(boxes, {batch, n}, ScalarType::Int);
  dispatch_floating(boxes, [&](auto zero) {
    using T = decltype(zero);
    const T *box = boxes.const_data_ptr<T>(), *score = scores.const_data_ptr<T>();
    int32_t *indices = index.mutable_data_ptr<int32_t>(), *counted = count.mutable_data_ptr<int32_t>();
    for (int64_t b = 0; b < batch; ++b) {
      const Candidates<T> others(box + b * n * 4, score + b * n, n, static_cast<T>(low_score));
      torch::stable::parallel_for(b * n, (b + 1) * n, 4 * kRowsPerTask, [&](int64_t begin, int64_t end) {
        for (int64_t q = begin; q < end; ++q) {
          // A NaN score is below nobody: every comparison with it fails.
          counted[q] =
              select_row(others, box_of(box + 4 * q), score[q], k, static_cast<T>(iou_threshold), indices + q * k);
        }
      });
    }
  });
  return {index, count};
}

// ---------------------------------------------------------------------------------------------------------------------
// Aggregation. Rows of all images are numbered through: query q = b * N + i.

// The real pairs, by query and slot.
struct Pairs {
  std::vector<int64_t> first;     // (B * N + 1,) first pair of each query
  std::vector<int64_t> neighbor;  // (P,) row of the neighbour

  Pairs(const Tensor& index, const Tensor& count) {
    const int64_t batch = index.size(0), n = index.size(1), k = index.size(2);
    const int32_t *slots = index.const_data_ptr<int32_t>(), *counted = count.const_data_ptr<int32_t>();
    first.reserve(batch * n + 1);
    for (int64_t q = 0; q < batch * n; ++q) {
      first.push_back(size());
      STD_TORCH_CHECK(
          counted[q] >= 0 && counted[q] <= k, "count has the value ", counted[q], ", but there are ", k, " slots");
      for (int64_t s = 0; s < counted[q]; ++s) {
        const int32_t j = slots[q * k + s];
        STD_TORCH_CHECK(j >= 0 && j < n, "index has the value ", j, ", but there are ", n, " queries");
        neighbor.push_back(q / n * n + j);
      }
    }
    first.push_back(size());
  }

  int64_t size() const { return static_cast<int64_t>(neighbor.size()); }
  int64_t queries() const { return static_cast<int64_t>(first.size()) - 1; }
};

template <typename T>
PAQ_CLONES void hidden_row(
    const T* __restrict__ own, const T* __restrict__ other, const T* __restrict__ bias, int64_t width,
    T* __restrict__ out) {
  for (int64_t c = 0; c < width; ++c) {
    out[c] = not_negative(own[c] - other[c] + bias[c]);
  }
}

template <typename T>
PAQ_CLONES void take_larger(
    const T* __restrict__ code, const T* __restrict__ bias, int64_t width, int16_t s, T* __restrict__ best,
    int16_t* __restrict__ slot) {
  for (int64_t d = 0; d < width; ++d) {
    const T value = code[d] + bias[d];
    const bool take = value > best[d] || value != value;  // a NaN is kept, as torch's max keeps it
    best[d] = take ? value : best[d];
    slot[d] = take ? s : slot[d];
  }
}

template <typename T>
PAQ_CLONES void take_zero(int64_t width, T* __restrict__ best, int16_t* __restrict__ slot) {
  for (int64_t d = 0; d < width; ++d) {
    slot[d] = best[d] < T(0) ? int16_t(-1) : slot[d];
    best[d] = not_negative(best[d]);
  }
}

// Where slot s won, the gradient; zero elsewhere.
template <typename T>
PAQ_CLONES void gradient_row(
    const T* __restrict__ grad, const int16_t* __restrict__ slot, int64_t width, int16_t s, T* __restrict__ out) {
  for (int64_t d = 0; d < width; ++d) {
    out[d] = slot[d] == s ? grad[d] : T(0);
  }
}

template <typename T>
PAQ_CLONES void relu_backward_row(const T* __restrict__ hidden, int64_t width, T* __restrict__ grad) {
  for (int64_t c = 0; c < width; ++c) {
    grad[c] = hidden[c] > T(0) ? grad[c] : T(0);
  }
}

template <typename T>
PAQ_CLONES void add_row(const T* __restrict__ row, int64_t width, T sign, T* __restrict__ sum) {
  for (int64_t c = 0; c < width; ++c) {
    sum[c] += sign * row[c];
  }
}

template <typename F>
void for_each_query(const Pairs& pairs, const F& f) {
  torch::stable::parallel_for(0, pairs.queries(), kRowsPerTask, [&](int64_t begin, int64_t end) {
    for (int64_t q = begin; q < end; ++q) {
      f(q);
    }
  });
}

// relu(p_i - p_j + hidden_bias) of every pair, (P, C)
template <typename T>
Tensor hidden_of_pairs(const Pairs& pairs, const Tensor& p, const Tensor& hidden_bias) {
  const int64_t width = p.size(2);
  Tensor hidden = torch::stable::new_empty(p, {pairs.size(), width});
  const T *source = p.const_data_ptr<T>(), *bias = hidden_bias.const_data_ptr<T>();
  T* target = hidden.mutable_data_ptr<T>();
  for_each_query(pairs, [&](int64_t q) {
    for (int64_t pair = pairs.first[q]; pair < pairs.first[q + 1]; ++pair) {
      hidden_row(source + q * width, source + pairs.neighbor[pair] * width, bias, width, target + pair * width);
    }
  });
  return hidden;
}

// Returns the maximum (B, N, D) and the winning slot (B, N, D) int16, -1 where zero won.
std::tuple<Tensor, Tensor> neighbor_difference(
    const Tensor& p_in, const Tensor& index, const Tensor& count, const Tensor& hidden_bias, const Tensor& weight,
    const Tensor& bias_in, bool zero_fill) {
  check_graph(p_in, index, count, hidden_bias, weight);
  STD_TORCH_CHECK(bias_in.numel() == weight.size(0), "bias does not fit weight");
  const Tensor p = torch::stable::contiguous(p_in), bias = torch::stable::contiguous(bias_in);
  const Pairs pairs(torch::stable::contiguous(index), torch::stable::contiguous(count));
  const int64_t width = weight.size(0), k = index.size(2);
  Tensor out = torch::stable::new_zeros(p, {p.size(0), p.size(1), width});
  Tensor slot = torch::stable::new_empty(p, {p.size(0), p.size(1), width}, ScalarType::Short);
  dispatch_floating(p, [&](auto zero) {
    using T = decltype(zero);
    const Tensor hidden = hidden_of_pairs<T>(pairs, p, torch::stable::contiguous(hidden_bias));
    const Tensor code =
        torch::stable::contiguous(torch::stable::matmul(hidden, torch::stable::transpose(weight, 0, 1)));
    const T *codes = code.const_data_ptr<T>(), *offset = bias.const_data_ptr<T>();
    T* best = out.mutable_data_ptr<T>();
    int16_t* winner = slot.mutable_data_ptr<int16_t>();
    for_each_query(pairs, [&](int64_t q) {
      const int64_t first = pairs.first[q], real = pairs.first[q + 1] - first;
      T* row = best + q * width;
      int16_t* row_winner = winner + q * width;
      std::fill_n(row_winner, width, int16_t(-1));
      if (real > 0) {
        std::fill_n(row, width, -kInfinity<T>);
      }
      for (int64_t s = 0; s < real; ++s) {
        take_larger(codes + (first + s) * width, offset, width, static_cast<int16_t>(s), row, row_winner);
      }
      if (zero_fill && real < k) {
        take_zero(width, row, row_winner);
      }
    });
  });
  return {out, slot};
}

// For each row, the pairs in which it is the neighbour, in ascending order: a counting sort.
struct Incoming {
  std::vector<int64_t> first, pair;

  explicit Incoming(const Pairs& pairs) : first(pairs.queries() + 1, 0), pair(pairs.size()) {
    for (int64_t row : pairs.neighbor) {
      ++first[row + 1];
    }
    for (int64_t row = 0; row < pairs.queries(); ++row) {
      first[row + 1] += first[row];
    }
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t i = 0; i < pairs.size(); ++i) {
      pair[next[pairs.neighbor[i]]++] = i;
    }
  }
};

// Gradients of p, hidden_bias and weight; that of bias needs no pairs and is taken in Python.
std::tuple<Tensor, Tensor, Tensor> neighbor_difference_backward(
    const Tensor& grad_in, const Tensor& slot_in, const Tensor& p_in, const Tensor& index, const Tensor& count,
    const Tensor& hidden_bias, const Tensor& weight) {
  check_graph(p_in, index, count, hidden_bias, weight);
  check_code_gradient(grad_in, slot_in, p_in, weight);
  const Tensor grad = torch::stable::contiguous(grad_in), slot = torch::stable::contiguous(slot_in);
  const Tensor p = torch::stable::contiguous(p_in);
  const Pairs pairs(torch::stable::contiguous(index), torch::stable::contiguous(count));
  const Incoming incoming(pairs);
  const int64_t width = weight.size(0), hidden_width = p.size(2);
  Tensor grad_p = torch::stable::new_zeros(p, {p.size(0), p.size(1), hidden_width});
  Tensor grad_hidden, grad_weight;
  dispatch_floating(p, [&](auto zero) {
    using T = decltype(zero);
    const Tensor hidden = hidden_of_pairs<T>(pairs, p, torch::stable::contiguous(hidden_bias));
    Tensor grad_code = torch::stable::new_empty(p, {pairs.size(), width});
    const T* source = grad.const_data_ptr<T>();
    const int16_t* winner = slot.const_data_ptr<int16_t>();
    T* spread = grad_code.mutable_data_ptr<T>();
    for_each_query(pairs, [&](int64_t q) {
      for (int64_t pair = pairs.first[q]; pair < pairs.first[q + 1]; ++pair) {
        const auto s = static_cast<int16_t>(pair - pairs.first[q]);
        gradient_row(source + q * width, winner + q * width, width, s, spread + pair * width);
      }
    });
    grad_weight = torch::stable::matmul(torch::stable::transpose(grad_code, 0, 1), hidden);
    grad_hidden = torch::stable::contiguous(torch::stable::matmul(grad_code, weight));
    const T* activation = hidden.const_data_ptr<T>();
    T *flow = grad_hidden.mutable_data_ptr<T>(), *target = grad_p.mutable_data_ptr<T>();
    torch::stable::parallel_for(0, pairs.size(), kRowsPerTask, [&](int64_t begin, int64_t end) {
      relu_backward_row(activation + begin * hidden_width, (end - begin) * hidden_width, flow + begin * hidden_width);
    });
    for_each_query(pairs, [&](int64_t q) {
      T* sum = target + q * hidden_width;
      for (int64_t pair = pairs.first[q]; pair < pairs.first[q + 1]; ++pair) {
        add_row(flow + pair * hidden_width, hidden_width, T(1), sum);
      }
      for (int64_t i = incoming.first[q]; i < incoming.first[q + 1]; ++i) {
        add_row(flow + incoming.pair[i] * hidden_width, hidden_width, T(-1), sum);
      }
    });
  });
  const int64_t pair_dim = 0;
  Tensor grad_hidden_bias = torch::stable::sum(grad_hidden, torch::headeronly::IntHeaderOnlyArrayRef(&pair_dim, 1));
  return {grad_p, grad_hidden_bias, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(paq_detr, CPU, m) {
  m.impl("neighbor_select", TORCH_BOX(&neighbor_select));
  m.impl("neighbor_difference", TORCH_BOX(&neighbor_difference));
  m.impl("neighbor_difference_backward", TORCH_BOX(&neighbor_difference_backward));
}

}  // namespace paq_detr::neighbors
