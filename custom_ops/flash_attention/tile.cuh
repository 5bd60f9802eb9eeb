// Tiles of rows in shared memory, in 16-byte chunks laid out so that a warp's accesses meet no bank twice.
#pragma once

#include "params.h"

namespace deployml {

template <typename T, int kDim>
struct Tile {
  static constexpr int kElements = int(sizeof(gpu::Chunk) / sizeof(T));  // of a chunk
  static constexpr int kChunks = kDim / kElements;
  static constexpr int kRowBytes = kDim * int(sizeof(T));

  /// Where chunk `chunk` of a row lies: neighbouring rows hold it in other banks.
  static DEPLOYML_DEVICE int offset(int row, int chunk) {
    const int turned = kChunks % 8 == 0 ? chunk ^ (row & 7) : chunk ^ (row >> 1 & 3);
    return row * kRowBytes + turned * 16;
  }
};

template <typename T>
DEPLOYML_DEVICE const T* row_of(const Strided& x, int batch, int head, int row) {
  return static_cast<const T*>(x.data) + (x.batch * batch + x.head * head + x.row * row);
}

/// A row's elements [column, column + 16 bytes), zeros from `dim` on and where `row` is null.
template <typename T>
DEPLOYML_DEVICE gpu::Chunk load_chunk(const T* row, int column, int dim, bool chunks) {
  constexpr int kElements = int(sizeof(gpu::Chunk) / sizeof(T));
  gpu::Chunk chunk{};
  if (row == nullptr || column >= dim) return chunk;
  if (chunks) return gpu::load(reinterpret_cast<const gpu::Chunk*>(row + column));
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    if (column + i >= dim) continue;
    if constexpr (sizeof(T) == 4) {
      chunk.word[i] = gpu::load(reinterpret_cast<const uint32_t*>(row + column + i));
    } else {
      chunk.word[i / 2] |= uint32_t(gpu::load(row + column + i).bits) << (i % 2 * 16);
    }
  }
  return chunk;
}

/// Two neighbouring elements of a row in one word, zeros from `dim` on and where `row` is null.
template <typename T>
DEPLOYML_DEVICE uint32_t load_word(const T* row, int column, int dim, bool chunks) {
  if (row == nullptr || column >= dim) return 0;
  if (chunks) return gpu::load(reinterpret_cast<const uint32_t*>(row + column));
  const uint32_t low = gpu::load(row + column).bits;
  return column + 1 < dim ? low | uint32_t(gpu::load(row + column + 1).bits) << 16 : low;
}

/// Element i of a chunk in float32.
template <typename T>
DEPLOYML_DEVICE float element_of(const gpu::Chunk& chunk, int i) {
  if constexpr (sizeof(T) == 4) {
    float x;
    memcpy(&x, &chunk.word[i], sizeof x);
    return x;
  } else {
    return gpu::widen(T{uint16_t(chunk.word[i / 2] >> (i % 2 * 16))});
  }
}

/// Writes `kRun` neighbouring elements of a row, those before `dim`.
template <int kRun, typename T>
DEPLOYML_DEVICE void store_run(T* row, int column, int dim, bool chunks, const float* values) {
  constexpr int kElements = int(sizeof(gpu::Chunk) / sizeof(T));
  constexpr int kStep = kRun < kElements ? kRun : kElements;
#pragma unroll
  for (int first = 0; first < kRun; first += kStep) {
    if (chunks && kStep * sizeof(T) % 4 == 0) {
      if (column + first >= dim) continue;
      struct alignas(kStep * sizeof(T)) Run {
        T x[kStep];
      } run;
#pragma unroll
      for (int i = 0; i < kStep; ++i) run.x[i] = gpu::narrow<T>(values[first + i]);
      gpu::store(reinterpret_cast<Run*>(row + column + first), run);
      continue;
    }
#pragma unroll
    for (int i = first; i < first + kStep; ++i)
      if (column + i < dim) gpu::store(row + column + i, gpu::narrow<T>(values[i]));
  }
}

/// Starts copying rows [first, first + kRows) of keys or values to shared memory, zeros from row `end` on.
template <typename T, int kDim, int kRows>
DEPLOYML_DEVICE void copy_tile(char* to, const Strided& x, const T* head, int first, int end, int dim) {
  using Layout = Tile<T, kDim>;
  for (int i = gpu::thread(); i < kRows * Layout::kChunks; i += gpu::threads()) {
    const int row = i / Layout::kChunks, chunk = i % Layout::kChunks, column = chunk * Layout::kElements;
    char* at = to + Layout::offset(row, chunk);
    const T* from = head + x.row * (first + row);
    const bool valid = first + row < end;
    if (x.chunks) {
      const bool inside = valid && column < dim;
      gpu::copy_chunk(at, inside ? from + column : head, inside);
    } else {
      gpu::shared_store(at, load_chunk(valid ? from : nullptr, column, dim, false));
    }
  }
}

}  // namespace deployml
