// Copyright (c) 2026 The paq_detr authors.
// SPDX-License-Identifier: Apache-2.0
//
// The loops over images, queries, heads and channels on one instruction set. Included inside a namespace and a target
// region after cpu_taps.h. T is the storage type of the values, Real the type of all arithmetic.

template <class T>
using RealOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

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
  const Real* reference_of(int64_t b, int64_t q) const {
    return reference + b * reference_image + q * reference_query;
  }
};

// Calls f(std::integral_constant<int, vectors>, channel) over whole vectors of channels, four or two vectors at a time
// as the registers allow, and returns the first channel that is left.
template <class Real, class F>
PAQ_HD int64_t for_channel_vectors(int64_t channels, const F& f) {
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
PAQ_HD void sum_taps(const T* values, int64_t token_stride, Taps<Real>& taps, T* out) {
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

// The queries of one head of one image, or a part of them.
struct Task {
  int64_t b, h, q_begin, q_end;
};

// Calls f(first, last) on ranges of `count` tasks, in torch's threads.
template <class F>
void run_tasks(int64_t count, const F& f) {
  torch::stable::parallel_for(0, count, 1, f);
}

// Heads are cut into parts only where there are not enough of them for all threads.
class Tasks {
 public:
  explicit Tasks(const Problem& p) : p(p) {
    const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
    parts_ = std::max<int64_t>(1, std::min((wanted + heads() - 1) / heads(), p.queries / 32));
  }
  int64_t heads() const { return p.batch * p.heads; }
  int64_t size() const { return heads() * parts_; }
  Task operator[](int64_t i) const {
    const int64_t head = i / parts_, part = i % parts_;
    return {head / p.heads, head % p.heads, p.queries * part / parts_, p.queries * (part + 1) / parts_};
  }

 private:
  const Problem& p;
  int64_t parts_;
};

// With heads interleaved, the rows of one head meet in an eighth of the cache's sets. Copying them side by side pays
// where every token is read many times (encoder), not where most are never read (decoder).
inline bool dense_rows_pay(const Problem& p) { return p.queries * p.points_per_head() * 4 >= 8 * p.tokens; }

template <class T>
class HeadRows {
 public:
  explicit HeadRows(const Problem& p) : p(p), dense_(dense_rows_pay(p)) {
    if (dense_) copy_.reset(new T[static_cast<size_t>(p.tokens * p.channels)]);
  }

  void set(const Task& task) {
    if (task.b == b_ && task.h == h_) return;
    b_ = task.b, h_ = task.h;
    data = p.value.template const_data_ptr<T>() + b_ * p.value.stride(0) + h_ * p.channels;
    stride = p.value.stride(1);
    if (!dense_) return;
    for (int64_t t = 0; t < p.tokens; ++t) {
      const T* row = data + t * stride;
      __builtin_prefetch(row + 32 * stride);  // the hardware does not foresee such steps
      std::copy(row, row + p.channels, copy_.get() + t * p.channels);
    }
    data = copy_.get(), stride = p.channels;
  }

  const T* data = nullptr;
  int64_t stride = 0;

 private:
  const Problem& p;
  bool dense_;
  std::unique_ptr<T[]> copy_;
  int64_t b_ = -1, h_ = -1;
};

template <class T>
void forward(const Problem& p, Tensor& result) {
  using Real = RealOf<T>;
  const Inputs<Real> in(p);
  T* out = result.template mutable_data_ptr<T>();
  const int64_t per_head = p.points_per_head();
  const Tasks tasks(p);
  run_tasks(tasks.size(), [&](int64_t first_task, int64_t last_task) {
    Taps<Real> taps(p);
    HeadRows<T> rows(p);
    for (int64_t i = first_task; i < last_task; ++i) {
      const auto [b, h, q_begin, q_end] = tasks[i];
      taps.set_image(b);
      rows.set(tasks[i]);
      for (int64_t q = q_begin; q < q_end; ++q) {
        taps.set_query(in.reference_of(b, q));
        taps.set_head(in.xy_of(b, q) + h * per_head * 2, in.scores_of(b, q) + h * per_head);
        T* head_out = out + ((b * p.queries + q) * p.heads + h) * p.channels;
        int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
          sum_taps<vectors.value>(rows.data + first, rows.stride, taps, head_out + first);
        });
        for (; c < p.channels; ++c) {
          Real sum = 0;
          for (int k = 0; k < taps.size; ++k) {
            sum += taps.weights()[k] * static_cast<Real>(rows.data[taps.tokens()[k] * rows.stride + c]);
          }
          head_out[c] = static_cast<T>(sum);
        }
      }
    }
  });
}

// dots[i] += values of tap i . grad
template <int vectors, class T, class Real>
PAQ_HD void dot_taps(const T* values, int64_t token_stride, Taps<Real>& taps, const Real* grad, Real* dots) {
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
PAQ_HD void scatter_taps(Real* grad_values, int64_t token_stride, Taps<Real>& taps, const Real* grad) {
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
  GradRows(const Problem& p, Tensor& grad_value) : p(p), grad_value_(grad_value), dense_(dense_rows_pay(p)) {
    if (dense_) sums_.reset(new Real[static_cast<size_t>(p.tokens * p.channels)]);
  }

  // The rows [begin, end) of tokens are this task's own.
  void begin(const Task& task, int64_t begin, int64_t end) {
    first_ = (task.b * p.tokens * p.heads + task.h) * p.channels;
    begin_ = begin, end_ = end;
    if (dense_) {
      data = sums_.get(), stride = p.channels;
      std::fill(data + begin * stride, data + end * stride, Real(0));
    } else {
      data = grad_value_.template mutable_data_ptr<Real>() + first_, stride = p.heads * p.channels;
    }
  }

  void finish() {
    if (!dense_) return;
    T* out = grad_value_.template mutable_data_ptr<T>() + first_;
    for (int64_t t = begin_; t < end_; ++t) {
      for (int64_t c = 0; c < p.channels; ++c) {
        out[t * p.heads * p.channels + c] = static_cast<T>(data[t * p.channels + c]);
      }
    }
  }

  Real* data = nullptr;
  int64_t stride = 0;

 private:
  const Problem& p;
  Tensor& grad_value_;
  bool dense_;
  std::unique_ptr<Real[]> sums_;
  int64_t first_ = 0, begin_ = 0, end_ = 0;
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
    if (tasks.size() == tasks.heads()) {
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
    run_tasks(tasks.heads() * p.levels, [&](int64_t first, int64_t last) {
      Worker w(*this);
      for (int64_t i = first; i < last; ++i) {
        const int64_t head = i / p.levels;
        value_gradients(w, {head / p.heads, head % p.heads, 0, p.queries}, i % p.levels);
      }
    });
  }

 private:
  struct Worker {  // scratch of one thread
    explicit Worker(Backward& all)
        : taps(all.p),
          values(all.p),
          grads(all.p, all.grad_value_),
          grad(static_cast<size_t>(all.p.channels)),
          dots(static_cast<size_t>(4 * all.p.points_per_head() + 5 * Simd<Real>::lanes)) {}
    Taps<Real> taps;
    HeadRows<T> values;
    GradRows<T> grads;
    std::vector<Real> grad, dots;
  };

  void both_gradients(Worker& w, const Task& task) const {
    w.taps.set_image(task.b);
    w.values.set(task);
    w.grads.begin(task, 0, p.tokens);
    for (int64_t q = task.q_begin; q < task.q_end; ++q) {
      set_query(w, task, q, -1);
      scatter(w);
      points_of(w, task, q);
    }
    w.grads.finish();
  }

  void point_gradients(Worker& w, const Task& task) const {
    w.taps.set_image(task.b);
    w.values.set(task);
    for (int64_t q = task.q_begin; q < task.q_end; ++q) {
      set_query(w, task, q, -1);
      points_of(w, task, q);
    }
  }

  void value_gradients(Worker& w, const Task& task, int64_t level) const {
    w.taps.set_image(task.b);
    w.grads.begin(task, p.level_start(level), p.level_start(level + 1));
    for (int64_t q = task.q_begin; q < task.q_end; ++q) {
      set_query(w, task, q, static_cast<int>(level));
      scatter(w);
    }
    w.grads.finish();
  }

  int64_t row_of(const Task& task, int64_t q) const { return (task.b * p.queries + q) * p.heads + task.h; }

  void set_query(Worker& w, const Task& task, int64_t q, int level) const {
    const T* grad = grad_out_ + row_of(task, q) * p.channels;
    for (size_t c = 0; c < w.grad.size(); ++c) w.grad[c] = static_cast<Real>(grad[c]);
    const int64_t per_head = p.points_per_head();
    w.taps.set_query(in.reference_of(task.b, q));
    w.taps.set_head(
        in.xy_of(task.b, q) + task.h * per_head * 2, in.scores_of(task.b, q) + task.h * per_head, level);
  }

  void scatter(Worker& w) const {
    GradRows<T>& rows = w.grads;
    int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
      scatter_taps<vectors.value>(rows.data + first, rows.stride, w.taps, w.grad.data() + first);
    });
    for (; c < p.channels; ++c) {
      for (int i = 0; i < w.taps.size; ++i) {
        rows.data[w.taps.tokens()[i] * rows.stride + c] += w.taps.weights()[i] * w.grad[static_cast<size_t>(c)];
      }
    }
  }

  void points_of(Worker& w, const Task& task, int64_t q) const {
    const HeadRows<T>& rows = w.values;
    Real* dots = w.dots.data();
    std::fill(dots, dots + w.taps.size + Simd<Real>::lanes, Real(0));
    int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
      dot_taps<vectors.value>(rows.data + first, rows.stride, w.taps, w.grad.data() + first, dots);
    });
    for (; c < p.channels; ++c) {
      for (int i = 0; i < w.taps.size; ++i) {
        dots[i] += static_cast<Real>(rows.data[w.taps.tokens()[i] * rows.stride + c]) * w.grad[static_cast<size_t>(c)];
      }
    }
    const int64_t per_head = p.points_per_head(), row = row_of(task, q);
    w.taps.gradients(
        dots, in.xy_of(task.b, q) + task.h * per_head * 2, grad_xy_ + row * per_head * 2,
        grad_scores_ + row * per_head, grad_reference_ + row * p.coordinates());
  }

  const Problem& p;
  const Inputs<Real> in;
  const T* grad_out_;
  Real *grad_xy_, *grad_scores_, *grad_reference_;
  Tensor& grad_value_;
};

template <class T>
void backward(const Problem& p, const Tensor& grad_out, Gradients& result) {
  if (dense_rows_pay(p)) {
    result.value = torch::stable::new_empty(p.value, {p.batch, p.tokens, p.heads, p.channels});
  } else {
    result.value = torch::stable::new_zeros(p.value, {p.batch, p.tokens, p.heads, p.channels}, p.xy.scalar_type());
  }
  Backward<T>(p, grad_out, result).run();
}
