// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// What the forward and the backward kernel share: their arguments, the order of queries, and the sampling points.
//
// A group of kLanes threads works on one (query, head). First its lanes are points: each prepares some of them into
// shared memory (four tokens, four weights). Then its lanes are channels: each loads 16 bytes of every corner.

#pragma once

#include <torch/headeronly/util/BFloat16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../geometry.h"
#include "../types.h"

namespace paq_detr::msda {

// Threads of a block. More of them share one head's tile in the first-level cache; fewer fill the chip with less work.
// Measured on an H200 with 128 and 256: docs/performance.md.
#ifndef PAQ_DETR_MSDA_THREADS
#define PAQ_DETR_MSDA_THREADS 256
#endif
constexpr int kThreads = PAQ_DETR_MSDA_THREADS;
constexpr int kMaxLevels = 32;
constexpr int kChunk = 16;  // points prepared at a time
constexpr int kTile = 8;    // queries of an encoder tile along each side
constexpr unsigned kWarp = 0xffffffffu;

struct Level {
  int rows, columns, start, first_tile, tiles_across;
};

template <class T>
struct Arguments {
  using Real = RealOf<T>;
  Form form;
  bool encoder_order;  // the queries are the tokens: take them tile by tile, so that neighbours share cache lines
  int batch, tokens, queries, heads, channels, levels, points, tiles, queries_per_block;
  const T* value;
  const Real *xy, *scores, *reference, *valid_ratios;
  const bool* padding_mask;
  int64_t value_image, xy_image, xy_query, scores_image, scores_query, reference_image, reference_query;
  uint32_t value_token_bytes;
  Level level[kMaxLevels];
};

// Cuts the queries into the tiles of the blocks. Queries that are the tokens themselves go by squares of their level:
// neighbours sample the same pixels, and one head's share of those fits into the first-level cache.
template <class T>
void set_tiles(Arguments<T>& a, const int64_t* shapes, int groups) {
  a.encoder_order = a.queries == a.tokens;
  a.queries_per_block = a.encoder_order ? kTile * kTile : groups;
  a.tiles = 0;
  int start = 0;
  for (int l = 0; l < a.levels; ++l) {
    const int rows = static_cast<int>(shapes[2 * l]), columns = static_cast<int>(shapes[2 * l + 1]);
    const int across = (columns + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile;
    a.level[l] = {rows, columns, start, a.tiles, across};
    a.tiles += across * down;
    start += rows * columns;
  }
  if (!a.encoder_order) a.tiles = (a.queries + groups - 1) / groups;
}

// The block's part of the work: a tile of queries of one head, heads outermost.
template <class T>
struct Tile {
  int b, h, tile, level;

  __device__ Tile(const Arguments<T>& a, unsigned block) {
    tile = static_cast<int>(block % static_cast<unsigned>(a.tiles));
    const unsigned head = block / static_cast<unsigned>(a.tiles);
    h = static_cast<int>(head % static_cast<unsigned>(a.heads));
    b = static_cast<int>(head / static_cast<unsigned>(a.heads));
    level = 0;
    while (a.encoder_order && level + 1 < a.levels && tile >= a.level[level + 1].first_tile) ++level;
  }

  // The i-th query of the tile, or -1 where the tile hangs over the edge.
  __device__ int query(const Arguments<T>& a, int i) const {
    if (!a.encoder_order) {
      const int q = tile * a.queries_per_block + i;
      return q < a.queries ? q : -1;
    }
    const Level& map = a.level[level];
    const int t = tile - map.first_tile;
    const int row = t / map.tiles_across * kTile + i / kTile, column = t % map.tiles_across * kTile + i % kTile;
    return row < map.rows && column < map.columns ? map.start + row * map.columns + column : -1;
  }
};

template <int kLanes, class Real>
__device__ __forceinline__ Real group_sum(Real x) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(kWarp, x, d);
  return x;
}

template <int kLanes, class Real>
__device__ __forceinline__ Real group_max(Real x) {
#pragma unroll
  for (int d = kLanes / 2; d > 0; d /= 2) {
    const Real other = __shfl_xor_sync(kWarp, x, d);
    x = other > x ? other : x;
  }
  return x;
}

__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }

// The inputs of one (query, head).
template <class T>
struct Row {
  using Real = RealOf<T>;
  const Arguments<T>& a;
  const Real *xy, *scores, *reference;
  int b;
  Real best = 0, scale = 1;

  __device__ Row(const Arguments<T>& a_, int b_, int h, int q) : a(a_), b(b_) {
    const int64_t per_head = static_cast<int64_t>(a.levels) * a.points;
    xy = a.xy + b * a.xy_image + q * a.xy_query + h * per_head * 2;
    scores = a.scores + b * a.scores_image + q * a.scores_query + h * per_head;
    reference = a.reference ? a.reference + b * a.reference_image + q * a.reference_query : nullptr;
  }

  // Softmax statistics by the whole group; a NaN among the logits makes all weights NaN, as in the definition.
  template <int kLanes>
  __device__ void reduce_scores(int lane) {
    if (a.form == Form::locations) return;
    const int count = a.levels * a.points;
    Real most = -INFINITY, total = 0;
    for (int i = lane; i < count; i += kLanes) most = scores[i] > most ? scores[i] : most;
    best = group_max<kLanes>(most);
    for (int i = lane; i < count; i += kLanes) total += exponential(scores[i] - best);
    scale = 1 / group_sum<kLanes>(total);
  }

  __device__ Real attention(int i) const {
    return a.form == Form::locations ? scores[i] : exponential(scores[i] - best) * scale;
  }
};

// A sampling point: pixel = anchor + xy * step (see Form), and its footprint on its level.
template <class T>
struct Point {
  using Real = RealOf<T>;
  Footprint<Real, int> f;
  int columns;
  Real x, y, step_x, step_y, scale_x, scale_y;

  __device__ Point(const Row<T>& row, int i) {
    const Arguments<T>& a = row.a;
    const int l = i / a.points;
    const Level& map = a.level[l];
    columns = map.columns;
    x = row.xy[2 * i], y = row.xy[2 * i + 1];
    scale_x = static_cast<Real>(map.columns), scale_y = static_cast<Real>(map.rows);
    const Real width = scale_x, height = scale_y;
    if (a.valid_ratios) {
      const Real* ratio = a.valid_ratios + (static_cast<int64_t>(row.b) * a.levels + l) * 2;
      scale_x *= ratio[0], scale_y *= ratio[1];
    }
    Real anchor_x = Real(-0.5), anchor_y = Real(-0.5);
    step_x = scale_x, step_y = scale_y;
    if (a.form != Form::locations) {
      anchor_x += row.reference[0] * scale_x, anchor_y += row.reference[1] * scale_y;
      step_x = step_y = 1;
      if (a.form == Form::boxes) {
        step_x = row.reference[2] * scale_x * box_unit(a), step_y = row.reference[3] * scale_y * box_unit(a);
      }
    }
    f = footprint<Real, int>(anchor_x, x * step_x, anchor_y, y * step_y, width, height, columns, map.start);
    if (a.padding_mask) {
      const bool* mask = a.padding_mask + static_cast<int64_t>(row.b) * a.tokens;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if ((f.corners >> k & 1) && mask[token(k)]) f.corners &= ~(1 << k);
      }
    }
  }

  __device__ int token(int k) const { return f.token + corner_step<int>(k, columns); }
  __device__ static Real box_unit(const Arguments<T>& a) { return Real(0.5) / static_cast<Real>(a.points); }
};

// A prepared point. A corner that does not count has weight zero and borrows the token of one that does, so that no
// load needs a test; a point without corners has token -1.
template <class Real>
struct alignas(16) Slot {
  int token[4];
  Real weight[4];

  template <class T>
  __device__ void prepare(const Row<T>& row, int i, bool active) {
    const Point<T> point(row, i);
    const int corners = active ? point.f.corners : 0;
    const int borrowed = corners ? point.token(__ffs(corners) - 1) : -1;
    const Real attention = row.attention(i);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const bool counts = corners >> k & 1;
      token[k] = counts ? point.token(k) : borrowed;
      weight[k] = counts ? attention * corner_weight(point.f, k) : Real(0);
    }
  }
};

// What a group keeps for each point of a chunk. The groups of a warp read the same point at the same time; every group
// starts at a slot of its own, else their slots would lie in the same banks.
template <class Entry>
struct Rotated {
  Entry* entries;
  int group;

  __device__ Entry& operator[](int p) const { return entries[static_cast<unsigned>(p + group) % kChunk]; }
};

// 16 bytes of values, or a single one where the layout does not allow more.
template <class T, int kVec>
struct alignas(sizeof(T) * kVec) Pack {
  T x[kVec];
};

template <class T, int kVec>
__device__ __forceinline__ Pack<T, kVec> load_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, kVec>*>(from);
}

template <class T, int kVec>
__device__ __forceinline__ void unpack(const Pack<T, kVec>& pack, RealOf<T> (&to)[kVec]) {
  if constexpr (std::is_same_v<T, torch::headeronly::BFloat16> && kVec % 2 == 0) {
    // bfloat16 is the upper half of a float: of each pair one is shifted up and the other masked, one instruction each.
    uint32_t pairs[kVec / 2];
    memcpy(pairs, &pack, sizeof(pack));
#pragma unroll
    for (int v = 0; v < kVec; v += 2) {
      to[v] = __uint_as_float(pairs[v / 2] << 16);
      to[v + 1] = __uint_as_float(pairs[v / 2] & 0xffff0000u);
    }
    return;
  }
#pragma unroll
  for (int v = 0; v < kVec; ++v) to[v] = static_cast<RealOf<T>>(pack.x[v]);
}

template <class T, int kVec>
__device__ __forceinline__ void load_values(const T* from, RealOf<T> (&to)[kVec]) {
  unpack(load_pack<T, kVec>(from), to);
}

template <class T, int kVec>
__device__ __forceinline__ void store_values(T* to, const RealOf<T> (&from)[kVec]) {
  Pack<T, kVec> pack;
#pragma unroll
  for (int v = 0; v < kVec; ++v) pack.x[v] = static_cast<T>(from[v]);
  *reinterpret_cast<Pack<T, kVec>*>(to) = pack;
}

template <class T>
__device__ __forceinline__ const T* token_values(const Arguments<T>& a, const T* values, int token) {
  const uint64_t bytes = static_cast<uint64_t>(static_cast<uint32_t>(token)) * a.value_token_bytes;
  return reinterpret_cast<const T*>(reinterpret_cast<const char*>(values) + bytes);
}

}  // namespace paq_detr::msda
