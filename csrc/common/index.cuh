// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>

namespace paq_detr {

// An index outside its range: says which and ends the kernel with an error, as torch's own indexing does.
static __device__ __noinline__ void index_error(const char* name, int64_t value, int64_t size) {
  printf(
      "%s has the value %lld, outside [0, %lld)\n", name, static_cast<long long>(value), static_cast<long long>(size));
  __trap();
}

__device__ __forceinline__ void check_index(const char* name, int64_t value, int64_t size) {
  if (value < 0 || value >= size) {
    index_error(name, value, size);
  }
}

}  // namespace paq_detr
