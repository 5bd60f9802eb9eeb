// Products for a handful of query rows (decoding): keys and values are read where they lie, nothing is packed.
#pragma once

#include "microkernel.h"

namespace deployml::DEPLOYML_ISA {

/// scores[j] = query . key_j for j in [0, count); `scores` is writable up to the next vector.
template <typename T>
static void dot_keys(const float* query, const T* keys, int64_t stride, int64_t count, int64_t depth,
                     float* scores) {
  int64_t j = 0;
  for (; j < count; j += kWidth) {
    const int64_t present = smaller(kWidth, count - j);
    const T* rows = keys + j * stride;
    Vec sum[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) sum[i] = zero();
    int64_t k = 0;
    if (present == kWidth) {
      for (; k + kWidth <= depth; k += kWidth) {
        const Vec q = load(query + k);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) sum[i] = fma(q, load(rows + i * stride + k), sum[i]);
      }
    }
    for (; k < depth; k += kWidth) {
      const Vec q = load_first(query + k, depth - k);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i)
        if (i < present) sum[i] = fma(q, load_first(rows + i * stride + k, depth - k), sum[i]);
    }
    transpose(sum);
#pragma GCC unroll 4
    for (int step = kWidth / 2; step > 0; step /= 2)
#pragma GCC unroll 8
      for (int i = 0; i < step; ++i) sum[i] = add(sum[i], sum[i + step]);
    store(scores + j, sum[0]);
  }
}

template <int Vectors, typename T>
static void accumulate_columns(const float* weights, const T* values, int64_t stride, int64_t count,
                               int64_t columns, float factor, float* output) {
  Vec sum[Vectors];
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v) sum[v] = zero();
  const bool whole = columns >= Vectors * kWidth;
  for (int64_t j = 0; j < count; ++j) {
    const Vec w = set1(weights[j]);
    const T* row = values + j * stride;
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) {
      const T* at = row + v * kWidth;
      sum[v] = fma(w, whole ? load(at) : load_first(at, columns - v * kWidth), sum[v]);
    }
  }
#pragma GCC unroll 4
  for (int v = 0; v < Vectors; ++v)
    store(output + v * kWidth, fma(set1(factor), load(output + v * kWidth), sum[v]));
}

/// output = factor * output + sum_j weights[j] * value_j; `output` is padded to whole vectors.
template <typename T>
static void accumulate_values(const float* weights, const T* values, int64_t stride, int64_t count,
                              int64_t columns, float factor, float* output) {
  for (int64_t c = 0; c < columns; c += 4 * kWidth) {
    const int64_t left = columns - c;
    if (left > 3 * kWidth) {
      accumulate_columns<4>(weights, values + c, stride, count, left, factor, output + c);
    } else if (left > 2 * kWidth) {
      accumulate_columns<3>(weights, values + c, stride, count, left, factor, output + c);
    } else if (left > kWidth) {
      accumulate_columns<2>(weights, values + c, stride, count, left, factor, output + c);
    } else {
      accumulate_columns<1>(weights, values + c, stride, count, left, factor, output + c);
    }
  }
}

}  // namespace deployml::DEPLOYML_ISA
