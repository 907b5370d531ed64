// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace paq_detr {

// A value and where it stands. `beats` is a total order: equal values by ascending index.
template <typename T>
struct Ranked {
  T value;
  int64_t index;

  __device__ bool beats(const Ranked& other) const {
    return value > other.value || (value == other.value && index < other.index);
  }
};

// The best of a warp, in every lane.
template <typename T>
__device__ Ranked<T> best_of_warp(Ranked<T> best) {
  for (int offset = 16; offset > 0; offset /= 2) {
    const Ranked<T> other{
        __shfl_xor_sync(0xffffffffu, best.value, offset),
        static_cast<int64_t>(__shfl_xor_sync(0xffffffffu, static_cast<long long>(best.index), offset))};
    best = other.beats(best) ? other : best;
  }
  return best;
}

}  // namespace paq_detr
