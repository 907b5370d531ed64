// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include "points.cuh"

namespace paq_detr::msda {

// out (B, Q, H * D): the weighted samples of each (query, head). kVec values per load, kLanes lanes per group.
template <class T, int kVec, int kLanes>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ Arguments<T> a, T* out) {
  using Real = RealOf<T>;
  constexpr int groups = kThreads / kLanes;
  __shared__ Slot<Real> shared[groups][kChunk];
  const int lane = static_cast<int>(threadIdx.x) % kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
  const Rotated<Slot<Real>> slots{shared[group], group};
  const Tile<T> tile(a, blockIdx.x);
  const T* values = a.value + tile.b * a.value_image + static_cast<int64_t>(tile.h) * a.channels;
  const int count = a.levels * a.points;

  // queries_per_block is a multiple of `groups`: all lanes of a warp stay together for the shuffles.
  for (int i = group; i < a.queries_per_block; i += groups) {
    const int query = tile.query(a, i);
    const bool active = query >= 0;
    Row<T> row(a, tile.b, tile.h, active ? query : 0);
    row.template reduce_scores<kLanes>(lane);
    const int64_t out_row = ((static_cast<int64_t>(tile.b) * a.queries + query) * a.heads + tile.h) * a.channels;
    for (int first_channel = 0; first_channel < a.channels; first_channel += kLanes * kVec) {
      const int channel = first_channel + lane * kVec;
      const bool has_channels = channel < a.channels;
      Real sums[kVec] = {};
      for (int first = 0; first < count; first += kChunk) {
        const int size = count - first < kChunk ? count - first : kChunk;
        __syncwarp();
        for (int p = lane; p < size; p += kLanes) slots[p].prepare(row, first + p, active);
        __syncwarp();
        if (!has_channels) continue;
        for (int p = 0; p < size; ++p) {
          const Slot<Real> slot = slots[p];
          if (slot.token[0] < 0) continue;
#pragma unroll
          for (int k = 0; k < 4; ++k) {
            Real x[kVec];
            load_values<T, kVec>(token_values(a, values + channel, slot.token[k]), x);
#pragma unroll
            for (int v = 0; v < kVec; ++v) sums[v] += slot.weight[k] * x[v];
          }
        }
      }
      if (active && has_channels) store_values<T, kVec>(out + out_row + channel, sums);
    }
  }
}

}  // namespace paq_detr::msda
