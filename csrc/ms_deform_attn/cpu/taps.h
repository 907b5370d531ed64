// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The points of one (query, head) as a list of taps.
//
// Points are the lanes of vectors. Their corners become taps (token, weight), without those that do not count, so that
// the loops over channels meet neither bounds nor padding.
#pragma once

#include "simd.h"

namespace paq_detr::msda::PAQ_ISA {

template <class Real>
class Taps {
 public:
  using F = typename Simd<Real>::F;
  using I = typename Simd<Real>::I;
  using Int = std::conditional_t<sizeof(Real) == 4, int32_t, int64_t>;
  static constexpr int lanes = Simd<Real>::lanes;

  explicit Taps(const Problem& problem)
      : p(problem),
        count_(static_cast<int>(p.points_per_head())),
        blocks((count_ + lanes - 1) / lanes),
        reals_(new_lines<Real>(blocks * lanes * kRealRows + lanes)),
        ints_(new_lines<Int>(blocks * lanes * kIntRows + lanes)) {
    std::fill(reals_.get(), reals_.get() + blocks * lanes * kRealRows + lanes, Real(0));
    std::fill(ints_.get(), ints_.get() + blocks * lanes * kIntRows + lanes, Int(0));
    for (int i = 0; i < blocks * lanes; ++i) {
      // The lanes after the last point have width -1, which no coordinate is inside of.
      const bool real = i < count_;
      const int64_t level = real ? i / p.points : 0;
      real_row(kWidth)[i] = real ? static_cast<Real>(p.shapes[2 * level + 1]) : Real(-1);
      real_row(kHeight)[i] = real ? static_cast<Real>(p.shapes[2 * level]) : Real(-1);
      int_row(kColumns)[i] = static_cast<Int>(p.shapes[2 * level + 1]);
      int_row(kStart)[i] = static_cast<Int>(p.level_start(level));
      int_row(kLevel)[i] = real ? static_cast<Int>(level) : Int(-1);
    }
  }

  // Per image: the scale of its references on each level, and which corners its padding takes away.
  void set_image(int64_t b) {
    if (b == image_) return;
    image_ = b;
    const Real* ratios = p.valid_ratios ? p.valid_ratios->const_data_ptr<Real>() + b * p.levels * 2 : nullptr;
    for (int i = 0; i < count_; ++i) {
      const int64_t level = i / p.points;
      real_row(kScaleX)[i] = real_row(kWidth)[i] * (ratios ? ratios[2 * level] : Real(1));
      real_row(kScaleY)[i] = real_row(kHeight)[i] * (ratios ? ratios[2 * level + 1] : Real(1));
      real_row(kAnchorX)[i] = real_row(kAnchorY)[i] = Real(-0.5);
      real_row(kStepX)[i] = p.form == Form::locations ? real_row(kScaleX)[i] : Real(1);
      real_row(kStepY)[i] = p.form == Form::locations ? real_row(kScaleY)[i] : Real(1);
    }
    unpadded_.clear();
    if (p.padding_mask) set_padding(p.padding_mask->const_data_ptr<bool>() + b * p.tokens);
  }

  // Per query: where its offsets count from, and their unit.
  void set_query(const Real* reference) {
    if (p.form == Form::locations) return;
    for (int j = 0; j < blocks * lanes; j += lanes) {
      const F scale_x = real(kScaleX, j), scale_y = real(kScaleY, j);
      store(real_row(kAnchorX) + j, reference[0] * scale_x - Real(0.5));
      store(real_row(kAnchorY) + j, reference[1] * scale_y - Real(0.5));
      if (p.form == Form::boxes) {
        store(real_row(kStepX) + j, reference[2] * scale_x * box_unit());
        store(real_row(kStepY) + j, reference[3] * scale_y * box_unit());
      }
    }
  }

  // Per head: the tap list, of one level only if `level` is not negative.
  void set_head(const Real* xy, const Real* scores, int level = -1) {
    if (count_ % lanes) {  // whole vectors of the last points would be read from behind the tensor
      std::copy(xy, xy + 2 * count_, real_row(kPaddedXY));
      std::copy(scores, scores + count_, real_row(kWeight));
      std::fill(real_row(kWeight) + count_, real_row(kWeight) + blocks * lanes, Real(-INFINITY));
      xy = real_row(kPaddedXY), scores = real_row(kWeight);
    }
    set_weights(scores);
    size = 0;
    for (int j = 0; j < blocks * lanes; j += lanes) {
      const F first = load<F>(xy + 2 * j), second = load<F>(xy + 2 * j + lanes);
      const F x = even_lanes(first, second, Lanes{}), y = odd_lanes(first, second, Lanes{});
      const I columns = load<I>(int_row(kColumns) + j);
      auto f = footprint<F, I>(
          real(kAnchorX, j), x * real(kStepX, j), real(kAnchorY, j), y * real(kStepY, j), real(kWidth, j),
          real(kHeight, j), columns, load<I>(int_row(kStart) + j));
      if (!unpadded_.empty()) f.corners &= unpadded_corners(f.token, j);
      if (level >= 0) f.corners &= load<I>(int_row(kLevel) + j) == static_cast<Int>(level);
      store(int_row(kCorners) + j, f.corners);
      store(real_row(kFx) + j, f.fx);
      store(real_row(kFy) + j, f.fy);
      const F attention = real(kWeight, j);
      for (int k = 0; k < 4; ++k) {
        const uint32_t chosen = sign_mask(f.corners << static_cast<Int>(sizeof(Int) * 8 - 1 - k));
        compress(real_row(kTapWeight) + size, attention * corner_weight(f, k), chosen);
        compress(int_row(kTapToken) + size, f.token + corner_step<I>(k, columns), chosen);
        chosen_[static_cast<size_t>(4 * j / lanes + k)] = chosen;
        size += __builtin_popcount(chosen);
      }
    }
  }

  // From the dot product of each tap's values with grad_out to the gradients of scores, xy and reference.
  void gradients(const Real* dots, const Real* xy, Real* grad_xy, Real* grad_scores, Real* grad_reference) {
    // Whole vectors would be written behind the last head's points.
    const bool padded = count_ % lanes != 0;
    Real* const pairs = padded ? real_row(kPaddedGrad) : grad_xy;
    Real* const singles = padded ? real_row(kPaddedGrad) + 2 * blocks * lanes : grad_scores;
    F dot_sum = F{}, ref_x = F{}, ref_y = F{}, ref_w = F{}, ref_h = F{};
    for (int j = 0; j < blocks * lanes; j += lanes) {
      F d[4];
      for (int k = 0; k < 4; ++k) {
        const uint32_t chosen = chosen_[static_cast<size_t>(4 * j / lanes + k)];
        d[k] = expand<F>(dots, chosen);
        dots += __builtin_popcount(chosen);
      }
      const Footprint<F, I> f = {I{}, I{}, real(kFx, j), real(kFy, j)};
      const Sample<F> s = blend(f, d[0], d[1], d[2], d[3]);
      const F attention = real(kWeight, j);
      // A point without corners has zero gradient, also where its step or offset is not finite.
      const I counts = load<I>(int_row(kCorners) + j) != 0;
      const F gx = counts ? attention * s.dx : F{}, gy = counts ? attention * s.dy : F{};
      const F grad_x = counts ? gx * real(kStepX, j) : F{}, grad_y = counts ? gy * real(kStepY, j) : F{};
      store(pairs + 2 * j, interleave<0>(grad_x, grad_y, Lanes{}));
      store(pairs + 2 * j + lanes, interleave<lanes / 2>(grad_x, grad_y, Lanes{}));
      store(singles + j, s.value);
      dot_sum += attention * s.value;
      if (p.form == Form::locations) continue;
      const F scaled_x = counts ? gx * real(kScaleX, j) : F{}, scaled_y = counts ? gy * real(kScaleY, j) : F{};
      ref_x += scaled_x, ref_y += scaled_y;
      if (p.form != Form::boxes) continue;
      if (padded) xy = real_row(kPaddedXY);
      const F first = load<F>(xy + 2 * j), second = load<F>(xy + 2 * j + lanes);
      ref_w += counts ? scaled_x * even_lanes(first, second, Lanes{}) : F{};
      ref_h += counts ? scaled_y * odd_lanes(first, second, Lanes{}) : F{};
    }
    if (p.form != Form::locations) {  // the softmax
      const F mean = sum_lanes<Real>(dot_sum);
      for (int j = 0; j < blocks * lanes; j += lanes) {
        store(singles + j, real(kWeight, j) * (load<F>(singles + j) - mean));
      }
    }
    if (padded) {
      std::copy(pairs, pairs + 2 * count_, grad_xy);
      std::copy(singles, singles + count_, grad_scores);
    }
    if (p.form == Form::locations) return;
    grad_reference[0] = sum_lanes<Real>(ref_x)[0];
    grad_reference[1] = sum_lanes<Real>(ref_y)[0];
    if (p.form != Form::boxes) return;
    grad_reference[2] = sum_lanes<Real>(ref_w)[0] * box_unit();
    grad_reference[3] = sum_lanes<Real>(ref_h)[0] * box_unit();
  }

  const Int* tokens() { return int_row(kTapToken); }
  const Real* weights() { return real_row(kTapWeight); }
  int size = 0;  // number of taps

 private:
  using Lanes = std::make_index_sequence<Simd<Real>::lanes>;
  // Rows of scratch, each as long as the padded number of points (pairs and taps take two and four).
  // clang-format off
  enum RealRow {
    kWidth, kHeight, kScaleX, kScaleY, kAnchorX, kAnchorY, kStepX, kStepY, kFx, kFy, kWeight,
    kPaddedXY, kPaddedGrad = kPaddedXY + 2, kTapWeight = kPaddedGrad + 3, kRealRows = kTapWeight + 4
  };
  // clang-format on
  enum IntRow { kColumns, kStart, kLevel, kTableStart, kCorners, kTapToken, kIntRows = kTapToken + 4 };

  Real* real_row(int row) { return reals_.get() + row * blocks * lanes; }
  Int* int_row(int row) { return ints_.get() + row * blocks * lanes; }
  F real(int row, int j) { return load<F>(real_row(row) + j); }
  Real box_unit() const { return Real(0.5) / static_cast<Real>(p.points); }

  void set_weights(const Real* scores) {
    Real* weight = real_row(kWeight);
    if (p.form == Form::locations) {
      for (int j = 0; j < blocks * lanes; j += lanes) store(weight + j, load<F>(scores + j));
      return;
    }
    F best = F{} - Real(INFINITY), total = F{};
    for (int j = 0; j < blocks * lanes; j += lanes) {
      const F score = load<F>(scores + j);
      best = score > best ? score : best;
    }
    best = max_lanes<Real>(best);
    for (int j = 0; j < blocks * lanes; j += lanes) {
      const F e = exp_negative(load<F>(scores + j) - best);
      store(weight + j, e);
      total += e;
    }
    const F scale = Real(1) / sum_lanes<Real>(total);
    for (int j = 0; j < blocks * lanes; j += lanes) store(weight + j, load<F>(weight + j) * scale);
  }

  // One byte per possible corner 0 (its row and column start at -1): bit k is set if corner k is no padding.
  void set_padding(const bool* mask) {
    if (!std::any_of(mask, mask + p.tokens, [](bool padding) { return padding; })) return;
    int64_t start = 0;
    for (int64_t l = 0; l < p.levels; ++l) {
      const int64_t columns = p.shapes[2 * l + 1], size = p.shapes[2 * l] * columns;
      const int64_t table = static_cast<int64_t>(unpadded_.size()) + columns + 1;
      for (int64_t t = -columns - 1; t < size; ++t) {
        uint8_t bits = 0;
        for (int k = 0; k < 4; ++k) {
          const int64_t corner = t + corner_step<int64_t>(k, columns);
          bits |= static_cast<uint8_t>((corner >= 0 && corner < size && !mask[start + corner]) << k);
        }
        unpadded_.push_back(bits);
      }
      for (int64_t i = l * p.points; i < (l + 1) * p.points; ++i) {
        int_row(kTableStart)[i] = static_cast<Int>(table - start);
      }
      start += size;
    }
  }

  I unpadded_corners(I token, int j) {
    const I index = token + load<I>(int_row(kTableStart) + j);
    I bits = I{};
    for (int k = 0; k < lanes && j + k < count_; ++k) bits[k] = unpadded_[static_cast<size_t>(index[k])];
    return bits;
  }

  const Problem& p;
  const int count_, blocks;
  int64_t image_ = -1;
  Lines<Real> reals_;
  Lines<Int> ints_;
  std::vector<uint32_t> chosen_ = std::vector<uint32_t>(static_cast<size_t>(4 * blocks));
  std::vector<uint8_t> unpadded_;
};

}  // namespace paq_detr::msda::PAQ_ISA
