// Packed matrix micro-kernels: C (+)= A * B with B in column panels, float32 results.
//
// Nothing here knows about attention. B is packed once into panels of up to kPanelVectors vectors of columns, laid
// out [depth][columns of the panel], so that the innermost loop reads it front to back; A is read row by row, one
// broadcast value at a time. A tile of C stays in registers for the whole depth: 6 x 64 floats with AVX-512,
// 6 x 16 with AVX2. What one step of the depth is, a Unit says: a float, or two bfloat16 that are multiplied at once.
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
/// A product of a multiple of so many rows touches no row beyond its last.
inline constexpr int kExactRows = 4;

DEPLOYML_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
DEPLOYML_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
DEPLOYML_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/// Floats that `columns` packed columns of depth `depth` take.
DEPLOYML_INLINE int64_t packed_size(int64_t columns, int64_t depth) { return round_up(columns, kWidth) * depth; }

/// Steps of one float: sum += x * y.
struct Floats {
  using Element = float;
  using Wide = Vec;
  DEPLOYML_INLINE Wide spread(const float* a) { return set1(*a); }
  DEPLOYML_INLINE Wide read(const float* b) { return load(b); }
  DEPLOYML_INLINE Vec step(Wide x, Wide y, Vec sum) { return fma(x, y, sum); }
};

/// What happens to C besides the product.
struct Epilogue {
  /// One factor a row: C = diag(scale) * C + A * B. Without it C = A * B.
  const float* scale = nullptr;
  /// One factor a row on the product: C = diag(share) * A * B.
  const float* share = nullptr;
  /// One vector a row, raised to the largest element of the row seen in each lane.
  float* top = nullptr;
  /// Factor on the product.
  float factor = 1.0f;
  /// A matrix to add to the product, read from memory that is asked for while the product is computed.
  const float* bias = nullptr;
  int64_t bias_row = 0;
  /// C = C + A * B, the product summed apart: a long depth taken in pieces loses fewer digits than one long sum.
  bool more = false;
};

/// One register tile of Rows x (Vectors * kWidth).
template <typename Unit, int Rows, int Vectors>
DEPLOYML_INLINE void tile(const typename Unit::Element* a, int64_t lda, const typename Unit::Element* b, int64_t ldb,
                          float* c, int64_t ldc, int64_t depth, const float* row_scale, const float* share,
                          float* top, float by, const float* bias, int64_t bias_row, bool more) {
  if (bias != nullptr)
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) __builtin_prefetch(bias + r * bias_row + v * kWidth);
  Vec sum[Rows][Vectors];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) sum[r][v] = zero();
  for (int64_t k = 0; k < depth; ++k) {
    typename Unit::Wide column[Vectors];
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) column[v] = Unit::read(b + v * kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const typename Unit::Wide x = Unit::spread(a + r * lda + k);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = Unit::step(x, column[v], sum[r][v]);
    }
    b += ldb;
  }
  // What C holds is added to the whole product and not its terms to C one by one: over a long row that would round at
  // the size of C each time.
  if (row_scale != nullptr)
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = set1(row_scale[r]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = fma(factor, load(c + r * ldc + v * kWidth), sum[r][v]);
    }
  if (share != nullptr)
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const Vec factor = set1(share[r]);
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = mul(factor, sum[r][v]);
    }
  if (by != 1.0f)
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = mul(set1(by), sum[r][v]);
  if (bias != nullptr)
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = add(load(bias + r * bias_row + v * kWidth), sum[r][v]);
  if (more)
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < Vectors; ++v) sum[r][v] = add(load(c + r * ldc + v * kWidth), sum[r][v]);
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) store(c + r * ldc + v * kWidth, sum[r][v]);
  if (top == nullptr) return;
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    Vec most = sum[r][0];
#pragma GCC unroll 4
    for (int v = 1; v < Vectors; ++v) most = maximum(most, sum[r][v]);
    store(top + r * kWidth, maximum(load(top + r * kWidth), most));
  }
}

/// The matrices of one product: A of `rows` rows, B of `depth` rows of which a panel is read, C. Sizes and strides of
/// A and B count elements of the unit.
template <typename Unit>
struct Operands {
  const typename Unit::Element* a;
  int64_t lda;
  const typename Unit::Element* b;
  int64_t ldb;
  float* c;
  int64_t ldc;
  int64_t rows;
  int64_t depth;
  /// Where A is 0 from some column on: row r of A from column reach + r on. At least `depth` where it is nowhere.
  int64_t reach = INT64_MAX / 2;
};

template <typename Unit, int Rows, int Vectors>
DEPLOYML_INLINE void multiply_rows(const Operands<Unit>& of, int64_t r, const Epilogue& also) {
  const auto* a = of.a + r * of.lda;
  float* c = of.c + r * of.ldc;
  const int64_t depth = smaller(of.depth, larger(of.reach + r + Rows - 1, 0));
  if (also.scale != nullptr) {
    tile<Unit, Rows, Vectors>(a, of.lda, of.b, of.ldb, c, of.ldc, depth, also.scale + r, nullptr, nullptr, 1.0f,
                              nullptr, 0, false);
  } else if (also.share != nullptr) {
    tile<Unit, Rows, Vectors>(a, of.lda, of.b, of.ldb, c, of.ldc, depth, nullptr, also.share + r, nullptr, 1.0f,
                              nullptr, 0, false);
  } else {
    tile<Unit, Rows, Vectors>(a, of.lda, of.b, of.ldb, c, of.ldc, depth, nullptr, nullptr,
                              also.top != nullptr ? also.top + r * kWidth : nullptr, also.factor,
                              also.bias != nullptr ? also.bias + r * also.bias_row : nullptr, also.bias_row, also.more);
  }
}

template <typename Unit, int Vectors>
static __attribute__((noinline)) void multiply_panel(const Operands<Unit>& of, const Epilogue& also) {
  constexpr int kRows = tile_rows(Vectors);
  constexpr int kPart = kRows % 3 == 0 ? kRows / 3 : kRows / 2;  // the last rows take a tile of fewer
  static_assert(kExactRows % kPart == 0);
  int64_t r = 0;
  for (; r + kRows <= of.rows; r += kRows) multiply_rows<Unit, kRows, Vectors>(of, r, also);
  const int64_t left = of.rows - r;
  if (left > 2 * kPart) return multiply_rows<Unit, kRows, Vectors>(of, r, also);
  if (left > kPart) return multiply_rows<Unit, 2 * kPart, Vectors>(of, r, also);
  if (left > 0) multiply_rows<Unit, kPart, Vectors>(of, r, also);
}

/// C = factor * A * B over `vectors` vectors of columns, at most kPanelVectors, and what `also` says.
///
/// Of `scale`, `share` and the rest of `also`, the first that is given is looked at. A, C and what `also` points to must
/// be readable, and writable where written, up to the next multiple of kExactRows rows; what those rows hold does not
/// matter.
template <typename Unit>
static inline void multiply(const Operands<Unit>& of, int vectors, const Epilogue& also) {
  if (vectors == 1) return multiply_panel<Unit, 1>(of, also);
  if (vectors == 2) return multiply_panel<Unit, 2>(of, also);
  if constexpr (kPanelVectors == 4) {
    if (vectors == 3) return multiply_panel<Unit, 3>(of, also);
    multiply_panel<Unit, 4>(of, also);
  }
}

/// Asks for rows that are needed soon: they lie far apart, and the hardware does not foresee the jumps.
template <typename T>
DEPLOYML_INLINE void prefetch_rows(const T* rows, int64_t stride, int64_t count, int64_t elements) {
  constexpr int64_t kLine = 64 / int64_t(sizeof(T));
  for (int64_t i = 0; i < count; ++i)
    for (int64_t k = 0; k < elements; k += kLine) __builtin_prefetch(rows + i * stride + k);
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
      if (present > 2 * kWidth) prefetch_rows(rows + kWidth * stride, stride, kWidth, depth);
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
  constexpr int64_t kAhead = 16;  // rows
  for (int64_t first_column = 0; first_column < columns; first_column += kPanel) {
    const int64_t width = smaller(kPanel, round_up(columns - first_column, kWidth));
    for (int64_t k = 0; k < depth; ++k) {
      const T* row = source + k * stride + first_column;
      if (k + kAhead < depth) prefetch_rows(row + kAhead * stride, stride, 1, smaller(width, columns - first_column));
      for (int64_t j = 0; j < width; j += kWidth)
        store(packed + j, load_first(row + j, columns - first_column - j));
      packed += width;
    }
  }
}

}  // namespace deployml::DEPLOYML_ISA
