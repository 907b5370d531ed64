// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
#include "kernels.h"

#ifdef PAQ_X86_KERNELS
#define PAQ_ISA avx512
#define PAQ_LANES 16
#include "isa.h"

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c")
#include "kernel.h"
#pragma GCC pop_options
#endif
