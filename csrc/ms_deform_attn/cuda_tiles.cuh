// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0

#pragma once

#include "cuda_points.cuh"

namespace paq_detr::msda {

// Cuts the queries into the tiles of the blocks. Queries that are the tokens themselves go by squares of their level:
// neighbours sample the same pixels, and one head's share of those fits into the first-level cache.
template <class T>
void set_tiles(Arguments<T>& a, const int64_t* shapes, int groups) {
  a.encoder_order = a.queries == a.tokens;
  a.queries_per_block = a.encoder_order ? kTile * kTile : groups;
  a.tiles = 0;
  int start = 0;
  for (int l = 0; l < a.levels; ++l) {
    const int rows = static_cast<int>(shapes[2 * l]), columns = static_cast<int>(shapes[2 * l + 1]);
    const int across = (columns + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile;
    a.level[l] = {rows, columns, start, a.tiles, across};
    a.tiles += across * down;
    start += rows * columns;
  }
  if (!a.encoder_order) a.tiles = (a.queries + groups - 1) / groups;
}

}  // namespace paq_detr::msda
