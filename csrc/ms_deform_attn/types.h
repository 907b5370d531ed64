// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// What the CPU and the CUDA kernels of multi-scale deformable attention agree on, without torch.
#pragma once

#include <type_traits>

namespace paq_detr::msda {

// The sum over points is the same in all forms, and every location is  pixel = anchor + xy * step  with
//   locations: xy in [0, 1],  anchor = -0.5,                   step = size
//   points:    xy in pixels,  anchor = reference * scale - 0.5, step = 1
//   boxes:     xy in boxes,   anchor = centre * scale - 0.5,    step = size of the box * scale * 0.5 / P
// where size = (W_l, H_l) and scale = size * valid ratio of the image.
enum class Form { locations, points, boxes };

// The type of all arithmetic on values of storage type T.
template <class T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

}  // namespace paq_detr::msda
