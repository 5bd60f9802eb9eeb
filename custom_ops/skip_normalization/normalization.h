// What one call of SkipNormalization means, and the seam between cpu.cc (dispatch, threads) and the loops that are
// compiled once per instruction set. No framework type.
#pragma once

#include <cstdint>

#include "element.h"

namespace deployml {

/// Rows of `width` numbers: sum = x + skip + bias, output = norm(sum) * scale + shift. Optional tensors are nullptr.
///
/// Row r of x meets row r % skip_rows of skip. An output may be the same memory as x or skip where that has as many
/// rows: every number is read before the one at its place is written.
struct NormalizationCall {
  Element element = Element::kFloat32;
  bool centred = true;  // subtract the mean: layer normalisation; otherwise root mean square
  float epsilon = 1e-5f;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t skip_rows = 0;

  const void* x = nullptr;      // (rows, width)
  const void* skip = nullptr;   // (skip_rows, width)
  const void* scale = nullptr;  // (width)
  const void* shift = nullptr;  // (width)
  const void* bias = nullptr;   // (width)
  void* output = nullptr;       // (rows, width)
  void* sum = nullptr;          // (rows, width)
};

/// The loop of one instruction set, over rows [begin, end).
struct NormalizationLoop {
  const char* name;
  void (*run)(const NormalizationCall& call, int64_t begin, int64_t end);
};

namespace avx512 {
extern const NormalizationLoop kNormalization;
}
namespace avx2 {
extern const NormalizationLoop kNormalization;
}
namespace portable {
extern const NormalizationLoop kNormalization;
}

/// The loop of this machine (cpu.cc).
const NormalizationLoop& normalization_loop();

}  // namespace deployml
