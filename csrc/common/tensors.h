// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>

namespace paq_detr {

inline void check_devices(const torch::stable::Tensor& first, std::initializer_list<torch::stable::Tensor> others) {
  for (const auto& other : others) {
    STD_TORCH_CHECK(other.device() == first.device(), "the tensors are on different devices");
  }
}

// Calls f with a zero of the tensor's type, float or double.
template <typename F>
void dispatch_floating(const torch::stable::Tensor& tensor, const F& f) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return f(0.0f);
    case ScalarType::Double: return f(0.0);
    default: STD_TORCH_CHECK(false, "the native kernels take float32 and float64, got ", tensor.scalar_type());
  }
}

}  // namespace paq_detr
