// The vendor seam: everything a kernel asks of a GPU. Kernels and launchers include this header and name no vendor.
//
// gpu_cuda.h and gpu_hip.h answer with instructions. emulator/emulator.h answers on the host, one fiber a thread, with
// the fragment layouts of the matrix instructions computed element by element and every access checked; a kernel that
// is compiled against it is the same text that nvcc and hipcc compile.
//
// In a kernel:
//   thread(), threads(), block()             position in a one-dimensional grid
//   sync_block(), sync_warp()                barriers
//   shuffle<W>(x, lane), shuffle_xor<W>(..)  values of other lanes of a warp of W
//   load(p), store(p, x)                     global memory
//   shared()                                 the block's shared memory, 16-byte aligned
//   shared_load<T>(p), shared_store(p, x)    access to it; sizes up to 16 bytes, naturally aligned
//   copy_chunk(to, from, valid)              16 bytes global to shared, zeros unless valid; asynchronous where it can be
//   copy_commit(), copy_wait<N>()            ends a group of copies; waits until at most N groups are under way
//   load_matrix[_transposed](r, p)           ldmatrix.x4                                    (kHasMma)
//   mma<T>(c0..c3, a, b0, b1)                16x8x16 with float32 sums                      (kHasMma)
//   mfma<T>(c0..c3, a0, a1, b0, b1)          16x16x16 with float32 sums, warps of 64 lanes  (kHasMfma)
//   widen(x), narrow<T>(x), narrow_pair<T>   float32 from and to the element types
//   power_of_two(x), hyperbolic_tangent(x), error_function(x)   2^x, tanh and erf
// On the host:
//   query_device(&device)                    what the current device is
//   launch(kernel, blocks, threads, shared, stream, params)
#pragma once

#include <cstddef>
#include <cstdint>

namespace deployml::gpu {

/// Storage of the half-precision types; arithmetic is float32.
struct Half {
  uint16_t bits;
};
struct BFloat {
  uint16_t bits;
};

/// 16 bytes: what one thread moves at a time.
struct alignas(16) Chunk {
  uint32_t word[4];
};

/// Kind of matrix unit.
enum class Matrix { kNone, kMma, kMfma };

/// What a launcher needs to know of a device.
struct Device {
  int warp = 32;
  int multiprocessors = 1;
  int shared_limit = 48 << 10;  // bytes of shared memory a block may have
  Matrix matrix = Matrix::kNone;
};

}  // namespace deployml::gpu

#if defined(DEPLOYML_EMULATED)
#include "../emulator/emulator.h"
#elif defined(__HIPCC__)
#include "gpu_hip.h"
#else
#include "gpu_cuda.h"
#endif
