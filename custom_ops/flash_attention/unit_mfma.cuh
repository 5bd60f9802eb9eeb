// AMD matrix cores (CDNA2 and newer): a wave multiplies 16 query rows with 16x16x16, both products transposed.
//
// Scores are computed as keys x queries: lane l then holds query l % 16 and, of every 16 keys, the four from
// 4 * (l / 16) on, which is the layout the second product, values^T x weights^T, takes its right operand in.
// The rows of values^T can stand in any order: a lane takes kWide neighbouring dimensions of a key at once, one for
// each of kWide products, and ends with 4 * kWide neighbouring dimensions of the output.
#pragma once

#include "tile.cuh"

namespace deployml {

template <typename T, int kDim>
struct MfmaUnit {
  using Element = T;
  using Layout = Tile<T, kDim>;
  static constexpr int kHeadDim = kDim;
  static constexpr int kWarp = 64;
  static constexpr int kWarpRows = 16;
  static constexpr int kLaneRows = 1;
  static constexpr int kTile = kDim <= 128 ? 64 : 32;
  static constexpr int kStages = 1;
  static constexpr int kWide = kDim % 64 == 0 ? 4 : 2;
  static constexpr int kRun = 4 * kWide;
  static constexpr bool kSubtractFirst = false;
  static constexpr int kQueryBytes = 0;

  gpu::Chunk fragment[kDim / 32];

  static DEPLOYML_DEVICE int lane() { return gpu::thread() % kWarp; }
  static DEPLOYML_DEVICE int row(int) { return lane() % 16; }
  static DEPLOYML_DEVICE int key(int e) { return e / 4 * 16 + lane() / 16 * 4 + e % 4; }
  static DEPLOYML_DEVICE int column(int e) { return e / kRun * 4 * kRun + lane() / 16 * kRun + e % kRun; }
  static DEPLOYML_DEVICE float across(float x, int step) { return gpu::shuffle_xor<kWarp>(x, 16 << step); }

  DEPLOYML_DEVICE void load_query(char*, const T* const (&rows)[kLaneRows], int dim, bool chunks) {
#pragma unroll
    for (int k = 0; k < kDim / 32; ++k) fragment[k] = load_chunk(rows[0], k * 32 + lane() / 16 * 8, dim, chunks);
  }

  DEPLOYML_DEVICE void multiply_keys(float (&s)[kLaneRows][kTile / 4], const char* keys) {
#pragma unroll
    for (int k = 0; k < kDim / 32; ++k)
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        // Eight dimensions a lane: the first four for one product, the others for the next. Their order is free.
        const auto a = gpu::shared_load<gpu::Chunk>(keys + Layout::offset(n * 16 + lane() % 16, k * 4 + lane() / 16));
#pragma unroll
        for (int i = 0; i < 4; i += 2)
          gpu::mfma<T>(s[0][4 * n], s[0][4 * n + 1], s[0][4 * n + 2], s[0][4 * n + 3], a.word[i], a.word[i + 1],
                       fragment[k].word[i], fragment[k].word[i + 1]);
      }
  }

  /// kWide neighbouring dimensions of one key.
  struct alignas(2 * kWide) Wide {
    uint16_t x[kWide];
  };

  DEPLOYML_DEVICE Wide load_wide(const char* values, int key, int dim) const {
    return gpu::shared_load<Wide>(values + Layout::offset(key, dim / 8) + dim % 8 * 2);
  }

  DEPLOYML_DEVICE void multiply_values(float (&out)[kLaneRows][kDim / 4], const float (&p)[kLaneRows][kTile / 4],
                                       const char* values) {
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      const uint32_t b0 = gpu::narrow_pair<T>(p[0][4 * k], p[0][4 * k + 1]);
      const uint32_t b1 = gpu::narrow_pair<T>(p[0][4 * k + 2], p[0][4 * k + 3]);
#pragma unroll
      for (int n = 0; n < kDim / (16 * kWide); ++n) {
        Wide v[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) v[i] = load_wide(values, k * 16 + lane() / 16 * 4 + i, (n * 16 + lane() % 16) * kWide);
#pragma unroll
        for (int w = 0; w < kWide; ++w) {
          float* const c = &out[0][n * kRun + w];
          gpu::mfma<T>(c[0], c[kWide], c[2 * kWide], c[3 * kWide], uint32_t(v[0].x[w]) | uint32_t(v[1].x[w]) << 16,
                       uint32_t(v[2].x[w]) | uint32_t(v[3].x[w]) << 16, b0, b1);
        }
      }
    }
  }
};

}  // namespace deployml
