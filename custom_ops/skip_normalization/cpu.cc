// SkipNormalization on the CPU: the instruction set is chosen once a process.
#include "isa.h"
#include "normalization.h"

namespace deployml {

const NormalizationLoop& normalization_loop() {
#if defined(DEPLOYML_X86)
  static const NormalizationLoop& chosen =
      best_loop(portable::kNormalization, avx2::kNormalization, avx512::kNormalization);
#else
  static const NormalizationLoop& chosen = portable::kNormalization;
#endif
  return chosen;
}

}  // namespace deployml
