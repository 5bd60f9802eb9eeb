// What happens to one tile of scores between the two products: cap, biases, masks and the online softmax.
#pragma once

#include "attention.h"
#include "microkernel.h"

namespace deployml::DEPLOYML_ISA {

/// A half-open range of keys.
struct Range {
  int64_t begin;
  int64_t end;
  bool empty() const { return begin >= end; }
};

/// The number of keys row i of batch b has, before any mask.
DEPLOYML_INLINE int64_t length_of(const AttentionCall& call, int64_t b) {
  return call.lengths != nullptr ? call.lengths[b] : call.keys;
}

/// Position of row i on the axis of keys: causality and windows are measured from it.
DEPLOYML_INLINE int64_t position_of(const AttentionCall& call, int64_t length, int64_t row) {
  return row + (call.lower_right ? length - call.queries : 0);
}

/// The keys that lengths, causality and window leave to row `row`. Both ends grow with the row.
DEPLOYML_INLINE Range visible(const AttentionCall& call, int64_t length, int64_t row) {
  const int64_t at = position_of(call, length, row);
  Range keys{0, length};
  if (call.window_left >= 0) keys.begin = smaller(larger(at - call.window_left, 0), length);
  if (call.window_right >= 0) keys.end = smaller(larger(at + call.window_right + 1, 0), length);
  return keys;
}

/// Row `i` of head `h` of batch `b` of a broadcast tensor, at key 0.
template <typename T>
DEPLOYML_INLINE const T* row_of(const View& view, int64_t b, int64_t h, int64_t i) {
  return static_cast<const T*>(view.data) + b * view.batch + h * view.head + i * view.row;
}

DEPLOYML_INLINE void fill(float* p, int64_t n, float value) {
  const Vec all = set1(value);
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(p + i, all);
  if (i < n) store_first(p + i, all, n - i);
}

/// out[0, n) = factor * in[0, n) in float32, with 0 up to the next vector.
template <typename T>
DEPLOYML_INLINE void load_scaled(const T* in, int64_t n, float factor, float* out) {
  const Vec by = set1(factor);
  int64_t k = 0;
  for (; k + kWidth <= n; k += kWidth) store(out + k, mul(by, load(in + k)));
  if (k < n) store(out + k, mul(by, load_first(in + k, n - k)));
}

/// out[0, n) = factor * in[0, n), `in` readable up to the next vector.
template <typename T>
DEPLOYML_INLINE void store_scaled(const float* in, int64_t n, float factor, T* out) {
  const Vec by = set1(factor);
  int64_t c = 0;
  for (; c + kWidth <= n; c += kWidth) store(out + c, mul(by, load(in + c)));
  if (c < n) store_first(out + c, mul(by, load(in + c)), n - c);
}

/// The sum of squares of n values.
template <typename T>
DEPLOYML_INLINE float squared_norm(const T* row, int64_t n) {
  Vec sum = zero();
  for (int64_t k = 0; k < n; k += kWidth) {
    const Vec x = load_first(row + k, n - k);
    sum = fma(x, x, sum);
  }
  return reduce_add(sum);
}

/// Everything a row of scores needs besides the scores; `key` is the key of the row's first column.
template <typename T>
struct RowContext {
  const T* bias;        // at `key`, or nullptr
  int64_t bias_column;  // 0 or 1
  const uint8_t* mask;  // at `key`, or nullptr
  int64_t mask_column;
  const float* table;    // at distance 0, or nullptr; readable from -reach - kWidth to reach + kWidth
  int64_t reach;
  int64_t ahead;        // `key` minus the position of the row
  float softcap;
  float slope;
  float distance;  // position of the row minus `key`
};

/// Adds the table's values at distances ahead, ahead + 1, ...; beyond its reach the last value goes on.
DEPLOYML_INLINE void add_table(float* s, int64_t n, const float* table, int64_t reach, int64_t ahead) {
  for (int64_t j = 0; j < n; j += kWidth) {
    const int64_t at = smaller(larger(ahead + j, -reach - kWidth), reach + 1);
    store(s + j, add(load(s + j), load(table + at)));
  }
}

/// s += bias in place over columns [0, n), n readable past to a vector. Returns the largest sum.
template <typename T>
DEPLOYML_INLINE float add_bias(float* s, int64_t n, const T* bias) {
  Vec top = set1(-kInfinity), second = top;
  int64_t j = 0;
  for (; j + 2 * kWidth <= n; j += 2 * kWidth) {
    const Vec x = add(load(s + j), load(bias + j)), y = add(load(s + j + kWidth), load(bias + j + kWidth));
    store(s + j, x);
    store(s + j + kWidth, y);
    top = maximum(top, x);
    second = maximum(second, y);
  }
  for (; j < n; j += kWidth) {
    const Vec x = add(load(s + j), load_first(bias + j, n - j));
    store(s + j, x);
    top = maximum(top, x);
  }
  return reduce_max(maximum(top, second));
}

/// Turns raw scores into logits in place: softcap, ALiBi, table, bias, mask. Columns [0, n), n readable past to a vector.
template <typename T>
static void shape_row(float* s, int64_t n, const RowContext<T>& row) {
  if (row.softcap != 0.0f) {
    const Vec cap = set1(row.softcap), inverse = set1(1.0f / row.softcap);
    for (int64_t j = 0; j < n; j += kWidth)
      store(s + j, mul(cap, hyperbolic_tangent(mul(load(s + j), inverse))));
  }
  if (row.slope != 0.0f) {
    const Vec slope = set1(-row.slope);
    Vec distance = sub(set1(row.distance), iota());
    for (int64_t j = 0; j < n; j += kWidth) {
      store(s + j, fma(slope, absolute(distance), load(s + j)));
      distance = sub(distance, set1(float(kWidth)));
    }
  }
  if (row.table != nullptr) add_table(s, n, row.table, row.reach, row.ahead);
  if (row.bias != nullptr && row.bias_column == 0) {
    const Vec bias = set1(widen(*row.bias));
    for (int64_t j = 0; j < n; j += kWidth) store(s + j, add(load(s + j), bias));
  } else if (row.bias != nullptr) {
    add_bias(s, n, row.bias);
  }
  if (row.mask == nullptr) return;
  const Vec excluded = set1(-kInfinity);
  if (row.mask_column == 0) {
    if (*row.mask != 0) return;
    for (int64_t j = 0; j < n; j += kWidth) store(s + j, excluded);
    return;
  }
  for (int64_t j = 0; j < n; j += kWidth) store(s + j, where_bytes(row.mask + j, n - j, load(s + j), excluded));
}

/// Writes -inf to columns [begin, low) and [high, end) and returns the largest of [low, high), which is not empty.
/// begin and end are multiples of kWidth, the nearest to low and high.
DEPLOYML_INLINE float cut_row(float* s, int64_t begin, int64_t low, int64_t high, int64_t end) {
  const Vec none = set1(-kInfinity);
  Vec first = load(s + begin);
  first = where_less(iota(), set1(float(low - begin)), none, first);
  if (end - begin == kWidth) first = where_less(iota(), set1(float(high - begin)), first, none);
  store(s + begin, first);
  if (end - begin == kWidth) return reduce_max(first);
  const int64_t tail = end - kWidth;
  const Vec last = where_less(iota(), set1(float(high - tail)), load(s + tail), none);
  store(s + tail, last);
  for (int64_t j = begin + kWidth; j < tail; j += kWidth) first = maximum(load(s + j), first);
  return reduce_max(maximum(last, first));
}

/// The largest of s[0, n), n a multiple of kWidth.
DEPLOYML_INLINE float row_top(const float* s, int64_t n) {
  Vec top = load(s), second = top;
  int64_t j = kWidth;
  for (; j + 2 * kWidth <= n; j += 2 * kWidth) {
    top = maximum(top, load(s + j));
    second = maximum(second, load(s + j + kWidth));
  }
  if (j < n) top = maximum(top, load(s + j));
  return reduce_max(maximum(top, second));
}

/// s becomes exp(s - base) in place, n a multiple of kWidth. Returns the sum.
DEPLOYML_INLINE float exponentials(float* s, int64_t n, float base) {
  const Vec shift = set1(base);
  Vec sum = zero(), other = zero();
  int64_t j = 0;
  for (; j + 2 * kWidth <= n; j += 2 * kWidth) {
    const Vec p = exponential(sub(load(s + j), shift));
    const Vec q = exponential(sub(load(s + j + kWidth), shift));
    store(s + j, p);
    store(s + j + kWidth, q);
    sum = add(sum, p);
    other = add(other, q);
  }
  if (j < n) {
    const Vec p = exponential(sub(load(s + j), shift));
    store(s + j, p);
    sum = add(sum, p);
  }
  return reduce_add(add(sum, other));
}

/// What rows remember from tile to tile, one float a row, padded to whole vectors.
struct RowState {
  float* highest;  // maximum so far
  float* total;    // sum of exp(score - highest) so far
};

/// Raises the maxima to those of a new tile. `top` holds them and becomes what to subtract from the tile's scores;
/// `factor` becomes what the rows' sums and outputs must be multiplied by.
///
/// A row of -inf only keeps the maximum -inf; 0 is subtracted from it, so that its weights are 0 and not NaN.
DEPLOYML_INLINE void raise_maxima(const RowState& state, int64_t rows, float* top, float* factor) {
  const Vec none = set1(-kInfinity);
  for (int64_t r = 0; r < rows; r += kWidth) {
    const Vec before = load(state.highest + r), found = load(top + r);
    const Vec now = where_less(before, found, found, before);
    const Vec base = where_less(none, now, now, zero());
    store(factor + r, exponential(sub(before, base)));
    store(state.highest + r, now);
    store(top + r, base);
  }
}

/// The largest of n values; NaN is passed over, -inf when nothing is left.
template <typename T>
static float largest(const T* values, int64_t n) {
  Vec top = set1(-kInfinity);
  for (int64_t j = 0; j < n; j += kWidth) {
    Vec x = load_first(values + j, n - j);
    if (n - j < kWidth) x = where_less(iota(), set1(float(n - j)), x, top);
    top = where_less(top, x, x, top);
  }
  return reduce_max(top);
}

/// Whether all of n values lie below `limit`; NaN does not.
template <typename T>
static bool all_below(const T* values, int64_t n, float limit) {
  const Vec bound = set1(limit);
  for (int64_t j = 0; j < n; j += kWidth) {
    Vec above = where_less(load_first(values + j, n - j), bound, zero(), set1(1.0f));
    if (n - j < kWidth) above = where_less(iota(), set1(float(n - j)), above, zero());
    if (reduce_max(above) > 0.0f) return false;
  }
  return true;
}

}  // namespace deployml::DEPLOYML_ISA
