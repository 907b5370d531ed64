// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The whole CPU kernel for PAQ_LANES floats in a vector; included once per instruction set.

#include "cpu_simd.h"

#include "geometry.h"

#include "cpu_taps.h"

#include "cpu_tasks.h"

#include "cpu_kernel.h"

#undef PAQ_HD
