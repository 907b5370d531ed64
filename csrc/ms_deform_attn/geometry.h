// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The bilinear footprint of a sampling point: the arithmetic that the CPU and the CUDA kernels share.
//
// F is a float or a vector of floats, I an integer or a vector of integers of the same width.
#pragma once

#include <type_traits>

#include "../common/host_device.h"

namespace paq_detr::msda {

template <class To, class From>
PAQ_HD To convert(From x) {
#if !defined(__CUDACC__)
  if constexpr (!std::is_arithmetic_v<From>) {
    return __builtin_convertvector(x, To);
  } else
#endif
  {
    return static_cast<To>(x);
  }
}

template <class F, class I>
struct Footprint {
  I token;    // of corner 0 (top left), possibly outside of the map; corner k lies at + (k & 1) + (k >> 1) * columns
  I corners;  // bit k is set if corner k counts
  F fx, fy;   // position between the corners
};

// The point lies at anchor + shift, in pixels; the two stay apart because their sum would round the fraction to what
// is left of the mantissa at the far end of a row. A point counts only if -1 < x < width and -1 < y < height, which is
// false for NaN; a corner counts only inside of the map. Conversions to integers see values in range only.
template <class F, class I>
PAQ_HD Footprint<F, I> footprint(F anchor_x, F shift_x, F anchor_y, F shift_y, F width, F height, I columns, I start) {
  const F zero = F{};
  F x = anchor_x + shift_x, y = anchor_y + shift_y;
  auto inside = (x > zero - 1) & (x < width) & (y > zero - 1) & (y < height);
  x = inside ? x : zero;
  y = inside ? y : zero;
  const I no = I{};
  I column = convert<I>(x), row = convert<I>(y);  // towards zero, hence one too high between -1 and 0
  column = convert<F>(column) > x ? column - 1 : column;
  row = convert<F>(row) > y ? row - 1 : row;
  const F left = convert<F>(column), top = convert<F>(row);
  const auto has_left = inside & (left >= zero), has_right = inside & (left + 1 < width);
  const auto has_top = top >= zero, has_bottom = top + 1 < height;
  Footprint<F, I> result;
  result.token = start + row * columns + column;
  result.corners = (has_left & has_top ? no + 1 : no) | (has_right & has_top ? no + 2 : no) |
      (has_left & has_bottom ? no + 4 : no) | (has_right & has_bottom ? no + 8 : no);
  result.fx = inside ? (anchor_x - left) + shift_x : zero;
  result.fy = inside ? (anchor_y - top) + shift_y : zero;
  return result;
}

// Token of corner k relative to corner 0.
template <class I>
PAQ_HD I corner_step(int k, I columns) {
  return (k & 2 ? columns : I{}) + (k & 1);
}

template <class F, class I>
PAQ_HD F corner_weight(const Footprint<F, I>& f, int k) {
  return (k & 1 ? f.fx : 1 - f.fx) * (k & 2 ? f.fy : 1 - f.fy);
}

// The sample and its derivatives from the four corner values (or any linear function of them; zero where a corner
// does not count).
template <class F>
struct Sample {
  F value, dx, dy;
};

template <class F, class I>
PAQ_HD Sample<F> blend(const Footprint<F, I>& f, F v0, F v1, F v2, F v3) {
  const F top = v0 + f.fx * (v1 - v0), bottom = v2 + f.fx * (v3 - v2);
  const F left = v0 + f.fy * (v2 - v0), right = v1 + f.fy * (v3 - v1);
  return {top + f.fy * (bottom - top), right - left, bottom - top};
}

}  // namespace paq_detr::msda
