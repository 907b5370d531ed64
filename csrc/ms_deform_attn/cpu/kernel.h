// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The loops over images, queries, heads and channels on one instruction set. T is the storage type of the values, Real
// the type of all arithmetic.
#pragma once

#include "kernels.h"
#include "tasks.h"

namespace paq_detr::msda::PAQ_ISA {

template <class Real>
struct Inputs {  // pointers and strides, read once
  const Real *xy, *scores, *reference;
  int64_t xy_image, xy_query, scores_image, scores_query, reference_image, reference_query;

  explicit Inputs(const Problem& p)
      : xy(p.xy.const_data_ptr<Real>()),
        scores(p.scores.const_data_ptr<Real>()),
        reference(p.reference ? p.reference->const_data_ptr<Real>() : nullptr),
        xy_image(p.xy.stride(0)),
        xy_query(p.xy.stride(1)),
        scores_image(p.scores.stride(0)),
        scores_query(p.scores.stride(1)),
        reference_image(reference ? p.reference->stride(0) : 0),
        reference_query(reference ? p.reference->stride(1) : 0) {}

  const Real* xy_of(int64_t b, int64_t q) const { return xy + b * xy_image + q * xy_query; }
  const Real* scores_of(int64_t b, int64_t q) const { return scores + b * scores_image + q * scores_query; }
  const Real* reference_of(int64_t b, int64_t q) const { return reference + b * reference_image + q * reference_query; }
};

// Calls f(std::integral_constant<int, vectors>, channel) over whole vectors of channels, four or two vectors at a time
// as the registers allow, and returns the first channel that is left.
template <class Real, class F>
PAQ_INLINE int64_t for_channel_vectors(int64_t channels, const F& f) {
  constexpr int lanes = Simd<Real>::lanes;
  int64_t c = 0;
  for (; c + 4 * lanes <= channels; c += 4 * lanes) f(std::integral_constant<int, 4>{}, c);
  if (c + 2 * lanes <= channels) f(std::integral_constant<int, 2>{}, c), c += 2 * lanes;
  if (c + lanes <= channels) f(std::integral_constant<int, 1>{}, c), c += lanes;
  return c;
}

// out[0 .. vectors * lanes) = sum over taps of weight * values; the taps alternate between accumulators, because one
// chain of additions would wait for itself.
template <int vectors, class T, class Real>
PAQ_INLINE void sum_taps(const T* values, int64_t token_stride, Taps<Real>& taps, T* out) {
  using F = typename Simd<Real>::F;
  constexpr int lanes = Simd<Real>::lanes, chains = 8 / vectors;
  F sums[chains][vectors] = {};
  const auto* token = taps.tokens();
  const Real* weight = taps.weights();
  int i = 0;
  const auto add = [&](int chain, int tap) __attribute__((always_inline)) {
    const T* row = values + token[tap] * token_stride;
    for (int v = 0; v < vectors; ++v) {
      F x;
      load_values(row + v * lanes, x);
      sums[chain][v] += weight[tap] * x;
    }
  };
  for (; i + chains <= taps.size; i += chains) {
    for (int chain = 0; chain < chains; ++chain) add(chain, i + chain);
  }
  for (; i < taps.size; ++i) add(0, i);
  for (int v = 0; v < vectors; ++v) {
    F total = sums[0][v];
    for (int chain = 1; chain < chains; ++chain) total += sums[chain][v];
    store_values(out + v * lanes, total);
  }
}

template <class T>
void forward_of(const Problem& p, Tensor& result) {
  using Real = RealOf<T>;
  const Inputs<Real> in(p);
  T* out = result.template mutable_data_ptr<T>();
  const int64_t per_head = p.points_per_head();
  const Tasks tasks(p);
  run_tasks(tasks.size(), [&](int64_t first_task, int64_t last_task) {
    Taps<Real> both[2] = {Taps<Real>(p), Taps<Real>(p)};
    HeadRows<T> rows(p);
    for (int64_t i = first_task; i < last_task; ++i) {
      const Task task = tasks[i];
      rows.set(task);
      const auto prepare = [&](int64_t slot, int64_t q, int64_t h) {
        Taps<Real>& taps = both[slot];
        taps.set_image(task.b);
        taps.set_query(in.reference_of(task.b, q));
        taps.set_head(in.xy_of(task.b, q) + h * per_head * 2, in.scores_of(task.b, q) + h * per_head);
        if (!rows.dense) prefetch_taps<0>(rows.of(h), rows.stride, p.channels, taps);
      };
      for_each_head(task, !rows.dense, prepare, [&](int64_t slot, int64_t q, int64_t h) {
        Taps<Real>& taps = both[slot];
        const T* values = rows.of(h);
        T* head_out = out + ((task.b * p.queries + q) * p.heads + h) * p.channels;
        int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
          sum_taps<vectors.value>(values + first, rows.stride, taps, head_out + first);
        });
        for (; c < p.channels; ++c) {
          Real sum = 0;
          for (int k = 0; k < taps.size; ++k) {
            sum += taps.weights()[k] * static_cast<Real>(values[taps.tokens()[k] * rows.stride + c]);
          }
          head_out[c] = static_cast<T>(sum);
        }
      });
    }
  });
}

// dots[i] += values of tap i . grad
template <int vectors, class T, class Real>
PAQ_INLINE void dot_taps(const T* values, int64_t token_stride, Taps<Real>& taps, const Real* grad, Real* dots) {
  using F = typename Simd<Real>::F;
  constexpr int lanes = Simd<Real>::lanes;
  F g[vectors];
  for (int v = 0; v < vectors; ++v) g[v] = load<F>(grad + v * lanes);
  const auto* token = taps.tokens();
  for (int i = 0; i < taps.size; i += lanes) {
    F rows[lanes];
    for (int k = 0; k < lanes; ++k) {
      const T* row = values + token[i + k < taps.size ? i + k : i] * token_stride;
      F x;
      load_values(row, x);
      rows[k] = g[0] * x;
      for (int v = 1; v < vectors; ++v) {
        load_values(row + v * lanes, x);
        rows[k] += g[v] * x;
      }
    }
    store(dots + i, load<F>(dots + i) + transposed_sums<lanes / 2, lanes>(rows));
  }
}

// grad_values of tap i += weight * grad
template <int vectors, class Real>
PAQ_INLINE void scatter_taps(Real* grad_values, int64_t token_stride, Taps<Real>& taps, const Real* grad) {
  using F = typename Simd<Real>::F;
  constexpr int lanes = Simd<Real>::lanes;
  F g[vectors];
  for (int v = 0; v < vectors; ++v) g[v] = load<F>(grad + v * lanes);
  const auto* token = taps.tokens();
  const Real* weight = taps.weights();
  for (int i = 0; i < taps.size; ++i) {
    Real* row = grad_values + token[i] * token_stride;
    for (int v = 0; v < vectors; ++v) store(row + v * lanes, load<F>(row + v * lanes) + weight[i] * g[v]);
  }
}

// Where the gradient of one head's values is summed up, in Real: in place, or side by side and copied when finished.
template <class T>
class GradRows {
 public:
  using Real = RealOf<T>;
  GradRows(const Problem& p, Tensor& grad_value) : p(p), grad_value_(grad_value), dense_(dense_rows_pay(p)) {}

  // The rows [begin, end) of tokens are this task's own.
  void begin(const Task& task, int64_t begin, int64_t end) {
    h_ = task.h_begin, first_ = (task.b * p.tokens * p.heads + h_) * p.channels;
    begin_ = begin, end_ = end;
    if (dense_) {
      if (!sums_) sums_ = new_lines<Real>(p.tokens * p.channels);
      data_ = sums_.get(), stride = p.channels;
      std::fill(data_ + begin * stride, data_ + end * stride, Real(0));
    } else {
      data_ = grad_value_.template mutable_data_ptr<Real>() + first_, stride = p.heads * p.channels;
    }
  }

  void finish() {
    if (!dense_) return;
    T* out = grad_value_.template mutable_data_ptr<T>() + first_;
    for (int64_t t = begin_; t < end_; ++t) {
      for (int64_t c = 0; c < p.channels; ++c) {
        out[t * p.heads * p.channels + c] = static_cast<T>(data_[t * p.channels + c]);
      }
    }
  }

  Real* of(int64_t h) const { return data_ + (h - h_) * p.channels; }

  int64_t stride = 0;

 private:
  const Problem& p;
  Tensor& grad_value_;
  bool dense_;
  Lines<Real> sums_;
  Real* data_ = nullptr;
  int64_t h_ = 0, first_ = 0, begin_ = 0, end_ = 0;
};

template <class T>
class Backward {
 public:
  using Real = RealOf<T>;

  Backward(const Problem& p, const Tensor& grad_out, Gradients& result)
      : p(p),
        in(p),
        grad_out_(grad_out.template const_data_ptr<T>()),
        grad_xy_(result.xy.template mutable_data_ptr<Real>()),
        grad_scores_(result.scores.template mutable_data_ptr<Real>()),
        grad_reference_(result.reference.template mutable_data_ptr<Real>()),
        grad_value_(result.value) {}

  // A head's rows of grad_value belong to one thread, which takes the queries in order: no atomics, and the same sums
  // in the same order whatever the number of threads.
  void run() {
    const Tasks tasks(p);
    if (tasks.whole()) {
      run_tasks(tasks.size(), [&](int64_t first, int64_t last) {
        Worker w(*this);
        for (int64_t i = first; i < last; ++i) both_gradients(w, tasks[i]);
      });
      return;
    }
    // More threads than heads: the gradients of the points by parts of heads, then grad_value by head and level.
    run_tasks(tasks.size(), [&](int64_t first, int64_t last) {
      Worker w(*this);
      for (int64_t i = first; i < last; ++i) point_gradients(w, tasks[i]);
    });
    run_tasks(p.batch * p.heads * p.levels, [&](int64_t first, int64_t last) {
      Worker w(*this);
      for (int64_t i = first; i < last; ++i) {
        const int64_t b = i / p.levels / p.heads, h = i / p.levels % p.heads;
        value_gradients(w, {b, h, h + 1, 0, p.queries}, i % p.levels);
      }
    });
  }

 private:
  struct Slot {  // what is prepared for one head of one query
    explicit Slot(const Problem& p) : taps(p), grad(new_lines<Real>(p.channels)) {}
    Taps<Real> taps;
    Lines<Real> grad;
  };

  struct Worker {  // scratch of one thread
    explicit Worker(Backward& all)
        : slots{Slot(all.p), Slot(all.p)},
          values(all.p),
          grads(all.p, all.grad_value_),
          dots(new_lines<Real>(4 * all.p.points_per_head() + 5 * Simd<Real>::lanes)) {}
    Slot slots[2];
    HeadRows<T> values;
    GradRows<T> grads;
    Lines<Real> dots;
  };

  void both_gradients(Worker& w, const Task& task) const {
    w.values.set(task);
    w.grads.begin(task, 0, p.tokens);
    const auto prepare = [&](int64_t slot, int64_t q, int64_t h) {
      Slot& s = w.slots[slot];
      set_head(s, task.b, q, h, -1);
      if (w.values.dense) return;
      prefetch_taps<1>(w.grads.of(h), w.grads.stride, p.channels, s.taps);
      prefetch_taps<0>(w.values.of(h), w.values.stride, p.channels, s.taps);
    };
    for_each_head(task, !w.values.dense, prepare, [&](int64_t slot, int64_t q, int64_t h) {
      scatter(w, w.slots[slot], h);
      points_of(w, w.slots[slot], task.b, q, h);
    });
    w.grads.finish();
  }

  void point_gradients(Worker& w, const Task& task) const {
    w.values.set(task);
    const auto prepare = [&](int64_t slot, int64_t q, int64_t h) { set_head(w.slots[slot], task.b, q, h, -1); };
    for_each_head(
        task, 0, prepare, [&](int64_t slot, int64_t q, int64_t h) { points_of(w, w.slots[slot], task.b, q, h); });
  }

  void value_gradients(Worker& w, const Task& task, int64_t level) const {
    w.grads.begin(task, p.level_start(level), p.level_start(level + 1));
    const auto prepare = [&](int64_t slot, int64_t q, int64_t h) {
      set_head(w.slots[slot], task.b, q, h, static_cast<int>(level));
    };
    for_each_head(task, 0, prepare, [&](int64_t slot, int64_t, int64_t h) { scatter(w, w.slots[slot], h); });
    w.grads.finish();
  }

  int64_t row_of(int64_t b, int64_t q, int64_t h) const { return (b * p.queries + q) * p.heads + h; }

  void set_head(Slot& s, int64_t b, int64_t q, int64_t h, int level) const {
    const T* grad = grad_out_ + row_of(b, q, h) * p.channels;
    for (int64_t c = 0; c < p.channels; ++c) s.grad[c] = static_cast<Real>(grad[c]);
    const int64_t per_head = p.points_per_head();
    s.taps.set_image(b);
    s.taps.set_query(in.reference_of(b, q));
    s.taps.set_head(in.xy_of(b, q) + h * per_head * 2, in.scores_of(b, q) + h * per_head, level);
  }

  void scatter(Worker& w, Slot& s, int64_t h) const {
    Real* rows = w.grads.of(h);
    const int64_t stride = w.grads.stride;
    int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
      scatter_taps<vectors.value>(rows + first, stride, s.taps, s.grad.get() + first);
    });
    for (; c < p.channels; ++c) {
      for (int i = 0; i < s.taps.size; ++i) {
        rows[s.taps.tokens()[i] * stride + c] += s.taps.weights()[i] * s.grad[c];
      }
    }
  }

  void points_of(Worker& w, Slot& s, int64_t b, int64_t q, int64_t h) const {
    const T* rows = w.values.of(h);
    const int64_t stride = w.values.stride;
    Real* dots = w.dots.get();
    std::fill(dots, dots + s.taps.size + Simd<Real>::lanes, Real(0));
    int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
      dot_taps<vectors.value>(rows + first, stride, s.taps, s.grad.get() + first, dots);
    });
    for (; c < p.channels; ++c) {
      for (int i = 0; i < s.taps.size; ++i) {
        dots[i] += static_cast<Real>(rows[s.taps.tokens()[i] * stride + c]) * s.grad[c];
      }
    }
    const int64_t per_head = p.points_per_head(), row = row_of(b, q, h);
    s.taps.gradients(
        dots, in.xy_of(b, q) + h * per_head * 2, grad_xy_ + row * per_head * 2, grad_scores_ + row * per_head,
        grad_reference_ + row * p.coordinates());
  }

  const Problem& p;
  const Inputs<Real> in;
  const T* grad_out_;
  Real *grad_xy_, *grad_scores_, *grad_reference_;
  Tensor& grad_value_;
};

template <class T>
void backward_of(const Problem& p, const Tensor& grad_out, Gradients& result) {
  if (dense_rows_pay(p)) {
    result.value = torch::stable::new_empty(p.value, {p.batch, p.tokens, p.heads, p.channels});
  } else {
    result.value = torch::stable::new_zeros(p.value, {p.batch, p.tokens, p.heads, p.channels}, p.xy.scalar_type());
  }
  Backward<T>(p, grad_out, result).run();
}

void forward(const Problem& p, Tensor& out) {
  dispatch_storage(p.value, [&](auto* storage) { forward_of<std::remove_pointer_t<decltype(storage)>>(p, out); });
}

void backward(const Problem& p, const Tensor& grad_out, Gradients& gradients) {
  dispatch_storage(
      p.value, [&](auto* storage) { backward_of<std::remove_pointer_t<decltype(storage)>>(p, grad_out, gradients); });
}

}  // namespace paq_detr::msda::PAQ_ISA
