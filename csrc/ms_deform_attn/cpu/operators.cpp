// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Multi-scale deformable attention on CPU: the operators, which choose the instruction set.

#include <cstdlib>
#include <string_view>

#include "../operators.h"
#include "kernels.h"

namespace paq_detr::msda {
namespace {

enum class Isa { portable, avx2, avx512 };

// PAQ_DETR_CPU_ISA=portable|avx2 holds the choice down, for tests and for comparisons.
Isa isa() {
  static const Isa best = [] {
#ifdef PAQ_X86_KERNELS
    const char* limit = std::getenv("PAQ_DETR_CPU_ISA");
    const std::string_view name = limit ? limit : "";
    if (name == "portable") return Isa::portable;
    if (name != "avx2" && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw")) {
      return Isa::avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      return Isa::avx2;
    }
#endif
    return Isa::portable;
  }();
  return best;
}

Tensor forward_cpu(const Problem& p) {
  Tensor out = torch::stable::new_empty(p.value, {p.batch, p.queries, p.heads * p.channels});
  if (out.numel() == 0) return out;
  switch (isa()) {
#ifdef PAQ_X86_KERNELS
    case Isa::avx512: avx512::forward(p, out); break;
    case Isa::avx2: avx2::forward(p, out); break;
#endif
    default: portable::forward(p, out);
  }
  return out;
}

// Always deterministic.
Gradients backward_cpu(const Problem& p, const Tensor& grad, bool) {
  Gradients g = empty_gradients(p, grad);
  if (g.done) return g;
  const Tensor grad_out = torch::stable::contiguous(grad);
  switch (isa()) {
#ifdef PAQ_X86_KERNELS
    case Isa::avx512: avx512::backward(p, grad_out, g); break;
    case Isa::avx2: avx2::backward(p, grad_out, g); break;
#endif
    default: portable::backward(p, grad_out, g);
  }
  return g;
}

using CpuOperators = Operators<&forward_cpu, &backward_cpu>;

}  // namespace
}  // namespace paq_detr::msda

STABLE_TORCH_LIBRARY_IMPL(paq_detr, CPU, m) { paq_detr::msda::CpuOperators::register_all(m); }
