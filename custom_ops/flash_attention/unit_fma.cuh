// Plain float32 arithmetic, for float32 tensors everywhere and for all types where no matrix unit is used.
//
// Four lanes share two query rows: of a tile's keys lane t has t, t + 4, ...; of the output columns it has every
// fourth chunk. The weights of the other lanes' keys come by shuffle. No TF32: products and sums are float32.
#pragma once

#include "tile.cuh"

namespace deployml {

template <typename T, int kDim, int kLanes>
struct FmaUnit {
  using Element = T;
  using Layout = Tile<T, kDim>;
  static constexpr int kHeadDim = kDim;
  static constexpr int kWarp = kLanes;
  static constexpr int kWarpRows = kWarp / 2;
  static constexpr int kLaneRows = 2;
  static constexpr int kTile = kDim <= 64 ? 64 : kDim <= 128 ? 32 : 16;
  static constexpr int kStages = 1;
  static constexpr int kRun = Layout::kElements;
  static constexpr bool kSubtractFirst = true;
  static constexpr int kQueryBytes = kWarpRows * Layout::kRowBytes;

  const char* query = nullptr;

  static DEPLOYML_DEVICE int lane() { return gpu::thread() % kWarp; }
  static DEPLOYML_DEVICE int row(int slot) { return lane() / 4 + kWarp / 4 * slot; }
  static DEPLOYML_DEVICE int key(int e) { return lane() % 4 + 4 * e; }
  static DEPLOYML_DEVICE int column(int e) { return e / kRun * 4 * kRun + lane() % 4 * kRun + e % kRun; }
  static DEPLOYML_DEVICE float across(float x, int step) { return gpu::shuffle_xor<kWarp>(x, 1 << step); }

  DEPLOYML_DEVICE void load_query(char* shared, const T* const (&rows)[kLaneRows], int dim, bool chunks) {
    query = shared;  // read after the block's next barrier
#pragma unroll
    for (int slot = 0; slot < kLaneRows; ++slot)
      for (int c = lane() % 4; c < Layout::kChunks; c += 4)
        gpu::shared_store(shared + Layout::offset(row(slot), c), load_chunk(rows[slot], c * kRun, dim, chunks));
  }

  DEPLOYML_DEVICE void multiply_keys(float (&s)[kLaneRows][kTile / 4], const char* keys) {
#pragma unroll 1
    for (int c = 0; c < Layout::kChunks; ++c) {
      const auto first = gpu::shared_load<gpu::Chunk>(query + Layout::offset(row(0), c));
      const auto second = gpu::shared_load<gpu::Chunk>(query + Layout::offset(row(1), c));
#pragma unroll
      for (int e = 0; e < kTile / 4; ++e) {
        const auto k = gpu::shared_load<gpu::Chunk>(keys + Layout::offset(key(e), c));
#pragma unroll
        for (int i = 0; i < kRun; ++i) {
          const float x = element_of<T>(k, i);
          s[0][e] += element_of<T>(first, i) * x;
          s[1][e] += element_of<T>(second, i) * x;
        }
      }
    }
  }

  DEPLOYML_DEVICE void multiply_values(float (&out)[kLaneRows][kDim / 4], const float (&p)[kLaneRows][kTile / 4],
                                       const char* values) {
#pragma unroll
    for (int e = 0; e < kTile / 4; ++e)
#pragma unroll 1
      for (int t = 0; t < 4; ++t) {
        const float first = gpu::shuffle<kWarp>(p[0][e], lane() / 4 * 4 + t);
        const float second = gpu::shuffle<kWarp>(p[1][e], lane() / 4 * 4 + t);
#pragma unroll
        for (int n = 0; n < kDim / (4 * kRun); ++n) {
          const auto v = gpu::shared_load<gpu::Chunk>(values + Layout::offset(4 * e + t, lane() % 4 + 4 * n));
#pragma unroll
          for (int i = 0; i < kRun; ++i) {
            const float x = element_of<T>(v, i);
            out[0][n * kRun + i] += first * x;
            out[1][n * kRun + i] += second * x;
          }
        }
      }
  }
};

}  // namespace deployml
