// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include "points.cuh"

namespace paq_detr::msda {

// Where grad_value is summed. Additions of floats in any order differ in the last bits from run to run; the
// deterministic form adds integers, units of 1 / scale, whose sum has no order.
template <class Real>
struct GradSums {
  Real* sums;        // (B, S, H, D), or
  long long* units;  // (B, S, H, D) with
  double* scale;     // one number on the device; zero if a sum cannot be finite, which makes all of grad_value NaN
};

// How one lane adds its share of a group's channels to a token: runs of four floats at once where the hardware has it,
// else one number at a time. The lanes take turns over the runs, so that one instruction of the group touches
// neighbouring bytes and no sector twice; their number bounds the kernel.
template <class T, int kVec, int kLanes, bool kDeterministic>
struct Adder {
  using Real = RealOf<T>;
  using Sum = std::conditional_t<kDeterministic, long long, Real>;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  static constexpr int kRun = !kDeterministic && std::is_same_v<Real, float> && kVec % 4 == 0 ? 4 : 1;
#else
  static constexpr int kRun = 1;
#endif
  // Of the lane's v-th number from its first one.
  static __device__ constexpr int offset(int v) { return v / kRun * kRun * kLanes + v % kRun; }

  char* sums;  // of token 0 and this lane's first channel
  uint32_t token_bytes;
  double scale;
  int channels;  // from this lane's first one to the last
  Real grad[kVec];

  // `row` is the (query, head)'s grad_out, `own` its channels that this lane has loaded.
  __device__ Adder(
      const Arguments<T>& a, const GradSums<Real>& to, double scale_, int64_t first_sum, const T* row,
      int first_channel, int lane, bool active, const Real (&own)[kVec])
      : scale(scale_) {
    const int channel = first_channel + lane * kRun;
    Sum* start;
    if constexpr (kDeterministic)
      start = to.units;
    else
      start = to.sums;
    sums = reinterpret_cast<char*>(start + first_sum + channel);
    token_bytes = static_cast<uint32_t>(a.heads) * static_cast<uint32_t>(a.channels) * sizeof(Sum);
    channels = active ? a.channels - channel : 0;
#pragma unroll
    for (int v = 0; v < kVec; v += kRun) {
      Real run[kRun] = {};
      if (kRun < kVec && offset(v) < channels) load_values<T, kRun>(row + channel + offset(v), run);
#pragma unroll
      for (int i = 0; i < kRun; ++i) grad[v + i] = kRun < kVec ? run[i] : own[v + i];
    }
  }

  __device__ __forceinline__ void add(int token, Real weight) const {
    if (weight == 0 || channels <= 0) return;
    Sum* to = reinterpret_cast<Sum*>(sums + static_cast<uint64_t>(static_cast<uint32_t>(token)) * token_bytes);
#pragma unroll
    for (int v = 0; v < kVec; v += kRun) {
      if (offset(v) >= channels) continue;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900  // below there is no such addition to name
      if constexpr (kRun == 4) {
        const float4 four = {weight * grad[v], weight * grad[v + 1], weight * grad[v + 2], weight * grad[v + 3]};
        atomicAdd(reinterpret_cast<float4*>(to + offset(v)), four);
        continue;
      }
#endif
      add_one(to + offset(v), weight * grad[v]);
    }
  }

  __device__ __forceinline__ void add_one(Sum* to, Real x) const {
    if constexpr (kDeterministic) {
      const long long units = __double2ll_rn(static_cast<double>(x) * scale);
      atomicAdd(reinterpret_cast<unsigned long long*>(to), static_cast<unsigned long long>(units));
    } else {
      atomicAdd(to, x);
    }
  }
};

// Sums four numbers over the group with one shuffle less than half of four plain reductions: lane k of every four
// ends with the total of x[k].
template <int kLanes, class Real>
__device__ __forceinline__ Real group_sum_of_four(const Real (&x)[4], int lane) {
  static_assert(kLanes >= 4);
  const bool odd = lane & 1, upper = lane & 2;
  Real a = odd ? x[1] : x[0], b = odd ? x[3] : x[2];
  a += __shfl_xor_sync(kWarp, odd ? x[0] : x[1], 1);
  b += __shfl_xor_sync(kWarp, odd ? x[2] : x[3], 1);
  Real total = upper ? b : a;
  total += __shfl_xor_sync(kWarp, upper ? a : b, 2);
#pragma unroll
  for (int d = 4; d < kLanes; d *= 2) total += __shfl_xor_sync(kWarp, total, d);
  return total;
}

template <class T>
struct PointGradients {
  using Real = RealOf<T>;
  Real *xy, *scores, *reference;  // (B, Q, H, L, P, 2), (B, Q, H, L * P), (B, Q, H, 2 or 4) or null
};

// The gradients of a chunk of points from the dot products of grad_out with their corners; lanes are points.
template <class T, int kLanes>
struct PointBackward {
  using Real = RealOf<T>;
  Real weighted = 0;       // sum of attention * d(score)
  Real reference[4] = {};  // of this lane's points

  __device__ void add(
      const Row<T>& row, int first, int size, int lane, const Rotated<Real[4]>& dots, Real* grad_xy,
      Real* grad_scores) {
    for (int p = lane; p < size; p += kLanes) {
      const int i = first + p;
      const Point<T> point(row, i);
      const Real attention = row.attention(i);
      Real d[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) d[k] = point.f.corners >> k & 1 ? dots[p][k] : Real(0);
      const Sample<Real> sample = blend(point.f, d[0], d[1], d[2], d[3]);
      grad_scores[i] = sample.value;
      weighted += attention * sample.value;
      // A point without corners has zero gradient, also where its step or offset is not finite.
      const bool counts = point.f.corners != 0;
      const Real gx = attention * sample.dx, gy = attention * sample.dy;
      grad_xy[2 * i] = counts ? gx * point.step_x : Real(0);
      grad_xy[2 * i + 1] = counts ? gy * point.step_y : Real(0);
      if (!counts || row.a.form == Form::locations) continue;
      reference[0] += gx * point.scale_x;
      reference[1] += gy * point.scale_y;
      if (row.a.form != Form::boxes) continue;
      reference[2] += gx * point.scale_x * point.x * Point<T>::box_unit(row.a);
      reference[3] += gy * point.scale_y * point.y * Point<T>::box_unit(row.a);
    }
  }

  // Softmax backward, and the reference's sums; every lane rereads only what it wrote.
  __device__ void finish(const Row<T>& row, int lane, bool active, Real* grad_scores, Real* grad_reference) {
    if (row.a.form == Form::locations) return;
    const Real mean = group_sum<kLanes>(weighted);
    const int coordinates = row.a.form == Form::boxes ? 4 : 2;
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      if (c >= coordinates) break;
      const Real total = group_sum<kLanes>(reference[c]);
      if (active && lane == 0) grad_reference[c] = total;
    }
    if (!active) return;
    const int count = row.a.levels * row.a.points;
    for (int first = 0; first < count; first += kChunk) {
      const int size = count - first < kChunk ? count - first : kChunk;
      for (int p = lane; p < size; p += kLanes) {
        grad_scores[first + p] = row.attention(first + p) * (grad_scores[first + p] - mean);
      }
    }
  }
};

// All four corners are asked for before the first is used, and before any addition, which loads could not pass.
template <class T, int kVec>
__device__ __forceinline__ void dots_of_corners(
    const Arguments<T>& a, const T* values, const Slot<RealOf<T>>& slot, const RealOf<T> (&grad)[kVec],
    RealOf<T> (&dot)[4]) {
  Pack<T, kVec> packs[4];
#pragma unroll
  for (int k = 0; k < 4; ++k) packs[k] = load_pack<T, kVec>(token_values(a, values, slot.token[k]));
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    RealOf<T> x[kVec];
    unpack(packs[k], x);
#pragma unroll
    for (int v = 0; v < kVec; ++v) dot[k] += grad[v] * x[v];
  }
}

template <class T, int kVec, int kLanes, bool kDeterministic>
__global__ void __launch_bounds__(kThreads) backward_kernel(
    const __grid_constant__ Arguments<T> a, const T* grad_out, const GradSums<RealOf<T>> to,
    const PointGradients<T> grads) {
  using Real = RealOf<T>;
  constexpr int groups = kThreads / kLanes;
  __shared__ Slot<Real> shared[groups][kChunk];
  __shared__ Real shared_dots[groups][kChunk][4];
  const int lane = static_cast<int>(threadIdx.x) % kLanes, group = static_cast<int>(threadIdx.x) / kLanes;
  const Rotated<Slot<Real>> slots{shared[group], group};
  const Rotated<Real[4]> dots{shared_dots[group], group};
  const Tile<T> tile(a, blockIdx.x);
  const T* values = a.value + tile.b * a.value_image + static_cast<int64_t>(tile.h) * a.channels;
  const int64_t first_sum =
      static_cast<int64_t>(tile.b) * a.tokens * a.heads * a.channels + static_cast<int64_t>(tile.h) * a.channels;
  const double scale = kDeterministic ? *to.scale : 0.0;
  const int count = a.levels * a.points;

  // queries_per_block is a multiple of `groups`: all lanes of a warp stay together for the shuffles.
  for (int i = group; i < a.queries_per_block; i += groups) {
    const int query = tile.query(a, i);
    const bool active = query >= 0;
    Row<T> row(a, tile.b, tile.h, active ? query : 0);
    row.template reduce_scores<kLanes>(lane);
    const int64_t out_row = (static_cast<int64_t>(tile.b) * a.queries + query) * a.heads + tile.h;
    Real* grad_scores = grads.scores + out_row * count;
    PointBackward<T, kLanes> points;
    for (int first = 0; first < count; first += kChunk) {
      const int size = count - first < kChunk ? count - first : kChunk;
      __syncwarp();
      for (int p = lane; p < size; p += kLanes) {
        slots[p].prepare(row, first + p, active);
        // No integer stands for it. Blocks that have read the scale before go on in vain.
        if (kDeterministic && slots[p].token[0] >= 0 && !isfinite(row.attention(first + p))) *to.scale = 0.0;
      }
      __syncwarp();
      for (int first_channel = 0; first_channel < a.channels; first_channel += kLanes * kVec) {
        const int channel = first_channel + lane * kVec;
        const bool works = active && channel < a.channels;
        Real grad[kVec] = {};
        const T* grad_row = grad_out + (active ? out_row * a.channels : 0);
        if (works) load_values<T, kVec>(grad_row + channel, grad);
        const Adder<T, kVec, kLanes, kDeterministic> adder(
            a, to, scale, first_sum, grad_row, first_channel, lane, active, grad);
        for (int p = 0; p < size; ++p) {
          const Slot<Real> slot = slots[p];
          Real dot[4] = {};
          if (slot.token[0] >= 0) {
            if (works) dots_of_corners<T, kVec>(a, values + channel, slot, grad, dot);
#pragma unroll
            for (int k = 0; k < 4; ++k) adder.add(slot.token[k], slot.weight[k]);
          }
          const Real total = group_sum_of_four<kLanes>(dot, lane);
          if (lane < 4) dots[p][lane] = first_channel == 0 ? total : dots[p][lane] + total;
        }
      }
      __syncwarp();
      if (active) points.add(row, first, size, lane, dots, grads.xy + out_row * count * 2, grad_scores);
    }
    Real* grad_reference = grads.reference + out_row * (a.form == Form::boxes ? 4 : 2);
    points.finish(row, lane, active, grad_scores, grad_reference);
  }
}

// ---------------------------------------------------------------------------------------------------------------
// The unit of the deterministic sums. |sum| <= terms * max|weight| * max|grad| must stay below 2^62.

__device__ __forceinline__ unsigned long long ordered_bits(double magnitude) {
  return static_cast<unsigned long long>(__double_as_longlong(magnitude));  // NaN above infinity above all numbers
}

// slot = max(slot, max |x|) by bits, which has no order either. Of weights only the finite ones: one that is not
// matters where its point counts.
template <class T>
__global__ void largest_kernel(const T* x, int64_t count, bool only_finite, unsigned long long* slot) {
  unsigned long long most = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const double magnitude = fabs(static_cast<double>(static_cast<RealOf<T>>(x[i])));
    if (only_finite && !isfinite(magnitude)) continue;
    const unsigned long long bits = ordered_bits(magnitude);
    most = bits > most ? bits : most;
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    const unsigned long long other = __shfl_xor_sync(kWarp, most, d);
    most = other > most ? other : most;
  }
  if (threadIdx.x % 32 == 0) atomicMax(slot, most);
}

// largest[0] of grad_out, largest[1] of the weights (classical form; softmax weights are at most 1).
static __global__ void scale_kernel(const unsigned long long* largest, double terms, bool softmax, double* scale) {
  const double grad = __longlong_as_double(static_cast<long long>(largest[0]));
  const double weight = softmax ? 1.0 : __longlong_as_double(static_cast<long long>(largest[1]));
  const double bound = terms * weight * grad;
  if (!isfinite(bound)) {
    *scale = 0.0;
  } else {
    *scale = bound > 0.0 ? ldexp(1.0, min(61 - ilogb(bound), 1000)) : 1.0;
  }
}

template <class T>
__global__ void finish_kernel(const long long* units, const double* scale, int64_t count, T* grad_value) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const double sum = *scale == 0.0 ? static_cast<double>(NAN) : static_cast<double>(units[i]) / *scale;
  grad_value[i] = static_cast<T>(static_cast<RealOf<T>>(sum));
}

}  // namespace paq_detr::msda
