// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// PAQ_INLINE before a function has it inlined wherever it is called. PAQ_HD does the same and, where nvcc compiles,
// makes it a function of host and device.
#pragma once

#if defined(__CUDACC__)
#define PAQ_INLINE __forceinline__
#define PAQ_HD __host__ __device__ __forceinline__
#else
#define PAQ_INLINE inline __attribute__((always_inline))
#define PAQ_HD PAQ_INLINE
#endif
