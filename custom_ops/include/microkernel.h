// Packed matrix micro-kernels: C (+)= A * B with B in column panels, float32 arithmetic.
//
// Nothing here knows about attention. B is packed once into panels of up to kPanelVectors vectors of columns, laid
// out [depth][columns of the panel], so that the innermost loop reads it front to back; A is read row by row, one
// broadcast value at a time. A tile of C stays in registers for the whole depth: 6 x 64 floats with AVX-512,
// 6 x 16 with AVX2.
#pragma once

#include "simd.h"

namespace deployml::DEPLOYML_ISA {

/// Vectors of columns in a full panel, and the columns they make.
inline constexpr int kPanelVectors = kVectorRegisters == 32 ? 4 : 2;
inline constexpr int kPanel = kPanelVectors * kWidth;

/// Rows of the register tile for a panel of `vectors` vectors: as many as the register file holds.
constexpr int tile_rows(int vectors) {
  if (kVectorRegisters == 32) return vectors == 4 ? 6 : vectors == 3 ? 8 : 12;
  return vectors == 2 ? (kWidth == 8 ? 6 : 4) : 12;
}

/// Row blocks are multiples of this: every tile_rows() divides it.
inline constexpr int kRowGranule = 24;

DEPLOYML_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
DEPLOYML_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DEPLOYML_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/// Floats that `columns` packed columns of depth `depth` take.
DEPLOYML_INLINE int64_t packed_size(int64_t columns, int64_t depth) { return round_up(columns, kWidth) * depth; }

/// One register tile: C[rows x vectors*kWidth] = scale_row * C + A * B, or A * B when `row_scale` is nullptr.
template <int Rows, int Vectors>
static inline __attribute__((always_inline)) void tile(const float* a, int64_t lda, const float* b, float* c,
                                                       int64_t ldc, int64_t depth, const float* row_scale) {
  Vec sum[Rows][Vectors];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    const Vec factor = row_scale != nullptr ? set1(row_scale[r]) : zero();
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v)
      sum[r][v] = row_scale != nullptr ? mul(factor, load(c + r * ldc + v * kWidth)) : zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec column[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) column[v] = load(b + v * kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const Vec x = set1(a[r * lda + k]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = fma(x, column[v], sum[r][v]);
    }
    b += Vectors * kWidth;
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(c + r * ldc + v * kWidth, sum[r][v]);
}

template <int Vectors>
static __attribute__((noinline)) void multiply_panel(const float* a, int64_t lda, const float* b, float* c,
                                                     int64_t ldc, int64_t rows, int64_t depth,
                                                     const float* row_scale) {
  constexpr int kRows = tile_rows(Vectors);
  for (int64_t r = 0; r < rows; r += kRows) {
    if (row_scale != nullptr) {
      tile<kRows, Vectors>(a + r * lda, lda, b, c + r * ldc, ldc, depth, row_scale + r);
    } else {
      tile<kRows, Vectors>(a + r * lda, lda, b, c + r * ldc, ldc, depth, nullptr);
    }
  }
}

/// C = diag(row_scale) * C + A * panel, or A * panel when `row_scale` is nullptr.
///
/// `panel` has `vectors` vectors of columns and `depth` rows. A, C and `row_scale` must be readable, and C
/// writable, up to the next multiple of kRowGranule rows; what those rows hold does not matter.
static inline void multiply(const float* a, int64_t lda, const float* panel, int vectors, float* c, int64_t ldc,
                            int64_t rows, int64_t depth, const float* row_scale) {
  if (vectors == 1) return multiply_panel<1>(a, lda, panel, c, ldc, rows, depth, row_scale);
  if (vectors == 2) return multiply_panel<2>(a, lda, panel, c, ldc, rows, depth, row_scale);
  if constexpr (kPanelVectors == 4) {
    if (vectors == 3) return multiply_panel<3>(a, lda, panel, c, ldc, rows, depth, row_scale);
    multiply_panel<4>(a, lda, panel, c, ldc, rows, depth, row_scale);
  }
}

/// Packs a (columns x depth) matrix of row stride `stride`, transposed: B[k][j] = source[j][k]. Columns beyond the
/// last are 0.
template <typename T>
static void pack_transposed(const T* source, int64_t stride, int64_t columns, int64_t depth, float* packed) {
  for (int64_t first_column = 0; first_column < columns; first_column += kPanel) {
    const int64_t width = smaller(kPanel, round_up(columns - first_column, kWidth));
    for (int64_t j = 0; j < width; j += kWidth) {
      const int64_t present = columns - first_column - j;
      const T* rows = source + (first_column + j) * stride;
      for (int64_t k = 0; k < depth; k += kWidth) {
        Vec block[kWidth];
        const int64_t left = depth - k;
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i)
          block[i] = i >= present        ? zero()
                     : left >= kWidth    ? load(rows + i * stride + k)
                                         : load_first(rows + i * stride + k, left);
        transpose(block);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i)
          if (i < left) store(packed + (k + i) * width + j, block[i]);
      }
    }
    packed += width * depth;
  }
}

/// Packs a (depth x columns) matrix of row stride `stride` as it stands. Columns beyond the last are 0.
template <typename T>
static void pack_plain(const T* source, int64_t stride, int64_t depth, int64_t columns, float* packed) {
  for (int64_t first_column = 0; first_column < columns; first_column += kPanel) {
    const int64_t width = smaller(kPanel, round_up(columns - first_column, kWidth));
    for (int64_t k = 0; k < depth; ++k) {
      const T* row = source + k * stride + first_column;
      for (int64_t j = 0; j < width; j += kWidth)
        store(packed + j, load_first(row + j, columns - first_column - j));
      packed += width;
    }
  }
}

}  // namespace deployml::DEPLOYML_ISA
