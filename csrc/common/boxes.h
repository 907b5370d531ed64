// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Overlap of two boxes and its gradient, shared by the CPU and the CUDA kernels.
//
// Overlaps agree bit for bit with the torch twins: no product is contracted into a fused multiply-add (on the host
// each including .cpp file switches contraction off), so thresholds and ties fall the same way on every backend.
// Comparisons are written so that a NaN coordinate always ends in a NaN overlap.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "host_device.h"

namespace paq_detr {

template <typename T>
constexpr T kTiny = std::numeric_limits<T>::min();
template <typename T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// Centre and size; the area is NaN if the centre is not finite.
template <typename T>
struct Box {
  T cx, cy, w, h, area;
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

// A box of which the area is known. A negative side counts as 0.
template <typename T>
PAQ_HD Box<T> box_of(T cx, T cy, T w, T h, T area) {
  return {cx, cy, not_negative(w), not_negative(h), area};
}

template <typename T>
PAQ_HD Box<T> box_of(const T* box) {
  const T area = product(not_negative(box[2]), not_negative(box[3])) + ((box[0] - box[0]) + (box[1] - box[1]));
  return box_of(box[0], box[1], box[2], box[3], area);
}

// Of one axis of two boxes the lengths of intersection (negative: the gap between them) and hull. From the distance of
// the centres, not from corners, which far from 0 round off what is small.
template <typename T>
struct Lengths {
  T inter, hull;
};

template <typename T>
PAQ_HD Lengths<T> lengths(T center_a, T size_a, T center_b, T size_b) {
  const T reach = (size_a + size_b) * T(0.5), apart = std::abs(center_a - center_b);
  return {smaller(smaller(size_a, size_b), reach - apart), larger(larger(size_a, size_b), reach + apart)};
}

// IoU and GIoU. No intersection is above either area, and the union as a + (b - intersection) is never rounded below
// it: IoU <= 1 holds exactly, and equal boxes have 1.
template <typename T>
PAQ_HD Overlap<T> overlap(const Box<T>& a, const Box<T>& b) {
  const Lengths<T> x = lengths(a.cx, a.w, b.cx, b.w), y = lengths(a.cy, a.h, b.cy, b.h);
  const T inter = product(not_negative(x.inter), not_negative(y.inter)), hull = product(x.hull, y.hull);
  const T unite = a.area + (b.area - inter);
  const T iou = quotient(inter, or_one(unite));
  return {iou, iou - quotient(not_negative(hull - unite), or_one(hull))};
}

// The part of a gradient that min or max of (a, b) hands to a; equal values share it, as in torch.
template <typename T>
PAQ_HD T share(bool chosen, T a, T b) {
  return chosen ? T(1) : (a == b ? T(0.5) : T(0));
}

// One axis of two boxes a and b: adds to the gradients of centres and sizes what those of the lengths of their
// intersection, their hull and themselves bring; a negative size has none.
template <typename T>
PAQ_HD void axis_backward(
    T center_a, T size_a, T center_b, T size_b, T grad_inter, T grad_hull, T grad_length_a, T grad_length_b,
    T* center_grad_a, T* size_grad_a, T* center_grad_b, T* size_grad_b) {
  const T a = not_negative(size_a), b = not_negative(size_b), distance = center_a - center_b;
  const T inner = smaller(a, b), outer = larger(a, b), reach = (a + b) * T(0.5), apart = std::abs(distance);
  const T near = reach - apart, far = reach + apart;
  const T grad_inner = share(inner < near, inner, near) * grad_inter;
  const T grad_near = share(near < inner, near, inner) * grad_inter;
  const T grad_outer = share(outer > far, outer, far) * grad_hull,
          grad_far = share(far > outer, far, outer) * grad_hull;
  const T grad_half = T(0.5) * (grad_near + grad_far), grad_apart = grad_far - grad_near;
  const T grad_distance = distance > T(0) ? grad_apart : (distance < T(0) ? -grad_apart : T(0));
  *center_grad_a += grad_distance;
  *center_grad_b -= grad_distance;
  const T grad_a = grad_length_a + share(a < b, a, b) * grad_inner + share(a > b, a, b) * grad_outer + grad_half;
  const T grad_b = grad_length_b + share(b < a, b, a) * grad_inner + share(b > a, b, a) * grad_outer + grad_half;
  *size_grad_a += size_a < T(0) ? T(0) : grad_a;
  *size_grad_b += size_b < T(0) ? T(0) : grad_b;
}

// Adds to grad_a and grad_b (cxcywh) the gradient of grad_iou * IoU + grad_giou * GIoU.
template <typename T>
PAQ_HD void overlap_backward(const T* box_a, const T* box_b, T grad_iou, T grad_giou, T* grad_a, T* grad_b) {
  const Box<T> a = box_of(box_a), b = box_of(box_b);
  const Lengths<T> x = lengths(a.cx, a.w, b.cx, b.w), y = lengths(a.cy, a.h, b.cy, b.h);
  const T inter = not_negative(x.inter) * not_negative(y.inter), hull = x.hull * y.hull;
  const T unite = a.area + (b.area - inter), safe_unite = or_one(unite), safe_hull = or_one(hull);

  // IoU = inter / union, GIoU = IoU - (hull - union) / hull, union = area_a + area_b - inter. Where a divisor is
  // replaced by one, it has no gradient; where rounding leaves the hull below the union, the gap has none.
  const T grad_ratio = grad_iou + grad_giou, grad_gap = hull < unite ? T(0) : -grad_giou / safe_hull;
  const T divisor_of_iou = unite <= kTiny<T> ? T(0) : T(1), divisor_of_gap = hull <= kTiny<T> ? T(0) : T(1);
  const T grad_union = -grad_gap - divisor_of_iou * grad_ratio * (inter / safe_unite) / safe_unite;
  const T grad_hull = grad_gap * (T(1) - divisor_of_gap * (hull - unite) / safe_hull);
  const T grad_inter = grad_ratio / safe_unite - grad_union;

  const T grad_inter_w = x.inter < T(0) ? T(0) : grad_inter * not_negative(y.inter);
  const T grad_inter_h = y.inter < T(0) ? T(0) : grad_inter * not_negative(x.inter);
  axis_backward(
      box_a[0], box_a[2], box_b[0], box_b[2], grad_inter_w, grad_hull * y.hull, grad_union * a.h, grad_union * b.h,
      grad_a, grad_a + 2, grad_b, grad_b + 2);
  axis_backward(
      box_a[1], box_a[3], box_b[1], box_b[3], grad_inter_h, grad_hull * x.hull, grad_union * a.w, grad_union * b.w,
      grad_a + 1, grad_a + 3, grad_b + 1, grad_b + 3);
}

}  // namespace paq_detr
