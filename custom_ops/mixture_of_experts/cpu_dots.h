// The product of a few rows with a weight matrix that is read where it lies: C = A * B^T, both along the depth.
//
// Nothing is packed, so every weight is read once from memory and, for more rows than a tile, again from the caches.
#pragma once

#include "microkernel.h"
#if defined(__AVX512BF16__)
#include "microkernel_pairs.h"
#endif

namespace deployml::DEPLOYML_ISA {

inline constexpr int kDotColumns = 4;
inline constexpr int kDotRows = kVectorRegisters == 32 ? 6 : 3;

/// What a step of the depth is: float32 rows with weights of T, which are widened as they are read.
template <typename T>
struct FloatDots {
  using Unit = Floats;
  using Row = float;
  using Weight = T;
  using Wide = Vec;
  DEPLOYML_INLINE Wide row(const float* a) { return load(a); }
  DEPLOYML_INLINE Wide row(const float* a, int64_t n) { return load_first(a, n); }
  DEPLOYML_INLINE Wide weight(const T* b) { return load(b); }
  DEPLOYML_INLINE Wide weight(const T* b, int64_t n) { return load_first(b, n); }
  DEPLOYML_INLINE Vec step(Wide x, Wide y, Vec sum) { return fma(x, y, sum); }
};

#if defined(__AVX512BF16__)
/// Two bfloat16 of the depth at once, on both sides.
struct PairDots {
  using Unit = Pairs;
  using Row = Pair;
  using Weight = Pair;
  using Wide = __m512i;
  DEPLOYML_INLINE Wide row(const Pair* p) { return _mm512_loadu_si512(p); }
  DEPLOYML_INLINE Wide row(const Pair* p, int64_t n) { return _mm512_maskz_loadu_epi32(first(n), p); }
  DEPLOYML_INLINE Wide weight(const Pair* p) { return row(p); }
  DEPLOYML_INLINE Wide weight(const Pair* p, int64_t n) { return row(p, n); }
  DEPLOYML_INLINE Vec step(Wide x, Wide y, Vec sum) { return Pairs::step(x, y, sum); }
};
#endif

/// Sizes and places of C = A * B^T: `a` has `rows` rows, `b` has `columns`, both `depth` steps long.
template <typename Form>
struct Dots {
  const typename Form::Row* a;
  int64_t lda;
  const typename Form::Weight* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
  int64_t rows;
  int64_t columns;
  int64_t depth;
};

/// One register tile. The same columns of the next rows of B are asked for on the way: a row is a stream too short
/// for the hardware to foresee the next.
template <typename Form, int Rows, int Columns>
DEPLOYML_INLINE void dot_tile(const typename Form::Row* a, int64_t lda, const typename Form::Weight* b, int64_t ldb,
                              float* c, int64_t ldc, int64_t depth) {
  Vec sum[Rows][Columns];
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) sum[r][j] = zero();
  int64_t k = 0;
  for (; k + kWidth <= depth; k += kWidth) {
    typename Form::Wide column[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) {
      column[j] = Form::weight(b + j * ldb + k);
      __builtin_prefetch(b + (Columns + j) * ldb + k);
    }
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const auto x = Form::row(a + r * lda + k);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) sum[r][j] = Form::step(x, column[j], sum[r][j]);
    }
  }
  if (k < depth) {
    typename Form::Wide column[Columns];
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) column[j] = Form::weight(b + j * ldb + k, depth - k);
#pragma GCC unroll 6
    for (int r = 0; r < Rows; ++r) {
      const auto x = Form::row(a + r * lda + k, depth - k);
#pragma GCC unroll 4
      for (int j = 0; j < Columns; ++j) sum[r][j] = Form::step(x, column[j], sum[r][j]);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < Columns; ++j) c[r * ldc + j] = reduce_add(sum[r][j]);
}

template <typename Form, int Rows>
static __attribute__((noinline)) void dot_rows(const Dots<Form>& of, int64_t r, int64_t j, int64_t columns) {
  const auto* a = of.a + r * of.lda;
  float* c = of.c + r * of.ldc;
  int64_t end = j + columns;
  for (; j + kDotColumns <= end; j += kDotColumns)
    dot_tile<Form, Rows, kDotColumns>(a, of.lda, of.b + j * of.ldb, of.ldb, c + j, of.ldc, of.depth);
  for (; j < end; ++j) dot_tile<Form, Rows, 1>(a, of.lda, of.b + j * of.ldb, of.ldb, c + j, of.ldc, of.depth);
}

/// Tiles of as equal a number of rows as there are, so that none is left with a single one.
template <typename Form>
static void dots(const Dots<Form>& of) {
  const int64_t tiles = (of.rows + kDotRows - 1) / kDotRows;
  for (int64_t j = 0; j < of.columns; j += kDotColumns) {
    const int64_t columns = smaller(kDotColumns, of.columns - j);
    for (int64_t t = 0, r = 0; t < tiles; ++t) {
      const int64_t rows = (of.rows - r + tiles - t - 1) / (tiles - t);
      if (rows == 1) dot_rows<Form, 1>(of, r, j, columns);
      if (rows == 2) dot_rows<Form, 2>(of, r, j, columns);
      if (rows == 3) dot_rows<Form, 3>(of, r, j, columns);
      if constexpr (kDotRows == 6) {
        if (rows == 4) dot_rows<Form, 4>(of, r, j, columns);
        if (rows == 5) dot_rows<Form, 5>(of, r, j, columns);
        if (rows == 6) dot_rows<Form, 6>(of, r, j, columns);
      }
      r += rows;
    }
  }
}

}  // namespace deployml::DEPLOYML_ISA
