// What gpu_cuda.h and gpu_hip.h say in the same words: nvcc and hipcc both read them.
#pragma once

#define DEPLOYML_DEVICE __device__ __forceinline__
#define DEPLOYML_KERNEL(threads) __global__ void __launch_bounds__(threads)

namespace deployml::gpu {

DEPLOYML_DEVICE int thread() { return int(threadIdx.x); }
DEPLOYML_DEVICE int threads() { return int(blockDim.x); }
DEPLOYML_DEVICE int64_t block() { return int64_t(blockIdx.x); }
DEPLOYML_DEVICE void sync_block() { __syncthreads(); }

template <typename T>
DEPLOYML_DEVICE T load(const T* p) {
  return *p;
}
template <typename T>
DEPLOYML_DEVICE void store(T* p, T x) {
  *p = x;
}

template <typename T>
DEPLOYML_DEVICE T shared_load(const char* p) {
  return *reinterpret_cast<const T*>(p);
}
template <typename T>
DEPLOYML_DEVICE void shared_store(char* p, T x) {
  *reinterpret_cast<T*>(p) = x;
}

DEPLOYML_DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
DEPLOYML_DEVICE float error_function(float x) { return erff(x); }

}  // namespace deployml::gpu
