// The rows of SkipNormalization: sum, mean, variance about the mean, result, while the row is in the first cache.
//
// This file is compiled once per instruction set (see CMakeLists.txt). The sum of a row is formed anew in each pass
// over it: that costs two reads from the first cache and no memory of its own, and keeps the float32 sum of half
// types. The variance is that of the centred numbers, not E[x^2] - E[x]^2, which loses its digits where the mean is
// large.
#include "normalization.h"

#include "simd.h"

namespace deployml::DEPLOYML_ISA {
namespace {

constexpr int kStreams = 4;  // independent sums, so that additions need not wait for each other

/// The full vectors of a row; its remaining numbers are one shorter vector.
struct Width {
  int64_t whole;
  int64_t rest;
};

template <typename T, bool kBiased>
struct Row {
  const T* x;
  const T* skip;
  const T* bias;

  Vec at(int64_t i) const {
    const Vec sum = add(load(x + i), load(skip + i));
    return kBiased ? add(sum, load(bias + i)) : sum;
  }
  Vec first_at(int64_t i, int64_t n) const {
    const Vec sum = add(load_first(x + i, n), load_first(skip + i, n));
    return kBiased ? add(sum, load_first(bias + i, n)) : sum;
  }
};

DEPLOYML_INLINE void store_row(float* p, Vec v) { store(p, v); }
template <typename T>
DEPLOYML_INLINE void store_row(T* p, Vec v) {
  store_first(p, v, kWidth);
}

/// Zeroes the lanes from n on.
DEPLOYML_INLINE Vec keep_first(Vec v, int64_t n) { return where_less(iota(), set1(float(n)), v, zero()); }

/// The sum over a row of term(number).
template <typename R, typename Term>
DEPLOYML_INLINE float total(const R& row, Width width, Term term) {
  Vec sums[kStreams] = {zero(), zero(), zero(), zero()};
  int64_t i = 0;
  for (; i + kStreams * kWidth <= width.whole; i += kStreams * kWidth)
    for (int s = 0; s < kStreams; ++s) sums[s] = add(sums[s], term(row.at(i + s * kWidth)));
  for (; i < width.whole; i += kWidth) sums[0] = add(sums[0], term(row.at(i)));
  if (width.rest > 0) sums[1] = add(sums[1], keep_first(term(row.first_at(i, width.rest)), width.rest));
  return reduce_add(add(add(sums[0], sums[1]), add(sums[2], sums[3])));
}

template <typename T, bool kBiased, bool kCentred>
void run_rows(const NormalizationCall& call, int64_t begin, int64_t end) {
  const int64_t n = call.width;
  const Width width{n / kWidth * kWidth, n % kWidth};
  const T *scale = static_cast<const T*>(call.scale), *shift = static_cast<const T*>(call.shift);
  for (int64_t r = begin; r < end; ++r) {
    const Row<T, kBiased> row{static_cast<const T*>(call.x) + r * n,
                              static_cast<const T*>(call.skip) + r % call.skip_rows * n,
                              static_cast<const T*>(call.bias)};
    T* out = static_cast<T*>(call.output) + r * n;
    T* sum = call.sum == nullptr ? nullptr : static_cast<T*>(call.sum) + r * n;
    const float mean = kCentred ? total(row, width, [](Vec v) { return v; }) / float(n) : 0.0f;
    const Vec centre = set1(mean);
    const auto centred = [centre](Vec v) { return kCentred ? sub(v, centre) : v; };
    const float squares = total(row, width, [centred](Vec v) {
      const Vec c = centred(v);
      return mul(c, c);
    });
    const Vec inverse = set1(1.0f / __builtin_sqrtf(squares / float(n) + call.epsilon));
    int64_t i = 0;
    for (; i < width.whole; i += kWidth) {
      const Vec v = row.at(i);
      const Vec y = mul(centred(v), inverse);
      if (sum != nullptr) store_row(sum + i, v);
      store_row(out + i, shift != nullptr ? fma(y, load(scale + i), load(shift + i)) : mul(y, load(scale + i)));
    }
    if (width.rest == 0) continue;
    const Vec v = row.first_at(i, width.rest), factor = load_first(scale + i, width.rest);
    const Vec y = mul(centred(v), inverse);
    if (sum != nullptr) store_first(sum + i, v, width.rest);
    store_first(out + i, shift != nullptr ? fma(y, factor, load_first(shift + i, width.rest)) : mul(y, factor),
                width.rest);
  }
}

template <typename T>
void run_typed(const NormalizationCall& call, int64_t begin, int64_t end) {
  if (call.bias != nullptr)
    return call.centred ? run_rows<T, true, true>(call, begin, end) : run_rows<T, true, false>(call, begin, end);
  return call.centred ? run_rows<T, false, true>(call, begin, end) : run_rows<T, false, false>(call, begin, end);
}

void run(const NormalizationCall& call, int64_t begin, int64_t end) {
  if (call.element == Element::kFloat16) return run_typed<Half>(call, begin, end);
  if (call.element == Element::kBFloat16) return run_typed<BFloat>(call, begin, end);
  run_typed<float>(call, begin, end);
}

#define DEPLOYML_TEXT_OF(x) #x
#define DEPLOYML_TEXT(x) DEPLOYML_TEXT_OF(x)

}  // namespace

extern const NormalizationLoop kNormalization;
const NormalizationLoop kNormalization{DEPLOYML_TEXT(DEPLOYML_ISA), run};

}  // namespace deployml::DEPLOYML_ISA
