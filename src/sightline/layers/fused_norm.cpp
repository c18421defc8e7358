// Batch norm, addition and activation in one pass, and pooling, for training on the CPU.
//
// Tensors are channels_last: `rows` (batch x height x width) of `channels` float32 or bfloat16 values. Arithmetic is float32.
// The mean pool alone works on contiguous tensors: networks that have it have so few channels that these are faster.
// Statistics are summed in blocks of rows and combined in double in a fixed order, so they do not depend on threads.
#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

using Size = std::int64_t;
struct Bfloat16 { std::uint16_t bits; };
enum Activation { kNone, kRelu, kRelu6, kGelu, kSilu };
constexpr Size kBlock = 8192;   // values of a block: it stays in the first-level cache between two passes
constexpr Size kGrain = 16384;  // values worth a thread

template <int W> struct Wide {
  typedef float F __attribute__((vector_size(4 * W)));
  typedef std::int32_t I __attribute__((vector_size(4 * W)));
  typedef std::uint32_t U __attribute__((vector_size(4 * W)));
  typedef std::uint16_t H __attribute__((vector_size(2 * W)));
  typedef std::uint8_t B __attribute__((vector_size(W)));
};
template <int W> using F = typename Wide<W>::F;

template <int W> inline F<W> load(const float* from) { F<W> v; std::memcpy(&v, from, sizeof v); return v; }
template <int W> inline F<W> load(const Bfloat16* from) {
  typename Wide<W>::H h;
  std::memcpy(&h, from, sizeof h);
  return (F<W>)(__builtin_convertvector(h, typename Wide<W>::U) << 16);
}
template <int W> inline void store(float* to, F<W> v) { std::memcpy(to, &v, sizeof v); }
template <int W> inline void store(Bfloat16* to, F<W> v) {
  auto u = (typename Wide<W>::U)v;
  auto even = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // rounds to nearest, ties to even
  auto rounded = (v == v) ? even : (even & 0) + 0x7fc0;
  auto h = __builtin_convertvector(rounded, typename Wide<W>::H);
  std::memcpy(to, &h, sizeof h);
}

template <int W> inline F<W> exp_of(F<W> x) {  // e^x for x <= 0, relative error below 2e-7
  x = (x < -87.0f) ? x * 0 - 87.0f : x;
  F<W> n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;
  F<W> r = x - n * 0.693359375f + n * 2.12194440e-4f;
  F<W> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  auto power = (__builtin_convertvector(n, typename Wide<W>::I) + 127) << 23;
  return p * (F<W>)power;
}

// P(N(0, 1) <= u) by Abramowitz and Stegun 7.1.26 (error below 1.5e-7); `e` becomes exp(-u^2 / 2).
template <int W> inline F<W> normal_cdf(F<W> u, F<W>& e) {
  F<W> size = ((u < 0) ? -u : u) * 0.70710678f;
  e = exp_of<W>(-size * size);
  F<W> t = 1.0f / (size * 0.3275911f + 1.0f);
  F<W> p = ((((t * 1.061405429f - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
  F<W> tail = p * e * 0.5f;
  return (u < 0) ? tail : 1.0f - tail;
}
template <int W> inline F<W> sigmoid(F<W> u) {
  F<W> e = exp_of<W>((u < 0) ? u : -u);
  F<W> low = e / (e + 1.0f);
  return (u < 0) ? low : 1.0f - low;
}
template <int A, int W> inline F<W> activate(F<W> u) {
  F<W> zero = u * 0, e;
  if constexpr (A == kRelu) return (u < 0) ? F<W>{} : u;
  if constexpr (A == kRelu6) { u = (u < 0) ? F<W>{} : u; return (u > 6.0f) ? F<W>{} + 6.0f : u; }
  if constexpr (A == kGelu) return u * normal_cdf<W>(u, e) + zero;
  if constexpr (A == kSilu) return u * sigmoid<W>(u) + zero;
  return u;
}
template <int A, int W> inline F<W> chain(F<W> grad, F<W> u) {  // grad times the activation's derivative at u
  F<W> e;
  if constexpr (A == kRelu) return (u <= 0) ? F<W>{} : grad;
  if constexpr (A == kRelu6) return ((u <= 0) | (u >= 6.0f)) ? F<W>{} : grad;
  if constexpr (A == kGelu) { F<W> p = normal_cdf<W>(u, e); return grad * (p + u * e * 0.39894228f); }
  if constexpr (A == kSilu) { F<W> p = sigmoid<W>(u); return grad * (p + u * p * (1.0f - p)); }
  return grad;
}

struct Task {
  Size rows, channels;
  const void *x, *add, *grad, *y;       // add, y: null without an addition
  const float *weight, *bias;           // null: 1 and 0
  float *mean, *rstd;                   // results of forward, given to backward
  float *running_mean, *running_var;    // null where none are kept
  float momentum, eps;
  void *out, *grad_add;                 // forward: y; backward: gradients of x and of add
  float *grad_weight, *grad_bias;
  int threads;
};

struct Plan {  // blocks of rows, and which of them a thread works
  Size rows, step, count;
  int threads;
  explicit Plan(const Task& t) : rows(t.rows), step(std::max<Size>(1, kBlock / t.channels)) {
    count = (rows + step - 1) / step;
    threads = (int)std::max<Size>(1, std::min<Size>(t.threads, rows * t.channels / kGrain));
  }
  Size height(Size block) const { return std::min(step, rows - block * step); }
};

template <class T, int W> struct Kernel {
  const Task& t;
  const Size C;
  std::vector<float> first, second, a, b, c;  // two sums of each block; per channel out = a * grad + b * x + c
  explicit Kernel(const Task& task, Size blocks)
      : t(task), C(task.channels), first(blocks * C), second(blocks * C), a(C), b(C), c(C) {}

  void measure(const T* x, Size n, float* mean, float* squares) const {
    for (Size k = 0; k < C; k += W) {
      F<W> base = load<W>(x + k), s{}, s2{}, q{}, q2{};
      Size r = 0;
      for (; r + 1 < n; r += 2) {
        F<W> d = load<W>(x + r * C + k) - base, d2 = load<W>(x + (r + 1) * C + k) - base;
        s += d; s2 += d2; q += d * d; q2 += d2 * d2;
      }
      if (r < n) { F<W> d = load<W>(x + r * C + k) - base; s += d; q += d * d; }
      s += s2;
      store<W>(mean + k, base + s / (float)n);
      store<W>(squares + k, q + q2 - s * s / (float)n);
    }
  }
  void combine_forward(const Plan& p) {
    std::vector<double> mean(C), m2(C);
    for (Size i = 0; i < p.count; i++)
      for (Size k = 0; k < C; k++) mean[k] += (double)first[i * C + k] * p.height(i);
    for (Size k = 0; k < C; k++) mean[k] /= t.rows;
    for (Size i = 0; i < p.count; i++)
      for (Size k = 0; k < C; k++) {
        double d = first[i * C + k] - mean[k];
        m2[k] += second[i * C + k] + d * d * p.height(i);
      }
    for (Size k = 0; k < C; k++) {
      double var = m2[k] / t.rows;
      t.mean[k] = (float)mean[k];
      t.rstd[k] = (float)(1.0 / __builtin_sqrt(var + t.eps));
      if (t.running_mean) {
        t.running_mean[k] += t.momentum * (t.mean[k] - t.running_mean[k]);
        t.running_var[k] += t.momentum * ((float)(m2[k] / (t.rows - 1)) - t.running_var[k]);
      }
    }
    scale();
  }
  void scale() {  // u = a * x + b
    for (Size k = 0; k < C; k++) {
      a[k] = (t.weight ? t.weight[k] : 1.0f) * t.rstd[k];
      b[k] = (t.bias ? t.bias[k] : 0.0f) - t.mean[k] * a[k];
    }
  }
  template <int A> void apply(Size at, Size n) const {
    const T *x = (const T*)t.x + at, *add = t.add ? (const T*)t.add + at : nullptr;
    T* y = (T*)t.out + at;
    for (Size r = 0; r < n * C; r += C)
      for (Size k = 0; k < C; k += W) {
        F<W> u = load<W>(x + r + k) * load<W>(&a[k]) + load<W>(&b[k]);
        if (add) u += load<W>(add + r + k);
        store<W>(y + r + k, activate<A, W>(u));
      }
  }
  template <int A> void forward(const Plan& p) {
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
      const Size me = omp_get_thread_num(), all = omp_get_num_threads();
      const Size low = p.count * me / all, high = p.count * (me + 1) / all;
      for (Size i = low; i < high; i++)
        measure((const T*)t.x + i * p.step * C, p.height(i), &first[i * C], &second[i * C]);
#pragma omp barrier
#pragma omp single
      combine_forward(p);
      for (Size i = high - 1; i >= low; i--) apply<A>(i * p.step * C, p.height(i));  // what was read last is in the cache
    }
  }

  // Where the derivative is costly, or `add` needs it, the gradient at u is kept: in grad_add, or for a while in out.
  template <int A> static constexpr bool kCostly = A == kGelu || A == kSilu;
  T* kept() const { return t.add ? (T*)t.grad_add : (T*)t.out; }
  template <int A> void sum(Size at, Size n, float* plain, float* times) const {
    const T *x = (const T*)t.x + at, *g = (const T*)t.grad + at, *y = t.add ? (const T*)t.y + at : nullptr;
    T* keep = (t.add || kCostly<A>) ? kept() + at : nullptr;
    for (Size k = 0; k < C; k += W) {
      F<W> mean = load<W>(t.mean + k), wa = load<W>(&a[k]), wb = load<W>(&b[k]), s{}, q{};
      for (Size r = k; r < n * C; r += C) {
        F<W> v = load<W>(x + r), u = y ? load<W>(y + r) : v * wa + wb, d = chain<A, W>(load<W>(g + r), u);
        if (keep) store<W>(keep + r, d);
        s += d; q += d * (v - mean);
      }
      store<W>(plain + k, s);
      store<W>(times + k, q);
    }
  }
  void combine_backward(const Plan& p) {
    std::vector<double> plain(C), times(C);
    for (Size i = 0; i < p.count; i++)
      for (Size k = 0; k < C; k++) { plain[k] += first[i * C + k]; times[k] += second[i * C + k]; }
    for (Size k = 0; k < C; k++) {
      t.grad_bias[k] = (float)plain[k];
      t.grad_weight[k] = (float)(times[k] * t.rstd[k]);
      const double slope = times[k] / t.rows * t.rstd[k] * t.rstd[k];  // of the gradient along the normalised input
      first[k] = (float)(-a[k] * slope);
      c[k] = (float)(a[k] * (slope * t.mean[k] - plain[k] / t.rows));
    }
  }
  template <int A> void spread(Size at, Size n) const {
    const T* x = (const T*)t.x + at;
    const bool keeps = t.add || kCostly<A>;
    const T* g = (keeps ? kept() : (const T*)t.grad) + at;
    T* out = (T*)t.out + at;
    for (Size r = 0; r < n * C; r += C)
      for (Size k = 0; k < C; k += W) {
        F<W> v = load<W>(x + r + k), wa = load<W>(&a[k]), d = load<W>(g + r + k);
        if (!keeps) d = chain<A, W>(d, v * wa + load<W>(&b[k]));
        store<W>(out + r + k, wa * d + (load<W>(&first[k]) * v + load<W>(&c[k])));
      }
  }
  template <int A> void backward(const Plan& p) {
    scale();
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
      const Size me = omp_get_thread_num(), all = omp_get_num_threads();
      const Size low = p.count * me / all, high = p.count * (me + 1) / all;
      for (Size i = low; i < high; i++) sum<A>(i * p.step * C, p.height(i), &first[i * C], &second[i * C]);
#pragma omp barrier
#pragma omp single
      combine_backward(p);
      for (Size i = high - 1; i >= low; i--) spread<A>(i * p.step * C, p.height(i));
    }
  }
  void run(int act, bool back) {
    const Plan p(t);
    switch (act) {
      case kNone: return back ? backward<kNone>(p) : forward<kNone>(p);
      case kRelu: return back ? backward<kRelu>(p) : forward<kRelu>(p);
      case kRelu6: return back ? backward<kRelu6>(p) : forward<kRelu6>(p);
      case kGelu: return back ? backward<kGelu>(p) : forward<kGelu>(p);
      default: return back ? backward<kSilu>(p) : forward<kSilu>(p);
    }
  }
};

template <class T, int W> void pool_forward(const T* x, T* y, std::uint8_t* which, Size n, Size h, Size w, Size C) {
  const Size high = h / 2, wide = w / 2;
  for (Size i = n * high; i < (n + 1) * high; i++) {
    const T* row = x + (n * h + (i - n * high) * 2) * w * C;
    for (Size j = 0; j < wide; j++)
      for (Size k = 0; k < C; k += W) {
        const T* at = row + j * 2 * C + k;
        F<W> best = load<W>(at);
        typename Wide<W>::I place{};
        for (int o = 1; o < 4; o++) {
          F<W> v = load<W>(at + (o / 2 * w + o % 2) * C);
          auto wins = (v > best) | (v != v);
          best = wins ? v : best;
          place = wins ? typename Wide<W>::I{} + o : place;
        }
        store<W>(y + (i * wide + j) * C + k, best);
        auto bytes = __builtin_convertvector(place, typename Wide<W>::B);
        std::memcpy(which + (i * wide + j) * C + k, &bytes, sizeof bytes);
      }
  }
}
template <class T, int W>
void pool_backward(const T* grad, T* out, const std::uint8_t* which, Size n, Size h, Size w, Size C) {
  const Size high = h / 2, wide = w / 2;
  T* image = out + n * h * w * C;
  for (Size i = 0; i < h; i++)
    for (Size j = 0; j < w; j++) {
      T* to = image + (i * w + j) * C;
      const Size from = ((n * high + i / 2) * wide + j / 2) * C;
      if (i / 2 >= high || j / 2 >= wide) { std::memset(to, 0, C * sizeof(T)); continue; }
      for (Size k = 0; k < C; k += W) {
        typename Wide<W>::B bytes;
        std::memcpy(&bytes, which + from + k, sizeof bytes);
        auto mine = __builtin_convertvector(bytes, typename Wide<W>::I) == (int)(i % 2 * 2 + j % 2);
        store<W>(to + k, mine ? load<W>(grad + from + k) : F<W>{});
      }
    }
}
template <class T, int W>
void pool(bool back, const void* from, void* to, std::uint8_t* which, Size N, Size h, Size w, Size C, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (Size n = 0; n < N; n++) {
    if (back) pool_backward<T, W>((const T*)from, (T*)to, which, n, h, w, C);
    else pool_forward<T, W>((const T*)from, (T*)to, which, n, h, w, C);
  }
}

// ReLU, then the mean of 2 x 2 pixels, of one channel of one image; in the order of torch's sum, so bits are the same.
// Values 2j and 2j + 1 of a row, for W following j. Two of bfloat16 are read and written as one number of 32 bits.
template <int W> inline void load_pairs(const Bfloat16* from, F<W>& even, F<W>& odd) {
  typename Wide<W>::U both;
  std::memcpy(&both, from, sizeof both);
  even = (F<W>)(both << 16);
  odd = (F<W>)(both & 0xffff0000u);
}
template <int W> inline void store_pairs(Bfloat16* to, F<W> even, F<W> odd) {  // whose lower halves are 0
  auto both = ((typename Wide<W>::U)even >> 16) | (typename Wide<W>::U)odd;
  std::memcpy(to, &both, sizeof both);
}
template <int W> inline void load_pairs(const float* from, F<W>& even, F<W>& odd) {
  for (int k = 0; k < W; k++) { even[k] = from[2 * k]; odd[k] = from[2 * k + 1]; }
}
template <int W> inline void store_pairs(float* to, F<W> even, F<W> odd) {
  for (int k = 0; k < W; k++) { to[2 * k] = even[k]; to[2 * k + 1] = odd[k]; }
}
template <int W> inline F<W> relu(F<W> v) { return (v < 0) ? F<W>{} : v; }
template <class T, int W> inline void relu_pool_forward(const T* top, const T* low, T* to) {
  F<W> a, b, c, d;
  load_pairs<W>(top, a, b);
  load_pairs<W>(low, c, d);
  store<W>(to, (((relu<W>(a) + relu<W>(b)) + relu<W>(c)) + relu<W>(d)) * 0.25f);
}
template <class T, int W> inline void relu_pool_backward(const T* x, const T* grad, T* to) {
  F<W> a, b;
  T rounded[W];
  store<W>(rounded, load<W>(grad) * 0.25f);
  load_pairs<W>(x, a, b);
  const F<W> quarter = load<W>(rounded);
  store_pairs<W>(to, (a <= 0) ? F<W>{} : quarter, (b <= 0) ? F<W>{} : quarter);
}
template <class T> void relu_pool_forward(const T* x, T* y, Size h, Size w) {
  for (Size i = 0; i < h / 2; i++) {
    const T *top = x + 2 * i * w, *low = top + w;
    T* to = y + i * (w / 2);
    Size j = 0;
    for (; j + 8 <= w / 2; j += 8) relu_pool_forward<T, 8>(top + 2 * j, low + 2 * j, to + j);
    for (; j + 4 <= w / 2; j += 4) relu_pool_forward<T, 4>(top + 2 * j, low + 2 * j, to + j);
    for (; j < w / 2; j++) relu_pool_forward<T, 1>(top + 2 * j, low + 2 * j, to + j);
  }
}
template <class T> void relu_pool_backward(const T* x, const T* grad, T* out, Size h, Size w) {
  if (h % 2) std::memset(out + (h - 1) * w, 0, w * sizeof(T));
  for (Size i = 0; i < h / 2 * 2; i++) {
    const T *at = x + i * w, *from = grad + i / 2 * (w / 2);
    T* to = out + i * w;
    Size j = 0;
    for (; j + 8 <= w / 2; j += 8) relu_pool_backward<T, 8>(at + 2 * j, from + j, to + 2 * j);
    for (; j + 4 <= w / 2; j += 4) relu_pool_backward<T, 4>(at + 2 * j, from + j, to + 2 * j);
    for (; j < w / 2; j++) relu_pool_backward<T, 1>(at + 2 * j, from + j, to + 2 * j);
    if (w % 2) std::memset(to + w - 1, 0, sizeof(T));
  }
}
template <class T>
void relu_pool(bool back, const void* x, const void* grad, void* out, Size planes, Size h, Size w, int threads) {
  const Size small = (h / 2) * (w / 2);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
  for (Size n = 0; n < planes; n++) {
    const T* image = (const T*)x + n * h * w;
    if (back) relu_pool_backward(image, (const T*)grad + n * small, (T*)out + n * h * w, h, w);
    else relu_pool_forward(image, (T*)out + n * small, h, w);
  }
}

template <class T> void run_norm(int act, int back, const Task& t) {
  const Size blocks = Plan(t).count;
  if (t.channels % 16 == 0) Kernel<T, 16>(t, blocks).run(act, back);
  else Kernel<T, 4>(t, blocks).run(act, back);
}

}  // namespace

// The number of channels must be a multiple of 4. `back`: 0 for the forward pass, 1 for the gradient.
extern "C" void sightline_norm(
    int half, int act, int back, Size rows, Size channels, const void* x, const void* add, const void* grad,
    const void* y, const float* weight, const float* bias, float* mean, float* rstd, float* running_mean,
    float* running_var, float momentum, float eps, void* out, void* grad_add, float* grad_weight, float* grad_bias,
    int threads) {
  const Task t{rows, channels, x, add, grad, y, weight, bias, mean, rstd, running_mean, running_var,
               momentum, eps, out, grad_add, grad_weight, grad_bias, threads};
  if (half) run_norm<Bfloat16>(act, back, t);
  else run_norm<float>(act, back, t);
}

// Max pooling of 2 x 2 pixels with stride 2; `which` (0 to 3) is the place of each maximum.
extern "C" void sightline_pool(
    int half, int back, const void* from, void* to, std::uint8_t* which, Size images, Size height, Size width,
    Size channels, int threads) {
  const bool wide = channels % 16 == 0;
  if (half) (wide ? pool<Bfloat16, 16> : pool<Bfloat16, 4>)(back, from, to, which, images, height, width, channels, threads);
  else (wide ? pool<float, 16> : pool<float, 4>)(back, from, to, which, images, height, width, channels, threads);
}

// ReLU and the mean of 2 x 2 pixels with stride 2, of `planes` (images x channels) contiguous ones; `grad` for `back`.
extern "C" void sightline_relu_pool(
    int half, int back, const void* x, const void* grad, void* out, Size planes, Size height, Size width, int threads) {
  (half ? relu_pool<Bfloat16> : relu_pool<float>)(back, x, grad, out, planes, height, width, threads);
}
