// The micro-kernels for bfloat16 on machines that multiply it (AVX512_BF16): two of the depth at once.
#pragma once

#include "microkernel.h"

namespace deployml::DEPLOYML_ISA {

/// Two bfloat16 that follow each other along the depth, in the place of one float.
struct Pair {
  BFloat of[2];
};

/// Steps of two bfloat16: sum += x[0] * y[0] + x[1] * y[1], the products exact, subnormal numbers taken as 0.
struct Pairs {
  using Element = Pair;
  using Wide = __m512i;
  DEPLOYML_INLINE Wide spread(const Pair* a) {
    int32_t bits;
    memcpy(&bits, a, sizeof bits);
    return _mm512_set1_epi32(bits);
  }
  DEPLOYML_INLINE Wide read(const Pair* b) { return _mm512_loadu_si512(b); }
  DEPLOYML_INLINE Vec step(Wide x, Wide y, Vec sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)y);
  }
};

/// pack_transposed for pairs: `depth`, `stride` and what is packed count pairs, so that a transposed pair stays one.
DEPLOYML_INLINE void pack_transposed(const Pair* source, int64_t stride, int64_t columns, int64_t depth, Pair* packed) {
  // A pair is moved as the 32 bits it is; no arithmetic touches them.
  pack_transposed(reinterpret_cast<const float*>(source), stride, columns, depth, reinterpret_cast<float*>(packed));
}

/// pack_plain for pairs of rows: the last of an odd number of rows is paired with 0. `depth` counts rows of `source`.
static void pack_plain(const BFloat* source, int64_t stride, int64_t depth, int64_t columns, Pair* packed) {
  for (int64_t first_column = 0; first_column < columns; first_column += kPanel) {
    const int64_t width = smaller(kPanel, round_up(columns - first_column, kWidth));
    for (int64_t k = 0; k < depth; k += 2) {
      const BFloat* row = source + k * stride + first_column;
      for (int64_t j = 0; j < width; j += kWidth) {
        const __mmask16 there = first(columns - first_column - j);
        const __m256i low = _mm256_maskz_loadu_epi16(there, row + j);
        const __m256i high = k + 1 < depth ? _mm256_maskz_loadu_epi16(there, row + stride + j) : _mm256_setzero_si256();
        _mm512_storeu_si512(packed + j, _mm512_or_si512(_mm512_cvtepu16_epi32(low),
                                                        _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16)));
      }
      packed += width;
    }
  }
}

/// Rounds floats [begin, end), both multiples of kWidth, to bfloat16 [begin, end) of the same memory.
DEPLOYML_INLINE void narrow_in_place(float* s, int64_t begin, int64_t end) {
  uint16_t* out = reinterpret_cast<uint16_t*>(s);
  for (int64_t j = begin; j < end; j += kWidth)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + j), (__m256i)_mm512_cvtneps_pbh(load(s + j)));
}

}  // namespace deployml::DEPLOYML_ISA
