// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Pair quality on CPU. A task is a block of queries of one image in one layer: its boxes are turned into a structure of
// arrays, class terms are computed once per label, and then every object is one vectorised loop over the block.
// A result is written by one thread, in a fixed order: it does not depend on the number of threads.
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
#include <vector>

#include "../../common/tensors.h"
#include "../arguments.h"
#include "../scores.h"
#include "rows.h"

namespace paq_detr::pairs {
namespace {

using torch::stable::Tensor;

constexpr int64_t kElementsPerTask = 16384;
constexpr int64_t kQueriesPerTask = 256;  // their logits of 40 classes fill an L1 cache

struct Sizes {
  int64_t layers, images, queries, objects;
};

void check_index(const Tensor& index, int64_t size, const char* name, const char* what) {
  const int64_t* values = index.const_data_ptr<int64_t>();
  for (int64_t m = 0; m < index.numel(); ++m) {
    STD_TORCH_CHECK(
        values[m] >= 0 && values[m] < size, name, " has the value ", values[m], ", but there are ", size, " ", what);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What the operators share.

enum class Purpose { fields, columns, quality };

// Memory that a thread keeps from one call to the next: fresh pages would cost more than the arithmetic.
template <typename T, Purpose purpose>
T* kept_memory(int64_t size) {
  thread_local std::vector<T> memory;
  if (static_cast<int64_t>(memory.size()) < size) {
    memory.resize(size);
  }
  return memory.data();
}

// The objects of one image, and the labels among them, each once.
struct ImageObjects {
  std::vector<int64_t> objects, column_of_object, labels;
};

// Without labels there are no columns.
std::vector<ImageObjects> objects_by_image(
    const Tensor& gt_image, const int64_t* label, int64_t classes, const Sizes& s) {
  const int64_t* image = gt_image.const_data_ptr<int64_t>();
  std::vector<ImageObjects> result(s.images);
  std::vector<int64_t> columns(s.images * classes, -1);
  for (int64_t m = 0; m < s.objects; ++m) {
    ImageObjects& own = result[image[m]];
    own.objects.push_back(m);
    if (label == nullptr) {
      continue;
    }
    int64_t& column = columns[image[m] * classes + label[m]];
    if (column < 0) {
      column = static_cast<int64_t>(own.labels.size());
      own.labels.push_back(label[m]);
    }
    own.column_of_object.push_back(column);
  }
  return result;
}

// Queries [first, first + count) of one image in one layer; fields is (kFields, count).
template <typename T>
struct Block {
  int64_t layer, image, first, count;
  const T* fields;
};

// Calls f(block) for all blocks of `size` queries.
template <typename T, typename F>
void for_each_block(const Tensor& boxes, const Sizes& s, int64_t size, const F& f) {
  const T* source = boxes.const_data_ptr<T>();
  size = std::max<int64_t>(1, std::min(size, s.queries));
  const int64_t per_image = std::max<int64_t>(1, (s.queries + size - 1) / size);  // an empty block where there are none
  const int64_t total = s.layers * s.images * per_image;
  const int64_t elements = size * (kFields + s.objects / std::max<int64_t>(1, s.images));
  const int64_t grain = std::max<int64_t>(1, kElementsPerTask / elements);
  torch::stable::parallel_for(0, total, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t lb = i / per_image, first = i % per_image * size, count = std::min(size, s.queries - first);
      T* fields = kept_memory<T, Purpose::fields>(kFields * count);
      split_fields(source + (lb * s.queries + first) * 4, count, fields);
      f(Block<T>{lb / s.images, lb % s.images, first, count, fields});
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
  Inputs in{torch::stable::contiguous(logits),    torch::stable::contiguous(boxes),
            torch::stable::contiguous(gt_labels), torch::stable::contiguous(gt_boxes),
            torch::stable::contiguous(gt_image),  {boxes.size(0), boxes.size(1), boxes.size(2), gt_boxes.size(0)}};
  check_index(in.gt_image, in.sizes.images, "gt_image", "images");
  check_index(in.gt_labels, logits.size(3), "gt_labels", "classes");
  return in;
}

template <typename T>
auto scores(double weight) {
  return [=](const T* logits, int64_t stride, int64_t count, T* column) {
    score_column(logits, stride, count, static_cast<T>(weight), column);
  };
}

// Calls column(logits of a class, their distance, count, class terms) once per block and label, then
// row(l * M + m, block, object, class terms) for every object of the image.
template <typename T, typename Column, typename Row>
void for_each_row(const Inputs& in, int64_t block_size, const Column& column, const Row& row) {
  const int64_t classes = in.logits.size(3);
  const Sizes& s = in.sizes;
  const T *logits = in.logits.const_data_ptr<T>(), *gt = in.gt_boxes.const_data_ptr<T>();
  const auto by_image = objects_by_image(in.gt_image, in.gt_labels.const_data_ptr<int64_t>(), classes, s);
  for_each_block<T>(in.boxes, s, block_size, [&](const Block<T>& block) {
    const ImageObjects& own = by_image[block.image];
    const int64_t labels = static_cast<int64_t>(own.labels.size());
    const T* source = logits + ((block.layer * s.images + block.image) * s.queries + block.first) * classes;
    T* columns = kept_memory<T, Purpose::columns>(labels * block.count);
    for (int64_t u = 0; u < labels; ++u) {
      column(source + own.labels[u], classes, block.count, columns + u * block.count);
    }
    for (size_t k = 0; k < own.objects.size(); ++k) {
      const int64_t m = own.objects[k];
      row(block.layer * s.objects + m, block, gt + 4 * m, columns + own.column_of_object[k] * block.count);
    }
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
    const T* gt = gt_boxes.const_data_ptr<T>();
    T *iou_out = iou.mutable_data_ptr<T>(), *giou_out = giou.mutable_data_ptr<T>();
    const auto by_image = objects_by_image(gt_image, nullptr, 0, s);
    for_each_block<T>(boxes, s, kQueriesPerTask, [&](const Block<T>& block) {
      for (const int64_t m : by_image[block.image].objects) {
        const int64_t out = (block.layer * s.objects + m) * s.queries + block.first;
        overlap_row(block.fields, block.count, box_of(gt + 4 * m), iou_out + out, giou_out + out);
      }
    });
  });
  return {iou, giou};
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
    const T* gt = gt_boxes.const_data_ptr<T>();
    const T *d_iou = grad_iou.const_data_ptr<T>(), *d_giou = grad_giou.const_data_ptr<T>();
    T *d_boxes = grad_boxes.mutable_data_ptr<T>(), *d_gt = grad_gt.mutable_data_ptr<T>();
    const auto by_image = objects_by_image(gt_image, nullptr, 0, s);
    for_each_block<T>(boxes, s, s.queries, [&](const Block<T>& block) {
      for (const int64_t m : by_image[block.image].objects) {
        const int64_t row = block.layer * s.objects + m;
        T partial[4 * kBlock] = {};
        overlap_backward_row(
            block.fields, s.queries, gt + 4 * m, d_iou + row * s.queries, d_giou + row * s.queries,
            d_boxes + (block.layer * s.images + block.image) * 4 * s.queries, partial);
        for (int64_t c = 0; c < 4; ++c) {
          d_gt[4 * row + c] = std::accumulate(partial + c * kBlock, partial + (c + 1) * kBlock, T(0));
        }
      }
    });
  });
  const int64_t layer_dim = 0;
  return {
      torch::stable::contiguous(torch::stable::transpose(grad_boxes, 2, 3)),
      torch::stable::sum(grad_gt, torch::headeronly::IntHeaderOnlyArrayRef(&layer_dim, 1))};
}

Tensor pair_quality(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes, const Tensor& gt_image,
    double score_weight, double iou_weight) {
  const Inputs in = checked_inputs(logits, boxes, gt_labels, gt_boxes, gt_image);
  const int64_t n = in.sizes.queries, objects = in.sizes.objects;
  Tensor out = torch::stable::new_empty(in.boxes, {in.sizes.layers, objects, n});
  dispatch_floating(in.boxes, [&](auto zero) {
    using T = decltype(zero);
    T* target = out.mutable_data_ptr<T>();
    for_each_row<T>(
        in, kQueriesPerTask, scores<T>(score_weight),
        [&](int64_t row, const Block<T>& block, const T* object, const T* score) {
          quality_row(
              block.fields, score, block.count, box_of(object), static_cast<T>(iou_weight),
              target + row * n + block.first);
        });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> quality_topk(
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes, const Tensor& gt_image,
    double score_weight, double iou_weight, int64_t k, int64_t min_count) {
  const Inputs in = checked_inputs(logits, boxes, gt_labels, gt_boxes, gt_image);
  const int64_t n = in.sizes.queries, objects = in.sizes.objects, kept = std::min(k, n);
  Tensor values = torch::stable::new_empty(in.boxes, {in.sizes.layers, objects, kept});
  Tensor indices = torch::stable::new_empty(in.gt_image, {in.sizes.layers, objects, kept});
  Tensor count = torch::stable::new_empty(in.gt_image, {in.sizes.layers, objects});
  dispatch_floating(in.boxes, [&](auto zero) {
    using T = decltype(zero);
    T* value = values.mutable_data_ptr<T>();
    int64_t *index = indices.mutable_data_ptr<int64_t>(), *counted = count.mutable_data_ptr<int64_t>();
    for_each_row<T>(
        in, n, scores<T>(score_weight), [&](int64_t row, const Block<T>& block, const T* object, const T* score) {
          T* quality = kept_memory<T, Purpose::quality>(n);
          quality_row(block.fields, score, n, box_of(object), static_cast<T>(iou_weight), quality);
          best_of_row(quality, n, kept, value + row * kept, index + row * kept);
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
    const Tensor& logits, const Tensor& boxes, const Tensor& gt_labels, const Tensor& gt_boxes, const Tensor& gt_image,
    double class_weight, double l1_weight, double giou_weight, double alpha, double gamma) {
  const Inputs in = checked_inputs(logits, boxes, gt_labels, gt_boxes, gt_image);
  const int64_t n = in.sizes.queries, objects = in.sizes.objects;
  Tensor out = torch::stable::new_empty(in.boxes, {in.sizes.layers, objects, n});
  dispatch_floating(in.boxes, [&](auto zero) {
    using T = decltype(zero);
    T* target = out.mutable_data_ptr<T>();
    for_each_row<T>(
        in, kQueriesPerTask,
        [&](const T* logit, int64_t stride, int64_t count, T* column) {
          focal_column(
              logit, stride, count, static_cast<T>(class_weight), static_cast<T>(alpha), static_cast<T>(gamma), column);
        },
        [&](int64_t row, const Block<T>& block, const T* object, const T* class_cost) {
          cost_row(
              block.fields, class_cost, block.count, object, static_cast<T>(l1_weight), static_cast<T>(giou_weight),
              target + row * n + block.first);
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

}  // namespace paq_detr::pairs
