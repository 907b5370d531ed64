// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Pair quality on CUDA. One block per (layer, object) row, its threads stride over the queries of the object's image;
// nothing but the result is stored, and the top-k stores no row at all. No atomics: every result is deterministic.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "../../common/index.cuh"
#include "../../common/launch.cuh"
#include "../../common/ranked.cuh"
#include "../../common/tensors.h"
#include "../arguments.h"
#include "../scores.h"

namespace paq_detr::pairs {
namespace {

using torch::stable::Tensor;

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kCachedQueries = 4096;  // a row of fp64 qualities in 32 KiB of shared memory

template <typename T>
struct Inputs {
  const T *logits, *boxes, *gt_boxes;   // (L, B, N, C), (L, B, N, 4), (M, 4)
  const int64_t *gt_labels, *gt_image;  // (M,)
  int64_t layers, images, queries, classes, objects;
};

// One object against the queries of its image in one layer.
template <typename T>
struct Row {
  const T *boxes, *logit, *gt_box;
  int64_t classes;
  Box<T> object;

  __device__ Row(const Inputs<T>& in, int64_t row) : classes(in.classes) {
    const int64_t layer = row / in.objects, m = row % in.objects, image = in.gt_image[m];
    check_index("gt_image", image, in.images);
    const int64_t first = (layer * in.images + image) * in.queries;
    boxes = in.boxes + first * 4;
    gt_box = in.gt_boxes + m * 4;
    object = box_of(gt_box);
    logit = nullptr;
    if (in.logits != nullptr) {
      const int64_t label = in.gt_labels[m];
      check_index("gt_labels", label, in.classes);
      logit = in.logits + first * in.classes + label;
    }
  }

  __device__ Overlap<T> overlap_with(int64_t n) const { return overlap(object, box_of(boxes + 4 * n)); }
  __device__ T logit_of(int64_t n) const { return logit[n * classes]; }

  __device__ T quality(int64_t n, T score_weight, T iou_weight) const {
    return finite_quality(iou_weight * overlap_with(n).iou + score_weight * sigmoid(logit_of(n)));
  }
};

template <typename T>
__global__ void __launch_bounds__(kThreads) overlap_kernel(Inputs<T> in, T* iou, T* giou) {
  const Row<T> row(in, blockIdx.x);
  const int64_t out = blockIdx.x * in.queries;
  for (int64_t n = threadIdx.x; n < in.queries; n += kThreads) {
    const Overlap<T> o = row.overlap_with(n);
    iou[out + n] = o.iou;
    giou[out + n] = o.giou;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) quality_kernel(Inputs<T> in, T score_weight, T iou_weight, T* quality) {
  const Row<T> row(in, blockIdx.x);
  const int64_t out = blockIdx.x * in.queries;
  for (int64_t n = threadIdx.x; n < in.queries; n += kThreads) {
    quality[out + n] = row.quality(n, score_weight, iou_weight);
  }
}

template <typename T>
struct CostWeights {
  T class_weight, l1_weight, giou_weight, alpha, gamma;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) cost_kernel(Inputs<T> in, CostWeights<T> w, T* cost) {
  const Row<T> row(in, blockIdx.x);
  const int64_t out = blockIdx.x * in.queries;
  for (int64_t n = threadIdx.x; n < in.queries; n += kThreads) {
    T l1 = 0;
    for (int c = 0; c < 4; ++c) {
      l1 += std::abs(row.boxes[4 * n + c] - row.gt_box[c]);
    }
    cost[out + n] = finite_cost(
        w.class_weight * focal_difference(row.logit_of(n), w.alpha, w.gamma) + w.l1_weight * l1 -
        w.giou_weight * row.overlap_with(n).giou);
  }
}

// Round r finds the best query that is beaten by the winner of round r - 1.
template <typename T>
__global__ void __launch_bounds__(kThreads) topk_kernel(
    Inputs<T> in, T score_weight, T iou_weight, int64_t kept, int64_t min_count, bool cached, T* values,
    int64_t* indices, int64_t* count) {
  extern __shared__ __align__(sizeof(double)) unsigned char dynamic_memory[];
  T* cache = reinterpret_cast<T*>(dynamic_memory);
  __shared__ T warp_value[kWarps];
  __shared__ int64_t warp_index[kWarps];
  const Row<T> row(in, blockIdx.x);
  if (cached) {  // each thread reads back only what it wrote
    for (int64_t n = threadIdx.x; n < in.queries; n += kThreads) {
      cache[n] = row.quality(n, score_weight, iou_weight);
    }
  }
  const Ranked<T> none{-kInfinity<T>, in.queries};
  Ranked<T> last{kInfinity<T>, -1};
  T sum = 0;
  for (int64_t r = 0; r < kept; ++r) {
    Ranked<T> best = none;
    for (int64_t n = threadIdx.x; n < in.queries; n += kThreads) {
      const Ranked<T> candidate{cached ? cache[n] : row.quality(n, score_weight, iou_weight), n};
      best = last.beats(candidate) && candidate.beats(best) ? candidate : best;
    }
    best = best_of_warp(best);
    if (threadIdx.x % 32 == 0) {
      warp_value[threadIdx.x / 32] = best.value;
      warp_index[threadIdx.x / 32] = best.index;
    }
    __syncthreads();
    last = none;
    for (int warp = 0; warp < kWarps; ++warp) {
      const Ranked<T> other{warp_value[warp], warp_index[warp]};
      last = other.beats(last) ? other : last;
    }
    __syncthreads();
    sum += last.value;
    if (threadIdx.x == 0) {
      values[blockIdx.x * kept + r] = last.value;
      indices[blockIdx.x * kept + r] = last.index;
    }
  }
  if (threadIdx.x == 0) {
    count[blockIdx.x] = positive_count(sum, min_count, in.queries);
  }
}

// One thread per (layer, image, query) walks the objects of its image.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    overlap_backward_boxes_kernel(Inputs<T> in, const T* grad_iou, const T* grad_giou, T* grad_boxes) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= in.layers * in.images * in.queries) {
    return;
  }
  const int64_t n = i % in.queries, image = i / in.queries % in.images, layer = i / in.queries / in.images;
  T grad_box[4] = {}, grad_gt[4] = {};
  for (int64_t m = 0; m < in.objects; ++m) {
    if (in.gt_image[m] == image) {
      const int64_t pair = (layer * in.objects + m) * in.queries + n;
      overlap_backward(in.gt_boxes + 4 * m, in.boxes + 4 * i, grad_iou[pair], grad_giou[pair], grad_gt, grad_box);
    }
  }
  for (int c = 0; c < 4; ++c) {
    grad_boxes[4 * i + c] = grad_box[c];
  }
}

// One block per object sums over layers and queries: thread by thread, then by a fixed tree.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    overlap_backward_objects_kernel(Inputs<T> in, const T* grad_iou, const T* grad_giou, T* grad_gt_boxes) {
  const int64_t m = blockIdx.x, image = in.gt_image[m];
  check_index("gt_image", image, in.images);
  T grad_box[4] = {}, grad_gt[4] = {};
  for (int64_t i = threadIdx.x; i < in.layers * in.queries; i += kThreads) {
    const int64_t layer = i / in.queries, n = i % in.queries;
    const int64_t pair = (layer * in.objects + m) * in.queries + n;
    const T* box = in.boxes + ((layer * in.images + image) * in.queries + n) * 4;
    overlap_backward(in.gt_boxes + 4 * m, box, grad_iou[pair], grad_giou[pair], grad_gt, grad_box);
  }
  __shared__ T partial[kThreads];
  for (int c = 0; c < 4; ++c) {
    partial[threadIdx.x] = grad_gt[c];
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
      if (threadIdx.x < half) {
        partial[threadIdx.x] += partial[threadIdx.x + half];
      }
      __syncthreads();
    }
    if (threadIdx.x == 0) {
      grad_gt_boxes[4 * m + c] = partial[0];
    }
    __syncthreads();
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Operators. Shapes, dtypes and devices are checked in Python.

// Contiguous tensors, alive as long as the pointers in use.
struct Arguments {
  Tensor logits, boxes, gt_labels, gt_boxes, gt_image;
  bool has_logits;

  Arguments(const Tensor& boxes_, const Tensor& gt_boxes_, const Tensor& gt_image_)
      : boxes(torch::stable::contiguous(boxes_)),
        gt_boxes(torch::stable::contiguous(gt_boxes_)),
        gt_image(torch::stable::contiguous(gt_image_)),
        has_logits(false) {
    check_pairs(boxes, gt_boxes, gt_image);
  }

  Arguments(
      const Tensor& logits_, const Tensor& boxes_, const Tensor& gt_labels_, const Tensor& gt_boxes_,
      const Tensor& gt_image_)
      : Arguments(boxes_, gt_boxes_, gt_image_) {
    check_predictions(logits_, boxes, gt_labels_, gt_boxes, gt_image);
    logits = torch::stable::contiguous(logits_);
    gt_labels = torch::stable::contiguous(gt_labels_);
    has_logits = true;
  }

  int64_t rows() const { return boxes.size(0) * gt_boxes.size(0); }

  template <typename T>
  Inputs<T> inputs() const {
    return {
        has_logits ? logits.const_data_ptr<T>() : nullptr,
        boxes.const_data_ptr<T>(),
        gt_boxes.const_data_ptr<T>(),
        has_logits ? gt_labels.const_data_ptr<int64_t>() : nullptr,
        gt_image.const_data_ptr<int64_t>(),
        boxes.size(0),
        boxes.size(1),
        boxes.size(2),
        has_logits ? logits.size(3) : 0,
        gt_boxes.size(0)};
  }

  Tensor pair_tensor() const {
    return torch::stable::new_empty(boxes, {boxes.size(0), gt_boxes.size(0), boxes.size(2)});
  }
};

std::tuple<Tensor, Tensor> pair_iou(const Tensor& boxes, const Tensor& gt_boxes, const Tensor& gt_image) {
  const Arguments args(boxes, gt_boxes, gt_image);
  const Launch launch(boxes);
  Tensor iou = args.pair_tensor(), giou = args.pair_tensor();
  if (iou.numel() > 0) {
    dispatch_floating(boxes, [&](auto zero) {
      using T = decltype(zero);
      overlap_kernel<T><<<Launch::blocks(args.rows()), kThreads, 0, launch.stream()>>>(
          args.inputs<T>(), iou.mutable_data_ptr<T>(), giou.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {iou, giou};
}

std::tuple<Tensor, Tensor> pair_iou_backward(
    const Tensor& grad_iou_in, const Tensor& grad_giou_in, const Tensor& boxes, const Tensor& gt_boxes,
    const Tensor& gt_image) {
  check_pair_gradients(grad_iou_in, grad_giou_in, boxes, gt_boxes, gt_image);
  const Arguments args(boxes, gt_boxes, gt_image);
  const Launch launch(boxes);
  const Tensor grad_iou = torch::stable::contiguous(grad_iou_in), grad_giou = torch::stable::contiguous(grad_giou_in);
  Tensor grad_boxes = torch::stable::new_empty(boxes, {boxes.size(0), boxes.size(1), boxes.size(2), 4});
  Tensor grad_gt_boxes = torch::stable::new_empty(boxes, {gt_boxes.size(0), 4});
  dispatch_floating(boxes, [&](auto zero) {
    using T = decltype(zero);
    const T *d_iou = grad_iou.const_data_ptr<T>(), *d_giou = grad_giou.const_data_ptr<T>();
    if (grad_boxes.numel() > 0) {
      const unsigned blocks = Launch::blocks((grad_boxes.numel() / 4 + kThreads - 1) / kThreads);
      overlap_backward_boxes_kernel<T>
          <<<blocks, kThreads, 0, launch.stream()>>>(args.inputs<T>(), d_iou, d_giou, grad_boxes.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    if (grad_gt_boxes.numel() > 0) {
      overlap_backward_objects_kernel<T><<<Launch::blocks(gt_boxes.size(0)), kThreads, 0, launch.stream()>>>(
          args.inputs<T>(), d_iou, d_giou, grad_gt_boxes.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return {grad_boxes, grad_gt_boxes};
}

Tensor pair_quality(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes, const Tensor& gt_image,
    double score_weight, double iou_weight) {
  const Arguments args(logits, boxes, gt_labels, gt_boxes, gt_image);
  const Launch launch(boxes);
  Tensor out = args.pair_tensor();
  if (out.numel() > 0) {
    dispatch_floating(boxes, [&](auto zero) {
      using T = decltype(zero);
      quality_kernel<T><<<Launch::blocks(args.rows()), kThreads, 0, launch.stream()>>>(
          args.inputs<T>(), static_cast<T>(score_weight), static_cast<T>(iou_weight), out.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> quality_topk(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes, const Tensor& gt_image,
    double score_weight, double iou_weight, int64_t k, int64_t min_count) {
  const Arguments args(logits, boxes, gt_labels, gt_boxes, gt_image);
  const Launch launch(boxes);
  const int64_t layers = boxes.size(0), objects = gt_boxes.size(0), queries = boxes.size(2);
  const int64_t kept = std::min(k, queries);
  Tensor values = torch::stable::new_empty(boxes, {layers, objects, kept});
  Tensor indices = torch::stable::new_empty(gt_image, {layers, objects, kept});
  Tensor count = torch::stable::new_empty(gt_image, {layers, objects});
  if (count.numel() > 0) {
    dispatch_floating(boxes, [&](auto zero) {
      using T = decltype(zero);
      const bool cached = queries <= kCachedQueries;
      const size_t cache_bytes = cached ? queries * sizeof(T) : 0;
      topk_kernel<T><<<Launch::blocks(args.rows()), kThreads, cache_bytes, launch.stream()>>>(
          args.inputs<T>(), static_cast<T>(score_weight), static_cast<T>(iou_weight), kept, min_count, cached,
          values.mutable_data_ptr<T>(), indices.mutable_data_ptr<int64_t>(), count.mutable_data_ptr<int64_t>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return {values, indices, count};
}

Tensor match_cost(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes, const Tensor& gt_image,
    double class_weight, double l1_weight, double giou_weight, double alpha, double gamma) {
  const Arguments args(logits, boxes, gt_labels, gt_boxes, gt_image);
  const Launch launch(boxes);
  Tensor out = args.pair_tensor();
  if (out.numel() > 0) {
    dispatch_floating(boxes, [&](auto zero) {
      using T = decltype(zero);
      const CostWeights<T> weights{
          static_cast<T>(class_weight), static_cast<T>(l1_weight), static_cast<T>(giou_weight), static_cast<T>(alpha),
          static_cast<T>(gamma)};
      cost_kernel<T><<<Launch::blocks(args.rows()), kThreads, 0, launch.stream()>>>(
          args.inputs<T>(), weights, out.mutable_data_ptr<T>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(paq_detr, CUDA, m) {
  m.impl("pair_iou", TORCH_BOX(&pair_iou));
  m.impl("pair_iou_backward", TORCH_BOX(&pair_iou_backward));
  m.impl("pair_quality", TORCH_BOX(&pair_quality));
  m.impl("quality_topk", TORCH_BOX(&quality_topk));
  m.impl("match_cost", TORCH_BOX(&match_cost));
}

}  // namespace paq_detr::pairs
