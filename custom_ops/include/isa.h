// Which of the loops that are compiled once per instruction set this machine runs.
//
// The processor is asked directly: __builtin_cpu_supports needs data of the compiler's own library, which zig's has not.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#define DEPLOYML_X86 1
#include <cpuid.h>
#endif

namespace deployml {

/// The vector instructions that processor and operating system both have.
struct Instructions {
  bool avx2 = false;         // with FMA and F16C
  bool avx512 = false;       // F, DQ, BW and VL
  bool avx512_bf16 = false;  // those and BF16
};

#if defined(DEPLOYML_X86)

/// The register state that the operating system saves (XCR0); 0 where it does not say.
inline uint64_t saved_state(uint32_t ecx_of_leaf_1) {
  constexpr uint32_t kReadable = 1u << 27;
  if ((ecx_of_leaf_1 & kReadable) == 0) return 0;
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

inline Instructions instructions() {
  Instructions found;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  const bool fma_and_f16c = (c >> 12 & 1) != 0 && (c >> 29 & 1) != 0;
  const uint64_t state = saved_state(c);
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  constexpr uint64_t kYmm = 0x06, kZmm = 0xe6;
  constexpr uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // F, DQ, BW, VL
  const uint32_t subleaves = a;
  found.avx2 = (state & kYmm) == kYmm && fma_and_f16c && (b >> 5 & 1) != 0;
  found.avx512 = found.avx2 && (state & kZmm) == kZmm && (b & kAvx512) == kAvx512;
  if (found.avx512 && subleaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d))
    found.avx512_bf16 = (a >> 5 & 1) != 0;
  return found;
}

#else

inline Instructions instructions() { return {}; }

#endif

/// Whether DEPLOYML_CPU_ISA=avx512_bf16|avx512|avx2|portable leaves this one open: it can only ask for less than there is.
inline bool isa_allowed(const char* name) {
  const char* wish = std::getenv("DEPLOYML_CPU_ISA");
  return wish == nullptr || std::strcmp(wish, name) == 0;
}

/// The best of three loops that the machine runs. Loops have a `name` and static lifetime.
#if defined(DEPLOYML_X86)
template <typename Loop>
const Loop& best_loop(const Loop& portable, const Loop& avx2, const Loop& avx512) {
  const Instructions have = instructions();
  const bool wide = isa_allowed("avx512") || isa_allowed("avx512_bf16");
  if (have.avx512 && wide) return avx512;
  if (have.avx2 && (wide || isa_allowed("avx2"))) return avx2;
  return portable;
}
#endif

}  // namespace deployml
