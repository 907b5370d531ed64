// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstdio>

namespace paq_detr {

// Makes the tensor's device current for the scope and names the stream torch works on there.
class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  static unsigned blocks(int64_t count) {
    STD_TORCH_CHECK(count <= 2147483647, "a grid of ", count, " blocks is too large");
    return static_cast<unsigned>(count);
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// An index outside its range: says which and ends the kernel with an error, as torch's own indexing does.
static __device__ __noinline__ void index_error(const char* name, int64_t value, int64_t size) {
  printf("%s has the value %lld, outside [0, %lld)\n", name, static_cast<long long>(value), static_cast<long long>(size));
  __trap();
}

__device__ __forceinline__ void check_index(const char* name, int64_t value, int64_t size) {
  if (value < 0 || value >= size) {
    index_error(name, value, size);
  }
}

}  // namespace paq_detr
