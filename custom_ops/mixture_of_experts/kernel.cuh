// The kernels of MixtureOfExperts on a GPU: slots are ordered by expert, two grouped products, one sum a token.
//
// A block of a product takes some rows of one expert through 64 columns, the depth 64 at a time. Its `Unit` is one of
// FlashAttention's (unit_*.cuh): rows stand where queries do, the weights of columns where keys do. How many rows an
// expert has is known on the device alone: the grid has a block for every tile there could be, and those without rows
// end at once. Nothing is added atomically, so the same call gives the same bits.
#pragma once

#include "../flash_attention/tile.cuh"
#include "params.h"

namespace deployml {

inline constexpr int kOrderThreads = 256;
inline constexpr float kLog2OfE = 1.44269504088896340736f;

DEPLOYML_DEVICE int smaller_of(int64_t a, int64_t b) { return int(a < b ? a : b); }

/// A block finds the slots of its expert, in their order, and how many slots go to experts before it. Each thread
/// looks at neighbouring slots; all threads' counts meet in shared memory.
DEPLOYML_KERNEL(256) order_slots(const ExpertsParams p) {
  const int expert = int(gpu::block()), slots = p.tokens * p.each;
  const int share = (slots + gpu::threads() - 1) / gpu::threads();
  const int begin = smaller_of(int64_t(gpu::thread()) * share, slots), end = smaller_of(int64_t(begin) + share, slots);
  int before = 0, own = 0;
  for (int s = begin; s < end; ++s) {
    const int64_t chosen = gpu::load(p.chosen + s);
    before += chosen >= 0 && chosen < expert;
    own += chosen == expert;
  }
  gpu::shared_store(gpu::shared() + 8 * gpu::thread(), before);
  gpu::shared_store(gpu::shared() + 8 * gpu::thread() + 4, own);
  gpu::sync_block();
  int start = 0, place = 0, all = 0;
  for (int t = 0; t < gpu::threads(); ++t) {
    const int others = gpu::shared_load<int>(gpu::shared() + 8 * t + 4);
    start += gpu::shared_load<int>(gpu::shared() + 8 * t);
    place += t < gpu::thread() ? others : 0;
    all += others;
  }
  if (gpu::thread() == 0) {
    gpu::store(p.starts + expert, start);
    if (expert == p.count - 1) gpu::store(p.starts + p.count, start + all);
  }
  for (int s = begin; s < end; ++s)
    if (gpu::load(p.chosen + s) == expert) gpu::store(p.slots + start + place++, s);
}

/// Rows [begin, end) of one expert; none where begin is end.
struct RowTile {
  int expert, begin, end;
};

DEPLOYML_DEVICE RowTile tile_of(const ExpertsParams& p, int index, int rows) {
  int begin = gpu::load(p.starts);
  for (int e = 0; e < p.count; ++e) {
    const int end = gpu::load(p.starts + e + 1), tiles = (end - begin + rows - 1) / rows;
    if (index < tiles) return {e, begin + index * rows, smaller_of(end, begin + (index + 1) * rows)};
    index -= tiles;
    begin = end;
  }
  return {0, 0, 0};
}

DEPLOYML_DEVICE float sigmoid_of(float x) {
  const float e = gpu::power_of_two(-fabsf(x) * kLog2OfE);
  return (x < 0.0f ? e : 1.0f) / (1.0f + e);
}

DEPLOYML_DEVICE float activated(const ExpertsParams& p, float x) {
  switch (p.activation) {
    case Activation::kSilu: return x * sigmoid_of(p.alpha * x);
    case Activation::kGelu: return 0.5f * x * (1.0f + gpu::error_function(x * 0.70710678f));
    case Activation::kGeluTanh:
      return 0.5f * x * (1.0f + gpu::hyperbolic_tangent(0.79788456f * (x + 0.044715f * x * x * x)));
    case Activation::kRelu: return x < 0.0f ? 0.0f : x;  // NaN stays
    case Activation::kReluSquared: return x < 0.0f ? 0.0f : x * x;
  }
  return x;
}

DEPLOYML_DEVICE float bounded(float x, float low, float high) { return x > high ? high : x < low ? low : x; }

/// Bytes of shared memory a block of `warps` warps needs, with `halves` tiles of weights a stage.
template <typename Unit>
constexpr size_t experts_shared_bytes(int warps, int halves) {
  const size_t stage = size_t(halves) * Unit::kTile * Unit::Layout::kRowBytes;
  return size_t(warps) * Unit::kQueryBytes + size_t(Unit::kStages) * stage;
}

/// One of the two products: of a block's rows with one or (gate and value) two tiles of weights.
template <typename Unit, int kHalves>
struct ExpertProduct {
  using T = typename Unit::Element;
  static constexpr int kRows = Unit::kLaneRows;
  static constexpr int kSums = Unit::kTile / 4;  // of a lane and row
  static constexpr int kStep = Unit::kHeadDim;   // of the depth
  static constexpr int kTileBytes = Unit::kTile * Unit::Layout::kRowBytes;

  const T* rows[kRows];  // null where a lane's row is none
  const T* weights[kHalves];
  int depth, column, columns;
  bool chunks;
  Unit unit;
  float sums[kHalves][kRows][kSums];

  /// The first row of the calling lane's warp within a block.
  static DEPLOYML_DEVICE int warp_row() { return gpu::thread() / Unit::kWarp * Unit::kWarpRows; }
  static DEPLOYML_DEVICE int block_rows() { return gpu::threads() / Unit::kWarp * Unit::kWarpRows; }

  DEPLOYML_DEVICE void run() {
    char* const mine = gpu::shared() + gpu::thread() / Unit::kWarp * Unit::kQueryBytes;
    char* const stages = gpu::shared() + gpu::threads() / Unit::kWarp * Unit::kQueryBytes;
    clear();
    if (Unit::kStages == 2 && depth > 0) fetch(0, stages);
    for (int k = 0; k < depth; k += kStep) {
      char* const stage = stages + (Unit::kStages == 2 ? k / kStep % 2 * kHalves * kTileBytes : 0);
      if constexpr (Unit::kStages == 2) {
        if (k + kStep < depth) {
          fetch(k + kStep, stages + (k / kStep + 1) % 2 * kHalves * kTileBytes);
          gpu::copy_wait<1>();
        } else {
          gpu::copy_wait<0>();
        }
      } else {
        fetch(k, stage);
        gpu::copy_wait<0>();
      }
      load_rows(k, mine);
      gpu::sync_block();
#pragma unroll
      for (int h = 0; h < kHalves; ++h) unit.multiply_keys(sums[h], stage + h * kTileBytes);
      gpu::sync_block();  // before the stage is written again
    }
  }

 private:
  DEPLOYML_DEVICE void clear() {
#pragma unroll
    for (int h = 0; h < kHalves; ++h)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
#pragma unroll
        for (int e = 0; e < kSums; ++e) sums[h][r][e] = 0.0f;
  }

  DEPLOYML_DEVICE void load_rows(int k, char* shared) {
    const T* from[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) from[r] = rows[r] == nullptr ? nullptr : rows[r] + k;
    unit.load_query(shared, from, depth - k, chunks);
  }

  DEPLOYML_DEVICE void fetch(int k, char* stage) const {
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const Strided from{weights[h], 0, 0, depth, 1, chunks};
      copy_tile<T, kStep, Unit::kTile>(stage + h * kTileBytes, from, weights[h] + k, column, columns, depth - k);
    }
    gpu::copy_commit();
  }
};

template <typename T>
DEPLOYML_DEVICE float bias_of(const void* bias, int64_t index) {
  return bias == nullptr ? 0.0f : gpu::widen(gpu::load(static_cast<const T*>(bias) + index));
}

/// between = act(x . first), rounded to T for the next product.
template <typename Unit, int kHalves>
DEPLOYML_KERNEL(256) enter_experts(const ExpertsParams p) {
  using T = typename Unit::Element;
  ExpertProduct<Unit, kHalves> product;
  const RowTile tile = tile_of(p, int(gpu::block() % p.tiles), product.block_rows());
  if (tile.begin == tile.end) return;
  const int64_t made = int64_t(kHalves) * p.inner;
  product.depth = p.hidden, product.chunks = p.hidden_chunks;
  product.column = int(gpu::block() / p.tiles) * Unit::kTile, product.columns = p.inner;
#pragma unroll
  for (int h = 0; h < kHalves; ++h)
    product.weights[h] = static_cast<const T*>(p.first) + (tile.expert * made + int64_t(h) * p.inner) * p.hidden;
#pragma unroll
  for (int r = 0; r < Unit::kLaneRows; ++r) {
    const int row = tile.begin + product.warp_row() + Unit::row(r);
    product.rows[r] = nullptr;
    if (row < tile.end)
      product.rows[r] = static_cast<const T*>(p.x) + int64_t(gpu::load(p.slots + row) / p.each) * p.hidden;
  }
  product.run();
#pragma unroll
  for (int r = 0; r < Unit::kLaneRows; ++r) {
    const int row = tile.begin + product.warp_row() + Unit::row(r);
    if (row >= tile.end) continue;
    T* to = static_cast<T*>(p.between) + int64_t(row) * p.inner;
#pragma unroll
    for (int e = 0; e < Unit::kTile / 4; ++e) {
      const int column = product.column + Unit::key(e);
      if (column >= p.inner) continue;
      float h = product.sums[0][r][e] + bias_of<T>(p.first_bias, tile.expert * made + column);
      if constexpr (kHalves == 2) {
        const float u = product.sums[1][r][e] + bias_of<T>(p.first_bias, tile.expert * made + p.inner + column);
        h = h > p.limit ? p.limit : h;
        h = activated(p, h) * (bounded(u, -p.limit, p.limit) + p.offset);
      } else {
        h = activated(p, h);
      }
      gpu::store(to + column, gpu::narrow<T>(h));
    }
  }
}

/// made = weight * (between . second), of each slot.
template <typename Unit>
DEPLOYML_KERNEL(256) leave_experts(const ExpertsParams p) {
  using T = typename Unit::Element;
  ExpertProduct<Unit, 1> product;
  const RowTile tile = tile_of(p, int(gpu::block() % p.tiles), product.block_rows());
  if (tile.begin == tile.end) return;
  product.depth = p.inner, product.chunks = p.inner_chunks;
  product.column = int(gpu::block() / p.tiles) * Unit::kTile, product.columns = p.hidden;
  product.weights[0] = static_cast<const T*>(p.second) + int64_t(tile.expert) * p.hidden * p.inner;
#pragma unroll
  for (int r = 0; r < Unit::kLaneRows; ++r) {
    const int row = tile.begin + product.warp_row() + Unit::row(r);
    product.rows[r] = row < tile.end ? static_cast<const T*>(p.between) + int64_t(row) * p.inner : nullptr;
  }
  product.run();
#pragma unroll
  for (int r = 0; r < Unit::kLaneRows; ++r) {
    const int row = tile.begin + product.warp_row() + Unit::row(r);
    if (row >= tile.end) continue;
    const int slot = gpu::load(p.slots + row);
    const float factor = gpu::widen(gpu::load(static_cast<const T*>(p.weights) + slot));
#pragma unroll
    for (int e = 0; e < Unit::kTile / 4; ++e) {
      const int column = product.column + Unit::key(e);
      if (column >= p.hidden) continue;
      const float y = product.sums[0][r][e] + bias_of<T>(p.second_bias, int64_t(tile.expert) * p.hidden + column);
      gpu::store(p.made + int64_t(slot) * p.hidden + column, factor * y);
    }
  }
}

/// The choices of a token in their order; those that name no expert made nothing.
template <typename T>
DEPLOYML_KERNEL(256) add_choices(const ExpertsParams p) {
  const int64_t index = gpu::block() * gpu::threads() + gpu::thread();
  if (index >= int64_t(p.tokens) * p.hidden) return;
  const int64_t token = index / p.hidden, column = index % p.hidden;
  float sum = 0.0f;
  for (int k = 0; k < p.each; ++k) {
    const int64_t slot = token * p.each + k, chosen = gpu::load(p.chosen + slot);
    if (chosen >= 0 && chosen < p.count) sum += gpu::load(p.made + slot * p.hidden + column);
  }
  gpu::store(static_cast<T*>(p.output) + index, gpu::narrow<T>(sum));
}

}  // namespace deployml
