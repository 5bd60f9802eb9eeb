// Chooses and starts the attention kernels of one element type: compiled with -DDEPLOYML_ELEMENT=float|Half|BFloat,
// and with -DDEPLOYML_REDUCED for a few head sizes alone.
//
// What can be chosen is what is supported: a head size the library was not built for ends in a message.
#include "kernel.cuh"
#include "launch.h"
#include "unit_fma.cuh"
#include "unit_mfma.cuh"
#include "unit_mma.cuh"

namespace deployml {
namespace {

using gpu::BFloat;
using gpu::Half;

constexpr int kWarps = 4, kMostWarps = 8, kMostSplits = 64;

int divide_up(int64_t a, int64_t b) { return int((a + b - 1) / b); }

/// Warps of a block: more rows share a tile of keys where there are blocks enough to fill the device with them.
template <typename Unit>
int choose_warps(const Launch& launch) {
  const Params& p = launch.params;
  const size_t limit = size_t(launch.device.shared_limit);
  const int64_t large = int64_t(p.batch) * p.kv_heads * divide_up(p.rows, kMostWarps * Unit::kWarpRows);
  const bool fits = 2 * shared_bytes<Unit>(kMostWarps) <= limit && kMostWarps * Unit::kWarp <= 256;
  if (fits && p.rows > kWarps * Unit::kWarpRows && large >= 2 * launch.device.multiprocessors) return kMostWarps;
  int warps = kWarps;
  while (warps > 1 && shared_bytes<Unit>(warps) > limit) warps /= 2;
  return warps;
}

/// Into how many parts the keys of a row are cut, so that few rows still fill the device.
template <typename Unit>
int choose_splits(const Launch& launch, int block_rows) {
  const Params& p = launch.params;
  if (p.weights.data != nullptr) return 1;
  int64_t span = p.keys;
  if (p.left != kUnbounded && p.right != kUnbounded) {
    const int64_t seen = int64_t(p.left) + p.right + 1 + block_rows / p.group;
    span = seen < span ? seen : span;
  }
  const int64_t blocks = int64_t(p.batch) * p.kv_heads * p.row_blocks;
  const int64_t wanted = 2 * launch.device.multiprocessors / blocks;
  const int64_t tiles = divide_up(span, Unit::kTile) / 2;
  const int64_t most = wanted < tiles ? wanted : tiles;
  return int(most < 1 ? 1 : most > kMostSplits ? kMostSplits : most);
}

template <typename Unit>
const char* start(const Launch& launch) {
  Params p = launch.params;
  const int warps = choose_warps<Unit>(launch);
  p.row_blocks = divide_up(p.rows, warps * Unit::kWarpRows);
  p.splits = choose_splits<Unit>(launch, warps * Unit::kWarpRows);
  const int64_t rows = int64_t(p.batch) * p.kv_heads * p.rows;
  const int64_t blocks = int64_t(p.batch) * p.kv_heads * p.splits * p.row_blocks;
  if (blocks > 0x7fffffff || rows > 0x7fffffff) return "batch x heads x queries is too large for one launch";
  if (p.splits > 1) {
    const size_t bytes = size_t(rows) * size_t(p.splits) * size_t(p.value_dim + 2) * sizeof(float);
    p.partial = static_cast<float*>(launch.runtime->allocate(launch.runtime->state, bytes));
    if (p.partial == nullptr) return "no memory for the parts of split keys";
  }
  const int threads = warps * Unit::kWarp;
  const char* message =
      gpu::launch(attend<Unit>, blocks, threads, shared_bytes<Unit>(warps), launch.stream, p);
  if (message != nullptr || p.splits == 1) return message;
  return gpu::launch(combine<Unit>, divide_up(rows, warps), threads, 0, launch.stream, p);
}

template <typename T, int kDim>
const char* with_unit(const Launch& launch) {
  if constexpr (sizeof(T) == 2 && gpu::kHasMma)
    if (launch.device.matrix == gpu::Matrix::kMma) return start<MmaUnit<T, kDim>>(launch);
  if constexpr (sizeof(T) == 2 && gpu::kHasMfma)
    if (launch.device.matrix == gpu::Matrix::kMfma) return start<MfmaUnit<T, kDim>>(launch);
  if constexpr (sizeof(T) == 4 && gpu::kHasMfma)
    if (launch.device.warp == 64) return start<FmaUnit<T, kDim, 64>>(launch);
  if constexpr (sizeof(T) == 4 || gpu::kHasNoMatrix)
    if (launch.device.warp == 32) return start<FmaUnit<T, kDim, 32>>(launch);
  return "this device has no unit the library was built for";
}

template <typename T, int kDim, int... kRest>
const char* with_head(const Launch& launch) {
  if (launch.params.head_dim <= kDim && launch.params.value_dim <= kDim) return with_unit<T, kDim>(launch);
  if constexpr (sizeof...(kRest) > 0) {
    return with_head<T, kRest...>(launch);
  } else {
    return "this library was built for smaller head sizes (up to 256 in a full build)";
  }
}

}  // namespace

#define DEPLOYML_JOIN_(a, b) a##b
#define DEPLOYML_JOIN(a, b) DEPLOYML_JOIN_(a, b)

const char* DEPLOYML_JOIN(attend_, DEPLOYML_ELEMENT)(const Launch& launch) {
#if defined(DEPLOYML_REDUCED)
  return with_head<DEPLOYML_ELEMENT, 64, 256>(launch);
#else
  return with_head<DEPLOYML_ELEMENT, 32, 64, 96, 128, 192, 256>(launch);
#endif
}

}  // namespace deployml
