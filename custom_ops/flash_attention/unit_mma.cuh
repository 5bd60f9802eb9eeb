// NVIDIA tensor cores: a warp multiplies 16 query rows with m16n8k16, scores and outputs in its registers.
//
// With g = lane / 4 and t = lane % 4, a lane holds rows g and g + 8; of every 8 columns it holds 2t and 2t + 1.
// Two neighbouring 16x8 score tiles are, element by element, the 16x16 operand of the product with the values.
#pragma once

#include "tile.cuh"

namespace deployml {

template <typename T, int kDim>
struct MmaUnit {
  using Element = T;
  using Layout = Tile<T, kDim>;
  static constexpr int kHeadDim = kDim;
  static constexpr int kWarp = 32;
  static constexpr int kWarpRows = 16;
  static constexpr int kLaneRows = 2;
  static constexpr int kTile = kDim <= 128 ? 64 : 32;  // keys
  static constexpr int kStages = 2;
  static constexpr int kRun = 2;  // neighbouring columns of a lane
  static constexpr bool kSubtractFirst = false;
  static constexpr bool kQueryInShared = kDim > 128;  // else in registers
  static constexpr int kQueryBytes = kQueryInShared ? kWarpRows * Layout::kRowBytes : 0;

  char* query = nullptr;  // the warp's rows in shared memory
  uint32_t fragment[kQueryInShared ? 1 : kDim / 16][4];

  static DEPLOYML_DEVICE int lane() { return gpu::thread() % kWarp; }
  static DEPLOYML_DEVICE int row(int slot) { return lane() / 4 + 8 * slot; }
  static DEPLOYML_DEVICE int key(int e) { return e / 2 * 8 + lane() % 4 * 2 + e % 2; }
  static DEPLOYML_DEVICE int column(int e) { return key(e); }
  static DEPLOYML_DEVICE float across(float x, int step) { return gpu::shuffle_xor<kWarp>(x, 1 << step); }

  DEPLOYML_DEVICE void load_query(char* shared, const T* const (&rows)[kLaneRows], int dim, bool chunks) {
    const int t = lane() % 4;
    if constexpr (kQueryInShared) {
      query = shared;  // read after the block's next barrier
#pragma unroll
      for (int slot = 0; slot < kLaneRows; ++slot)
        for (int c = t; c < Layout::kChunks; c += 4)
          gpu::shared_store(query + Layout::offset(row(slot), c),
                            load_chunk(rows[slot], c * Layout::kElements, dim, chunks));
    } else {
#pragma unroll
      for (int k = 0; k < kDim / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          fragment[k][i] = load_word(rows[i % 2], k * 16 + i / 2 * 8 + t * 2, dim, chunks);
    }
  }

  DEPLOYML_DEVICE void multiply_keys(float (&s)[kLaneRows][kTile / 4], const char* keys) {
    const int l = lane();
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      uint32_t a[4];
      if constexpr (kQueryInShared) {
        gpu::load_matrix(a, query + Layout::offset((l & 7) + (l >> 3 & 1) * 8, k * 2 + (l >> 4)));
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = fragment[k][i];
      }
#pragma unroll
      for (int n = 0; n < kTile / 16; ++n) {
        uint32_t b[4];
        gpu::load_matrix(b, keys + Layout::offset(n * 16 + (l & 7) + (l >> 4) * 8, k * 2 + (l >> 3 & 1)));
        gpu::mma<T>(s[0][4 * n], s[0][4 * n + 1], s[1][4 * n], s[1][4 * n + 1], a, b[0], b[1]);
        gpu::mma<T>(s[0][4 * n + 2], s[0][4 * n + 3], s[1][4 * n + 2], s[1][4 * n + 3], a, b[2], b[3]);
      }
    }
  }

  DEPLOYML_DEVICE void multiply_values(float (&out)[kLaneRows][kDim / 4], const float (&p)[kLaneRows][kTile / 4],
                                       const char* values) {
    const int l = lane();
#pragma unroll
    for (int k = 0; k < kTile / 16; ++k) {
      const uint32_t a[4] = {gpu::narrow_pair<T>(p[0][4 * k], p[0][4 * k + 1]),
                             gpu::narrow_pair<T>(p[1][4 * k], p[1][4 * k + 1]),
                             gpu::narrow_pair<T>(p[0][4 * k + 2], p[0][4 * k + 3]),
                             gpu::narrow_pair<T>(p[1][4 * k + 2], p[1][4 * k + 3])};
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        uint32_t b[4];
        gpu::load_matrix_transposed(
            b, values + Layout::offset(k * 16 + (l & 7) + (l >> 3 & 1) * 8, n * 2 + (l >> 4)));
        gpu::mma<T>(out[0][4 * n], out[0][4 * n + 1], out[1][4 * n], out[1][4 * n + 1], a, b[0], b[1]);
        gpu::mma<T>(out[0][4 * n + 2], out[0][4 * n + 3], out[1][4 * n + 2], out[1][4 * n + 3], a, b[2], b[3]);
      }
    }
  }
};

}  // namespace deployml
