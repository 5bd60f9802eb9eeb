// Float vectors of the instruction set this translation unit is compiled for.
//
// Kernels are written once against `Vec` and compiled three times (AVX-512, AVX2 + FMA, portable), each into the
// namespace DEPLOYML_ISA, and chosen at run time. Only the standard C headers are used here: an inline function of
// the C++ library, compiled with AVX-512, could be the copy the linker keeps for everyone.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#ifndef DEPLOYML_ISA
#error "compile with -DDEPLOYML_ISA=<namespace>"
#endif

#define DEPLOYML_INLINE static inline __attribute__((always_inline))

namespace deployml::DEPLOYML_ISA {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr float kLog2E = 1.44269504088896340736f;

// 2^f on [0, 1): minimax of relative error 8.2e-8 with the value 1 at 0.
inline constexpr float kExp2[6] = {1.0f,           0.6931512951f,  0.2401644439f,
                                   0.05579992011f, 0.00901701953f, 0.00186713495f};

#if defined(__AVX512F__)

inline constexpr int kWidth = 16;
inline constexpr int kVectorRegisters = 32;
using Vec = __m512;

DEPLOYML_INLINE __mmask16 first(int64_t n) {
  return n >= 16 ? __mmask16(0xffff) : n <= 0 ? __mmask16(0) : __mmask16((1u << n) - 1u);
}
DEPLOYML_INLINE Vec zero() { return _mm512_setzero_ps(); }
DEPLOYML_INLINE Vec set1(float x) { return _mm512_set1_ps(x); }
DEPLOYML_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
DEPLOYML_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
DEPLOYML_INLINE Vec load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
DEPLOYML_INLINE void store_first(float* p, Vec v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
DEPLOYML_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
DEPLOYML_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
DEPLOYML_INLINE Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
DEPLOYML_INLINE Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
DEPLOYML_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
DEPLOYML_INLINE Vec maximum(Vec a, Vec b) { return _mm512_max_ps(a, b); }
DEPLOYML_INLINE Vec absolute(Vec a) { return _mm512_abs_ps(a); }
/// a where x < y (false for NaN), else b.
DEPLOYML_INLINE Vec where_less(Vec x, Vec y, Vec a, Vec b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, y, _CMP_LT_OQ), b, a);
}
/// a where the byte is not 0, else b; reads the first n bytes, the others count as 0.
DEPLOYML_INLINE Vec where_bytes(const uint8_t* bytes, int64_t n, Vec a, Vec b) {
  const __m128i flags = _mm_maskz_loadu_epi8(first(n), bytes);
  return _mm512_mask_blend_ps(_mm_test_epi8_mask(flags, flags), b, a);
}
DEPLOYML_INLINE Vec iota() {
  return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
DEPLOYML_INLINE float reduce_max(Vec v) { return _mm512_reduce_max_ps(v); }
DEPLOYML_INLINE float reduce_add(Vec v) { return _mm512_reduce_add_ps(v); }

/// e^x for x <= 0 (and for the small positive x of a softcap); 0 for -inf, NaN for NaN.
DEPLOYML_INLINE Vec exponential(Vec x) {
  const Vec z = mul(x, set1(kLog2E));
  const Vec f = _mm512_reduce_ps(z, 0x01);  // z - floor(z)
  Vec p = fma(set1(kExp2[5]), f, set1(kExp2[4]));
  p = fma(p, f, set1(kExp2[3]));
  p = fma(p, f, set1(kExp2[2]));
  p = fma(p, f, set1(kExp2[1]));
  p = fma(p, f, set1(kExp2[0]));
  return _mm512_scalef_ps(p, z);  // p * 2^floor(z)
}

/// Transposes a kWidth x kWidth block held in registers.
DEPLOYML_INLINE void transpose(Vec (&r)[16]) {
  Vec t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i + 0] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    r[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    r[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    r[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#elif defined(__AVX2__)

inline constexpr int kWidth = 8;
inline constexpr int kVectorRegisters = 16;
using Vec = __m256;

DEPLOYML_INLINE __m256i first(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n > 8 ? 8 : int(n)), lane);
}
DEPLOYML_INLINE Vec zero() { return _mm256_setzero_ps(); }
DEPLOYML_INLINE Vec set1(float x) { return _mm256_set1_ps(x); }
DEPLOYML_INLINE Vec load(const float* p) { return _mm256_loadu_ps(p); }
DEPLOYML_INLINE void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
DEPLOYML_INLINE Vec load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
DEPLOYML_INLINE void store_first(float* p, Vec v, int64_t n) { _mm256_maskstore_ps(p, first(n), v); }
DEPLOYML_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
DEPLOYML_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
DEPLOYML_INLINE Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
DEPLOYML_INLINE Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
DEPLOYML_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
DEPLOYML_INLINE Vec maximum(Vec a, Vec b) { return _mm256_max_ps(a, b); }
DEPLOYML_INLINE Vec absolute(Vec a) { return _mm256_andnot_ps(set1(-0.0f), a); }
DEPLOYML_INLINE Vec where_less(Vec x, Vec y, Vec a, Vec b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, y, _CMP_LT_OQ));
}
DEPLOYML_INLINE Vec where_bytes(const uint8_t* bytes, int64_t n, Vec a, Vec b) {
  uint64_t raw = 0;
  memcpy(&raw, bytes, n >= 8 ? 8 : n <= 0 ? 0 : size_t(n));
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(raw)));
  return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_cmpeq_epi32(wide, _mm256_setzero_si256())));
}
DEPLOYML_INLINE Vec iota() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }
DEPLOYML_INLINE float reduce_max(Vec v) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
DEPLOYML_INLINE float reduce_add(Vec v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
DEPLOYML_INLINE Vec exponential(Vec x) {
  const Vec raw = mul(x, set1(kLog2E));
  // max/min return their second operand when one is NaN, so NaN passes through.
  const Vec z = _mm256_min_ps(set1(127.0f), _mm256_max_ps(set1(-126.0f), raw));
  const Vec whole = _mm256_floor_ps(z);
  const Vec f = sub(z, whole);
  Vec p = fma(set1(kExp2[5]), f, set1(kExp2[4]));
  p = fma(p, f, set1(kExp2[3]));
  p = fma(p, f, set1(kExp2[2]));
  p = fma(p, f, set1(kExp2[1]));
  p = fma(p, f, set1(kExp2[0]));
  const __m256i bits = _mm256_slli_epi32(_mm256_cvtps_epi32(whole), 23);
  p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), bits));
  p = _mm256_andnot_ps(_mm256_cmp_ps(raw, set1(-126.0f), _CMP_LT_OQ), p);
  return _mm256_blendv_ps(p, raw, _mm256_cmp_ps(raw, raw, _CMP_UNORD_Q));
}
DEPLOYML_INLINE void transpose(Vec (&r)[8]) {
  Vec t[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  Vec u[8];
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    u[i + 0] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

#else  // portable: the compiler's own vectors of four (SSE2, NEON, or scalar code)

inline constexpr int kWidth = 4;
inline constexpr int kVectorRegisters = 16;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t IntVec __attribute__((vector_size(16)));

DEPLOYML_INLINE Vec zero() { return Vec{0, 0, 0, 0}; }
DEPLOYML_INLINE Vec set1(float x) { return Vec{x, x, x, x}; }
DEPLOYML_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
DEPLOYML_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }
DEPLOYML_INLINE Vec load_first(const float* p, int64_t n) {
  Vec v = zero();
  for (int i = 0; i < 4; ++i)
    if (i < n) v[i] = p[i];
  return v;
}
DEPLOYML_INLINE void store_first(float* p, Vec v, int64_t n) {
  for (int i = 0; i < 4; ++i)
    if (i < n) p[i] = v[i];
}
DEPLOYML_INLINE Vec add(Vec a, Vec b) { return a + b; }
DEPLOYML_INLINE Vec sub(Vec a, Vec b) { return a - b; }
DEPLOYML_INLINE Vec mul(Vec a, Vec b) { return a * b; }
DEPLOYML_INLINE Vec div(Vec a, Vec b) { return a / b; }
DEPLOYML_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
DEPLOYML_INLINE Vec where_less(Vec x, Vec y, Vec a, Vec b) { return x < y ? a : b; }
/// The greater one; b when either is NaN, as the x86 instruction does.
DEPLOYML_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
DEPLOYML_INLINE Vec absolute(Vec a) { return (Vec)((IntVec)a & IntVec{} + 0x7fffffff); }
DEPLOYML_INLINE Vec where_bytes(const uint8_t* bytes, int64_t n, Vec a, Vec b) {
  Vec v = b;
  for (int i = 0; i < 4; ++i)
    if (i < n && bytes[i]) v[i] = a[i];
  return v;
}
DEPLOYML_INLINE Vec iota() { return Vec{0, 1, 2, 3}; }
DEPLOYML_INLINE float reduce_max(Vec v) {
  const float x = v[0] > v[1] ? v[0] : v[1], y = v[2] > v[3] ? v[2] : v[3];
  return x > y ? x : y;
}
DEPLOYML_INLINE float reduce_add(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
DEPLOYML_INLINE Vec exponential(Vec x) {
  const Vec raw = x * kLog2E;
  Vec z = raw < -126.0f ? set1(-126.0f) : raw;
  z = z > 127.0f ? set1(127.0f) : z;
  z = z == z ? z : zero();  // converting NaN to an integer is undefined; it is put back below
  IntVec whole = __builtin_convertvector(z, IntVec);
  Vec floored = __builtin_convertvector(whole, Vec);
  const IntVec above = floored > z;  // -1 where truncation went up
  whole += above;
  floored += __builtin_convertvector(above, Vec);
  const Vec f = z - floored;
  Vec p = f * kExp2[5] + kExp2[4];
  p = p * f + kExp2[3];
  p = p * f + kExp2[2];
  p = p * f + kExp2[1];
  p = p * f + kExp2[0];
  p = (Vec)((IntVec)p + whole * (1 << 23));
  p = raw < -126.0f ? zero() : p;
  return raw == raw ? p : raw;
}
DEPLOYML_INLINE void transpose(Vec (&r)[4]) {
  const Vec a = r[0], b = r[1], c = r[2], d = r[3];
  for (int i = 0; i < 4; ++i) r[i] = Vec{a[i], b[i], c[i], d[i]};
}

#endif

/// tanh, to a few units in the last place also near 0.
DEPLOYML_INLINE Vec hyperbolic_tangent(Vec x) {
  const Vec size = absolute(x), square = mul(x, x);
  // Near 0 the quotient below loses digits; this is the odd polynomial of Cephes' tanhf.
  Vec p = fma(set1(-5.70498872745e-3f), square, set1(2.06390887954e-2f));
  p = fma(p, square, set1(-5.37397155531e-2f));
  p = fma(p, square, set1(1.33314422036e-1f));
  p = fma(p, square, set1(-3.33332819422e-1f));
  const Vec near = fma(mul(p, square), x, x);
  const Vec e = exponential(mul(set1(-2.0f), size));
  const Vec positive = div(sub(set1(1.0f), e), add(set1(1.0f), e));
  const Vec far = where_less(x, zero(), sub(zero(), positive), positive);
  return where_less(size, set1(0.625f), near, far);
}

/// erf, to a few units in the last place also near 0.
DEPLOYML_INLINE Vec error_function(Vec x) {
  const Vec size = absolute(x), square = mul(x, x);
  // Least maximum relative error: 2e-8 up to 0.95 for erf(x) / x - 1 in x^2, 2e-9 beyond for log(1 - erf(x)).
  Vec p = fma(set1(-0.0005868127f), square, set1(0.004968747f));
  p = fma(p, square, set1(-0.026749747f));
  p = fma(p, square, set1(0.11281346f));
  p = fma(p, square, set1(-0.37612447f));
  p = fma(p, square, set1(0.12837914f));
  const Vec near = fma(p, x, x);
  const Vec most = set1(3.95f);  // 1 - erf is less than half a unit from here on
  const Vec bounded = where_less(most, size, most, size);
  Vec q = fma(set1(0.00019360767f), bounded, set1(-0.0030202635f));
  q = fma(q, bounded, set1(0.022134976f));
  q = fma(q, bounded, set1(-0.10373985f));
  q = fma(q, bounded, set1(-0.63740194f));
  q = fma(q, bounded, set1(-1.1275444f));
  q = fma(q, bounded, set1(-0.0002276475f));
  const Vec positive = sub(set1(1.0f), exponential(q));
  const Vec far = where_less(x, zero(), sub(zero(), positive), positive);
  return where_less(size, set1(0.94f), near, far);
}

// Element types other than float are widened as they are read and rounded as they are written.

struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

DEPLOYML_INLINE float widen(float x) { return x; }
DEPLOYML_INLINE float widen(BFloat x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
DEPLOYML_INLINE float widen(Half x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000u) << 16, rest = x.bits & 0x7fffu;
  uint32_t bits = rest << 13;
  float y;
  if (rest >= 0x7c00u) {
    bits += 0x70000000u;  // infinity or NaN
    memcpy(&y, &bits, 4);
  } else {
    memcpy(&y, &bits, 4);
    y *= 0x1p112f;  // rebias; exact, also for subnormal values
  }
  memcpy(&bits, &y, 4);
  bits |= sign;
  memcpy(&y, &bits, 4);
  return y;
}
DEPLOYML_INLINE void narrow(float x, float* out) { *out = x; }
DEPLOYML_INLINE void narrow(float x, BFloat* out) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out->bits = nan ? uint16_t(bits >> 16 | 0x40u) : uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
DEPLOYML_INLINE void narrow(float x, Half* out) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) {
    out->bits = sign | 0x7e00u;
  } else if (bits >= 0x477ff000u) {  // rounds to 65536 or more
    out->bits = sign | 0x7c00u;
  } else if (bits < 0x38800000u) {  // subnormal: let the adder round at 2^-24
    float y;
    memcpy(&y, &bits, 4);
    y += 0.5f;
    memcpy(&bits, &y, 4);
    out->bits = sign | uint16_t(bits - 0x3f000000u);
  } else {
    out->bits = sign | uint16_t((bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13);
  }
}

#if defined(__AVX512F__)
DEPLOYML_INLINE Vec load(const Half* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
DEPLOYML_INLINE Vec load(const BFloat* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
DEPLOYML_INLINE void store(Half* p, Vec v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
DEPLOYML_INLINE void store(BFloat* p, Vec v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i near = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __m512i nan = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
  const __mmask16 is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(near, is_nan, nan)));
}
#elif defined(__AVX2__)
DEPLOYML_INLINE Vec load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
DEPLOYML_INLINE Vec load(const BFloat* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
DEPLOYML_INLINE void store(Half* p, Vec v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
DEPLOYML_INLINE void store(BFloat* p, Vec v) {
  float copy[kWidth];
  store(copy, v);
  for (int i = 0; i < kWidth; ++i) narrow(copy[i], p + i);
}
#else
template <typename T>
DEPLOYML_INLINE Vec load(const T* p) {
  return Vec{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])};
}
template <typename T>
DEPLOYML_INLINE void store(T* p, Vec v) {
  for (int i = 0; i < kWidth; ++i) narrow(v[i], p + i);
}
#endif

template <typename T>
DEPLOYML_INLINE Vec load_first(const T* p, int64_t n) {
  if (n >= kWidth) return load(p);
  T copy[kWidth] = {};
  memcpy(copy, p, sizeof(T) * size_t(n > 0 ? n : 0));
  return load(copy);
}

template <typename T>
DEPLOYML_INLINE void store_first(T* p, Vec v, int64_t n) {
  float copy[kWidth];
  store(copy, v);
  for (int i = 0; i < kWidth; ++i)
    if (i < n) narrow(copy[i], p + i);
}

}  // namespace deployml::DEPLOYML_ISA
