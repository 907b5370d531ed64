// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The device code of neighbour selection and neighbour difference.
//
// The number of real pairs is known only on the device, so nothing is sized by it and nothing waits for it: a block
// owns a few queries, numbers their real pairs through in shared memory and walks them in chunks, each a small matrix
// product. No atomics: every sum has a fixed order. Queries of all images are numbered through, q = b * N + i.
#pragma once

#include <cstdint>

#include "../../common/boxes.h"
#include "../../common/index.cuh"
#include "../../common/ranked.cuh"

namespace paq_detr::neighbors {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kQueries = 16;  // queries of a block
constexpr int kPairs = 32;    // pairs of a chunk
constexpr int kColumns = 64;  // columns of a block
constexpr int kDepth = 32;    // step of the inner product
constexpr int kLanes = 16;    // the block as a 16 x 16 grid of threads

// ---------------------------------------------------------------------------------------------------------------------
// Selection: one warp per query. Each round finds the best neighbour that is beaten by the last one found; most
// queries have two or three, and candidates are rejected by their score before their box is read.

template <typename T>
__global__ void __launch_bounds__(kThreads) select_kernel(
    const T* boxes, const T* scores, int64_t total, int64_t n, int64_t k, T iou_threshold, T low_score, int32_t* index,
    int32_t* count) {
  const int64_t q = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (q >= total) {
    return;
  }
  const int64_t first = q / n * n;
  const T score = scores[q];
  const Box<T> own = box_of(boxes + 4 * q);
  Ranked<T> last{kInfinity<T>, -1};
  int64_t found = 0;
  for (; found < k; ++found) {
    Ranked<T> best{T(0), n};
    for (int64_t j = lane; j < n; j += 32) {
      const T other = scores[first + j];
      if (other > score && other > low_score) {
        const Ranked<T> candidate{overlap(own, box_of(boxes + 4 * (first + j))).iou, j};
        if (candidate.value >= iou_threshold && last.beats(candidate) && candidate.beats(best)) {
          best = candidate;
        }
      }
    }
    best = best_of_warp(best);
    if (best.index == n) {
      break;
    }
    if (lane == 0) {
      index[q * k + found] = static_cast<int32_t>(best.index);
    }
    last = best;
  }
  for (int64_t slot = found + lane; slot < k; slot += 32) {
    index[q * k + slot] = -1;
  }
  if (lane == 0) {
    count[q] = static_cast<int32_t>(found);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// The pairs of a block.

struct Graph {
  const int32_t *index, *count;  // (B * N, K), (B * N,)
  int64_t total, n, k;           // B * N, N, K
};

struct PairTile {
  int64_t first[kQueries + 1];         // first pair of each of the block's queries
  int64_t own[kPairs], other[kPairs];  // rows of a chunk's pairs, -1 behind the last one
  int16_t slot[kPairs];
};

__device__ void number_pairs(const Graph& g, int64_t first_query, PairTile& tile) {
  if (threadIdx.x == 0) {
    tile.first[0] = 0;
    for (int i = 0; i < kQueries; ++i) {
      const int64_t q = first_query + i;
      const int64_t real = q < g.total ? g.count[q] : 0;
      check_index("count", real, g.k + 1);
      tile.first[i + 1] = tile.first[i] + real;
    }
  }
  __syncthreads();
}

// Fills the chunk that starts at pair `begin`; ends with a barrier.
__device__ void load_chunk(const Graph& g, int64_t first_query, int64_t begin, PairTile& tile) {
  if (threadIdx.x < kPairs) {
    const int64_t pair = begin + threadIdx.x;
    int64_t own = -1, other = -1, slot = -1;
    if (pair < tile.first[kQueries]) {
      int i = 0;
      while (pair >= tile.first[i + 1]) {
        ++i;
      }
      own = first_query + i;
      slot = pair - tile.first[i];
      const int64_t j = g.index[own * g.k + slot];
      check_index("index", j, g.n);
      other = own / g.n * g.n + j;
    }
    tile.own[threadIdx.x] = own;
    tile.other[threadIdx.x] = other;
    tile.slot[threadIdx.x] = static_cast<int16_t>(slot);
  }
  __syncthreads();
}

// p (B * N, C), hidden_bias (C,)
template <typename T>
struct Hidden {
  const T *p, *bias;
  int64_t width;

  __device__ T operator()(int64_t own, int64_t other, int64_t c) const {
    return not_negative(p[own * width + c] - p[other * width + c] + bias[c]);
  }
};

// grad_out (B * N, D) and the winning slots: the gradient of one pair's code.
template <typename T>
struct CodeGradient {
  const T* grad;
  const int16_t* winner;
  int64_t width;

  __device__ T operator()(int64_t own, int16_t slot, int64_t d) const {
    return winner[own * width + d] == slot ? grad[own * width + d] : T(0);
  }
};

// Thread (x, y) of the 16 x 16 grid owns pairs y, y + 16 and columns x, x + 16, ... of a (kPairs, kColumns) product.
template <typename T>
struct Product {
  static constexpr int kRowsOwned = kPairs / kLanes, kColumnsOwned = kColumns / kLanes;
  T sum[kRowsOwned][kColumnsOwned] = {};

  __device__ void add(const T (&left)[kPairs][kDepth + 1], const T (&right)[kDepth][kColumns + 1]) {
    const int x = threadIdx.x % kLanes, y = threadIdx.x / kLanes;
    for (int step = 0; step < kDepth; ++step) {
      for (int r = 0; r < kRowsOwned; ++r) {
        for (int c = 0; c < kColumnsOwned; ++c) {
          sum[r][c] += left[y + kLanes * r][step] * right[step][x + kLanes * c];
        }
      }
    }
  }

  template <typename F>
  __device__ void for_each(const F& f) const {
    const int x = threadIdx.x % kLanes, y = threadIdx.x / kLanes;
    for (int r = 0; r < kRowsOwned; ++r) {
      for (int c = 0; c < kColumnsOwned; ++c) {
        f(y + kLanes * r, x + kLanes * c, sum[r][c]);
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// Forward. blockIdx.x: queries, blockIdx.y: output columns.

template <typename T>
__global__ void __launch_bounds__(kThreads) forward_kernel(
    Graph g, Hidden<T> hidden, const T* weight, const T* bias, int64_t width, bool zero_fill, T* out, int16_t* winner) {
  __shared__ PairTile tile;
  __shared__ T left[kPairs][kDepth + 1], right[kDepth][kColumns + 1], code[kPairs][kColumns];
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * kQueries;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  number_pairs(g, first_query, tile);

  // In the maximum, thread t owns column t % kColumns of every kOwned-th query.
  constexpr int kGroups = kThreads / kColumns, kOwned = kQueries / kGroups;
  const int column = threadIdx.x % kColumns, group = threadIdx.x / kColumns;
  const int64_t d = first_column + column;
  T best[kOwned];
  int16_t best_slot[kOwned];
  for (int u = 0; u < kOwned; ++u) {
    best[u] = -kInfinity<T>;
    best_slot[u] = -1;
  }

  for (int64_t begin = 0; begin < tile.first[kQueries]; begin += kPairs) {
    load_chunk(g, first_query, begin, tile);
    Product<T> product;
    for (int64_t depth = 0; depth < hidden.width; depth += kDepth) {
      for (int i = threadIdx.x; i < kPairs * kDepth; i += kThreads) {
        const int row = i / kDepth;
        const int64_t c = depth + i % kDepth;
        const bool inside = tile.own[row] >= 0 && c < hidden.width;
        left[row][i % kDepth] = inside ? hidden(tile.own[row], tile.other[row], c) : T(0);
      }
      for (int i = threadIdx.x; i < kDepth * kColumns; i += kThreads) {
        const int64_t c = depth + i % kDepth, row = first_column + i / kDepth;
        const bool inside = row < width && c < hidden.width;
        right[i % kDepth][i / kDepth] = inside ? weight[row * hidden.width + c] : T(0);
      }
      __syncthreads();
      product.add(left, right);
      __syncthreads();
    }
    product.for_each([&](int row, int col, T value) { code[row][col] = value; });
    __syncthreads();
    for (int u = 0; u < kOwned && d < width; ++u) {
      const int i = group + kGroups * u;
      const int64_t from = larger(tile.first[i], begin), to = smaller(tile.first[i + 1], begin + kPairs);
      for (int64_t pair = from; pair < to; ++pair) {
        const T value = code[pair - begin][column] + bias[d];
        if (value > best[u] || value != value) {  // a NaN is kept, as torch's max keeps it
          best[u] = value;
          best_slot[u] = static_cast<int16_t>(pair - tile.first[i]);
        }
      }
    }
    __syncthreads();
  }

  for (int u = 0; u < kOwned && d < width; ++u) {
    const int i = group + kGroups * u;
    const int64_t q = first_query + i, real = tile.first[i + 1] - tile.first[i];
    if (q < g.total) {
      const bool zero = real == 0 || (zero_fill && real < g.k && best[u] < T(0));
      out[q * width + d] = zero ? T(0) : best[u];
      winner[q * width + d] = zero ? int16_t(-1) : best_slot[u];
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Backward.

// flow (B * N, K, C): gradient of each real pair's p_i - p_j. blockIdx.x: queries, blockIdx.y: hidden columns.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    flow_kernel(Graph g, Hidden<T> hidden, CodeGradient<T> code, const T* weight, T* flow) {
  __shared__ PairTile tile;
  __shared__ T left[kPairs][kDepth + 1], right[kDepth][kColumns + 1];
  const int64_t first_query = static_cast<int64_t>(blockIdx.x) * kQueries;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  number_pairs(g, first_query, tile);
  for (int64_t begin = 0; begin < tile.first[kQueries]; begin += kPairs) {
    load_chunk(g, first_query, begin, tile);
    Product<T> product;
    for (int64_t depth = 0; depth < code.width; depth += kDepth) {
      for (int i = threadIdx.x; i < kPairs * kDepth; i += kThreads) {
        const int row = i / kDepth;
        const int64_t d = depth + i % kDepth;
        const bool inside = tile.own[row] >= 0 && d < code.width;
        left[row][i % kDepth] = inside ? code(tile.own[row], tile.slot[row], d) : T(0);
      }
      for (int i = threadIdx.x; i < kDepth * kColumns; i += kThreads) {
        const int64_t d = depth + i / kColumns, c = first_column + i % kColumns;
        const bool inside = d < code.width && c < hidden.width;
        right[i / kColumns][i % kColumns] = inside ? weight[d * hidden.width + c] : T(0);
      }
      __syncthreads();
      product.add(left, right);
      __syncthreads();
    }
    product.for_each([&](int row, int col, T value) {
      const int64_t c = first_column + col, own = tile.own[row];
      if (own >= 0 && c < hidden.width) {
        const bool active = hidden(own, tile.other[row], c) > T(0);
        flow[(own * g.k + tile.slot[row]) * hidden.width + c] = active ? value : T(0);
      }
    });
    __syncthreads();
  }
}

// One block per query (blockIdx.x) and kThreads columns (blockIdx.y): its own pairs are added, then the pairs in which
// it is the neighbour are taken off, found by a scan over the slots of its image.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(Graph g, const T* flow, int64_t width, T* grad_p, T* own_sum) {
  __shared__ unsigned matches[kWarps];
  const int64_t q = blockIdx.x, c = static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x;
  const int64_t image_first = q / g.n * g.n, j = q - image_first, slots = g.n * g.k;
  T own = 0, incoming = 0;
  if (c < width) {
    for (int64_t s = 0; s < g.count[q]; ++s) {
      own += flow[(q * g.k + s) * width + c];
    }
  }
  for (int64_t begin = 0; begin < slots; begin += kThreads) {
    const int64_t at = begin + threadIdx.x;
    const bool match = at < slots && g.index[image_first * g.k + at] == j && at % g.k < g.count[image_first + at / g.k];
    if (__syncthreads_or(match) == 0) {
      continue;
    }
    const unsigned mask = __ballot_sync(0xffffffffu, match);
    if (threadIdx.x % 32 == 0) {
      matches[threadIdx.x / 32] = mask;
    }
    __syncthreads();
    for (int warp = 0; warp < kWarps && c < width; ++warp) {
      for (unsigned left = matches[warp]; left != 0; left &= left - 1) {
        const int64_t pair = image_first * g.k + begin + 32 * warp + __ffs(left) - 1;
        incoming += flow[pair * width + c];
      }
    }
    __syncthreads();
  }
  if (c < width) {
    grad_p[q * width + c] = own - incoming;
    own_sum[q * width + c] = own;
  }
}

// partial (splits, D, C): each blockIdx.z sums over its share of the queries. blockIdx.x: rows, blockIdx.y: columns.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    weight_kernel(Graph g, Hidden<T> hidden, CodeGradient<T> code, int64_t queries_per_split, T* partial) {
  __shared__ PairTile tile;
  __shared__ T left[kPairs][kColumns], right[kPairs][kColumns];
  constexpr int kOwned = kColumns / kLanes;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kColumns;
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * kColumns;
  const int64_t from = blockIdx.z * queries_per_split, to = smaller(from + queries_per_split, g.total);
  const int x = threadIdx.x % kLanes, y = threadIdx.x / kLanes;
  T sum[kOwned][kOwned] = {};
  for (int64_t first_query = from; first_query < to; first_query += kQueries) {
    number_pairs(g, first_query, tile);
    for (int64_t begin = 0; begin < tile.first[kQueries]; begin += kPairs) {
      load_chunk(g, first_query, begin, tile);
      for (int i = threadIdx.x; i < kPairs * kColumns; i += kThreads) {
        const int row = i / kColumns, col = i % kColumns;
        const int64_t own = tile.own[row], d = first_row + col, c = first_column + col;
        left[row][col] = own >= 0 && d < code.width ? code(own, tile.slot[row], d) : T(0);
        right[row][col] = own >= 0 && c < hidden.width ? hidden(own, tile.other[row], c) : T(0);
      }
      __syncthreads();
      for (int pair = 0; pair < kPairs; ++pair) {
        for (int r = 0; r < kOwned; ++r) {
          for (int c = 0; c < kOwned; ++c) {
            sum[r][c] += left[pair][y + kLanes * r] * right[pair][x + kLanes * c];
          }
        }
      }
      __syncthreads();
    }
    __syncthreads();
  }
  for (int r = 0; r < kOwned; ++r) {
    for (int c = 0; c < kOwned; ++c) {
      const int64_t row = first_row + y + kLanes * r, col = first_column + x + kLanes * c;
      if (row < code.width && col < hidden.width) {
        partial[(blockIdx.z * code.width + row) * hidden.width + col] = sum[r][c];
      }
    }
  }
}

}  // namespace
}  // namespace paq_detr::neighbors
