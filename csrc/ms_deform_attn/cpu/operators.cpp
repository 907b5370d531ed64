// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// Multi-scale deformable attention on CPU: one copy of the kernel per instruction set, chosen when it is called.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "operators.h"

namespace paq_detr::msda {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

namespace portable {
#define PAQ_LANES 4
#include "cpu_isa.h"
#undef PAQ_LANES
}  // namespace portable

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define PAQ_X86_CLONES
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define PAQ_LANES 8
#include "cpu_isa.h"
#undef PAQ_LANES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c")
namespace avx512 {
#define PAQ_LANES 16
#include "cpu_isa.h"
#undef PAQ_LANES
}  // namespace avx512
#pragma GCC pop_options
#endif

namespace {

enum class Isa { portable, avx2, avx512 };

// PAQ_DETR_CPU_ISA=portable|avx2 holds the choice down, for tests and for comparisons.
Isa isa() {
  static const Isa best = [] {
#ifdef PAQ_X86_CLONES
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
  dispatch_storage(p.value, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    switch (isa()) {
#ifdef PAQ_X86_CLONES
      case Isa::avx512: return avx512::forward<T>(p, out);
      case Isa::avx2: return avx2::forward<T>(p, out);
#endif
      default: return portable::forward<T>(p, out);
    }
  });
  return out;
}

// Always deterministic.
Gradients backward_cpu(const Problem& p, const Tensor& grad, bool) {
  Gradients g = empty_gradients(p, grad);
  if (g.done) return g;
  const Tensor grad_out = torch::stable::contiguous(grad);
  dispatch_storage(p.value, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    switch (isa()) {
#ifdef PAQ_X86_CLONES
      case Isa::avx512: return avx512::backward<T>(p, grad_out, g);
      case Isa::avx2: return avx2::backward<T>(p, grad_out, g);
#endif
      default: return portable::backward<T>(p, grad_out, g);
    }
  });
  return g;
}

using CpuOperators = Operators<&forward_cpu, &backward_cpu>;

}  // namespace
}  // namespace paq_detr::msda

STABLE_TORCH_LIBRARY_IMPL(paq_detr, CPU, m) { paq_detr::msda::CpuOperators::register_all(m); }
