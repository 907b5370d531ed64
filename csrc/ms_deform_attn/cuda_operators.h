// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include "problem.h"

namespace paq_detr::msda {

Tensor forward_cuda(const Problem& p);
Gradients backward_cuda(const Problem& p, const Tensor& grad_out, bool deterministic);

}  // namespace paq_detr::msda
