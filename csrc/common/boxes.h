// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Overlap of two boxes and its gradient, shared by the CPU and the CUDA kernels.
//
// Overlaps agree bit for bit with the torch twins: no product is contracted into a fused multiply-add (on the host
// each including .cpp file switches contraction off), so thresholds and ties fall the same way on every backend.
// Comparisons are written so that a NaN coordinate always ends in a NaN overlap.
#pragma once

#include <limits>
#include <type_traits>

#include "host_device.h"

namespace paq_detr {

template <typename T>
constexpr T kTiny = std::numeric_limits<T>::min();
template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

template <typename T>
struct Corners {
  T x0, y0, x1, y1, area;
};

template <typename T>
struct Overlap {
  T iou, giou;
};

template <typename T>
PAQ_HD T product(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) {
    return __fmul_rn(a, b);
  } else {
    return __dmul_rn(a, b);
  }
#else
  return a * b;
#endif
}

template <typename T>
PAQ_HD T quotient(T a, T b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) {
    return __fdiv_rn(a, b);
  } else {
    return __ddiv_rn(a, b);
  }
#else
  return a / b;
#endif
}

template <typename T>
PAQ_HD T smaller(T a, T b) {
  return a < b ? a : b;
}

template <typename T>
PAQ_HD T larger(T a, T b) {
  return a > b ? a : b;
}

// Keeps NaN.
template <typename T>
PAQ_HD T not_negative(T value) {
  return value < T(0) ? T(0) : value;
}

// An area fit to divide by: one in place of an empty one. Keeps NaN.
template <typename T>
PAQ_HD T or_one(T area) {
  return area <= kTiny<T> ? T(1) : area;
}

template <typename T>
PAQ_HD Corners<T> corners(T cx, T cy, T w, T h) {
  const T half_w = not_negative(w) * T(0.5), half_h = not_negative(h) * T(0.5);
  const T x0 = cx - half_w, y0 = cy - half_h, x1 = cx + half_w, y1 = cy + half_h;
  return {x0, y0, x1, y1, product(x1 - x0, y1 - y0)};
}

template <typename T>
PAQ_HD Corners<T> corners(const T* box) {
  return corners(box[0], box[1], box[2], box[3]);
}

// IoU and GIoU. The union as a + (b - intersection) is never rounded below the intersection: IoU <= 1 holds exactly.
template <typename T>
PAQ_HD Overlap<T> overlap(const Corners<T>& a, const Corners<T>& b) {
  const T inter = product(
      not_negative(smaller(a.x1, b.x1) - larger(a.x0, b.x0)), not_negative(smaller(a.y1, b.y1) - larger(a.y0, b.y0)));
  const T unite = a.area + (b.area - inter);
  const T hull = product(larger(a.x1, b.x1) - smaller(a.x0, b.x0), larger(a.y1, b.y1) - smaller(a.y0, b.y0));
  const T iou = quotient(inter, or_one(unite));
  return {iou, iou - quotient(not_negative(hull - unite), or_one(hull))};
}

// The part of a gradient that min or max of (a, b) hands to a; equal values share it, as in torch.
template <typename T>
PAQ_HD T share(bool chosen, T a, T b) {
  return chosen ? T(1) : (a == b ? T(0.5) : T(0));
}

// One axis of two boxes a and b: where they begin and end, and the gradients of the lengths of their intersection,
// their hull and themselves. Adds the gradients of centre and size; a negative size has none.
template <typename T>
PAQ_HD void axis_backward(
    T low_a, T high_a, T low_b, T high_b, T grad_inter, T grad_hull, T grad_length_a, T grad_length_b, T size_a,
    T size_b, T* center_grad_a, T* size_grad_a, T* center_grad_b, T* size_grad_b) {
  const T d_high_a = grad_length_a + share(high_a < high_b, high_a, high_b) * grad_inter +
      share(high_a > high_b, high_a, high_b) * grad_hull;
  const T d_high_b = grad_length_b + share(high_b < high_a, high_b, high_a) * grad_inter +
      share(high_b > high_a, high_b, high_a) * grad_hull;
  const T d_low_a =
      -grad_length_a - share(low_a > low_b, low_a, low_b) * grad_inter - share(low_a < low_b, low_a, low_b) * grad_hull;
  const T d_low_b =
      -grad_length_b - share(low_b > low_a, low_b, low_a) * grad_inter - share(low_b < low_a, low_b, low_a) * grad_hull;
  *center_grad_a += d_low_a + d_high_a;
  *center_grad_b += d_low_b + d_high_b;
  *size_grad_a += size_a < T(0) ? T(0) : T(0.5) * (d_high_a - d_low_a);
  *size_grad_b += size_b < T(0) ? T(0) : T(0.5) * (d_high_b - d_low_b);
}

// Adds to grad_a and grad_b (cxcywh) the gradient of grad_iou * IoU + grad_giou * GIoU.
template <typename T>
PAQ_HD void overlap_backward(const T* box_a, const T* box_b, T grad_iou, T grad_giou, T* grad_a, T* grad_b) {
  const Corners<T> a = corners(box_a), b = corners(box_b);
  const T inter_w = smaller(a.x1, b.x1) - larger(a.x0, b.x0), inter_h = smaller(a.y1, b.y1) - larger(a.y0, b.y0);
  const T hull_w = larger(a.x1, b.x1) - smaller(a.x0, b.x0), hull_h = larger(a.y1, b.y1) - smaller(a.y0, b.y0);
  const T inter = not_negative(inter_w) * not_negative(inter_h), hull = hull_w * hull_h;
  const T unite = a.area + (b.area - inter), safe_unite = or_one(unite), safe_hull = or_one(hull);

  // IoU = inter / union, GIoU = IoU - (hull - union) / hull, union = area_a + area_b - inter. Where a divisor is
  // replaced by one, it has no gradient; where rounding leaves the hull below the union, the gap has none.
  const T grad_ratio = grad_iou + grad_giou, grad_gap = hull < unite ? T(0) : -grad_giou / safe_hull;
  const T divisor_of_iou = unite <= kTiny<T> ? T(0) : T(1), divisor_of_gap = hull <= kTiny<T> ? T(0) : T(1);
  const T grad_union = -grad_gap - divisor_of_iou * grad_ratio * (inter / safe_unite) / safe_unite;
  const T grad_hull = grad_gap * (T(1) - divisor_of_gap * (hull - unite) / safe_hull);
  const T grad_inter = grad_ratio / safe_unite - grad_union;

  const T grad_inter_w = inter_w < T(0) ? T(0) : grad_inter * not_negative(inter_h);
  const T grad_inter_h = inter_h < T(0) ? T(0) : grad_inter * not_negative(inter_w);
  axis_backward(
      a.x0, a.x1, b.x0, b.x1, grad_inter_w, grad_hull * hull_h, grad_union * (a.y1 - a.y0), grad_union * (b.y1 - b.y0),
      box_a[2], box_b[2], grad_a, grad_a + 2, grad_b, grad_b + 2);
  axis_backward(
      a.y0, a.y1, b.y0, b.y1, grad_inter_h, grad_hull * hull_w, grad_union * (a.x1 - a.x0), grad_union * (b.x1 - b.x0),
      box_a[3], box_b[3], grad_a + 1, grad_a + 3, grad_b + 1, grad_b + 3);
}

}  // namespace paq_detr
