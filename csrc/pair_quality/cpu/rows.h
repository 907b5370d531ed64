// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The vector loops of pair quality on CPU: one object against the n queries of its image, whose box fields are arrays
// that lie n apart. The pragma of operators.cpp keeps their products and sums apart.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../../common/boxes.h"
#include "../../common/clones.h"
#include "../../common/host_device.h"
#include "../scores.h"

namespace paq_detr::pairs {
namespace {

constexpr int64_t kFields = 5;
enum Field : int64_t { CX, CY, W, H, AREA };
constexpr int64_t kBlock = 64;

template <typename T>
PAQ_CLONES void split_fields(const T* __restrict__ boxes, int64_t n, T* __restrict__ fields) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t field = CX; field <= H; ++field) {
      fields[field * n + i] = boxes[4 * i + field];
    }
    fields[AREA * n + i] = box_of(boxes + 4 * i).area;
  }
}

template <typename T>
PAQ_HD Box<T> box_at(const T* fields, int64_t n, int64_t i) {
  return box_of(fields[CX * n + i], fields[CY * n + i], fields[W * n + i], fields[H * n + i], fields[AREA * n + i]);
}

template <typename T>
PAQ_CLONES void overlap_row(
    const T* __restrict__ fields, int64_t n, Box<T> gt, T* __restrict__ iou, T* __restrict__ giou) {
  for (int64_t i = 0; i < n; ++i) {
    const Overlap<T> o = overlap(gt, box_at(fields, n, i));
    iou[i] = o.iou;
    giou[i] = o.giou;
  }
}

// Adds the gradients of one row to those of its n boxes and of its object, in kBlock partial sums. The fields, the
// gradients of the boxes (4, n) and the partial sums (4, kBlock) are structures of arrays.
template <typename T>
PAQ_CLONES void overlap_backward_row(
    const T* __restrict__ fields, int64_t n, const T* __restrict__ gt_box, const T* __restrict__ grad_iou,
    const T* __restrict__ grad_giou, T* __restrict__ grad_boxes, T* __restrict__ partial) {
  const T gt[4] = {gt_box[0], gt_box[1], gt_box[2], gt_box[3]};
  for (int64_t block = 0; block < n; block += kBlock) {
    const int64_t end = std::min(kBlock, n - block);
    for (int64_t lane = 0; lane < end; ++lane) {
      const int64_t i = block + lane;
      const T box[4] = {fields[CX * n + i], fields[CY * n + i], fields[W * n + i], fields[H * n + i]};
      T grad_gt[4] = {}, grad_box[4] = {};
      overlap_backward(gt, box, grad_iou[i], grad_giou[i], grad_gt, grad_box);
      for (int c = 0; c < 4; ++c) {
        grad_boxes[c * n + i] += grad_box[c];
        partial[c * kBlock + lane] += grad_gt[c];
      }
    }
  }
}

template <typename T>
PAQ_CLONES void score_column(const T* __restrict__ logits, int64_t stride, int64_t n, T weight, T* __restrict__ out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = weight * sigmoid(logits[i * stride]);
  }
}

template <typename T>
PAQ_CLONES void quality_row(
    const T* __restrict__ fields, const T* __restrict__ scores, int64_t n, Box<T> gt, T iou_weight,
    T* __restrict__ out) {
  for (int64_t i = 0; i < n; ++i) {
    out[i] = finite_quality(iou_weight * overlap(gt, box_at(fields, n, i)).iou + scores[i]);
  }
}

template <typename T>
PAQ_CLONES void focal_column(
    const T* __restrict__ logits, int64_t stride, int64_t n, T weight, T alpha, T gamma, T* __restrict__ out) {
  if (gamma == T(2)) {  // the usual case, without a call in the loop
    for (int64_t i = 0; i < n; ++i) {
      out[i] = weight * focal_difference(logits[i * stride], alpha, T(2));
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      out[i] = weight * focal_difference(logits[i * stride], alpha, gamma);
    }
  }
}

template <typename T>
PAQ_CLONES void cost_row(
    const T* __restrict__ fields, const T* __restrict__ class_cost, int64_t n, const T* __restrict__ gt_box,
    T l1_weight, T giou_weight, T* __restrict__ out) {
  const T cx = gt_box[0], cy = gt_box[1], w = gt_box[2], h = gt_box[3];
  const Box<T> gt = box_of(gt_box);
  for (int64_t i = 0; i < n; ++i) {
    const T l1 = std::abs(fields[CX * n + i] - cx) + std::abs(fields[CY * n + i] - cy) +
        std::abs(fields[W * n + i] - w) + std::abs(fields[H * n + i] - h);
    out[i] = finite_cost(class_cost[i] + l1_weight * l1 - giou_weight * overlap(gt, box_at(fields, n, i)).giou);
  }
}

// Puts a value in its place among the k best, behind equal ones; the number of those kept so far is returned.
template <typename T>
PAQ_HD int64_t keep_best(T value, int64_t index, int64_t kept, int64_t k, T* values, int64_t* indices) {
  if (kept == k && !(value > values[k - 1])) {
    return kept;
  }
  int64_t slot = kept < k ? kept : k - 1;
  for (; slot > 0 && value > values[slot - 1]; --slot) {
    values[slot] = values[slot - 1];
    indices[slot] = indices[slot - 1];
  }
  values[slot] = value;
  indices[slot] = index;
  return std::min(kept + 1, k);
}

// The k best of a row, equal values by ascending index. The row is dealt to kLanes lanes: the k-th best of their maxima
// bounds the k-th best of the row from below, so that most of the row is passed over whole.
template <typename T>
PAQ_CLONES void best_of_row(const T* __restrict__ row, int64_t n, int64_t k, T* __restrict__ values, int64_t* indices) {
  constexpr int64_t kLanes = 16;
  T bound = -kInfinity<T>;
  if (k > 0 && k <= kLanes && n >= kLanes) {
    T best[kLanes];
    std::copy(row, row + kLanes, best);
    for (int64_t i = kLanes; i + kLanes <= n; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        best[lane] = larger(best[lane], row[i + lane]);
      }
    }
    int64_t kept = 0;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      kept = keep_best(best[lane], lane, kept, k, values, indices);
    }
    bound = values[k - 1];
  }
  int64_t kept = 0;
  for (int64_t block = 0; block < n && k > 0; block += kBlock) {
    const int64_t end = std::min(block + kBlock, n);
    int reached = 0;
    for (int64_t i = block; i < end; ++i) {
      reached |= row[i] >= bound;
    }
    for (int64_t i = block; reached && i < end; ++i) {
      if (row[i] >= bound) {
        kept = keep_best(row[i], i, kept, k, values, indices);
      }
    }
  }
}

}  // namespace
}  // namespace paq_detr::pairs
