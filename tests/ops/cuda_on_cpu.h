// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Runs device code on the CPU: a CPU thread for each thread of a block, blocks one after the other. Warp shuffles and
// __syncwarp meet at a barrier of 32 threads. Enough for tests of kernels where there is no GPU; include it before
// the device code.

#pragma once

#include <algorithm>
#include <barrier>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // one block runs at a time

struct Index {
  unsigned x;
};
thread_local Index threadIdx, blockIdx;
inline Index blockDim, gridDim;

struct float4 {
  float x, y, z, w;
};

namespace cuda_on_cpu {

inline std::vector<std::unique_ptr<std::barrier<>>> warps;
inline uint64_t exchanged[32][32];  // [warp][lane]
inline std::mutex atomic;
inline int vector_additions = 0;

template <class F>
void launch(unsigned blocks, unsigned threads, const F& kernel) {
  gridDim.x = blocks, blockDim.x = threads;
  warps.clear();
  for (unsigned w = 0; w < threads / 32; ++w) warps.push_back(std::make_unique<std::barrier<>>(32));
  std::barrier<> block_done(threads);
  std::vector<std::thread> pool;
  for (unsigned t = 0; t < threads; ++t) {
    pool.emplace_back([&, t] {
      threadIdx.x = t;
      for (unsigned b = 0; b < blocks; ++b) {
        blockIdx.x = b;
        kernel();
        block_done.arrive_and_wait();
      }
    });
  }
  for (std::thread& thread : pool) thread.join();
}

}  // namespace cuda_on_cpu

inline void __syncwarp() { cuda_on_cpu::warps[threadIdx.x / 32]->arrive_and_wait(); }

template <class T>
T __shfl_xor_sync(unsigned, T x, int distance) {
  uint64_t* lanes = cuda_on_cpu::exchanged[threadIdx.x / 32];
  const unsigned lane = threadIdx.x % 32;
  lanes[lane] = 0;
  __builtin_memcpy(&lanes[lane], &x, sizeof(T));
  __syncwarp();
  __builtin_memcpy(&x, &lanes[lane ^ static_cast<unsigned>(distance)], sizeof(T));
  __syncwarp();
  return x;
}

template <class T>
T atomicAdd(T* to, T x) {
  std::lock_guard<std::mutex> lock(cuda_on_cpu::atomic);
  const T before = *to;
  *to += x;
  return before;
}

inline float4 atomicAdd(float4* to, float4 x) {
  std::lock_guard<std::mutex> lock(cuda_on_cpu::atomic);
  if (reinterpret_cast<uintptr_t>(to) % sizeof(float4)) std::abort();  // as the hardware would
  const float4 before = *to;
  *to = {before.x + x.x, before.y + x.y, before.z + x.z, before.w + x.w};
  ++cuda_on_cpu::vector_additions;
  return before;
}

template <class T>
T atomicMax(T* to, T x) {
  std::lock_guard<std::mutex> lock(cuda_on_cpu::atomic);
  const T before = *to;
  *to = std::max(before, x);
  return before;
}

inline float __expf(float x) { return std::exp(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline long long __double2ll_rn(double x) { return std::llrint(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
using std::isfinite;
using std::min;
