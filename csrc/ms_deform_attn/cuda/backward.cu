// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0

#include <algorithm>
#include <optional>

#include "../operators.h"
#include "backward.cuh"
#include "launch.cuh"

namespace paq_detr::msda {
namespace {

// Integer sums for grad_value, their unit, and what the unit is made of.
struct DeterministicSums {
  Tensor units, largest, scale;

  template <class T>
  DeterministicSums(const Problem& p, const Tensor& grad_out, const T* grad, cudaStream_t stream)
      : units(torch::stable::new_zeros(p.value, {p.batch, p.tokens, p.heads, p.channels}, ScalarType::Long)),
        largest(torch::stable::new_zeros(p.value, {2}, ScalarType::Long)),
        scale(torch::stable::new_empty(p.value, {1}, ScalarType::Double)) {
    auto* slots = reinterpret_cast<unsigned long long*>(largest.mutable_data_ptr<int64_t>());
    find_largest(grad, grad_out.numel(), false, slots, stream);
    const bool softmax = p.form != Form::locations;
    if (!softmax) {
      const Tensor weights = torch::stable::contiguous(p.scores);
      find_largest(weights.template const_data_ptr<RealOf<T>>(), weights.numel(), true, slots + 1, stream);
    }
    const double terms = static_cast<double>(p.queries) * static_cast<double>(p.points_per_head());
    scale_kernel<<<1, 1, 0, stream>>>(slots, terms, softmax, scale.mutable_data_ptr<double>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <class T>
  static void find_largest(const T* x, int64_t count, bool only_finite, unsigned long long* slot, cudaStream_t stream) {
    const auto blocks = static_cast<unsigned>(std::min<int64_t>((count + 255) / 256, 1024));
    largest_kernel<<<blocks, 256, 0, stream>>>(x, count, only_finite, slot);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

  template <class T>
  Tensor finish(const Problem& p, cudaStream_t stream) {
    Tensor result = torch::stable::new_empty(p.value, {p.batch, p.tokens, p.heads, p.channels});
    const unsigned blocks = Launch::blocks((result.numel() + 255) / 256);
    finish_kernel<<<blocks, 256, 0, stream>>>(
        pointer(), scale.const_data_ptr<double>(), result.numel(), result.template mutable_data_ptr<T>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return result;
  }

  long long* pointer() { return reinterpret_cast<long long*>(units.mutable_data_ptr<int64_t>()); }
};

template <class T>
void run(const Problem& p, const Tensor& grad_out, bool deterministic, Gradients& g) {
  using Real = RealOf<T>;
  const Launch launch(p.value);
  const T* grad = grad_out.template const_data_ptr<T>();
  const PointGradients<T> grads{
      g.xy.template mutable_data_ptr<Real>(), g.scores.template mutable_data_ptr<Real>(),
      g.reference.template mutable_data_ptr<Real>()};
  std::optional<DeterministicSums> sums;
  if (deterministic) {
    sums.emplace(p, grad_out, grad, launch.stream());
  } else {
    g.value = torch::stable::new_zeros(p.value, {p.batch, p.tokens, p.heads, p.channels}, p.xy.scalar_type());
  }
  const GradSums<Real> to{
      deterministic ? nullptr : g.value.template mutable_data_ptr<Real>(), deterministic ? sums->pointer() : nullptr,
      deterministic ? sums->scale.template mutable_data_ptr<double>() : nullptr};
  dispatch_pack<T>(p, grad, [&](auto pack) {
    constexpr int vec = decltype(pack)::value, lanes = kLanesOf<T, vec>;
    const Arguments<T> a = make_arguments<T>(p, kThreads / lanes);
    const unsigned blocks = Launch::blocks(p.batch * p.heads * a.tiles);
    const auto go = [&](auto* kernel) { kernel<<<blocks, kThreads, 0, launch.stream()>>>(a, grad, to, grads); };
    deterministic ? go(&backward_kernel<T, vec, lanes, true>) : go(&backward_kernel<T, vec, lanes, false>);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  if (deterministic) g.value = sums->template finish<T>(p, launch.stream());
}

Gradients backward_cuda(const Problem& p, const Tensor& grad, bool deterministic) {
  Gradients g = empty_gradients(p, grad);
  if (g.done) return g;
  const Tensor grad_out = torch::stable::contiguous(grad);
  dispatch_storage(
      p.value, [&](auto* storage) { run<std::remove_pointer_t<decltype(storage)>>(p, grad_out, deterministic, g); });
  return g;
}

using CudaOperators = Operators<&forward_cuda, &backward_cuda>;

}  // namespace
}  // namespace paq_detr::msda

STABLE_TORCH_LIBRARY_IMPL(paq_detr, CUDA, m) { paq_detr::msda::CudaOperators::register_all(m); }
