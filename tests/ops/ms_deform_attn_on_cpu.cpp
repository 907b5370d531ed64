// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The CUDA kernels of multi-scale deformable attention on CPU threads, with a C interface for ctypes. All tensors are
// contiguous; the launch repeats what csrc/ms_deform_attn/cuda/{forward,backward}.cu do with torch's tensors.

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda_on_cpu.h"

#define __CUDA_ARCH__ 900  // the code with vector additions
#include "ms_deform_attn/cuda/backward.cuh"
#include "ms_deform_attn/cuda/forward.cuh"

using namespace paq_detr::msda;

struct Tensors {
  const void *value, *xy, *scores, *reference, *valid_ratios;
  const bool* padding_mask;
  const void* grad_out;
  void *out, *grad_value, *sums;
  long long* units;
  void *grad_xy, *grad_scores, *grad_reference;
};

template <class T>
Arguments<T> arguments(const Tensors& t, int form, const int* sizes, const int64_t* shapes, int groups) {
  using Real = RealOf<T>;
  Arguments<T> a{};
  a.form = static_cast<Form>(form);
  a.batch = sizes[0], a.tokens = sizes[1], a.queries = sizes[2], a.heads = sizes[3], a.channels = sizes[4];
  a.levels = sizes[5], a.points = sizes[6];
  a.value = static_cast<const T*>(t.value);
  a.xy = static_cast<const Real*>(t.xy), a.scores = static_cast<const Real*>(t.scores);
  a.reference = static_cast<const Real*>(t.reference), a.valid_ratios = static_cast<const Real*>(t.valid_ratios);
  a.padding_mask = t.padding_mask;
  const int64_t coordinates = a.form == Form::boxes ? 4 : 2;
  a.scores_query = static_cast<int64_t>(a.heads) * a.levels * a.points, a.xy_query = 2 * a.scores_query;
  a.scores_image = a.scores_query * a.queries, a.xy_image = a.xy_query * a.queries;
  a.reference_query = coordinates, a.reference_image = coordinates * a.queries;
  a.value_image = static_cast<int64_t>(a.tokens) * a.heads * a.channels;
  a.value_token_bytes = static_cast<uint32_t>(a.heads * a.channels * sizeof(T));
  set_tiles(a, shapes, groups);
  return a;
}

template <class T, int kVec, int kLanes>
void run(const Tensors& t, int form, const int* sizes, const int64_t* shapes, bool deterministic) {
  using cuda_on_cpu::launch;
  using Real = RealOf<T>;
  const Arguments<T> a = arguments<T>(t, form, sizes, shapes, kThreads / kLanes);
  const auto blocks = static_cast<unsigned>(a.batch * a.heads * a.tiles);
  const int64_t values = a.batch * a.value_image, grads = int64_t{a.batch} * a.queries * a.heads * a.channels;
  const int64_t scores = a.batch * a.scores_image;
  const T* grad_out = static_cast<const T*>(t.grad_out);
  launch(blocks, kThreads, [&] { forward_kernel<T, kVec, kLanes>(a, static_cast<T*>(t.out)); });

  double scale = 0;
  if (deterministic) {
    unsigned long long largest[2] = {};
    launch(2, 64, [&] { largest_kernel<T>(grad_out, grads, false, largest); });
    launch(2, 64, [&] { largest_kernel<Real>(a.scores, scores, true, largest + 1); });
    scale_kernel(largest, static_cast<double>(a.queries) * a.levels * a.points, a.form != Form::locations, &scale);
  }
  const GradSums<Real> to{
      deterministic ? nullptr : static_cast<Real*>(t.sums), deterministic ? t.units : nullptr, &scale};
  const PointGradients<T> points{
      static_cast<Real*>(t.grad_xy), static_cast<Real*>(t.grad_scores), static_cast<Real*>(t.grad_reference)};
  launch(blocks, kThreads, [&] {
    if (deterministic) {
      backward_kernel<T, kVec, kLanes, true>(a, grad_out, to, points);
    } else {
      backward_kernel<T, kVec, kLanes, false>(a, grad_out, to, points);
    }
  });
  if (!deterministic) return;
  T* grad_value = static_cast<T*>(t.grad_value);
  launch(static_cast<unsigned>((values + 63) / 64), 64, [&] { finish_kernel<T>(t.units, &scale, values, grad_value); });
}

// type: 0 float32, 1 float64, 2 float16, 3 bfloat16. Returns how many vector additions ran.
extern "C" int ms_deform_attn_on_cpu(
    int type, int pack, const Tensors* t, int form, const int* sizes, const int64_t* shapes, bool deterministic) {
  cuda_on_cpu::vector_additions = 0;
  const auto go = [&](auto kernel) { kernel(*t, form, sizes, shapes, deterministic); };
  using torch::headeronly::BFloat16;
  using torch::headeronly::Half;
  if (type == 0) pack > 1 ? go(run<float, 4, 8>) : go(run<float, 1, 8>);
  if (type == 1) pack > 1 ? go(run<double, 2, 8>) : go(run<double, 1, 8>);
  if (type == 2) pack > 1 ? go(run<Half, 8, 4>) : go(run<Half, 1, 8>);
  if (type == 3) pack > 1 ? go(run<BFloat16, 8, 4>) : go(run<BFloat16, 1, 8>);
  return cuda_on_cpu::vector_additions;
}
