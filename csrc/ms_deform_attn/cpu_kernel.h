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

template <class T>
void forward(const Problem& p, Tensor& result) {
  using Real = RealOf<T>;
  const Inputs<Real> in(p);
  const T* value = p.value.template const_data_ptr<T>();
  T* out = result.template mutable_data_ptr<T>();
  const int64_t image_stride = p.value.stride(0), token_stride = p.value.stride(1);
  const int64_t per_head = p.points_per_head();
  torch::stable::parallel_for(0, p.batch * p.queries, 32, [&](int64_t begin, int64_t end) {
    Taps<Real> taps(p);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / p.queries, q = row % p.queries;
      if (row == begin || q == 0) taps.set_image(b);
      taps.set_query(in.reference_of(b, q));
      for (int64_t h = 0; h < p.heads; ++h) {
        taps.set_head(in.xy_of(b, q) + h * per_head * 2, in.scores_of(b, q) + h * per_head);
        const T* values = value + b * image_stride + h * p.channels;
        T* head_out = out + (row * p.heads + h) * p.channels;
        int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
          sum_taps<vectors.value>(values + first, token_stride, taps, head_out + first);
        });
        for (; c < p.channels; ++c) {
          Real sum = 0;
          for (int i = 0; i < taps.size; ++i) {
            sum += taps.weights()[i] * static_cast<Real>(values[taps.tokens()[i] * token_stride + c]);
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

template <class T>
struct Backward {
  using Real = RealOf<T>;
  const Problem& p;
  const Inputs<Real> in;
  const T *value, *grad_out;
  Real *grad_value, *grad_xy, *grad_scores, *grad_reference;

  struct Worker {  // scratch of one thread
    explicit Worker(const Problem& p)
        : taps(p),
          grad(static_cast<size_t>(p.channels)),
          dots(static_cast<size_t>(4 * p.points_per_head() + 5 * Simd<Real>::lanes)) {}
    Taps<Real> taps;
    std::vector<Real> grad, dots;
  };

  // One head of one image, queries in order: nobody else adds to its slice of grad_value, hence no atomics, and the
  // same sums in the same order for any number of threads. level >= 0 adds to the tokens of that level only.
  void run(Worker& w, int64_t b, int64_t h, int64_t q_begin, int64_t q_end, bool points, bool values, int level) {
    const int64_t per_head = p.points_per_head();
    const T* head_value = value + b * p.value.stride(0) + h * p.channels;
    Real* head_grad = grad_value + (b * p.tokens * p.heads + h) * p.channels;
    for (int64_t q = q_begin; q < q_end; ++q) {
      const int64_t row = (b * p.queries + q) * p.heads + h;
      const Real* xy = in.xy_of(b, q) + h * per_head * 2;
      for (int64_t c = 0; c < p.channels; ++c) {
        w.grad[static_cast<size_t>(c)] = static_cast<Real>(grad_out[row * p.channels + c]);
      }
      w.taps.set_query(in.reference_of(b, q));
      w.taps.set_head(xy, in.scores_of(b, q) + h * per_head, level);
      if (values) scatter(w, head_grad);
      if (!points) continue;
      dot(w, head_value);
      w.taps.gradients(
          w.dots.data(), xy, grad_xy + row * per_head * 2, grad_scores + row * per_head,
          grad_reference + row * p.coordinates());
    }
  }

  void scatter(Worker& w, Real* head_grad) const {
    const int64_t stride = p.heads * p.channels;
    int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
      scatter_taps<vectors.value>(head_grad + first, stride, w.taps, w.grad.data() + first);
    });
    for (; c < p.channels; ++c) {
      for (int i = 0; i < w.taps.size; ++i) {
        head_grad[w.taps.tokens()[i] * stride + c] += w.taps.weights()[i] * w.grad[static_cast<size_t>(c)];
      }
    }
  }

  void dot(Worker& w, const T* head_value) const {
    const int64_t stride = p.value.stride(1);
    Real* dots = w.dots.data();
    std::fill(dots, dots + w.taps.size + Simd<Real>::lanes, Real(0));
    int64_t c = for_channel_vectors<Real>(p.channels, [&](auto vectors, int64_t first) {
      dot_taps<vectors.value>(head_value + first, stride, w.taps, w.grad.data() + first, dots);
    });
    for (; c < p.channels; ++c) {
      for (int i = 0; i < w.taps.size; ++i) {
        dots[i] += static_cast<Real>(head_value[w.taps.tokens()[i] * stride + c]) * w.grad[static_cast<size_t>(c)];
      }
    }
  }

  void run_all() {
    const int64_t heads = p.batch * p.heads;
    if (torch::stable::get_num_threads() <= heads) {
      torch::stable::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
        Worker w(p);
        for (int64_t i = begin; i < end; ++i) {
          w.taps.set_image(i / p.heads);
          run(w, i / p.heads, i % p.heads, 0, p.queries, true, true, -1);
        }
      });
      return;
    }
    // More threads than heads: the gradients of the points by queries, then grad_value by head and level.
    torch::stable::parallel_for(0, p.batch * p.queries, 32, [&](int64_t begin, int64_t end) {
      Worker w(p);
      for (int64_t row = begin; row < end; ++row) {
        const int64_t b = row / p.queries, q = row % p.queries;
        if (row == begin || q == 0) w.taps.set_image(b);
        for (int64_t h = 0; h < p.heads; ++h) run(w, b, h, q, q + 1, true, false, -1);
      }
    });
    torch::stable::parallel_for(0, heads * p.levels, 1, [&](int64_t begin, int64_t end) {
      Worker w(p);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t b = i / p.levels / p.heads, h = i / p.levels % p.heads;
        w.taps.set_image(b);
        run(w, b, h, 0, p.queries, false, true, static_cast<int>(i % p.levels));
      }
    });
  }
};

template <class T>
void backward(const Problem& p, const Tensor& grad_out, Gradients& result) {
  using Real = RealOf<T>;
  Backward<T>{
      p,
      Inputs<Real>(p),
      p.value.template const_data_ptr<T>(),
      grad_out.template const_data_ptr<T>(),
      result.value.template mutable_data_ptr<Real>(),
      result.xy.template mutable_data_ptr<Real>(),
      result.scores.template mutable_data_ptr<Real>(),
      result.reference.template mutable_data_ptr<Real>()}
      .run_all();
}
