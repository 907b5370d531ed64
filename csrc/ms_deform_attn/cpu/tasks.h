// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// How the work is cut and in which order memory is met: tasks, the walk through one, and the rows of values. T is the
// storage type of the values.
#pragma once

#include "taps.h"

namespace paq_detr::msda::PAQ_ISA {

// Some heads of one image, over all of its queries or a part of them.
struct Task {
  int64_t b, h_begin, h_end, q_begin, q_end;
};

// Calls f(first, last) on ranges of `count` tasks, in torch's threads.
template <class F>
void run_tasks(int64_t count, const F& f) {
  torch::stable::parallel_for(0, count, 1, f);
}

// With heads interleaved, the rows of one head meet in an eighth of the cache's sets. Copying them side by side pays
// where every token is read many times (encoder), not where most are never read (decoder).
inline bool dense_rows_pay(const Problem& p) { return p.queries * p.points_per_head() * 4 >= 8 * p.tokens; }

// One head a task where its rows are copied, else as many as leave a task for every thread. Queries are cut into parts
// only where there are not enough heads for all threads.
class Tasks {
 public:
  explicit Tasks(const Problem& p) : p(p) {
    const int64_t threads = static_cast<int64_t>(torch::stable::get_num_threads());
    groups_ = dense_rows_pay(p) ? p.heads : std::min(p.heads, (threads + p.batch - 1) / p.batch);
    const int64_t whole = p.batch * groups_, wanted = dense_rows_pay(p) ? 2 * threads : threads;
    parts_ = std::max<int64_t>(1, std::min((wanted + whole - 1) / whole, p.queries / 32));
  }
  bool whole() const { return parts_ == 1; }
  int64_t size() const { return p.batch * groups_ * parts_; }
  Task operator[](int64_t i) const {
    const int64_t group = i / parts_ % groups_, part = i % parts_;
    return {
        i / parts_ / groups_, p.heads * group / groups_, p.heads * (group + 1) / groups_, p.queries * part / parts_,
        p.queries * (part + 1) / parts_};
  }

 private:
  const Problem& p;
  int64_t groups_, parts_;
};

// Calls prepare(slot, q, h) and use(slot, q, h) for the heads of one query after the other, whose rows lie in the same
// pages. With ahead = 1 each is prepared before the last one is used: rows asked for then are there in time. Slots are
// 0 and 1 in turn.
template <class Prepare, class Use>
PAQ_INLINE void for_each_head(const Task& task, int64_t ahead, const Prepare& prepare, const Use& use) {
  const int64_t heads = task.h_end - task.h_begin, count = heads * (task.q_end - task.q_begin);
  const auto call = [&](const auto& f, int64_t i) __attribute__((always_inline)) {
    f(i % 2, task.q_begin + i / heads, task.h_begin + i % heads);
  };
  for (int64_t i = 0; i < count + ahead; ++i) {
    if (i < count) call(prepare, i);
    if (i >= ahead) call(use, i - ahead);
  }
}

template <int write, int lines, class T, class Real>
PAQ_INLINE void prefetch_lines(const T* rows, int64_t token_stride, Taps<Real>& taps) {
  const auto* token = taps.tokens();
#pragma GCC unroll 4
  for (int i = 0; i < taps.size; ++i) {
    const T* row = rows + token[i] * token_stride;
    for (int k = 0; k < lines; ++k) __builtin_prefetch(row + k * 64 / sizeof(T), write);
  }
}

template <int write, class T, class Real>
PAQ_INLINE void prefetch_taps(const T* rows, int64_t token_stride, int64_t channels, Taps<Real>& taps) {
  constexpr int64_t line = 64 / sizeof(T);
  int64_t c = 0;
  for (; c + line < channels; c += 2 * line) prefetch_lines<write, 2>(rows + c, token_stride, taps);
  if (c < channels) prefetch_lines<write, 1>(rows + c, token_stride, taps);
}

template <class T>
class HeadRows {
 public:
  explicit HeadRows(const Problem& p) : dense(dense_rows_pay(p)), p(p) {}

  void set(const Task& task) {
    if (task.b == b_ && task.h_begin == h_) return;
    b_ = task.b, h_ = task.h_begin;
    data_ = p.value.template const_data_ptr<T>() + b_ * p.value.stride(0) + h_ * p.channels;
    stride = p.value.stride(1);
    if (!dense) return;
    if (!copy_) copy_ = new_lines<T>(p.tokens * p.channels);
    for (int64_t t = 0; t < p.tokens; ++t) {
      const T* row = data_ + t * stride;
      __builtin_prefetch(row + 32 * stride);  // the hardware does not foresee such steps
      std::copy(row, row + p.channels, copy_.get() + t * p.channels);
    }
    data_ = copy_.get(), stride = p.channels;
  }

  const T* of(int64_t h) const { return data_ + (h - h_) * p.channels; }

  const bool dense;
  int64_t stride = 0;

 private:
  const Problem& p;
  const T* data_ = nullptr;
  Lines<T> copy_;
  int64_t b_ = -1, h_ = -1;
};

}  // namespace paq_detr::msda::PAQ_ISA
