// Which of the loops that are compiled once per instruction set this machine runs.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#define DEPLOYML_X86 1
#endif

namespace deployml {

inline bool has_avx512() {
#if defined(DEPLOYML_X86)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

inline bool has_avx2() {
#if defined(DEPLOYML_X86)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

/// Whether DEPLOYML_CPU_ISA=avx512|avx2|portable leaves this one open: it can only ask for less than there is.
inline bool isa_allowed(const char* name) {
  const char* wish = std::getenv("DEPLOYML_CPU_ISA");
  return wish == nullptr || std::strcmp(wish, name) == 0;
}

/// The best of three loops that the machine runs. Loops have a `name` and static lifetime.
#if defined(DEPLOYML_X86)
template <typename Loop>
const Loop& best_loop(const Loop& portable, const Loop& avx2, const Loop& avx512) {
  if (has_avx512() && isa_allowed("avx512")) return avx512;
  if (has_avx2() && (isa_allowed("avx2") || isa_allowed("avx512"))) return avx2;
  return portable;
}
#endif

}  // namespace deployml
