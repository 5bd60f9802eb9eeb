// gpu.h for HIP: RDNA (warps of 32, no matrix unit used) and CDNA2 and newer (warps of 64, MFMA).
#pragma once

#include <hip/hip_runtime.h>

#include "gpu_vendor.h"

namespace deployml::gpu {

inline constexpr bool kHasMma = false;
inline constexpr bool kHasMfma = true;
inline constexpr bool kHasNoMatrix = true;  // there are devices to serve without a matrix unit

DEPLOYML_DEVICE void sync_warp() {
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "wavefront");
  __builtin_amdgcn_wave_barrier();
  __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "wavefront");
}

template <int kWarp>
DEPLOYML_DEVICE float shuffle(float x, int lane) {
  return __shfl(x, lane, kWarp);
}
template <int kWarp>
DEPLOYML_DEVICE float shuffle_xor(float x, int mask) {
  return __shfl_xor(x, mask, kWarp);
}

DEPLOYML_DEVICE char* shared() {
  extern __shared__ char deployml_shared[] __attribute__((aligned(128)));
  return deployml_shared;
}

DEPLOYML_DEVICE void copy_chunk(char* to, const void* from, bool valid) {
  Chunk chunk{};
  if (valid) chunk = *static_cast<const Chunk*>(from);
  *reinterpret_cast<Chunk*>(to) = chunk;
}
DEPLOYML_DEVICE void copy_commit() {}
template <int kGroups>
DEPLOYML_DEVICE void copy_wait() {}

// Named by a unit that is not compiled for HIP.
DEPLOYML_DEVICE void load_matrix(uint32_t (&r)[4], const char* p);
DEPLOYML_DEVICE void load_matrix_transposed(uint32_t (&r)[4], const char* p);
template <typename T>
DEPLOYML_DEVICE void mma(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);

using Half4 = _Float16 __attribute__((ext_vector_type(4)));
using Short4 = short __attribute__((ext_vector_type(4)));
using Float4 = float __attribute__((ext_vector_type(4)));
using Words2 = uint32_t __attribute__((ext_vector_type(2)));

template <typename T>
DEPLOYML_DEVICE void mfma(float& c0, float& c1, float& c2, float& c3, uint32_t a0, uint32_t a1, uint32_t b0,
                          uint32_t b1) {
#if defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__)
  const Words2 a{a0, a1}, b{b0, b1};
  Float4 c{c0, c1, c2, c3};
  if constexpr (sizeof(T) == 2 && __is_same(T, Half)) {
    c = __builtin_amdgcn_mfma_f32_16x16x16f16(__builtin_bit_cast(Half4, a), __builtin_bit_cast(Half4, b), c, 0, 0, 0);
  } else {
    c = __builtin_amdgcn_mfma_f32_16x16x16bf16_1k(__builtin_bit_cast(Short4, a), __builtin_bit_cast(Short4, b), c, 0,
                                                  0, 0);
  }
  c0 = c[0], c1 = c[1], c2 = c[2], c3 = c[3];
#else
  __builtin_trap();  // the launcher chooses another kernel on these devices
#endif
}

DEPLOYML_DEVICE float widen(float x) { return x; }
DEPLOYML_DEVICE float widen(Half x) { return float(__builtin_bit_cast(_Float16, x.bits)); }
DEPLOYML_DEVICE float widen(BFloat x) { return __builtin_bit_cast(float, uint32_t(x.bits) << 16); }

template <typename T>
DEPLOYML_DEVICE T narrow(float x);
template <>
DEPLOYML_DEVICE float narrow<float>(float x) {
  return x;
}
template <>
DEPLOYML_DEVICE Half narrow<Half>(float x) {
  return {__builtin_bit_cast(uint16_t, _Float16(x))};
}
template <>
DEPLOYML_DEVICE BFloat narrow<BFloat>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if (x != x) return {uint16_t(bits >> 16 | 0x40u)};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

/// Two values in one word, the first in the low half.
template <typename T>
DEPLOYML_DEVICE uint32_t narrow_pair(float low, float high) {
  return uint32_t(narrow<T>(low).bits) | uint32_t(narrow<T>(high).bits) << 16;
}

DEPLOYML_DEVICE float power_of_two(float x) { return exp2f(x); }

inline const char* message(hipError_t status) { return status == hipSuccess ? nullptr : hipGetErrorString(status); }

inline const char* query_device(Device* device) {
  int id = 0;
  hipError_t status = hipGetDevice(&id);
  if (status == hipSuccess)
    status = hipDeviceGetAttribute(&device->multiprocessors, hipDeviceAttributeMultiprocessorCount, id);
  if (status == hipSuccess) status = hipDeviceGetAttribute(&device->warp, hipDeviceAttributeWarpSize, id);
  device->shared_limit = 64 << 10;
  // The library holds code for CDNA2 and newer alone among the devices with warps of 64.
  device->matrix = device->warp == 64 ? Matrix::kMfma : Matrix::kNone;
  return message(status);
}

template <typename Params>
const char* launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared, void* stream,
                   const Params& params) {
  Params copy = params;
  void* arguments[] = {&copy};
  return message(hipLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)), dim3(unsigned(threads)),
                                 arguments, shared, static_cast<hipStream_t>(stream)));
}

}  // namespace deployml::gpu
