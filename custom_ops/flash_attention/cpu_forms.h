// In which form numbers go into the products: as floats whatever their type, or bfloat16 in pairs.
//
// A form says how queries are kept, what keys and values are packed to, what becomes of the weights, and kSteps: how
// many of the depth one element of its unit holds.
#pragma once

#include "cpu_block.h"

#if defined(__AVX512BF16__)
#include "microkernel_pairs.h"
#endif

namespace deployml::DEPLOYML_ISA {

template <typename T>
struct FloatForm {
  using Unit = Floats;
  static constexpr int64_t kSteps = 1;

  static void load_query(const T* row, int64_t n, float scale, float* query) { load_scaled(row, n, scale, query); }
  /// The squared length of a query.
  static float query_norm(const float* query, int64_t n) { return squared_norm(query, n); }
  /// What products with loaded queries are multiplied by.
  static float factor(float) { return 1.0f; }
  static void pack_keys(const T* keys, int64_t stride, int64_t count, int64_t n, float* packed) {
    pack_transposed(keys, stride, count, n, packed);
  }
  static void pack_values(const T* values, int64_t stride, int64_t count, int64_t n, float* packed) {
    pack_plain(values, stride, count, n, packed);
  }
  static void narrow(float*, const Range&) {}
};

#if defined(__AVX512BF16__)

/// bfloat16 goes into the products as it is, weights are rounded to it. Rows of keys are whole pairs.
template <typename T>
struct PairForm {
  using Unit = Pairs;
  static constexpr int64_t kSteps = 2;

  static void load_query(const BFloat* row, int64_t n, float, float* query) {
    memcpy(query, row, size_t(n) * sizeof *row);
  }
  static float query_norm(const float* query, int64_t n) {
    return squared_norm(reinterpret_cast<const BFloat*>(query), n);
  }
  static float factor(float scale) { return scale; }
  static void pack_keys(const BFloat* keys, int64_t stride, int64_t count, int64_t n, Pair* packed) {
    pack_transposed(reinterpret_cast<const Pair*>(keys), stride / 2, count, n / 2, packed);
  }
  static void pack_values(const BFloat* values, int64_t stride, int64_t count, int64_t n, Pair* packed) {
    pack_plain(values, stride, count, n, packed);
  }
  /// Rounds a row of weights over these columns, with 0 for the partners that are no columns.
  static void narrow(float* row, const Range& columns) {
    if (columns.begin % 2 != 0) row[columns.begin - 1] = 0.0f;
    if (columns.end % 2 != 0) row[columns.end] = 0.0f;
    narrow_in_place(row, columns.begin / kWidth * kWidth, round_up(columns.end, kWidth));
  }
};

template <typename T>
using Form = PairForm<T>;

#else

template <typename T>
using Form = FloatForm<T>;

#endif

}  // namespace deployml::DEPLOYML_ISA
