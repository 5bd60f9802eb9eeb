// gpu.h for CUDA: compute capability 8.0 and newer.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "gpu_vendor.h"

namespace deployml::gpu {

inline constexpr bool kHasMma = true;
inline constexpr bool kHasMfma = false;
inline constexpr bool kHasNoMatrix = false;  // there are devices to serve without a matrix unit

DEPLOYML_DEVICE void sync_warp() { __syncwarp(); }

template <int kWarp>
DEPLOYML_DEVICE float shuffle(float x, int lane) {
  return __shfl_sync(0xffffffffu, x, lane, kWarp);
}
template <int kWarp>
DEPLOYML_DEVICE float shuffle_xor(float x, int mask) {
  return __shfl_xor_sync(0xffffffffu, x, mask, kWarp);
}

DEPLOYML_DEVICE char* shared() {
  extern __shared__ __align__(128) char deployml_shared[];
  return deployml_shared;
}

DEPLOYML_DEVICE uint32_t shared_address(const char* p) { return uint32_t(__cvta_generic_to_shared(p)); }

DEPLOYML_DEVICE void copy_chunk(char* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
DEPLOYML_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int kGroups>
DEPLOYML_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
}

DEPLOYML_DEVICE void load_matrix(uint32_t (&r)[4], const char* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}
DEPLOYML_DEVICE void load_matrix_transposed(uint32_t (&r)[4], const char* p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(p))
               : "memory");
}

template <typename T>
DEPLOYML_DEVICE void mma(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
DEPLOYML_DEVICE void mma<Half>(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                               uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
DEPLOYML_DEVICE void mma<BFloat>(float& c0, float& c1, float& c2, float& c3, const uint32_t (&a)[4], uint32_t b0,
                                 uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};\n"
      : "+f"(c0), "+f"(c1), "+f"(c2), "+f"(c3)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Named by a unit that is not compiled for CUDA.
template <typename T>
DEPLOYML_DEVICE void mfma(float& c0, float& c1, float& c2, float& c3, uint32_t a0, uint32_t a1, uint32_t b0,
                          uint32_t b1);

DEPLOYML_DEVICE float widen(float x) { return x; }
DEPLOYML_DEVICE float widen(Half x) { return __half2float(__ushort_as_half(x.bits)); }
DEPLOYML_DEVICE float widen(BFloat x) { return __uint_as_float(uint32_t(x.bits) << 16); }

template <typename T>
DEPLOYML_DEVICE T narrow(float x);
template <>
DEPLOYML_DEVICE float narrow<float>(float x) {
  return x;
}
template <>
DEPLOYML_DEVICE Half narrow<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
DEPLOYML_DEVICE BFloat narrow<BFloat>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

/// Two values in one word, the first in the low half.
template <typename T>
DEPLOYML_DEVICE uint32_t narrow_pair(float low, float high);
template <>
DEPLOYML_DEVICE uint32_t narrow_pair<Half>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
template <>
DEPLOYML_DEVICE uint32_t narrow_pair<BFloat>(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

/// 2^x, 2 units in the last place; results below 2^-126 are 0.
DEPLOYML_DEVICE float power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

inline const char* message(cudaError_t status) { return status == cudaSuccess ? nullptr : cudaGetErrorString(status); }

inline const char* query_device(Device* device) {
  int id = 0;
  cudaError_t status = cudaGetDevice(&id);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, id);
  if (status == cudaSuccess)
    status = cudaDeviceGetAttribute(&device->shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  device->matrix = Matrix::kMma;
  return message(status);
}

template <typename Params>
const char* launch(void (*kernel)(Params), int64_t blocks, int threads, size_t shared, void* stream,
                   const Params& params) {
  const void* function = reinterpret_cast<const void*>(kernel);
  if (shared > (48u << 10)) {
    const cudaError_t status = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared));
    if (status != cudaSuccess) return message(status);
  }
  Params copy = params;
  void* arguments[] = {&copy};
  return message(cudaLaunchKernel(function, dim3(unsigned(blocks)), dim3(unsigned(threads)), arguments, shared,
                                  static_cast<cudaStream_t>(stream)));
}

}  // namespace deployml::gpu
