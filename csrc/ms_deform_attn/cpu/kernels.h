// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The kernel of each instruction set; the one of the machine is chosen when it is called.
#pragma once

#include "../problem.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PAQ_X86_KERNELS
#endif

// forward fills `out` (B, Q, H * D); backward fills the gradients, and makes the one of the values.
#define PAQ_DECLARE_KERNEL(isa)                                                  \
  namespace isa {                                                                \
  void forward(const Problem& p, Tensor& out);                                   \
  void backward(const Problem& p, const Tensor& grad_out, Gradients& gradients); \
  }

namespace paq_detr::msda {

PAQ_DECLARE_KERNEL(portable)
#ifdef PAQ_X86_KERNELS
PAQ_DECLARE_KERNEL(avx2)
PAQ_DECLARE_KERNEL(avx512)
#endif

}  // namespace paq_detr::msda

#undef PAQ_DECLARE_KERNEL
