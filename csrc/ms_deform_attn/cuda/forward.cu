// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0

#include "forward.cuh"
#include "launch.cuh"

namespace paq_detr::msda {

Tensor forward_cuda(const Problem& p) {
  Tensor result = torch::stable::new_empty(p.value, {p.batch, p.queries, p.heads * p.channels});
  if (result.numel() == 0) return result;
  const Launch launch(p.value);
  dispatch_storage(p.value, [&](auto* storage) {
    using T = std::remove_pointer_t<decltype(storage)>;
    T* out = result.template mutable_data_ptr<T>();
    dispatch_pack<T>(p, out, [&](auto pack) {
      constexpr int vec = decltype(pack)::value, lanes = kLanesOf<T, vec>;
      const Arguments<T> a = make_arguments<T>(p, kThreads / lanes);
      const unsigned blocks = Launch::blocks(p.batch * p.heads * a.tiles);
      forward_kernel<T, vec, lanes><<<blocks, kThreads, 0, launch.stream()>>>(a, out);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return result;
}

}  // namespace paq_detr::msda
