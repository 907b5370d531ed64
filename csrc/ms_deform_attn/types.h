// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0

#pragma once

namespace paq_detr::msda {

// The sum over points is the same in all forms, and every location is  pixel = anchor + xy * step  with
//   locations: xy in [0, 1],  anchor = -0.5,                   step = size
//   points:    xy in pixels,  anchor = reference * scale - 0.5, step = 1
//   boxes:     xy in boxes,   anchor = centre * scale - 0.5,    step = size of the box * scale * 0.5 / P
// where size = (W_l, H_l) and scale = size * valid ratio of the image.
enum class Form { locations, points, boxes };

}  // namespace paq_detr::msda
