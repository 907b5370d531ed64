// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The instruction set that a kernel_*.cpp compiles for, and all that the kernel takes from elsewhere. A kernel_*.cpp
// names PAQ_ISA, a namespace, and PAQ_LANES, the number of floats in a vector; includes this file; opens the target
// region; and includes kernel.h. The headers of others stand here and nowhere else, so that none of their functions is
// compiled for instructions which a machine that calls them may lack.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "../problem.h"

#ifndef PAQ_ISA
#define PAQ_ISA portable
#define PAQ_LANES 4
#endif
