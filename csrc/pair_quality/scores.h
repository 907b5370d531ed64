// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Class score, matching cost and positive count of (object, query) pairs, shared by the CPU and the CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "../common/boxes.h"
#include "../common/exp.h"
#include "../common/host_device.h"

namespace paq_detr::pairs {

constexpr double kNonFiniteCost = 1e6;
constexpr double kNonFiniteQuality = -1e6;
constexpr double kCountSlack = 1e-6;

// exp(x) for x <= 0. On the host the fp32 form has neither branch nor call, so that a loop over it vectorises:
// x = n ln 2 + r with |r| <= ln 2 / 2, exp(r) and n added to the exponent. Below -87 it stays at exp(-87),
// about 1.6e-38.
template <typename T>
PAQ_HD T exp_of_negative(T x) {
#if !defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) {
    const float bounded = x < -87.0f ? -87.0f : x;
    const float shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
    const float n = shifted - 12582912.0f;
    const float r = (bounded - n * 0.693145751953125f) - n * 1.42860677e-6f;  // ln 2 in two parts
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = static_cast<int32_t>((static_cast<uint32_t>(bits) + 127u) << 23);
    float scale;
    std::memcpy(&scale, &bits, sizeof(scale));
    return exp_series(r) * scale;
  }
#endif
  return exp(x);
}

// log(1 + e) for 0 <= e <= 1 as 2 artanh(z), z = e / (2 + e) <= 1/3: seven terms leave a relative error of 1.4e-8.
template <typename T>
PAQ_HD T log_one_plus(T e) {
#if !defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, float>) {
    const float z = e / (2.0f + e), zz = z * z;
    float s = 1.0f / 13;
    s = s * zz + 1.0f / 11;
    s = s * zz + 1.0f / 9;
    s = s * zz + 1.0f / 7;
    s = s * zz + 1.0f / 5;
    s = s * zz + 1.0f / 3;
    s = s * zz + 1.0f;
    return 2.0f * z * s;
  }
#endif
  return log1p(e);
}

template <typename T>
PAQ_HD T sigmoid(T logit) {
  const T e = exp_of_negative(logit < T(0) ? logit : -logit), r = T(1) / (T(1) + e);
  return logit < T(0) ? e * r : r;
}

template <typename T>
PAQ_HD T power(T base, T exponent) {
  return exponent == T(2) ? base * base : pow(base, exponent);
}

// Focal loss of "positive" minus focal loss of "negative": alpha (1-p)^g softplus(-x) - (1-alpha) p^g softplus(x).
template <typename T>
PAQ_HD T focal_difference(T logit, T alpha, T gamma) {
  const T magnitude = logit < T(0) ? -logit : logit;
  const T e = exp_of_negative(-magnitude), r = T(1) / (T(1) + e);
  const T p = logit < T(0) ? e * r : r, q = logit < T(0) ? r : e * r;
  const T log_term = log_one_plus(e);
  const T softplus = not_negative(logit) + log_term, softplus_of_minus = not_negative(-logit) + log_term;
  return alpha * power(q, gamma) * softplus_of_minus - (T(1) - alpha) * power(p, gamma) * softplus;
}

template <typename T>
PAQ_HD T finite_quality(T quality) {
  return std::abs(quality) < T(-kNonFiniteQuality) ? quality : T(kNonFiniteQuality);
}

template <typename T>
PAQ_HD T finite_cost(T cost) {
  return std::abs(cost) < T(kNonFiniteCost) ? cost : T(kNonFiniteCost);
}

// PaQ-DETR Eq. 7: the sum of the best qualities, rounded up, within [min_count, queries].
template <typename T>
PAQ_HD int64_t positive_count(T quality_sum, int64_t min_count, int64_t queries) {
  const int64_t count = static_cast<int64_t>(std::ceil(quality_sum - T(kCountSlack)));
  const int64_t at_least = count > min_count ? count : min_count;
  return at_least < queries ? at_least : queries;
}

}  // namespace paq_detr::pairs
