// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// From torch's tensors to the arguments of the kernels.
#pragma once

#include <cstdint>
#include <optional>
#include <type_traits>

#include "../../common/launch.cuh"
#include "../problem.h"
#include "points.cuh"

namespace paq_detr::msda {

Tensor forward_cuda(const Problem& p);  // in forward.cu

inline int as_int(int64_t size, const char* name) {
  STD_TORCH_CHECK(size <= 2147483647, name, " is ", size, ", the CUDA kernels count in 32 bits");
  return static_cast<int>(size);
}

// Lanes of a group: with 16-byte loads they cover the usual 32 channels at once (8 x 4 float32, 4 x 8 of 16 bits).
template <class T, int kVec>
constexpr int kLanesOf = kVec == 8 ? 4 : 8;

template <class T>
Arguments<T> make_arguments(const Problem& p, int groups) {
  using Real = RealOf<T>;
  const auto data = [](const std::optional<Tensor>& t) { return t ? t->const_data_ptr<Real>() : nullptr; };
  Arguments<T> a{};
  a.form = p.form;
  a.batch = as_int(p.batch, "the batch"), a.tokens = as_int(p.tokens, "the number of tokens");
  a.queries = as_int(p.queries, "the number of queries"), a.heads = as_int(p.heads, "the number of heads");
  a.channels = as_int(p.channels, "the number of channels"), a.levels = as_int(p.levels, "the number of levels");
  a.points = as_int(p.points, "the number of points");
  STD_TORCH_CHECK(p.levels <= kMaxLevels, "spatial_shapes has ", p.levels, " levels, the kernels take ", kMaxLevels);
  a.value = p.value.template const_data_ptr<T>();
  a.xy = p.xy.template const_data_ptr<Real>(), a.scores = p.scores.template const_data_ptr<Real>();
  a.reference = data(p.reference), a.valid_ratios = data(p.valid_ratios);
  a.padding_mask = p.padding_mask ? p.padding_mask->const_data_ptr<bool>() : nullptr;
  a.value_image = p.value.stride(0), a.xy_image = p.xy.stride(0), a.xy_query = p.xy.stride(1);
  a.scores_image = p.scores.stride(0), a.scores_query = p.scores.stride(1);
  if (p.reference) a.reference_image = p.reference->stride(0), a.reference_query = p.reference->stride(1);
  a.value_token_bytes = static_cast<uint32_t>(as_int(p.value.stride(1) * sizeof(T), "the bytes of a token"));
  as_int(p.heads * p.channels * 8, "the bytes of a token's sums");
  set_tiles(a, p.shapes.data(), groups);
  return a;
}

// Whether rows of `channels` values can be read and written kVec at a time.
template <class T, int kVec>
bool packs(const Problem& p, const void* other = nullptr) {
  const auto fits = [](int64_t n) { return n % kVec == 0; };
  const auto aligned = [](const void* address) {
    return reinterpret_cast<uintptr_t>(address) % (sizeof(T) * kVec) == 0;
  };
  return fits(p.channels) && fits(p.value.stride(0)) && fits(p.value.stride(1)) &&
      aligned(p.value.template const_data_ptr<T>()) && aligned(other);
}

// Calls f(std::integral_constant<int, kVec>) with the widest pack that fits.
template <class T, class F>
void dispatch_pack(const Problem& p, const void* other, const F& f) {
  constexpr int widest = 16 / sizeof(T);
  if (packs<T, widest>(p, other)) {
    f(std::integral_constant<int, widest>{});
  } else {
    f(std::integral_constant<int, 1>{});
  }
}

}  // namespace paq_detr::msda
