// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Vectors of PAQ_ISA by GCC's vector extensions: PAQ_LANES floats or half as many doubles.
#pragma once

#include "isa.h"

#include "../../common/exp.h"
#include "../geometry.h"

namespace paq_detr::msda::PAQ_ISA {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

template <class Real>
struct Simd;

template <>
struct Simd<float> {
  static constexpr int lanes = PAQ_LANES;
  using F = float __attribute__((vector_size(PAQ_LANES * 4)));
  using I = int32_t __attribute__((vector_size(PAQ_LANES * 4)));
};

template <>
struct Simd<double> {
  static constexpr int lanes = PAQ_LANES / 2;
  using F = double __attribute__((vector_size(PAQ_LANES * 4)));
  using I = int64_t __attribute__((vector_size(PAQ_LANES * 4)));
};

// Memory from the start of a cache line on: a vector that lies across two lines costs two reads.
struct FreeLines {
  void operator()(void* lines) const { ::operator delete(lines, std::align_val_t{64}); }
};
template <class T>
using Lines = std::unique_ptr<T[], FreeLines>;

template <class T>
Lines<T> new_lines(int64_t count) {
  const size_t bytes = static_cast<size_t>(count) * sizeof(T);
  return Lines<T>(static_cast<T*>(::operator new(bytes, std::align_val_t{64})));
}

template <class V>
PAQ_INLINE V load(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof(V));
  return v;
}

template <class V>
PAQ_INLINE void store(void* to, V v) {
  __builtin_memcpy(to, &v, sizeof(V));
}

// (x0, y0, x1, y1, ...) <-> (x0, x1, ...) and (y0, y1, ...)
template <class V, size_t... k>
PAQ_INLINE V even_lanes(V a, V b, std::index_sequence<k...>) {
  return __builtin_shufflevector(a, b, (2 * k)...);
}
template <class V, size_t... k>
PAQ_INLINE V odd_lanes(V a, V b, std::index_sequence<k...>) {
  return __builtin_shufflevector(a, b, (2 * k + 1)...);
}
template <int from, class V, size_t... k>
PAQ_INLINE V interleave(V a, V b, std::index_sequence<k...>) {
  return __builtin_shufflevector(a, b, (from + k / 2 + (k % 2 ? sizeof...(k) : 0))...);
}

// Adds the lanes of V vectors at once: lane i of the result is the sum of vector i.
template <int w, class V, size_t... k>
PAQ_INLINE V add_halves(V a, V b, std::index_sequence<k...>) {
  constexpr int n = sizeof...(k);
  return __builtin_shufflevector(a, b, ((k & w) ? k + n : k)...) +
      __builtin_shufflevector(a, b, ((k & w) ? (k ^ w) + n : (k ^ w))...);
}
template <int w, int n, class V>
PAQ_INLINE V transposed_sums(V* rows) {
  if constexpr (w == 0) {
    return rows[0];
  } else {
    for (int k = 0; k < w; ++k) rows[k] = add_halves<w>(rows[k], rows[k + w], std::make_index_sequence<n>{});
    return transposed_sums<w / 2, n>(rows);
  }
}

// Combines all lanes as a tree, the same in every lane of the result.
template <int w, class V, class Op, size_t... k>
PAQ_INLINE V combine_lanes(V v, Op op, std::index_sequence<k...> lanes) {
  v = op(v, __builtin_shufflevector(v, v, (k ^ w)...));
  if constexpr (w > 1) v = combine_lanes<w / 2>(v, op, lanes);
  return v;
}
template <class Real>
PAQ_INLINE typename Simd<Real>::F sum_lanes(typename Simd<Real>::F v) {
  constexpr int n = Simd<Real>::lanes;
  return combine_lanes<n / 2>(v, [](auto a, auto b) { return a + b; }, std::make_index_sequence<n>{});
}
template <class Real>
PAQ_INLINE typename Simd<Real>::F max_lanes(typename Simd<Real>::F v) {
  constexpr int n = Simd<Real>::lanes;
  return combine_lanes<n / 2>(v, [](auto a, auto b) { return a > b ? a : b; }, std::make_index_sequence<n>{});
}

// Bit k of the result is the sign bit of lane k.
template <class I>
PAQ_INLINE uint32_t sign_mask(I v) {
#if PAQ_LANES == 16
  if constexpr (sizeof(v[0]) == 4) return _mm512_movepi32_mask((__m512i)v);
  return _mm512_movepi64_mask((__m512i)v);
#elif PAQ_LANES == 8
  if constexpr (sizeof(v[0]) == 4) return _mm256_movemask_ps((__m256)v);
  return _mm256_movemask_pd((__m256d)v);
#else
  uint32_t mask = 0;
  for (size_t k = 0; k < sizeof(I) / sizeof(v[0]); ++k) mask |= uint32_t(v[k] < 0) << k;
  return mask;
#endif
}

// Writes the chosen lanes one after the other; may write a whole vector. `expand` is the inverse, zero elsewhere.
template <class Scalar, class V>
PAQ_INLINE void compress(Scalar* to, V v, uint32_t mask) {
#if PAQ_LANES == 16
  if constexpr (sizeof(Scalar) == 4) {
    store(to, _mm512_maskz_compress_epi32(mask, (__m512i)v));
  } else {
    store(to, _mm512_maskz_compress_epi64(mask, (__m512i)v));
  }
#else
  constexpr int lanes = sizeof(V) / sizeof(Scalar);
  if (mask == (1u << lanes) - 1) return store(to, v);
  for (int k = 0, n = 0; k < lanes; ++k) {
    to[n] = v[k];
    n += (mask >> k) & 1;
  }
#endif
}

template <class V, class Scalar>
PAQ_INLINE V expand(const Scalar* from, uint32_t mask) {
#if PAQ_LANES == 16
  if constexpr (sizeof(Scalar) == 4) return (V)_mm512_maskz_expand_epi32(mask, load<__m512i>(from));
  return (V)_mm512_maskz_expand_epi64(mask, load<__m512i>(from));
#else
  constexpr int lanes = sizeof(V) / sizeof(Scalar);
  if (mask == (1u << lanes) - 1) return load<V>(from);
  V v = V{};
  for (int k = 0; k < lanes; ++k) {
    if ((mask >> k) & 1) v[k] = *from++;
  }
  return v;
#endif
}

// Stored values to arithmetic and back; 16-bit types round to nearest even.
PAQ_INLINE void load_values(const float* from, Simd<float>::F& v) { v = load<Simd<float>::F>(from); }
PAQ_INLINE void load_values(const double* from, Simd<double>::F& v) { v = load<Simd<double>::F>(from); }
PAQ_INLINE void load_values(const BFloat16* from, Simd<float>::F& v) {
  using Bits = uint16_t __attribute__((vector_size(PAQ_LANES * 2)));
  using Wide = uint32_t __attribute__((vector_size(PAQ_LANES * 4)));
  v = (Simd<float>::F)(__builtin_convertvector(load<Bits>(from), Wide) << 16);
}
PAQ_INLINE void load_values(const Half* from, Simd<float>::F& v) {
#if PAQ_LANES == 16
  v = (Simd<float>::F)_mm512_cvtph_ps(load<__m256i>(from));
#elif PAQ_LANES == 8
  v = (Simd<float>::F)_mm256_cvtph_ps(load<__m128i>(from));
#else
  for (int k = 0; k < PAQ_LANES; ++k) v[k] = static_cast<float>(from[k]);
#endif
}

PAQ_INLINE void store_values(float* to, Simd<float>::F v) { store(to, v); }
PAQ_INLINE void store_values(double* to, Simd<double>::F v) { store(to, v); }
PAQ_INLINE void store_values(BFloat16* to, Simd<float>::F v) {
  using Bits = uint16_t __attribute__((vector_size(PAQ_LANES * 2)));
  using Wide = uint32_t __attribute__((vector_size(PAQ_LANES * 4)));
  Wide bits = (Wide)v;
  Wide rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store(to, __builtin_convertvector(v == v ? rounded : Wide{} + 0x7fc0, Bits));
}
PAQ_INLINE void store_values(Half* to, Simd<float>::F v) {
#if PAQ_LANES == 16
  store(to, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif PAQ_LANES == 8
  store(to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int k = 0; k < PAQ_LANES; ++k) to[k] = static_cast<Half>(v[k]);
#endif
}

// e^x for x <= 0 (softmax): 2^n * e^r with |r| <= ln(2) / 2 (relative error 2e-8).
PAQ_INLINE Simd<float>::F exp_negative(Simd<float>::F x) {
  using F = Simd<float>::F;
  using I = Simd<float>::I;
  const F scaled = x * 1.44269504f - 0.5f;
  const I n = convert<I>(scaled < -126.0f ? F{} - 126.0f : scaled);  // towards zero = nearest of x / ln(2)
  const F r = (x - convert<F>(n) * 0.693359375f) - convert<F>(n) * -2.12194440e-4f;
  return x < -87.0f ? F{} : exp_series(r) * (F)((n + 127) << 23);
}
PAQ_INLINE Simd<double>::F exp_negative(Simd<double>::F x) {
  for (int k = 0; k < Simd<double>::lanes; ++k) x[k] = std::exp(x[k]);
  return x;
}

}  // namespace paq_detr::msda::PAQ_ISA
