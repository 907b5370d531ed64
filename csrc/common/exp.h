// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The polynomial of the exponential functions: of numbers in scores.h, of vectors in ms_deform_attn/cpu/simd.h, which
// differ in how they come to r.
#pragma once

#include "host_device.h"

namespace paq_detr {

// e^r for |r| <= ln(2) / 2 in float32, the Taylor series of degree 7: an error below half an ulp. F is float or a
// vector of floats.
template <class F>
PAQ_HD F exp_series(F r) {
  F e = F{} + 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  return e * r + 1.0f;
}

}  // namespace paq_detr
