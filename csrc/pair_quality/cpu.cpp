// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Pair quality on CPU. Boxes are turned once into a structure of arrays per image, class terms are computed once per
// distinct (image, label), and then every (layer, object) row is one vectorised loop over the queries of its image.
// Rows are written by one thread each, in a fixed order: results do not depend on the number of threads.
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
#include <numeric>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "arguments.h"
#include "boxes.h"
#include "cpu_rows.h"
#include "dispatch.h"

namespace paq_detr {
namespace {

using torch::stable::Tensor;

constexpr int64_t kElementsPerTask = 16384;

struct Sizes {
  int64_t layers, images, queries, objects;
};

int64_t grain(int64_t elements_per_item) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, elements_per_item));
}

void check_index(const Tensor& index, int64_t size, const char* name, const char* what) {
  const int64_t* values = index.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < index.numel(); ++m) {
    STD_TORCH_CHECK(
        values[m] >= 0 && values[m] < size, name, " has the value ", values[m], ", but there are ", size, " ", what);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What the operators share.

enum class Purpose { fields, columns };

// Memory that a thread keeps from one call to the next: fresh pages would cost more than the arithmetic.
template <typename T, Purpose purpose>
T* kept_memory(int64_t size) {
  thread_local std::vector<T> memory;
  if (static_cast<int64_t>(memory.size()) < size) {
    memory.resize(size);
  }
  return memory.data();
}

// (L, B, kFields, N), valid until the next call in this thread
template <typename T>
const T* box_fields(const Tensor& boxes, const Sizes& s) {
  const int64_t n = s.queries;
  const T* source = boxes.const_data_ptr<T>();
  T* target = kept_memory<T, Purpose::fields>(s.layers * s.images * kFields * n);
  torch::stable::parallel_for(0, s.layers * s.images, grain(kFields * n), [&](int64_t begin, int64_t end) {
    for (int64_t lb = begin; lb < end; ++lb) {
      split_fields(source + lb * n * 4, n, target + lb * n * kFields);
    }
  });
  return target;
}

// One column of N class terms per layer and distinct (image, label).
template <typename T>
struct ClassColumns {
  const T* values;                 // (L, U, N), valid until the next call in this thread
  std::vector<int64_t> of_object;  // (M,) in [0, U)
  int64_t columns;
};

template <typename T, typename Column>
ClassColumns<T> class_columns(
    const Tensor& logits, const Tensor& gt_labels, const Tensor& gt_image, const Sizes& s, const Column& column) {
  const int64_t classes = logits.size(3), n = s.queries;
  const int64_t *label = gt_labels.const_data_ptr<int64_t>(), *image = gt_image.const_data_ptr<int64_t>();
  std::unordered_map<int64_t, int64_t> known;
  std::vector<int64_t> keys, of_object(s.objects);
  for (int64_t m = 0; m < s.objects; ++m) {
    const int64_t key = image[m] * classes + label[m];
    of_object[m] = known.emplace(key, static_cast<int64_t>(keys.size())).first->second;
    if (of_object[m] == static_cast<int64_t>(keys.size())) {
      keys.push_back(key);
    }
  }
  const int64_t columns = static_cast<int64_t>(keys.size());
  const T* source = logits.const_data_ptr<T>();
  T* target = kept_memory<T, Purpose::columns>(s.layers * columns * n);
  torch::stable::parallel_for(0, s.layers * columns, grain(4 * n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t layer = i / columns, key = keys[i % columns];
      const int64_t first_row = (layer * s.images + key / classes) * n;
      column(source + first_row * classes + key % classes, classes, n, target + i * n);
    }
  });
  return {target, of_object, columns};
}

// Calls row(l * M + m, the fields of the object's image, the class column of the object) for every layer and object.
template <typename T, typename Row>
void for_each_row(
    const T* fields, const ClassColumns<T>& classes, const Tensor& gt_image, const Sizes& s, const Row& row) {
  const int64_t* image = gt_image.const_data_ptr<int64_t>();
  const int64_t n = s.queries;
  torch::stable::parallel_for(0, s.layers * s.objects, grain(n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t layer = i / s.objects, m = i % s.objects;
      row(i, fields + (layer * s.images + image[m]) * kFields * n,
          classes.values + (layer * classes.columns + classes.of_object[m]) * n);
    }
  });
}

struct Inputs {
  Tensor logits, boxes, gt_labels, gt_boxes, gt_image;
  Sizes sizes;
};

Inputs checked_inputs(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes,
    const Tensor& gt_image) {
  check_predictions(logits, boxes, gt_labels, gt_boxes, gt_image);
  Inputs in{torch::stable::contiguous(logits), torch::stable::contiguous(boxes),
            torch::stable::contiguous(gt_labels), torch::stable::contiguous(gt_boxes),
            torch::stable::contiguous(gt_image),
            {boxes.size(0), boxes.size(1), boxes.size(2), gt_boxes.size(0)}};
  check_index(in.gt_image, in.sizes.images, "gt_image", "images");
  check_index(in.gt_labels, logits.size(3), "gt_labels", "classes");
  return in;
}

// Class columns for pair_quality and quality_topk.
template <typename T>
ClassColumns<T> score_columns(const Inputs& in, double score_weight) {
  return class_columns<T>(
      in.logits, in.gt_labels, in.gt_image, in.sizes,
      [&](const T* logits, int64_t stride, int64_t n, T* out) {
        score_column(logits, stride, n, static_cast<T>(score_weight), out);
      });
}

// ---------------------------------------------------------------------------------------------------------------------
// Operators. Shapes and dtypes are checked in Python; values that could index memory are checked here.

std::tuple<Tensor, Tensor> pair_iou(const Tensor& boxes_in, const Tensor& gt_boxes_in, const Tensor& gt_image_in) {
  check_pairs(boxes_in, gt_boxes_in, gt_image_in);
  const Tensor boxes = torch::stable::contiguous(boxes_in), gt_boxes = torch::stable::contiguous(gt_boxes_in);
  const Tensor gt_image = torch::stable::contiguous(gt_image_in);
  const Sizes s{boxes.size(0), boxes.size(1), boxes.size(2), gt_boxes.size(0)};
  check_index(gt_image, s.images, "gt_image", "images");
  Tensor iou = torch::stable::new_empty(boxes, {s.layers, s.objects, s.queries});
  Tensor giou = torch::stable::new_empty(boxes, {s.layers, s.objects, s.queries});
  dispatch_floating(boxes, [&](auto zero) {
    using T = decltype(zero);
    const T *base = box_fields<T>(boxes, s), *gt = gt_boxes.const_data_ptr<T>();
    T *iou_out = iou.mutable_data_ptr<T>(), *giou_out = giou.mutable_data_ptr<T>();
    const int64_t* image = gt_image.const_data_ptr<int64_t>();
    const int64_t n = s.queries;
    torch::stable::parallel_for(0, s.layers * s.objects, grain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t layer = i / s.objects, m = i % s.objects;
        overlap_row(
            base + (layer * s.images + image[m]) * kFields * n, n, corners(gt + 4 * m), iou_out + i * n,
            giou_out + i * n);
      }
    });
  });
  return {iou, giou};
}

// Gradients of one layer and image: of its boxes, as (4, N), and of its objects, into their rows of the layer.
template <typename T>
void overlap_backward_image(
    const T* fields, const T* gt, const int64_t* image, int64_t own_image, const Sizes& s, const T* grad_iou,
    const T* grad_giou, T* grad_boxes, T* grad_gt) {
  for (int64_t m = 0; m < s.objects; ++m) {
    if (image[m] != own_image) {
      continue;
    }
    T partial[4 * kBlock] = {};
    overlap_backward_row(
        fields, s.queries, gt + 4 * m, grad_iou + m * s.queries, grad_giou + m * s.queries, grad_boxes, partial);
    for (int64_t c = 0; c < 4; ++c) {
      grad_gt[4 * m + c] = std::accumulate(partial + c * kBlock, partial + (c + 1) * kBlock, T(0));
    }
  }
}

// Each (layer, image) is one task: it owns the gradients of its boxes and of its objects in its layer.
std::tuple<Tensor, Tensor> pair_iou_backward(
    const Tensor& grad_iou_in, const Tensor& grad_giou_in, const Tensor& boxes_in, const Tensor& gt_boxes_in,
    const Tensor& gt_image_in) {
  check_pair_gradients(grad_iou_in, grad_giou_in, boxes_in, gt_boxes_in, gt_image_in);
  const Tensor grad_iou = torch::stable::contiguous(grad_iou_in), grad_giou = torch::stable::contiguous(grad_giou_in);
  const Tensor boxes = torch::stable::contiguous(boxes_in), gt_boxes = torch::stable::contiguous(gt_boxes_in);
  const Tensor gt_image = torch::stable::contiguous(gt_image_in);
  const Sizes s{boxes.size(0), boxes.size(1), boxes.size(2), gt_boxes.size(0)};
  check_index(gt_image, s.images, "gt_image", "images");
  Tensor grad_boxes = torch::stable::new_zeros(boxes, {s.layers, s.images, 4, s.queries});
  Tensor grad_gt = torch::stable::new_zeros(boxes, {s.layers, s.objects, 4});
  dispatch_floating(boxes, [&](auto zero) {
    using T = decltype(zero);
    const T *base = box_fields<T>(boxes, s), *gt = gt_boxes.const_data_ptr<T>();
    const T *d_iou = grad_iou.const_data_ptr<T>(), *d_giou = grad_giou.const_data_ptr<T>();
    T *d_boxes = grad_boxes.mutable_data_ptr<T>(), *d_gt = grad_gt.mutable_data_ptr<T>();
    const int64_t* image = gt_image.const_data_ptr<int64_t>();
    torch::stable::parallel_for(0, s.layers * s.images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t lb = begin; lb < end; ++lb) {
        const int64_t first_row = lb / s.images * s.objects, first_pair = first_row * s.queries;
        overlap_backward_image(
            base + lb * kFields * s.queries, gt, image, lb % s.images, s, d_iou + first_pair, d_giou + first_pair,
            d_boxes + lb * 4 * s.queries, d_gt + first_row * 4);
      }
    });
  });
  const int64_t layer_dim = 0;
  return {
      torch::stable::contiguous(torch::stable::transpose(grad_boxes, 2, 3)),
      torch::stable::sum(grad_gt, torch::headeronly::IntHeaderOnlyArrayRef(&layer_dim, 1))};
}

Tensor pair_quality(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes,
    const Tensor& gt_image, double score_weight, double iou_weight) {
  const Inputs in = checked_inputs(logits, boxes, gt_labels, gt_boxes, gt_image);
  const int64_t n = in.sizes.queries, objects = in.sizes.objects;
  Tensor out = torch::stable::new_empty(in.boxes, {in.sizes.layers, objects, n});
  dispatch_floating(in.boxes, [&](auto zero) {
    using T = decltype(zero);
    const T* gt = in.gt_boxes.const_data_ptr<T>();
    T* target = out.mutable_data_ptr<T>();
    for_each_row(
        box_fields<T>(in.boxes, in.sizes), score_columns<T>(in, score_weight), in.gt_image,
        in.sizes, [&](int64_t row, const T* fields, const T* scores) {
          const Corners<T> object = corners(gt + row % objects * 4);
          quality_row(fields, scores, n, object, static_cast<T>(iou_weight), target + row * n);
        });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> quality_topk(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes,
    const Tensor& gt_image, double score_weight, double iou_weight, int64_t k, int64_t min_count) {
  const Inputs in = checked_inputs(logits, boxes, gt_labels, gt_boxes, gt_image);
  const int64_t n = in.sizes.queries, objects = in.sizes.objects, kept = std::min(k, n);
  Tensor values = torch::stable::new_empty(in.boxes, {in.sizes.layers, objects, kept});
  Tensor indices = torch::stable::new_empty(in.gt_image, {in.sizes.layers, objects, kept});
  Tensor count = torch::stable::new_empty(in.gt_image, {in.sizes.layers, objects});
  dispatch_floating(in.boxes, [&](auto zero) {
    using T = decltype(zero);
    const T* gt = in.gt_boxes.const_data_ptr<T>();
    T* value = values.mutable_data_ptr<T>();
    int64_t *index = indices.mutable_data_ptr<int64_t>(), *counted = count.mutable_data_ptr<int64_t>();
    for_each_row(
        box_fields<T>(in.boxes, in.sizes), score_columns<T>(in, score_weight), in.gt_image,
        in.sizes, [&](int64_t row, const T* fields, const T* scores) {
          thread_local std::vector<T> quality;
          quality.resize(n);
          const Corners<T> object = corners(gt + row % objects * 4);
          quality_row(fields, scores, n, object, static_cast<T>(iou_weight), quality.data());
          best_of_row(quality.data(), n, kept, value + row * kept, index + row * kept);
          T sum = 0;
          for (int64_t slot = 0; slot < kept; ++slot) {
            sum += value[row * kept + slot];
          }
          counted[row] = positive_count(sum, min_count, n);
        });
  });
  return {values, indices, count};
}

Tensor match_cost(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes,
    const Tensor& gt_image, double class_weight, double l1_weight, double giou_weight, double alpha, double gamma) {
  const Inputs in = checked_inputs(logits, boxes, gt_labels, gt_boxes, gt_image);
  const int64_t n = in.sizes.queries, objects = in.sizes.objects;
  Tensor out = torch::stable::new_empty(in.boxes, {in.sizes.layers, objects, n});
  dispatch_floating(in.boxes, [&](auto zero) {
    using T = decltype(zero);
    const auto columns = class_columns<T>(
        in.logits, in.gt_labels, in.gt_image, in.sizes,
        [&](const T* logit, int64_t stride, int64_t rows, T* target) {
          focal_column(
              logit, stride, rows, static_cast<T>(class_weight), static_cast<T>(alpha),
              static_cast<T>(gamma), target);
        });
    const T* gt = in.gt_boxes.const_data_ptr<T>();
    T* target = out.mutable_data_ptr<T>();
    for_each_row(
        box_fields<T>(in.boxes, in.sizes), columns, in.gt_image, in.sizes,
        [&](int64_t row, const T* fields, const T* class_cost) {
          cost_row(
              fields, class_cost, n, gt + row % objects * 4, static_cast<T>(l1_weight),
              static_cast<T>(giou_weight), target + row * n);
        });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(paq_detr, CPU, m) {
  m.impl("pair_iou", TORCH_BOX(&pair_iou));
  m.impl("pair_iou_backward", TORCH_BOX(&pair_iou_backward));
  m.impl("pair_quality", TORCH_BOX(&pair_quality));
  m.impl("quality_topk", TORCH_BOX(&quality_topk));
  m.impl("match_cost", TORCH_BOX(&match_cost));
}

}  // namespace paq_detr
